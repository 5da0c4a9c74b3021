"""A quantised GGUF file as a float32 one, for measurements that need an original.

The weights of a quantised file lie on its grid, which favours formats and steps that find that grid
again. With noise they do not: to each weight is added a uniform random number between -noise / 2
and noise / 2 steps of the group that it lies in.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import gguf
import numpy as np

from edgetok.converter.read.gguf_codes import KINDS, read_codes

_SEED = 15
_ROWS = 4096


def write_original(source: Path, out: Path, noise: float, peer_python: str) -> None:
    """Write a GGUF file with every tensor in float32.

    Args:
        source: a GGUF file.
        out: what llama.cpp's dequantisation gives, plus noise; left alone if it is there.
        noise: width of the noise in steps of each group; 0: none.
        peer_python: interpreter of the environment with llama-cpp-python.
    """
    if out.exists():
        return
    aside = out.with_suffix(".partial")
    script = Path(__file__).parents[1] / "peers" / "peer_imatrix.py"
    command = [peer_python, str(script), "float32", str(source), str(aside)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    if noise:
        _add_noise(source, aside, noise)
    os.replace(aside, out)


def _add_noise(source: Path, floats: Path, noise: float) -> None:
    draw = np.random.default_rng(_SEED)
    plain = {tensor.name: tensor for tensor in gguf.GGUFReader(floats, "r+").tensors}
    for tensor in gguf.GGUFReader(source).tensors:
        kind = tensor.tensor_type.name
        if kind not in KINDS:
            continue
        weights = plain[tensor.name].data
        _, block_bytes = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
        for first in range(0, len(weights), _ROWS):
            rows = slice(first, first + _ROWS)
            blocks = tensor.data[rows].reshape(len(weights[rows]), -1, block_bytes)
            codes = read_codes(kind, blocks)
            step = np.repeat(codes.steps(), codes.group_size, axis=1)
            step *= draw.uniform(-noise / 2, noise / 2, step.shape).astype(np.float32)
            weights[rows] += step
        weights.flush()
