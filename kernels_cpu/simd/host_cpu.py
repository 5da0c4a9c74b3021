"""The instruction sets of this machine's processor. No numba; LLVM only where nobody else knows.

The operating system is asked: Linux's auxiliary vector or /proc/cpuinfo, macOS's sysctl. So shipped
kernels need no llvmlite, and Arm processors are known that LLVM recognises by a part number alone,
without their `dotprod` and `fullfp16` (a Raspberry Pi 5, every Apple machine). On Windows, and on
x86 machines with macOS, LLVM is asked.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

# LLVM's names of the Arm features that kernels may need, by what Linux and macOS call them.
_LINUX_NAMES = {
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fullfp16",
    "i8mm": "i8mm",
    "bf16": "bf16",
}
# The same of x86: Linux's names in /proc/cpuinfo. It leaves out what it does not save for threads.
_X86_NAMES = {
    **{name: name for name in ("f16c", "fma", "bmi2", "avx2")},
    **{name: name for name in ("avx512f", "avx512bw", "avx512vl", "avx512dq")},
    "avx512_vnni": "avx512vnni",
    "avx_vnni": "avxvnni",
    "avx512_bf16": "avx512bf16",
    "amx_bf16": "amx-bf16",
}
_MACOS_NAMES = {
    "hw.optional.AdvSIMD": "neon",
    "hw.optional.arm.AdvSIMD": "neon",
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_FP16": "fullfp16",
    "hw.optional.neon_fp16": "fullfp16",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}
# Bits of AT_HWCAP and AT_HWCAP2: Linux, arch/arm64/include/uapi/asm/hwcap.h.
_HWCAP = {"asimd": 1, "asimdhp": 10, "asimddp": 20}
_HWCAP2 = {"i8mm": 13, "bf16": 14}
_AT_HWCAP, _AT_HWCAP2 = 16, 26


def host_arch() -> str:
    """This machine's architecture: "x86_64", "aarch64", or as the system calls it."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


@functools.cache
def host_features() -> frozenset[str]:
    """Names of the CPU features that this machine has, as LLVM spells them.

    None at all where nobody can be asked; then the portable kernels run.
    """
    return _asked_features() or _features_of_llvm()


def x86_features(lines: Iterable[str]) -> frozenset[str]:
    """Read LLVM's names of an x86 processor's features from lines of Linux's /proc/cpuinfo.

    Reads up to the first core's: Linux shows what all cores have.
    """
    for line in lines:
        name, _, flags = line.partition(":")
        if name.strip() == "flags":
            return frozenset(_X86_NAMES[flag] for flag in flags.split() if flag in _X86_NAMES)
    return frozenset()


def arm_features(text: str) -> frozenset[str]:
    """Read LLVM's names of an Arm processor's features from what its system prints.

    Args:
        text: /proc/cpuinfo of Linux, or the output of macOS's `sysctl hw.optional`.

    Returns:
        Those of `neon`, `dotprod`, `fullfp16`, `i8mm` and `bf16` that all cores have.
    """
    cores = [
        frozenset(_LINUX_NAMES[word] for word in line.split() if word in _LINUX_NAMES)
        for line in re.findall(r"(?mi)^features\s*:(.*)$", text)
    ]
    if cores:
        return frozenset.intersection(*cores)
    set_ = re.findall(r"(?m)^(hw\.optional\.\S+?)\s*[:=]\s*1\s*$", text)
    return frozenset(_MACOS_NAMES[name] for name in set_ if name in _MACOS_NAMES)


def arm_features_of_bits(hwcap: int, hwcap2: int) -> frozenset[str]:
    """The same from the two words of Linux's auxiliary vector."""
    names = [name for name, bit in _HWCAP.items() if hwcap >> bit & 1]
    names += [name for name, bit in _HWCAP2.items() if hwcap2 >> bit & 1]
    return frozenset(_LINUX_NAMES[name] for name in names)


def _asked_features() -> frozenset[str]:
    """Return the features that the operating system names; none where it cannot be asked."""
    if host_arch() == "x86_64":
        try:
            with open("/proc/cpuinfo") as file:
                return x86_features(file)
        except OSError:
            return frozenset()
    return _asked_arm_features() if host_arch() == "aarch64" else frozenset()


def _features_of_llvm() -> frozenset[str]:
    try:
        from llvmlite import binding
    except ImportError:
        return frozenset()
    return frozenset(name for name, has in binding.get_host_cpu_features().items() if has)


def _asked_arm_features() -> frozenset[str]:
    """Return those of an Arm processor; likewise."""
    if sys.platform == "darwin":
        try:
            done = subprocess.run(
                ["/usr/sbin/sysctl", "hw.optional"], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return frozenset()
        return arm_features(done.stdout)
    try:
        ask = ctypes.CDLL(None).getauxval
    except (OSError, AttributeError, TypeError):
        try:
            return arm_features(Path("/proc/cpuinfo").read_text())
        except OSError:
            return frozenset()
    ask.restype, ask.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return arm_features_of_bits(ask(_AT_HWCAP), ask(_AT_HWCAP2))
