"""Which instruction set the build in this process is for; read once, when `simd` is imported."""

from __future__ import annotations

from edgetok.kernels_cpu.simd.isa import ISAS, Isa

_selected: list[str] = []


def select(name: str) -> None:
    """Choose the instruction set, before `simd` is imported."""
    if _selected and _selected[0] != name:
        raise RuntimeError(f"this process already builds for {_selected[0]}, not for {name}")
    _selected[:] = [name]


def isa_of_this_build() -> Isa:
    """The chosen instruction set; the portable one where nobody chose."""
    return ISAS[_selected[0] if _selected else "portable"]
