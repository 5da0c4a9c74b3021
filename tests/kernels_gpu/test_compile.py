"""Every kernel compiles for NVIDIA and AMD, on a machine that has neither."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs the extra edgetok[gpu]")

KERNELS = (
    "_rows",
    "_tiles",
    "_embed",
    "_to_half",
    "_rms_norm",
    "_gated",
    "_rope_append",
    "_attention",
    "_attention_merge",
    "_attention_mass",
    "_candidates",
    "_draw",
)


@pytest.mark.parametrize("target", ["cuda:80", "hip:gfx942"])
def test_compiles(target, tmp_path):
    """In a process of its own, since Triton reads its variable as it is imported."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    script = Path(__file__).with_name("compile_all.py")
    done = subprocess.run(
        [sys.executable, str(script), target, "--few"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    backend = target.partition(":")[0]
    for kernel in KERNELS:
        assert f"compiled {kernel} {backend}" in done.stdout
