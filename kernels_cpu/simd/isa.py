"""Instruction sets that kernels are compiled for. No numba here: a warm start only needs names.

| name     | vectors  | integer dot product                     | needs                      |
|----------|----------|-----------------------------------------|----------------------------|
| avx512   | 64 bytes | vpdpbusd zmm                            | AVX-512 F BW VL DQ, VNNI   |
| avxvnni  | 32 bytes | vpdpbusd ymm                            | AVX2, F16C, FMA, AVX-VNNI  |
| avx2     | 32 bytes | vpmaddubsw in halves that cannot overflow | AVX2, F16C, FMA          |
| i8mm     | 16 bytes | usmmla in tiles, usdot or sdot elsewhere | as neon, and i8mm         |
| neon     | 16 bytes | sdot                                    | Armv8.2 with dotprod, fp16 |
| portable | 16 bytes | plain LLVM arithmetic                   | nothing                    |
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from edgetok.errors import OptionError
from edgetok.kernels_cpu.simd.host_cpu import host_arch, host_features


@dataclass(frozen=True, slots=True, kw_only=True)
class Isa:
    """One instruction set: what LLVM may use and how wide a vector is.

    Attributes:
        name: part of file names and symbols.
        arch: "x86_64" or "aarch64"; empty for the one that every processor runs.
        vector_bytes: bytes of a vector.
        cpu: LLVM's name of the processor; empty for the plainest one.
        features: what LLVM may use beyond that processor's.
        needs: features that a machine must have to run it, as LLVM spells them.
        extends: name of the set whose operations kernels use, beside its own; may be empty.
    """

    name: str
    arch: str
    vector_bytes: int
    cpu: str
    features: str
    needs: frozenset[str]
    extends: str = ""

    @property
    def lanes(self) -> int:
        """float32 or int32 lanes in a vector."""
        return self.vector_bytes // 4

    @property
    def matrices(self) -> bool:
        """Whether it multiplies matrices of bytes, 2 x 8 by 8 x 2, in one instruction."""
        return "i8mm" in self.needs


_AVX2 = frozenset({"avx2", "f16c", "fma", "bmi2"})
_NEON = frozenset({"neon", "dotprod", "fullfp16"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni"}

ISAS = {
    isa.name: isa
    for isa in (
        Isa(
            name="avx512",
            arch="x86_64",
            vector_bytes=64,
            cpu="x86-64-v4",
            features="+avx512vnni,-prefer-256-bit",
            needs=_AVX512,
        ),
        Isa(
            name="avxvnni",
            arch="x86_64",
            vector_bytes=32,
            cpu="x86-64-v3",
            features="+avxvnni",
            needs=_AVX2 | {"avxvnni"},
        ),
        Isa(
            name="avx2",
            arch="x86_64",
            vector_bytes=32,
            cpu="x86-64-v3",
            features="",
            needs=_AVX2,
        ),
        Isa(
            name="i8mm",
            arch="aarch64",
            vector_bytes=16,
            cpu="generic",
            features="+neon,+dotprod,+fullfp16,+i8mm",
            needs=_NEON | {"i8mm"},
            extends="neon",
        ),
        Isa(
            name="neon",
            arch="aarch64",
            vector_bytes=16,
            cpu="generic",
            features="+neon,+dotprod,+fullfp16",
            needs=_NEON,
        ),
        Isa(name="portable", arch="", vector_bytes=16, cpu="", features="", needs=frozenset()),
    )
}


@functools.cache
def host_isas() -> tuple[str, ...]:
    """Names of the instruction sets that run here, fastest first."""
    return runnable(host_arch(), host_features())


def runnable(arch: str, features: frozenset[str]) -> tuple[str, ...]:
    """Names of the instruction sets that such a machine runs, fastest first."""
    return tuple(
        isa.name for isa in ISAS.values() if isa.arch in ("", arch) and isa.needs <= features
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


def why_portable(arch: str | None = None, features: frozenset[str] | None = None) -> str | None:
    """A line for the user where a machine runs no kernels but the portable ones; else None.

    Args:
        arch: as `host_arch` says; None for this machine.
        features: as `host_features` says, likewise.
    """
    arch = host_arch() if arch is None else arch
    features = host_features() if features is None else features
    if runnable(arch, features) != ("portable",):
        return None
    faster = [isa for isa in ISAS.values() if isa.arch == arch]
    if not faster:
        return f"portable kernels, slower than others: there are none for {arch} processors"
    least = min(faster, key=lambda isa: len(isa.needs - features))
    lacking = ", ".join(sorted(least.needs - features))
    return (
        f"portable kernels, half as fast as {least.name}: this processor was not found to have "
        f"{lacking}"
    )
