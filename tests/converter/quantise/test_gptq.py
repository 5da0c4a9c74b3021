import numpy as np
import pytest
import torch

from edgetok.converter.quantise import gptq
from edgetok.converter.quantise import round_to_nearest as rtn
from edgetok.converter.quantise.even_levels import EvenLevels
from edgetok.errors import CheckpointError
from edgetok.formats.layout import TensorFormat


def layer(outputs, inputs, tokens=400, seed=0):
    """Random weights, and inputs that are correlated and of very different sizes."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 0.05, (outputs, inputs))
    mix = np.eye(inputs) + rng.normal(0, 1, (inputs, inputs)) / np.sqrt(inputs)
    mix *= rng.lognormal(0, 1, inputs)
    x = rng.normal(0, 1, (tokens, inputs)) @ mix
    return weight, x


def hessian_of(x):
    hessian = gptq.Hessian(x.shape[1])
    for part in np.array_split(x, 3):
        hessian.add(torch.from_numpy(part.astype(np.float32)))
    return hessian.mean()


def textbook(weight, hessian, bits, group_size, order, damping):
    """OBQ as written: after each input the Hessian of the rest is inverted again, in float64."""
    w, h = weight.copy(), hessian.copy()
    K = len(h)
    groups = [list(range(first, min(first + group_size, K))) for first in range(0, K, group_size)]
    diagonal = np.diag(h).copy()
    if order == "group_aware":
        groups = [sorted(group, key=lambda i: -diagonal[i]) for group in groups]
        groups.sort(key=lambda group: -np.mean(diagonal[group]))
    h[np.arange(K)[diagonal == 0], np.arange(K)[diagonal == 0]] = diagonal[diagonal > 0].mean()
    h[np.arange(K), np.arange(K)] += damping * np.mean(np.diag(h))
    rest = list(range(K))
    dequantised = np.zeros_like(w)
    top = 2**bits - 1
    for group in groups:
        # The loss of an error in the j-th input of the group once those before it are gone.
        weights = []
        for j in range(len(group)):
            left = [q for q in rest if q not in group[:j]]
            weights.append(
                1 / np.linalg.inv(h[np.ix_(left, left)])[left.index(group[j])][left.index(group[j])]
            )
        scale, zero = np.zeros(len(w)), np.zeros(len(w))
        for row in range(len(w)):
            best = np.inf
            for span in 1 - 0.05 * np.arange(11):
                low = span * min(w[row, group].min(), 0)
                high = span * max(w[row, group].max(), 0)
                s = float(np.float16(np.float32((high - low) / top)))
                z = np.clip(np.round(-low / s), 0, top)
                nearest = (np.clip(np.round(w[row, group] / s) + z, 0, top) - z) * s
                loss = np.dot(weights, (nearest - w[row, group]) ** 2)
                if loss < best * (1 - 1e-9):
                    best, scale[row], zero[row] = loss, s, z
        for q in group:
            inverse = np.linalg.inv(h[np.ix_(rest, rest)])
            at = rest.index(q)
            code = np.clip(np.round(w[:, q] / scale) + zero, 0, top)
            dequantised[:, q] = (code - zero) * scale
            error = (w[:, q] - dequantised[:, q]) / inverse[at, at]
            w[:, rest] -= np.outer(error, inverse[at])
            rest.remove(q)
    return dequantised


@pytest.mark.parametrize(
    ("bits", "order", "inputs"),
    [
        (2, "group_aware", 77),
        (3, "plain", 77),
        (4, "group_aware", 64),
        (4, "plain", 20),
    ],
)
def test_agrees_with_the_textbook(bits, order, inputs, monkeypatch):
    monkeypatch.setattr(gptq, "_BLOCK_INPUTS", 32)  # more than one block
    weight, x = layer(6, inputs, seed=inputs)
    x[:, 3] = 0
    hessian = 2 * x.T @ x / len(x)
    expected = textbook(weight, hessian, bits, 32, order, 0.01)
    inverse = gptq.invert(torch.from_numpy(hessian.copy()), 32, damping=0.01, order=order)
    result = gptq.quantise(torch.from_numpy(weight.copy()), inverse, bits, 32)
    # Float64 throughout: the two differ where a value lies within 1e-9 of a tie, which is never.
    np.testing.assert_allclose(result.dequantise(), expected, rtol=1e-6, atol=1e-7)
    assert result.scales.shape == (6, -(-inputs // 32))


def output_error(dequantised, weight, x):
    return np.square((dequantised - weight) @ x.T).sum()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("order", ["group_aware", "plain"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_beats_round_to_nearest(bits, order, symmetric):
    weight, x = layer(16, 75)
    inverse = gptq.invert(hessian_of(x), 32, damping=0.01, order=order)
    weight32 = weight.astype(np.float32)
    result = gptq.quantise(torch.from_numpy(weight32), inverse, bits, 32, symmetric=symmetric)
    nearest = rtn.quantise(weight32, bits, 32, symmetric=symmetric)
    assert (result.zeros is None) == symmetric
    ratio = output_error(result.dequantise(), weight, x) / output_error(
        nearest.dequantise(), weight, x
    )
    assert ratio < 0.9


def test_order_helps_where_activations_differ():
    errors = {}
    for order in ("group_aware", "plain"):
        total = 0.0
        for seed in range(3):
            weight, x = layer(16, 96, seed=seed)
            inverse = gptq.invert(hessian_of(x), 32, damping=0.01, order=order)
            result = gptq.quantise(torch.from_numpy(weight.astype(np.float32)), inverse, 3, 32)
            total += output_error(result.dequantise(), weight, x) / output_error(0, weight, x)
        errors[order] = total
    assert errors["group_aware"] < errors["plain"]


def test_order_inputs_keeps_groups_together():
    diagonal = torch.tensor([1.0, 3.0, 2.0, 9.0, 8.0, 10.0, 4.0])
    groups = gptq.order_inputs(diagonal, 3, "group_aware")
    assert [group.tolist() for group in groups] == [[5, 3, 4], [6], [1, 2, 0]]
    groups = gptq.order_inputs(diagonal, 3, "plain")
    assert [group.tolist() for group in groups] == [[0, 1, 2], [3, 4, 5], [6]]


def test_inputs_never_activated_are_rounded_to_nearest():
    """Inputs that calibration did not reach keep their weights and do not become zero."""
    weight, x = layer(8, 64)
    x[:, 10:20] = 0
    weight32 = weight.astype(np.float32)
    inverse = gptq.invert(hessian_of(x), 64, damping=0.01, order="group_aware")
    result = gptq.quantise(torch.from_numpy(weight32), inverse, 4, 64)
    dead = weight32[:, 10:20]
    error = np.square(result.dequantise()[:, 10:20] - dead).sum()
    # 4 bits keep about one per cent of the energy as error; becoming zero would be all of it.
    assert error < 0.04 * np.square(dead).sum()


def test_all_inputs_dead_and_rank_one():
    weight, x = layer(8, 64)
    weight32 = torch.from_numpy(weight.astype(np.float32))
    for inputs in (x * 0, x[:1].repeat(50, 0)):
        inverse = gptq.invert(hessian_of(inputs), 32, damping=0.01, order="group_aware")
        result = gptq.quantise(weight32, inverse, 4, 32)
        assert np.isfinite(result.dequantise()).all()


def test_overflowing_activations_are_an_error():
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        gptq.invert(torch.full((4, 4), torch.nan), 32, damping=0.01, order="plain")


@pytest.mark.parametrize("inputs", [20, 32, 77])
def test_hessian_is_computed_in_stripes(inputs, monkeypatch):
    monkeypatch.setattr(gptq, "_STRIPE_INPUTS", 32)
    _, x = layer(1, inputs)
    result = hessian_of(x).numpy()
    np.testing.assert_allclose(result, 2 * x.T @ x / len(x), rtol=1e-4, atol=1e-4 * result.max())
    np.testing.assert_array_equal(result, result.T)


def test_thorough_search_is_no_worse_for_every_output():
    weight, x = layer(40, 32)
    importance = np.square(x).mean(0)
    top = 7
    losses = []
    for thorough in (False, True):
        scale, zero = EvenLevels(3, weight.dtype).search(weight, importance, thorough=thorough)
        s, z = scale.astype(np.float64)[:, None], zero.astype(np.float64)[:, None]
        rounded = (np.clip(np.rint(weight / s) + z, 0, top) - z) * s
        losses.append(((rounded - weight) ** 2 @ importance).sum())
    assert losses[1] < losses[0]


def test_blocks_change_nothing(monkeypatch):
    weight, x = layer(5, 160)
    inverse = gptq.invert(
        torch.from_numpy(2 * x.T @ x / len(x)), 32, damping=0.01, order="group_aware"
    )
    whole = gptq.quantise(torch.from_numpy(weight), inverse, 3, 32)
    monkeypatch.setattr(gptq, "_BLOCK_INPUTS", 32)
    pieces = gptq.quantise(torch.from_numpy(weight), inverse, 3, 32)
    np.testing.assert_array_equal(whole.codes, pieces.codes)


@pytest.mark.parametrize("inputs", [96, 301])
def test_factor_of_the_inverse(inputs, monkeypatch):
    """Sizes are halved more than once, evenly and not."""
    monkeypatch.setattr(gptq, "_SMALL_INPUTS", 16)
    _, x = layer(1, inputs)
    hessian = x.T @ x / len(x)
    result = gptq.invert(torch.from_numpy(hessian.copy()), 32, damping=0.01, order="group_aware")
    order = torch.cat(result.groups).numpy()
    damped = hessian + 0.01 * np.diag(hessian).mean() * np.eye(inputs)
    factor = result.factor.numpy()
    np.testing.assert_array_equal(factor, np.triu(factor))
    expected = np.linalg.inv(damped[np.ix_(order, order)])
    np.testing.assert_allclose(factor.T @ factor, expected, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_searched_rounding_is_nearest_and_errs_less(bits, symmetric):
    weight = np.random.default_rng(bits).standard_t(4, (40, 77)).astype(np.float32)
    result = gptq.quantise_searched(weight, TensorFormat(bits, 32, zeros=not symmetric))
    nearest = rtn.quantise(weight, bits, 32, symmetric=symmetric)
    errors = [np.square(q.dequantise() - weight).sum() for q in (result, nearest)]
    assert errors[0] < 0.95 * errors[1]
    for g, first in enumerate(range(0, 77, 32)):
        group = weight[:, first : first + 32]
        zeros = 1 << (bits - 1) if result.zeros is None else result.zeros[:, g, None, None]
        levels = (np.arange(1 << bits) - np.int64(zeros)) * result.scales[:, g, None, None]
        least = np.abs(levels.astype(np.float32) - group[:, :, None]).min(-1)
        difference = np.abs(result.dequantise()[:, first : first + 32] - group)
        np.testing.assert_allclose(difference, least, atol=1e-5)
