"""Rounding to a table of levels, against NumPy that tries everything."""

import numpy as np
import pytest
import torch

from edgetok.converter.quantise import gptq, level_table
from edgetok.converter.quantise import round_to_nearest as rtn
from edgetok.converter.quantise.coordinate_descent import descend
from edgetok.converter.quantise.level_table import LEVELS
from edgetok.converter.quantised import Quantised
from edgetok.formats.layout import TensorFormat
from tests.converter.quantise.test_gptq import layer

FORM = TensorFormat(4, 32, table=True)


def test_levels_are_those_of_the_gguf_package():
    from gguf.quants import IQ4_NL

    assert tuple(LEVELS.tolist()) == tuple(IQ4_NL.kvalues)


def nearest_levels(group, scale):
    """[n, g] values of the nearest levels at scales [n], by trying all 16."""
    values = LEVELS.astype(np.float64) * scale.astype(np.float64)[:, None]
    at = np.abs(values[:, None, :] - group[:, :, None]).argmin(2)
    return np.take_along_axis(values, at, 1)


@pytest.mark.parametrize("thorough", [False, True])
def test_each_weight_gets_the_nearest_level(thorough):
    weight = np.random.default_rng(0).standard_t(5, (300, 96)).astype(np.float32)
    result = level_table.quantise(weight, 32, thorough=thorough)
    assert result.form == FORM
    for g in range(3):
        group = weight[:, 32 * g : 32 * g + 32]
        expected = nearest_levels(group, result.scales[:, g])
        difference = np.abs(result.dequantise()[:, 32 * g : 32 * g + 32] - group)
        np.testing.assert_allclose(difference, np.abs(expected - group), atol=1e-5)


def test_search_comes_near_the_best_scale_of_all():
    """Importance counts, scales may be negative, and no scale of a fine grid is much better."""
    rng = np.random.default_rng(1)
    group, importance = rng.normal(0, 1, (64, 32)), rng.lognormal(0, 1, 32)
    table = level_table.LevelTable(LEVELS, np.float64)
    scale, _ = table.search(group, importance, thorough=True)
    assert (scale < 0).any()
    assert (scale > 0).any()
    loss = (importance * (nearest_levels(group, scale) - group) ** 2).sum(1)
    best = np.full(64, np.inf)
    for share in np.linspace(0.5, 1.3, 400):
        for sign in (1, -1):
            tried = sign * share * np.abs(group).max(1) / 120
            best = np.minimum(
                best, (importance * (nearest_levels(group, tried) - group) ** 2).sum(1)
            )
    assert loss.sum() < 1.03 * best.sum()


def test_gptq_and_descent_lower_the_error_of_outputs():
    weight, x = layer(300, 96)
    hessian = 2 * x.T @ x / len(x)
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(96)

    def loss(result):
        difference = result.dequantise() - weight
        return ((difference @ hessian) * difference).sum(1)

    inverse = gptq.invert(torch.from_numpy(hessian.copy()), 32, damping=1e-9, order="group_aware")
    start = gptq.quantise(torch.from_numpy(weight.copy()), inverse, 4, 32, table=LEVELS)
    nearest = rtn.nearest(weight.astype(np.float32), FORM)
    assert start.form == nearest.form == FORM
    assert loss(start).sum() < 0.7 * loss(nearest).sum()
    result = descend(torch.from_numpy(weight), torch.from_numpy(hessian), start, sweeps=60)
    assert result.form == FORM
    assert (loss(result) <= loss(start) * (1 + 1e-9)).all()
    assert loss(result).sum() < 0.95 * loss(start).sum()
    least = loss(result)
    for row, column in ((0, 0), (7, 50), (299, 95), (150, 33)):
        for code in range(16):  # none alone is better
            codes = result.codes.copy()
            codes[row, column] = code
            moved = Quantised(codes, result.scales, None, 4, 32, table=LEVELS)
            assert loss(moved)[row] >= least[row] * (1 - 1e-9)


def test_zeros_stay_as_good_as_zero():
    """No level is zero: what stands for a group of zeros is below any weight that matters."""
    result = level_table.quantise(np.zeros((2, 64), np.float32), 32, thorough=True)
    assert np.abs(result.dequantise()).max() < 1e-5
