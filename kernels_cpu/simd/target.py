"""The target of a compilation: an instruction set and an operating system. No numba here.

| os      | object file | architectures    | instruction sets                          |
|---------|-------------|------------------|-------------------------------------------|
| linux   | ELF         | x86_64, aarch64  | those of the architecture, portable       |
| macos   | Mach-O      | aarch64, x86_64  | likewise                                  |
| ios     | Mach-O      | aarch64          | likewise                                  |
| windows | COFF        | x86_64, aarch64  | likewise                                  |
| wasm    | wasm        | wasm32           | portable, its vectors being SIMD128       |

On aarch64 the portable kernels use NEON as every such processor has it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from edgetok.errors import OptionError
from edgetok.kernels_cpu.simd.host_cpu import host_arch
from edgetok.kernels_cpu.simd.isa import ISAS, Isa

_TRIPLES = {
    ("linux", "x86_64"): "x86_64-unknown-linux-gnu",
    ("linux", "aarch64"): "aarch64-unknown-linux-gnu",
    ("macos", "x86_64"): "x86_64-apple-macosx11.0.0",
    ("macos", "aarch64"): "arm64-apple-macosx11.0.0",
    ("ios", "aarch64"): "arm64-apple-ios14.0.0",
    ("windows", "x86_64"): "x86_64-pc-windows-msvc",
    ("windows", "aarch64"): "aarch64-pc-windows-msvc",
    ("wasm", "wasm32"): "wasm32-unknown-unknown",
}
_PLAIN_CPU = {"x86_64": "x86-64", "aarch64": "generic", "wasm32": "generic"}


@dataclass(frozen=True, slots=True)
class Target:
    """One machine that kernels are compiled for.

    Attributes:
        isa: the instruction set.
        os: "linux", "macos", "ios", "windows" or "wasm".
        arch: "x86_64", "aarch64" or "wasm32"; empty takes that of the instruction set.
    """

    isa: Isa
    os: str
    arch: str = ""

    def __post_init__(self) -> None:
        """Complete the architecture.

        Raises:
            OptionError: the three do not go together.
        """
        arch = self.arch or ("wasm32" if self.os == "wasm" else self.isa.arch)
        if (self.os, arch) not in _TRIPLES or self.isa.arch not in ("", arch):
            known = ", ".join("-".join(reversed(pair)) for pair in _TRIPLES)
            raise OptionError(
                f"no kernels for {self.isa.name} on {arch or 'any processor'} and {self.os}; "
                f"machines are {known}"
            )
        object.__setattr__(self, "arch", arch)

    @classmethod
    def parse(cls, name: str) -> Target:
        """The target of a `name`.

        Raises:
            OptionError: there is no such target.
        """
        arch, _, rest = name.partition("-")
        os, _, isa = rest.partition("-")
        if isa not in ISAS:
            raise OptionError(f"target {name!r}, expected one such as x86_64-linux-avx2")
        return cls(ISAS[isa], os, arch)

    @classmethod
    def here(cls, isa: Isa) -> Target:
        """This machine with one of its instruction sets.

        Raises:
            OptionError: no kernels can be compiled for this machine.
        """
        return cls(isa, _host_os(), host_arch())

    @property
    def name(self) -> str:
        """Architecture, operating system and instruction set: "x86_64-linux-avx2"."""
        return f"{self.arch}-{self.os}-{self.isa.name}"

    @property
    def triple(self) -> str:
        """LLVM's name of the machine."""
        return _TRIPLES[self.os, self.arch]

    @property
    def cpu(self) -> str:
        """LLVM's name of the processor."""
        return self.isa.cpu or _PLAIN_CPU[self.arch]

    @property
    def features(self) -> str:
        """Return the features that LLVM may use beyond the processor's."""
        return "+simd128" if self.arch == "wasm32" else self.isa.features


def _host_os() -> str:
    """This machine's operating system; others than the three run Linux's objects, being ELF."""
    return {"darwin": "macos", "win32": "windows"}.get(sys.platform, "linux")


_selected: list[Target] = []


def select(target: Target) -> None:
    """Choose what the build in this process is for, before `simd.emit` is imported.

    Raises:
        RuntimeError: another instruction set or architecture was chosen before.
    """
    before = _selected[0] if _selected else target
    if (before.isa, before.arch) != (target.isa, target.arch):
        raise RuntimeError(f"this process already builds for {before.name}, not for {target.name}")
    _selected[:] = [target]


def target_of_this_build() -> Target:
    """Return the selected target, or this machine's portable instruction set."""
    return _selected[0] if _selected else Target.here(ISAS["portable"])
