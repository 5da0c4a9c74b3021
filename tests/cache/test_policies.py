"""Policies against their formulas, written out in loops."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.cache import budget
from edgetok.cache.expected_attention import expected_weights
from edgetok.cache.policy import POLICIES, policy
from edgetok.cache.view import HeadView, QueryStats
from edgetok.errors import OptionError

D, G, W, N = 8, 2, 5, 40
FREQUENCIES = 100.0 ** -(np.arange(D // 2) / (D // 2))


def rotate(x, positions):
    angles = np.asarray(positions)[..., None] * FREQUENCIES
    a, b = x[..., : D // 2], x[..., D // 2 :]
    return np.concatenate(
        [a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1
    ).astype(np.float32)


@pytest.fixture
def view():
    rng = np.random.default_rng(3)
    raw = rng.standard_normal((G, D, D))
    keys, values = rng.standard_normal((2, N, D)).astype(np.float32)
    return HeadView(
        read_keys=lambda: keys,
        read_values=lambda: values,
        positions=np.arange(N, dtype=np.int32),
        tokens=np.arange(N, dtype=np.int32),
        mass=rng.random(N).astype(np.float32),
        stats=QueryStats(
            recent=rng.standard_normal((W, G, D)).astype(np.float32),
            positions=np.arange(N - W, N),
            mean=rng.standard_normal((G, D)).astype(np.float32),
            covariance=np.einsum("gij,gkj->gik", raw, raw).astype(np.float32) / D,
        ),
        rotate=rotate,
        mean_rotation=lambda ahead: np.mean([rotate(np.eye(D), p) for p in ahead], axis=0),
        scale=D**-0.5,
        softcap=0.0,
    )


def weights(view, w, g):
    """Softmax of one recent query over the tokens up to it."""
    at = N - W + w
    q = rotate(view.stats.recent[w, g], at).astype(np.float64)
    scores = view.keys[: at + 1].astype(np.float64) @ q * view.scale
    e = np.exp(scores - scores.max())
    return np.concatenate([e / e.sum(), np.zeros(N - at - 1)])


def test_tova_and_snapkv(view):
    last = np.mean([weights(view, W - 1, g) for g in range(G)], axis=0)
    np.testing.assert_allclose(POLICIES["tova"].score(view), last, atol=1e-6)
    mass = np.mean([[weights(view, w, g) for g in range(G)] for w in range(W)], axis=(0, 1))
    pooled = [mass[max(0, i - 3) : i + 4].max() for i in range(N)]
    np.testing.assert_allclose(POLICIES["snapkv"].score(view), pooled, atol=1e-6)


def test_keydiff_window_and_h2o(view):
    unit = [k / np.linalg.norm(k) for k in view.keys]
    anchor = np.mean(unit, axis=0)
    expected = [-float(u @ anchor) / np.linalg.norm(anchor) for u in unit]
    np.testing.assert_allclose(POLICIES["keydiff"].score(view), expected, atol=1e-5)
    assert (np.diff(POLICIES["window"].score(view)) > 0).all()
    np.testing.assert_array_equal(POLICIES["h2o"].score(view), view.mass)


def test_expected_attention_is_the_mean_over_gaussian_queries(view):
    """The closed form against queries drawn from the distribution and turned by the mean."""
    rng = np.random.default_rng(1)
    ahead = N + np.arange(0, 512, 8)
    turned = np.stack([rotate(np.eye(D, dtype=np.float32), p) for p in ahead]).mean(axis=0)
    found = expected_weights(view)
    for g in range(G):
        draws = rng.multivariate_normal(view.stats.mean[g], view.stats.covariance[g], 400_000)
        z = np.exp((draws @ turned) @ view.keys.T.astype(np.float64) * view.scale).mean(axis=0)
        np.testing.assert_allclose(found[g], z / z.sum(), rtol=0.05, atol=1e-3)


def test_retain_prefers_what_is_unlike_looked_at_and_heavy(view):
    unlike = 1 + POLICIES["keydiff"].score(view)
    norms = np.linalg.norm(view.read_values(), axis=1)
    expected = unlike * (expected_weights(view).mean(axis=0) + 0.02) * norms
    score = POLICIES["retain"].score(view)
    assert score.dtype == np.float32
    np.testing.assert_allclose(score / score.sum(), expected / expected.sum(), rtol=1e-5)


def test_unknown_policy():
    with pytest.raises(OptionError, match="cache policy 'lru', expected one of window, h2o"):
        policy("lru")


@pytest.mark.parametrize("seed", range(20))
def test_budgets(seed):
    """Totals are kept to, floors hold, and what is kept are the best of all heads."""
    rng = np.random.default_rng(seed)
    scores = [rng.random(int(rng.integers(60, 200))).astype(np.float32) for _ in range(4)]
    total, floor = 200, 20
    counts = budget.wanted(scores, total, floor)
    assert counts.sum() == total
    assert (counts >= floor).all()
    dropped = [np.sort(s)[: len(s) - n] for s, n in zip(scores, counts, strict=True)]
    kept = [np.sort(s)[len(s) - n :] for s, n in zip(scores, counts, strict=True)]
    over = [k[0] for k, n in zip(kept, counts, strict=True) if n > floor]
    assert max(d[-1] for d in dropped if len(d)) <= min(over)
    shares = rng.random(6) * 400
    sizes = budget.in_units(shares, 64 * 30, 64, 64, 64 * 12)
    assert sizes.sum() == 64 * 30
    assert ((sizes % 64 == 0) & (sizes >= 64) & (sizes <= 64 * 12)).all()
