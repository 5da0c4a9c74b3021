import numpy as np
import pytest
import torch

from edgetok.converter.quantise import gptq
from edgetok.converter.quantise import round_to_nearest as rtn
from edgetok.converter.quantise.coordinate_descent import descend
from edgetok.converter.quantised import Quantised
from tests.converter.quantise.test_gptq import layer


def problem(bits, symmetric, inputs=84, outputs=12):
    weight, x = layer(outputs, inputs, seed=bits)
    hessian = 2 * x.T @ x / len(x)
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(inputs)
    inverse = gptq.invert(torch.from_numpy(hessian.copy()), 32, damping=1e-9, order="group_aware")
    start = gptq.quantise(torch.from_numpy(weight), inverse, bits, 32, symmetric=symmetric)
    return weight, hessian, start


def losses(result, weight, hessian):
    difference = result.dequantise().astype(np.float64) - weight
    return ((difference @ hessian) * difference).sum(1)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_output_errs_less_and_no_single_step_is_left(bits, symmetric):
    weight, hessian, start = problem(bits, symmetric)
    before = losses(start, weight, hessian)
    result = descend(torch.from_numpy(weight), torch.from_numpy(hessian), start, sweeps=1)
    once = losses(result, weight, hessian)
    assert (once <= before * (1 + 1e-9)).all()
    assert once.sum() < 0.97 * before.sum()
    settled = descend(torch.from_numpy(weight), torch.from_numpy(hessian), start, sweeps=60)
    least = losses(settled, weight, hessian)
    assert (least <= once * (1 + 1e-9)).all()
    # By trying all: no code moved by one, alone, gives less.
    for row in range(0, 12, 5):
        for column in range(0, 84, 7):
            for step in (-1, 1):
                codes = settled.codes.copy()
                code = int(codes[row, column]) + step
                if not 0 <= code < 2**bits:
                    continue
                codes[row, column] = code
                moved = Quantised(codes, settled.scales, settled.zeros, bits, 32)
                assert losses(moved, weight, hessian)[row] >= least[row] * (1 - 1e-9)


def test_scales_are_the_least_squares_ones():
    """One group, codes that have settled: the scale is what float64 algebra gives."""
    weight, hessian, start = problem(3, False, inputs=32)
    result = descend(torch.from_numpy(weight), torch.from_numpy(hessian), start, sweeps=60)
    values = result.codes.astype(np.float64) - result.zeros.astype(np.float64)
    expected = ((values @ hessian) * weight).sum(1) / ((values @ hessian) * values).sum(1)
    np.testing.assert_allclose(result.scales[:, 0].astype(np.float64), expected, rtol=1.5e-3)


def test_float32_agrees_with_float64():
    weight, hessian, start = problem(2, False, outputs=600)
    exact = descend(torch.from_numpy(weight), torch.from_numpy(hessian), start, sweeps=2)
    single = [torch.from_numpy(a.astype(np.float32)) for a in (weight, hessian)]
    result = descend(*single, start, sweeps=2)
    ratio = losses(result, weight, hessian).sum() / losses(exact, weight, hessian).sum()
    assert ratio == pytest.approx(1, rel=2e-3)


def test_zero_weights_stay_zero():
    weight = np.zeros((3, 40), np.float32)
    start = rtn.quantise(weight, 4, 32)
    result = descend(torch.from_numpy(weight), torch.eye(40), start, sweeps=2)
    assert not result.dequantise().any()
