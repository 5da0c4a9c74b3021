"""Policies against their formulas, written out in loops."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edgetok.cache.policies.around import with_around
from edgetok.cache.policies.expected_attention import expected_weights
from edgetok.cache.policies.policy import POLICIES, policy
from edgetok.cache.policies.view import HeadView, QueryStats
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


def test_retain_is_expected_attention_to_queries_of_any_direction(view):
    """Its order is that of weights averaged over queries drawn alike in all directions."""
    score = POLICIES["retain"].score(view)
    assert score.dtype == np.float32
    values = np.asarray(view.read_values(), np.float64)
    draws = np.random.default_rng(2).standard_normal((400_000, D)) * 0.5
    logits = draws @ (view.keys - view.keys.mean(axis=0)).T.astype(np.float64) * view.scale
    gain = np.log(np.exp(logits).mean(axis=0)) * 2 / (0.5 * view.scale) ** 2
    expected = gain * np.linalg.norm(values, axis=1)
    np.testing.assert_allclose(score, expected, rtol=0.05)


def test_retain_is_blind_to_what_all_keys_share(view):
    """As attention is: a vector added to every key changes nothing."""
    moved = dataclasses.replace(view, read_keys=lambda: view.keys + np.float32(3.0))
    np.testing.assert_allclose(
        POLICIES["retain"].score(moved), POLICIES["retain"].score(view), rtol=1e-4
    )


def test_retain_lets_go_of_a_key_from_nowhere(view):
    """One key six times as far as the others is the first to go, and changes no other's place."""
    keys = view.keys.copy()
    keys[7] *= np.float32(6.0 * np.linalg.norm(keys, axis=1).mean() / np.linalg.norm(keys[7]))
    score = POLICIES["retain"].score(dataclasses.replace(view, read_keys=lambda: keys))
    assert score[7] == 0.0 < np.delete(score, 7).min()


def test_content_is_the_distance_of_keys_before_their_rotation(view):
    """The same tokens anywhere in the conversation have the same scores."""
    raw = view.keys.copy()
    expected = ((raw - raw.mean(axis=0, dtype=np.float64)) ** 2).sum(axis=1)
    for first in (0, 1000):
        places = np.arange(first, first + 3 * N, 3, dtype=np.int32)
        # 1.5: the attention factor of a scaled rope, which stored keys have, too
        moved = dataclasses.replace(
            view,
            read_keys=lambda places=places: 1.5 * rotate(raw, places),
            positions=places,
            rotate=lambda x, positions: np.float32(1.5) * rotate(x, positions),
        )
        np.testing.assert_allclose(POLICIES["content"].score(moved) / 2.25, expected, rtol=1e-4)


def test_unknown_policy():
    with pytest.raises(OptionError, match="cache policy 'lru', expected one of window, h2o"):
        policy("lru")


def test_scores_around_a_token_count_as_its_own():
    own = np.float32([1, 10, 100, 1000, 10_000, 100_000])
    np.testing.assert_array_equal(with_around(own, 0), own)
    # The ends are repeated.
    np.testing.assert_array_equal(
        with_around(own, 2), np.float32([113, 1112, 11_111, 111_110, 211_100, 311_000])
    )
    np.testing.assert_array_equal(with_around(own[:1], 2), np.float32([5]))
