"""Snapshots of recurrent states: when they are taken, what can be reached, what is copied."""

from __future__ import annotations

import numpy as np
import pytest

from edgetok.cache import recurrent
from edgetok.cache.recurrent import MOST_SNAPSHOTS, SNAPSHOT_TOKENS, History
from edgetok.errors import SessionError
from edgetok.models import DecoderSpec, LayerSpec, RopeSpec
from edgetok.models.layers.gated_delta import GatedDeltaNet
from edgetok.models.layers.short_conv import Convolution, ShortConvolution
from edgetok.models.operations import operations
from edgetok.models.ops import Stateful

ROWS = 34
STATES = 4  # of a delta net


def mixer(taps):
    """A convolution, or, for 0, a delta net."""
    if taps:
        return ShortConvolution(taps=taps)
    return GatedDeltaNet(key_heads=1, value_heads=1, key_dim=2, value_dim=3, taps=4)


def shape(op):
    if isinstance(op, Convolution):
        return ROWS, op.size
    return STATES, 6


def spec(*taps):
    return DecoderSpec(
        family="test",
        vocab_size=11,
        hidden_size=5,
        intermediate_size=8,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        layers=(LayerSpec(), *(LayerSpec(mixer=mixer(n)) for n in taps)),
        ropes=(RopeSpec(theta=1e4, rotary_dim=8),),
        context_tokens=64,
        norm_eps=1e-5,
        attn_scale=0.4,
    )


class Life:
    """A history whose kernel writes, for token t and state s, t + s / 16 to every column."""

    def __init__(self, *taps):
        self.spec = spec(*taps)
        self.history = History(self.spec, shape)
        self.length = 0

    def step(self, tokens):
        self.history.begin(tokens, self.length)
        for t in range(self.length, self.length + tokens):
            for state, ring in self.history.rings.items():
                ring[t % len(ring)] = t + state / 16
        self.length += tokens
        self.history.advance(self.length)

    def back_to(self, length):
        reached = self.history.reachable(length)
        self.history.truncate(reached)
        self.length = reached
        return reached

    def check(self):
        """What the next token needs is there."""
        for op in operations(self.spec):
            if isinstance(op, Stateful):
                ring = self.history.rings[op.state]
                for t in range(max(0, self.length - op.kept_tokens), self.length):
                    found = ring[t % len(ring)]
                    assert (found == t + op.state / 16).all(), (self.length, t)


def test_latest_tokens_are_reachable_at_once():
    life = Life(3, 3)
    life.step(500)
    for back in range(ROWS - 2 + 1):
        assert life.history.reachable(500 - back) == 500 - back
    assert life.history.reachable(500 - (ROWS - 1)) == 0
    assert life.history.spare_tokens == ROWS - 2


def test_snapshots_stand_where_prompts_begin_and_end_and_every_few_hundred_tokens():
    life = Life(3)
    life.step(200)
    life.step(100)
    for _ in range(1500):
        life.step(1)
    life.step(50)
    life.step(1)
    lengths = [s.length_tokens for s in life.history.snapshots]
    assert lengths == [200, 300, 812, 1324, 1800, 1850]
    assert SNAPSHOT_TOKENS == 512
    assert life.back_to(1810) == 1800
    life.check()
    assert life.back_to(1799) == 1799
    life.check()
    for _ in range(2):
        assert life.back_to(1799) == 1799
        life.check()
        for _ in range(60):
            life.step(1)
    assert life.back_to(1798) == 1324
    life.check()
    assert life.back_to(150) == 0


@pytest.mark.parametrize("taps", [(3,), (2, 4), (4, 3, 3), (7, 2), (0,), (3, 0, 0)])
def test_random_lives(taps):
    rng = np.random.default_rng(len(taps))
    life, reached_by_snapshot = Life(*taps), 0
    for _ in range(3000):
        what = rng.random()
        if what < 0.03 and life.length:
            wanted = int(rng.integers(0, life.length + 1))
            reached = life.back_to(wanted)
            assert reached <= wanted
            reached_by_snapshot += 0 < reached < wanted
        elif what < 0.06:
            other = Life(*taps)
            if rng.random() < 0.5:
                other.history.take(life.history)
            else:
                sections = [part.copy() for part in life.history.state(life.length)]
                other.history.restore(other.history.parsed(sections, life.length))
            other.length, life = life.length, other
        elif what < 0.2:
            life.step(int(rng.integers(2, 300)))
        else:
            life.step(1)
        life.check()
        assert len(life.history.snapshots) <= MOST_SNAPSHOTS
        assert life.history.held_bytes <= life.history.nbytes
    assert reached_by_snapshot > 10


def test_bulky_states_are_kept_of_the_token_before(monkeypatch):
    """A snapshot of the end of a prompt is reached by who computes its last token anew."""
    monkeypatch.setattr(recurrent, "SNAPSHOTS_BYTES", 0)
    life = Life(0)
    assert life.history.spare_tokens == STATES - 1
    assert life.history.most_snapshots == 3
    assert life.history.snapshot_bytes == 4 * (3 * 7 + 6)
    for _ in range(6):
        life.step(100)
        life.step(1)
    assert [s.length_tokens for s in life.history.snapshots][-1] == 604
    assert len(life.history.snapshots) == 3
    for back in range(STATES):
        assert life.history.reachable(606 - back) == 606 - back
    assert life.back_to(600) == 402
    life.check()
    life.step(1)
    assert life.back_to(402) == 402
    life.check()


def test_old_snapshots_are_thinned_out_first():
    life = Life(3)
    for _ in range(400):
        life.step(100)
    gaps = np.diff([s.length_tokens for s in life.history.snapshots])
    assert len(gaps) == MOST_SNAPSHOTS - 1
    assert gaps[-1] == 100
    assert gaps[: len(gaps) // 2].mean() > 4 * gaps[len(gaps) // 2 :].mean()


def test_damaged_states_are_refused():
    life = Life(3, 3)
    for _ in range(5):
        life.step(100)
    good = life.history.state(500)
    assert [s.length_tokens for s in life.history.parsed(good, 500)] == [100, 200, 300, 400, 500]
    nan = good[-1].copy()
    nan[16:20] = 255
    for bad in (
        good[:-1],
        [],
        good[::-1],
        [good[0], *good],
        [part[:-4] for part in good],
        [*good[:-1], nan],
    ):
        with pytest.raises(SessionError):
            life.history.parsed(bad, 500)
    assert Life().history.state(500) == []
    assert Life().history.parsed([], 500) == []


def test_the_marked_snapshot_stays(monkeypatch):
    monkeypatch.setattr(recurrent, "SNAPSHOTS_BYTES", 0)
    for marked in (0, 40):
        life = Life(3)
        life.history.mark(marked)
        life.step(40)
        life.step(20)
        for _ in range(8 * SNAPSHOT_TOKENS):
            life.step(1)
        assert len(life.history.snapshots) == 3
        other = Life(3)
        other.history.take(life.history)
        other.length = life.length
        assert other.back_to(41) == marked
        other.check()
        life.history.mark(0)
        for _ in range(4 * SNAPSHOT_TOKENS):
            life.step(1)
        assert life.back_to(41) == 0
