"""Instruction sets that kernels are compiled for. No numba here: a warm start only needs names.

| name     | vectors  | integer dot product                     | needs                      |
|----------|----------|-----------------------------------------|----------------------------|
| avx512   | 64 bytes | vpdpbusd zmm                            | AVX-512 F BW VL DQ, VNNI   |
| avxvnni  | 32 bytes | vpdpbusd ymm                            | AVX2, F16C, FMA, AVX-VNNI  |
| avx2     | 32 bytes | vpmaddubsw in halves that cannot overflow | AVX2, F16C, FMA          |
| neon     | 16 bytes | sdot                                    | Armv8.2 with dotprod, fp16 |
| portable | 16 bytes | plain LLVM arithmetic                   | nothing                    |
"""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass

from edgetok.errors import OptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Isa:
    """One target: what LLVM may use and how wide a vector is."""

    name: str
    vector_bytes: int
    cpu: str
    features: str
    needs: frozenset[str]

    @property
    def lanes(self) -> int:
        """float32 or int32 lanes in a vector."""
        return self.vector_bytes // 4


_AVX2 = frozenset({"avx2", "f16c", "fma", "bmi2"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni"}

ISAS = {
    isa.name: isa
    for isa in (
        Isa(
            name="avx512",
            vector_bytes=64,
            cpu="x86-64-v4",
            features="+avx512vnni,-prefer-256-bit",
            needs=_AVX512,
        ),
        Isa(
            name="avxvnni",
            vector_bytes=32,
            cpu="x86-64-v3",
            features="+avxvnni",
            needs=_AVX2 | {"avxvnni"},
        ),
        Isa(name="avx2", vector_bytes=32, cpu="x86-64-v3", features="", needs=_AVX2),
        Isa(
            name="neon",
            vector_bytes=16,
            cpu="generic",
            features="+neon,+dotprod,+fullfp16",
            needs=frozenset({"neon", "dotprod", "fullfp16"}),
        ),
        Isa(name="portable", vector_bytes=16, cpu="", features="", needs=frozenset()),
    )
}


@functools.cache
def host_features() -> frozenset[str]:
    """Names of the CPU features that this machine has, as LLVM spells them."""
    from llvmlite import binding

    return frozenset(name for name, has in binding.get_host_cpu_features().items() if has)


@functools.cache
def host_isas() -> tuple[str, ...]:
    """Names of the instruction sets that run here, fastest first."""
    arm = platform.machine().lower() in ("aarch64", "arm64")
    have = host_features()
    return tuple(
        isa.name
        for isa in ISAS.values()
        if isa.needs <= have and (isa.name != "neon" or arm) and not (isa.needs and not have)
    )


def choose(name: str | None = None) -> Isa:
    """The instruction set called `name`, or the fastest one that this machine has.

    Raises:
        OptionError: the name is unknown, or this machine does not have it.
    """
    if name is None or name == "auto":
        return ISAS[host_isas()[0]]
    if name not in host_isas():
        raise OptionError(
            f"instruction set {name!r} is not available here; this machine runs: "
            + ", ".join(host_isas())
        )
    return ISAS[name]
