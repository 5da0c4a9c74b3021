"""A token's product has the same bits whatever is computed beside it, and wherever.

Against the token alone and against one thread, bit for bit; against the NumPy truth where the other
tests do not go (long rows). Instruction sets that this machine lacks are compiled to code that it
can run (`emulated_isa.py`).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgetok.kernels_cpu.linear.operands import LinearWeight
from edgetok.kernels_cpu.program import loader
from edgetok.kernels_cpu.program.memory import Span
from edgetok.kernels_cpu.simd.isa import ISAS, host_isas
from edgetok.kernels_cpu.simd.target import Target
from tests.kernels_cpu.linear.test_matmul import Linear, _float, _int8

MODULES = (
    "linear.quantise_activations",
    "linear.q2",
    "linear.q3",
    "linear.q4",
    "linear.q8",
    "linear.float_rows",
    "linear.exact",
)
# Every way of cutting tokens into register tiles, and more than meet weights piece by piece.
TOKENS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 33, 65, 256]
SHAPES = [(37, 352), (65, 640), (9, 4352), (3, 20736)]


def _alone(product, y):
    """Check that each token's result is that of the token alone."""
    tokens = sorted({0, 1, len(y) // 2, len(y) - 1} & set(range(len(y))))
    for t in tokens:
        np.testing.assert_array_equal(product(slice(t, t + 1))[0], y[t])


def _x(rng, K):
    """Tokens of very different sizes: what leaks from one into another shows."""
    x = rng.standard_normal((max(TOKENS), K)) * 10.0 ** rng.integers(-3, 4, (max(TOKENS), 1))
    x[1, : K // 2] = 0
    return x.astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
@pytest.mark.parametrize("zeros", [False, True], ids=["middle", "zeros"])
def test_int8_company(each_kernels, guard, run, bits, group_size, zeros):
    rng = np.random.default_rng(bits * group_size + zeros)
    for N, K in SHAPES:
        layer = Linear(rng, bits, group_size, zeros, N, K)
        weight, _kept = layer.weight(guard, bias=N % 2 == 1)
        x = _x(rng, K)

        def product(part, threads=1, weight=weight, x=x):
            return _int8(run, each_kernels, weight, x[part], guard, threads)

        all_tokens, block = product(slice(None))
        few = x[:2]
        truth = layer.truth(few, block) + (layer.bias if weight.bias else 0)
        error = np.abs(all_tokens[:2] - truth) / (layer.magnitude(few) + np.abs(truth))
        assert error.max() < 1e-6, (N, K)
        _alone(lambda part: product(part)[0], all_tokens)
        for tokens in TOKENS[1:-1]:
            y, _ = product(slice(tokens), threads=1 + tokens % 3)
            np.testing.assert_array_equal(y, all_tokens[:tokens])


@pytest.mark.parametrize("bits", [16, 32])
def test_float_company(each_kernels, guard, run, bits):
    rng = np.random.default_rng(bits)
    for N, K in [(1, 1), (37, 351), (65, 640), (9, 4352)]:
        stored = guard(rng.standard_normal((N, K)).astype(f"float{bits}"))
        bias = guard(rng.standard_normal(N).astype(np.float32))
        weight = LinearWeight(
            name="test", bits=bits, N=N, K=K, weight=Span.of(stored), bias=Span.of(bias)
        )
        _check_floats(run, each_kernels, weight, _x(rng, K), guard)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zeros", [False, True], ids=["middle", "zeros"])
def test_exact_company(each_kernels, guard, run, bits, zeros):
    rng = np.random.default_rng(bits)
    for (N, K), group_size in zip(SHAPES[:3], (32, 128, 256), strict=True):
        weight, _kept = Linear(rng, bits, group_size, zeros, N, K).weight(guard)
        _check_floats(run, each_kernels, weight, _x(rng, K), guard)


def _check_floats(run, kernels, weight, x, guard):
    def product(part, threads=1):
        return _float(run, kernels, weight, guard(x[part]), guard, threads)

    all_tokens = product(slice(None))
    assert np.isfinite(all_tokens).all()
    _alone(product, all_tokens)
    for tokens in TOKENS[1:-1]:
        y = product(slice(tokens), threads=1 + tokens % 3)
        np.testing.assert_array_equal(y, all_tokens[:tokens])


def _emulated(name: str, cache: Path) -> loader.Kernels:
    """Kernels of an instruction set that is not here, as code for this machine."""
    folder = cache / "emulated"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = Target.here(ISAS[name])
    paths = {module: loader.object_path(target, module, folder) for module in MODULES}
    missing = [f"{module} {path}\n" for module, path in paths.items() if not path.exists()]
    if missing:
        script = Path(__file__).with_name("emulated_isa.py")
        subprocess.run(
            [sys.executable, script, name], input="".join(missing), text=True, check=True
        )
    return loader.load(ISAS[name], folder, modules=MODULES)


@pytest.mark.skipif("avx2" not in host_isas(), reason="needs AVX2 to run or to emulate it")
@pytest.mark.parametrize("name", ["avx512"])
def test_instruction_sets_agree(kernel_cache, guard, run, name):
    """Wider vectors change which lanes meet, never what a token's result is."""
    first = loader.load(ISAS["avx2"], kernel_cache, modules=MODULES)
    here = name in host_isas()
    if here:
        second = loader.load(ISAS[name], kernel_cache, modules=MODULES)
    else:
        second = _emulated(name, kernel_cache)
    for bits in (2, 3, 4, 8):
        for group_size in (32, 64, 128, 256):
            rng = np.random.default_rng(bits)
            for (N, K), zeros in zip(SHAPES, (False, True, True, False), strict=True):
                layer = Linear(rng, bits, group_size, zeros, N, K)
                weight, _kept = layer.weight(guard, bias=zeros)
                x = _x(rng, K)
                for tokens in (1, 2, 3, 5, 33):
                    one, two = (
                        _int8(run, k, weight, x[:tokens], guard)[0] for k in (first, second)
                    )
                    np.testing.assert_array_equal(one, two)
                one, two = (_float(run, k, weight, guard(x[:5]), guard) for k in (first, second))
                np.testing.assert_array_equal(one, two)
    for bits in (16, 32):
        stored = guard(rng.standard_normal((45, 700)).astype(f"float{bits}"))
        weight = LinearWeight(name="test", bits=bits, N=45, K=700, weight=Span.of(stored))
        x = guard(_x(rng, 700)[:9])
        one, two = (_float(run, k, weight, x, guard) for k in (first, second))
        np.testing.assert_array_equal(one, two)
