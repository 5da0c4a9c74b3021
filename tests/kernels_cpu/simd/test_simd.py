"""SIMD operations against NumPy, on every instruction set of this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgetok.errors import OptionError
from edgetok.kernels_cpu.simd import isa


@pytest.mark.parametrize("name", isa.host_isas())
def test_operations(name):
    script = Path(__file__).with_name("simd_checks.py")
    done = subprocess.run(
        [sys.executable, str(script), name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[-1] == "rounding"


def test_choice():
    assert isa.choose().name == isa.host_isas()[0]
    assert isa.choose("portable").vector_bytes == 16
    with pytest.raises(OptionError, match="'avx9' is not available here"):
        isa.choose("avx9")


def test_narrower_machines():
    everything = isa.ISAS["avx512"].needs
    assert isa.runnable("x86_64", everything)[0] == "avx512"
    for missing, best in (("avx512vnni", "avx2"), ("fma", "portable")):
        assert isa.runnable("x86_64", everything - {missing})[0] == best
