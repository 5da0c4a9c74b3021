"""Which instruction sets a machine runs, from what real machines say of themselves."""

from __future__ import annotations

import pytest

from edgetok.kernels_cpu.simd.host_cpu import arm_features, arm_features_of_bits
from edgetok.kernels_cpu.simd.isa import runnable, why_portable

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
    best = "neon" if expected >= DOT else "portable"
    assert runnable("aarch64", found)[0] == best
    assert (why_portable("aarch64", found) is None) == (best == "neon")


@pytest.mark.parametrize(
    "text", ["", "Features\t:\n", "flags : fpu sse2 asimdfoo\n", "hw.optional"]
)
def test_nothing_is_found_where_nothing_is_said(text):
    assert arm_features(text) == frozenset()


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
