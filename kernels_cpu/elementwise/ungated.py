"""Activations without a gate, in place.

    silu, gelu, gelu_tanh: as in `activation.py`
    relu2: x = max(x, 0)^2 (arXiv 2109.08668)

Elements are shared out in runs of whole cache lines. Slots: `launch_ungated.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgetok.kernels_cpu.elementwise.launch_ungated import UNGATED_SIZE, UNGATED_X
from edgetok.kernels_cpu.elementwise.norm import share_of_runs
from edgetok.kernels_cpu.program.abi import CTX_TOKENS, kernel
from edgetok.kernels_cpu.simd import math as vmath
from edgetok.kernels_cpu.simd.emit import LANES, inline
from edgetok.kernels_cpu.simd.memory import load_f32_first, read_i64, store_f32_first


def _each(activation: Callable[[Any], Any]) -> Any:
    @inline
    def each(instr, ctx, tid, threads):  # type: ignore[no-untyped-def]
        x = read_i64(instr + 8 * UNGATED_X)
        count = read_i64(ctx + 8 * CTX_TOKENS) * read_i64(instr + 8 * UNGATED_SIZE)
        end = share_of_runs(count, tid + 1, threads)
        i = share_of_runs(count, tid, threads)
        while i < end:
            rest = min(LANES, end - i)
            store_f32_first(x + 4 * i, activation(load_f32_first(x + 4 * i, rest)), rest)
            i += LANES

    return each


_silu = _each(vmath.silu)
_gelu = _each(vmath.gelu)
_gelu_tanh = _each(vmath.gelu_tanh)
_relu2 = _each(vmath.relu2)


@kernel
def silu(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Apply SiLU."""
    _silu(instr, ctx, tid, threads)


@kernel
def gelu(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Apply GELU with the error function."""
    _gelu(instr, ctx, tid, threads)


@kernel
def gelu_tanh(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Apply GELU with its tanh approximation."""
    _gelu_tanh(instr, ctx, tid, threads)


@kernel
def relu2(instr: int, ctx: int, tid: int, threads: int) -> None:
    """Apply max(x, 0)^2."""
    _relu2(instr, ctx, tid, threads)
