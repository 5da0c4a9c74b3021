"""Every kernel compiles for NVIDIA and AMD, on a machine that has neither."""

from __future__ import annotations

import ast
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
    "_read_slots",
    "_write_slots",
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


# What one maker's GPUs have and others have not, or have under another name.
OF_ONE_MAKER = {"cuda", "hip", "nvidia", "amd", "inline_asm_elementwise", "libdevice", "extra"}


def names(path):
    """Attributes that a file uses and parts of what it imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
            yield from (alias.name for alias in node.names)


def test_one_file_alone_knows_a_maker(repository):
    knows = {
        path.relative_to(repository).as_posix()
        for folder in ("kernels_gpu", "edgetok")
        for path in (repository / folder).rglob("*.py")
        if OF_ONE_MAKER & set(names(path))
    }
    assert knows == {"kernels_gpu/device.py"}
