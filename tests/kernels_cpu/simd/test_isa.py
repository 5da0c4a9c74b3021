"""Which instruction sets a machine runs, from what real machines say of themselves."""

from __future__ import annotations

import sys

import pytest

from edgetok.kernels_cpu.simd import host_cpu
from edgetok.kernels_cpu.simd.host_cpu import (
    arm_features,
    arm_features_of_bits,
    host_features,
    x86_features,
)
from edgetok.kernels_cpu.simd.isa import ISAS, runnable, why_portable

PI_4 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU part\t: 0xd08

processor\t: 1
Features\t: fp asimd evtstrm crc32 cpuid
CPU part\t: 0xd08
"""
PI_5 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd0b
"""  # noqa: E501
GRAVITON_2 = (
    "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm "
    "lrcpc dcpop asimddp ssbs\n"
)
GRAVITON_3 = (
    "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm "
    "jscvt fcma lrcpc dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs "
    "paca pacg dcpodp svei8mm svebf16 i8mm bf16 dgh rng\n"
)
# A phone's cores differ; a program may land on any of them.
SNAPDRAGON_845_AND_A53 = (
    "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm "
    "lrcpc dcpop asimddp\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid\n"
)
SNAPDRAGON_8_GEN_1 = (
    "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm "
    "jscvt fcma lrcpc dcpop sha3 sm3 sm4 asimddp sha512 asimdfhm dit uscat ilrcpc flagm ssbs sb "
    "paca pacg dcpodp flagm2 frint i8mm bf16 bti\n"
) * 2
M1 = """hw.optional.arm.FEAT_FlagM: 1
hw.optional.arm.FEAT_FHM: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_BF16: 0
hw.optional.arm.FEAT_I8MM: 0
hw.optional.arm.FEAT_FP16: 1
hw.optional.arm.AdvSIMD: 1
hw.optional.floatingpoint: 1
hw.optional.neon: 1
hw.optional.AdvSIMD: 1
hw.optional.neon_fp16: 1
"""
M2 = M1.replace("FEAT_BF16: 0", "FEAT_BF16: 1").replace("FEAT_I8MM: 0", "FEAT_I8MM: 1")
# Flags as Linux shows them, shortened to what is near the names that are looked for.
SANDY_BRIDGE = "flags\t\t: fpu sse4_2 popcnt aes xsave avx lahf_lm ssbd\n"
ZEN_2 = "model name\t: AMD EPYC 7R32\nflags\t\t: fpu fma avx f16c bmi1 avx2 bmi2 adx\nbugs\t\t: x\n"
SKYLAKE_X = (
    "flags\t\t: fpu fma f16c avx bmi1 avx2 bmi2 avx512f avx512dq avx512cd avx512bw avx512vl pku\n"
)
ICE_LAKE = SKYLAKE_X.replace(" pku", " avx512vbmi avx512_vbmi2 avx512_vnni avx512_bitalg")
ALDER_LAKE = "flags\t\t: fpu fma f16c avx bmi1 avx2 bmi2 avx_vnni vaes\n" * 2
SAPPHIRE_RAPIDS = ICE_LAKE.replace("\n", " avx_vnni avx512_bf16 amx_bf16 amx_tile amx_int8\n")
X86_MACHINES = {
    "Sandy Bridge": (SANDY_BRIDGE, "portable"),
    "Zen 2": (ZEN_2, "avx2"),
    "Skylake X": (SKYLAKE_X, "avx2"),
    "Ice Lake": (ICE_LAKE, "avx512"),
    "Alder Lake": (ALDER_LAKE, "avxvnni"),
    "Sapphire Rapids": (SAPPHIRE_RAPIDS, "avx512"),
}
DOT = {"neon", "dotprod", "fullfp16"}
MACHINES = {
    "Raspberry Pi 4": (PI_4, {"neon"}),
    "Raspberry Pi 5": (PI_5, DOT),
    "Graviton 2": (GRAVITON_2, DOT),
    "Graviton 3": (GRAVITON_3, DOT | {"i8mm", "bf16"}),
    "Snapdragon 845 beside older cores": (SNAPDRAGON_845_AND_A53, {"neon"}),
    "Snapdragon 8 Gen 1": (SNAPDRAGON_8_GEN_1, DOT | {"i8mm", "bf16"}),
    "Apple M1": (M1, DOT),
    "Apple M2": (M2, DOT | {"i8mm", "bf16"}),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_arm_machines(machine):
    text, expected = MACHINES[machine]
    found = arm_features(text)
    assert found == expected
    sets = ["neon", "portable"] if expected >= DOT else ["portable"]
    if "i8mm" in expected:
        sets = ["i8mm", *sets]
    assert list(runnable("aarch64", found)) == sets
    assert (why_portable("aarch64", found) is None) == (len(sets) > 1)


@pytest.mark.parametrize("machine", X86_MACHINES)
def test_x86_machines(machine):
    text, best = X86_MACHINES[machine]
    found = x86_features(text.splitlines(keepends=True))
    assert runnable("x86_64", found)[0] == best
    assert {"avx512bf16", "amx-bf16"} <= found or machine != "Sapphire Rapids"


def test_this_machine_has_what_llvm_says():
    binding = pytest.importorskip("llvmlite.binding")
    said = {name for name, has in binding.get_host_cpu_features().items() if has}
    needed = frozenset().union(*(isa.needs for isa in ISAS.values()))
    if host_cpu.host_arch() == "aarch64":
        pytest.skip("LLVM does not know all Arm processors")
    assert host_features() & needed == said & needed


def test_where_nobody_can_be_asked(monkeypatch):
    """No /proc/cpuinfo and no llvmlite: the portable kernels, and the user is told."""
    monkeypatch.setattr(host_cpu, "_asked_features", frozenset)
    assert host_features.__wrapped__() == host_cpu._features_of_llvm()
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    assert host_features.__wrapped__() == frozenset()


@pytest.mark.parametrize(
    "text", ["", "Features\t:\n", "flags : fpu sse2 asimdfoo\n", "hw.optional"]
)
def test_nothing_is_found_where_nothing_is_said(text):
    assert arm_features(text) == frozenset()
    assert x86_features(["Features\t: avx2 fma\n", "no flags\n", text]) == frozenset()


def test_auxiliary_vector():
    """A Raspberry Pi 5's and a Graviton 3's AT_HWCAP and AT_HWCAP2, bit by bit from hwcap.h."""
    pi = sum(1 << bit for bit in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 16, 20))
    assert arm_features_of_bits(pi, 0) == DOT
    assert arm_features_of_bits(pi, 1 << 13 | 1 << 14) == DOT | {"i8mm", "bf16"}
    assert arm_features_of_bits(0b11, 0) == {"neon"}
    assert arm_features_of_bits(0, 0) == frozenset()


def test_what_the_user_is_told():
    told = why_portable("aarch64", frozenset({"neon"}))
    assert told is not None
    assert "half as fast as neon" in told
    assert "dotprod, fullfp16" in told
    assert why_portable("x86_64", frozenset({"avx2", "f16c", "fma", "bmi2"})) is None
    assert "avx2" in (why_portable("x86_64", frozenset()) or "")
    assert "there are none for riscv64" in (why_portable("riscv64", frozenset()) or "")
