"""Hashes by kernel against Python's hashlib."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from edgetok.kernels_cpu.plan.launch import HASH_BYTES, HASH_COUNT, HASH_DATA, HASH_OUT
from edgetok.kernels_cpu.program.abi import INSTR_SLOTS

MODULES = ("plan.read",)


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 100_003])
def test_sha256(each_kernels, guard, size):
    data = guard(np.random.default_rng(size).integers(0, 256, size + 1).astype(np.uint8))
    out = guard(np.full(HASH_BYTES, 255, np.uint8))
    one = np.zeros(INSTR_SLOTS, np.int64)
    one[HASH_DATA], one[HASH_COUNT] = data.ctypes.data + 1, size
    one[HASH_OUT] = out.ctypes.data
    each_kernels.function("sha256")(one.ctypes.data, 0, 0, 1)
    assert out[:32].tobytes() == hashlib.sha256(data[1:].tobytes()).digest()
