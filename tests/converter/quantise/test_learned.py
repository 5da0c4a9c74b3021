import numpy as np
import pytest
import torch

from edgetok.converter.quantise import round_to_nearest as rtn
from edgetok.converter.quantise.trainable_matrix import LearnedMatrix, learn, split


def matrix(bits=2, symmetric=False, K=72, codes=True):
    weights = np.random.default_rng(0).standard_normal((6, K)).astype(np.float32)
    stored = rtn.quantise(weights, bits, 32, symmetric=symmetric)
    return stored, LearnedMatrix(stored, codes=codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_begins_as_it_is_stored(bits, symmetric):
    stored, result = matrix(bits, symmetric)
    np.testing.assert_allclose(result.weight().detach().numpy(), stored.dequantise(), rtol=1e-6)
    again = result.take(result.learned(), 1.0)
    np.testing.assert_array_equal(again.codes, stored.codes)
    np.testing.assert_array_equal(again.scales, stored.scales)
    assert again.zeros is stored.zeros


def test_a_code_moves_beyond_a_half_and_stays_in_its_range():
    stored, result = matrix(bits=2)
    with torch.no_grad():
        result.moves += 0.4
    np.testing.assert_array_equal(result.take(result.learned(), 1.0).codes, stored.codes)
    _, result = matrix(bits=2)
    with torch.no_grad():
        result.moves += 1.2
        result.restrain()
    expected = np.minimum(stored.codes + 1, 3)
    learned = result.learned()
    np.testing.assert_array_equal(result.take(learned, 1.0).codes, expected)
    assert float(learned[1].max()) == pytest.approx(1.2)
    assert float(learned[1].reshape(6, -1)[:, :72].numpy()[stored.codes == 3].max()) == 0.5
    np.testing.assert_array_equal(result.take(learned, 0.25).codes, stored.codes)


def test_what_is_taken_is_what_is_computed_with():
    _, result = matrix(bits=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        result.moves += torch.randn(result.moves.shape, generator=generator)
        result.scale_steps += 0.1 * torch.randn(result.scale_steps.shape, generator=generator)
    learned = result.learned()
    for share in (1.0, 0.5):
        taken = result.take(learned, share)
        np.testing.assert_allclose(
            result.weight().detach().numpy(), taken.dequantise(), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("codes", [False, True])
def test_learns_towards_a_product(codes):
    """Scales alone reach the least-squares loss within a tenth; codes as well reach less."""
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((6, 64)).astype(np.float32)
    stored = rtn.quantise(weights, 2, 32)
    x = rng.standard_normal((64, 16, 64)).astype(np.float32) @ rng.standard_normal((64, 64))
    x = torch.from_numpy(x.astype(np.float32))
    wanted = x @ torch.from_numpy(weights).T
    result = LearnedMatrix(stored, codes=codes)

    def loss(chosen, lane=0):
        return (x[chosen] @ result.weight().T - wanted[chosen]).square().mean()

    learned, judged = split(x)
    assert len(learned) == 56
    assert len(judged) == 8
    before = float(loss(learned).detach())
    told = []
    learn([result], (), loss, learned, steps=400, batch=8, advance=lambda: told.append(1))
    after = float(loss(learned).detach())
    assert len(told) == 400
    levels = stored.levels().reshape(6, 2, 32)
    best = 0.0
    for n in range(6):  # a row's two scales, by least squares
        parts = np.stack(
            [x[learned].numpy()[..., 32 * g : 32 * g + 32] @ levels[n, g] for g in range(2)], -1
        ).reshape(-1, 2)
        y = wanted[learned].numpy()[..., n].reshape(-1)
        s, *_ = np.linalg.lstsq(parts, y, rcond=None)
        best += float(((parts @ s - y) ** 2).mean()) / 6
    assert best < before
    assert after < (0.7 if codes else 1.1) * best


def test_rows_that_are_to_stay_do():
    stored = matrix()[0]
    result = LearnedMatrix(stored, codes=True, still=[slice(1, 3)])
    wanted = torch.from_numpy(stored.dequantise() + 1)
    learn(
        [result],
        (),
        lambda chosen, lane: (result.weight() - wanted).square().mean(),
        torch.arange(8),
        steps=60,
        batch=8,
        advance=lambda: None,
    )
    taken = result.take(result.learned(), 1.0)
    for row in range(6):
        same = np.array_equal(taken.codes[row], stored.codes[row])
        same &= np.array_equal(taken.scales[row], stored.scales[row])
        assert same == (row in (1, 2))
