"""Eviction and renumbering by kernel against NumPy, on every instruction set.

Slots lie in pages between guard pages; what no token is in holds NaN or nonsense.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgetok.cache.key_constants import KeyConstants
from edgetok.cache.policies.policy import POLICIES
from edgetok.cache.policies.shared import shared
from edgetok.cache.policies.view import HeadView
from edgetok.errors import ShapeError
from edgetok.kernels_cpu.attention.launch import EMPTY, key_bytes, value_bytes
from edgetok.kernels_cpu.eviction import launch
from edgetok.kernels_cpu.eviction.evictor import Evictor, Heads
from edgetok.kernels_cpu.program.abi import CTX_SLOTS
from edgetok.runtime.cpu.stored_rows import Keys, Values
from edgetok.runtime.cpu.team import Program, Team

MODULES = (
    "eviction.choose",
    "eviction.renumber",
    "eviction.int4",
    "eviction.int6_int4",
    "eviction.int8",
    "eviction.float16",
    "eviction.float32",
    "program.interpreter",
)
KINDS = [
    (4, False),
    (4, True),
    (5, False),
    (5, True),
    (8, False),
    (8, True),
    (16, False),
    (32, False),
]


class Cache:
    """Heads with random tokens in random slots, in pages as a cache has them."""

    def __init__(
        self, guard, rng, kv_bits, heads, slots, dims, page_slots, fill=0.8, constants=False
    ):
        known = None
        if constants:
            centre = 2.0 * rng.standard_normal((heads, dims))
            factor = np.exp2(rng.uniform(-1, 1, (heads, dims)))
            known = KeyConstants(centre.astype(np.float32), factor.astype(np.float32))
        self.bits, self.dims, self.page_slots = kv_bits, dims, page_slots
        sizes = key_bytes(dims, kv_bits), value_bytes(dims, kv_bits)
        pages = -(-slots // page_slots)
        addresses = np.zeros((heads, pages + 1, 4), np.int64)  # as a cache has it
        self.rows = {}
        for head in range(heads):
            for page in range(pages):
                count = min(page_slots, slots - page * page_slots)
                nan = np.float16(np.nan) if kv_bits == 16 else np.float32(np.nan)
                stale = [np.full(count * size, 0xA5, np.uint8) for size in sizes]
                if kv_bits >= 16:
                    stale = [np.full(s.size // nan.nbytes, nan).view(np.uint8) for s in stale]
                keys, values = map(guard, stale)
                scales = [guard(np.full(count, np.nan, np.float32)) for _ in range(2)]
                if kv_bits > 8:
                    scales = [None, None]
                for i, array in enumerate((keys, values, *scales)):
                    addresses[head, page, i] = 0 if array is None else array.ctypes.data
                mine = None if known is None else known[head]
                self.rows[head, page] = (
                    Keys(keys, scales[0], dims, kv_bits, mine),
                    Values(values, scales[1], dims, kv_bits),
                )
        positions = np.full((heads, slots), EMPTY, np.int32)
        tokens = rng.integers(0, 1 << 30, (heads, slots)).astype(np.int32)  # stale ones, too
        # A common part, so that a distance from the mean is small beside the keys themselves.
        common = 2.0 * rng.standard_normal(dims)
        for head in range(heads):
            held = np.sort(rng.choice(slots, max(1, int(fill * slots)), replace=False))
            order = np.sort(rng.choice(4 * slots, len(held), replace=False))
            place = rng.permutation(len(held))
            positions[head, held] = order[place]
            tokens[head, held] = (order + np.arange(len(held)))[place]
            keys = common + rng.standard_normal((len(held), dims)) * rng.choice(
                [0.3, 1.0, 6.0], (len(held), 1), p=[0.4, 0.5, 0.1]
            )
            values = rng.standard_normal((len(held), dims))
            self.write(head, held, keys.astype(np.float32), values.astype(np.float32))
        self.heads = Heads(addresses, page_slots, dims, guard(positions), guard(tokens))
        if known is not None:
            more = {"centre": guard(known.centre), "factor": guard(known.factor)}
            self.heads = replace(self.heads, **more)

    def each(self, head, at):
        for page in np.unique(at // self.page_slots).tolist():
            inside = np.flatnonzero(at // self.page_slots == page)
            yield self.rows[head, page], at[inside] - page * self.page_slots, inside

    def write(self, head, at, keys, values):
        for rows, slots, inside in self.each(head, at):
            rows[0].write(slots, keys[inside])
            rows[1].write(slots, values[inside])

    def read(self, head, at, which):
        made = np.zeros((len(at), self.dims), np.float32)
        for rows, slots, inside in self.each(head, at):
            made[inside] = rows[which].read(slots)
        return made

    def held(self, head):
        return np.flatnonzero(self.heads.positions[head] != EMPTY)

    def view(self, head):
        at = self.held(head)
        nothing = np.zeros(len(at), np.float32)
        return HeadView(
            read_keys=lambda: self.read(head, at, 0), read_values=lambda: self.read(head, at, 1),
            positions=self.heads.positions[head, at], tokens=self.heads.tokens[head, at],
            mass=nothing, stats=None, rotate=None, mean_rotation=None, scale=1.0, softcap=0.0,
        )  # fmt: skip


def evictor(kernels, cache, **options):
    return Evictor(kernels, kv_bits=cache.bits, **options)


SHAPES = [(3, 64, 64, 64), (2, 320, 64, 256), (1, 512, 80, 256), (2, 192, 20, 64)]


@pytest.mark.parametrize(("kv_bits", "constants"), KINDS)
@pytest.mark.parametrize(("heads", "slots", "dims", "page_slots"), SHAPES)
def test_retain_scores(each_kernels, guard, kv_bits, constants, heads, slots, dims, page_slots):
    cache = Cache(
        guard, np.random.default_rng(0), kv_bits, heads, slots, dims, page_slots,
        constants=constants,
    )  # fmt: skip
    found = evictor(each_kernels, cache).scores("retain", cache.heads)
    for head in range(heads):
        at = cache.held(head)
        keys = cache.read(head, at, 0).astype(np.float64)
        far = ((keys - keys.mean(axis=0)) ** 2).sum(axis=1)
        limit = 6.0 * np.median(far)
        norms = np.linalg.norm(cache.read(head, at, 1).astype(np.float64), axis=1)
        expected = np.where(far > limit, 0.0, far * norms)
        sure = np.abs(far - limit) > 1e-4 * limit
        # float32 sums of up to 512 keys, each of them 2 to 3 times as long as what is left.
        np.testing.assert_allclose(found[head, at][sure], expected[sure], rtol=3e-5)
        mine = POLICIES["retain"].score(cache.view(head))
        np.testing.assert_allclose(found[head, at][sure], mine[sure], rtol=1e-4)
        empty = np.setdiff1d(np.arange(slots), at)
        np.testing.assert_array_equal(found[head, empty], 0.0)


def rotated_back(keys, positions, frequencies):
    """Keys at position 0, as complex numbers of two dims each; the rest as they are."""
    pairs = len(frequencies)
    turned = keys[:, :pairs] + 1j * keys[:, pairs : 2 * pairs]
    turned = turned * np.exp(-1j * positions[:, None] * frequencies)
    return np.concatenate([turned.real, turned.imag, keys[:, 2 * pairs :]], axis=1)


@pytest.mark.parametrize(("kv_bits", "constants"), KINDS)
@pytest.mark.parametrize(("heads", "slots", "dims", "page_slots"), SHAPES)
def test_content_scores(each_kernels, guard, kv_bits, constants, heads, slots, dims, page_slots):
    rng = np.random.default_rng(4)
    cache = Cache(guard, rng, kv_bits, heads, slots, dims, page_slots, constants=constants)
    # All dims, some of them, none; positions of a long conversation.
    pairs = [dims // 2, dims // 4, 0]
    frequencies = [guard(10_000.0 ** -(np.arange(n) / n)) if n else None for n in pairs[:heads]]
    positions = cache.heads.positions
    positions[positions != EMPTY] += 6000
    heads_ = replace(cache.heads, frequencies=frequencies)
    found = evictor(each_kernels, cache).scores("content", heads_)
    for head in range(heads):
        at = cache.held(head)
        keys = cache.read(head, at, 0).astype(np.float64)
        if frequencies[head] is not None:
            keys = rotated_back(keys, positions[head, at].astype(np.float64), frequencies[head])
        expected = ((keys - keys.mean(axis=0)) ** 2).sum(axis=1)
        # Up to 1,300 turns in float32 where multiplications are not fused: 1e-3 radians.
        np.testing.assert_allclose(found[head, at], expected, rtol=3e-3)
        empty = np.setdiff1d(np.arange(slots), at)
        np.testing.assert_array_equal(found[head, empty], 0.0)
    with pytest.raises(ShapeError, match="heads without frequencies have no contents"):
        evictor(each_kernels, cache).scores("content", cache.heads)


def test_one_token_and_none(each_kernels, guard):
    cache = Cache(guard, np.random.default_rng(1), 8, 2, 64, 32, 64, fill=0.01)
    cache.heads.positions[1] = EMPTY
    run = evictor(each_kernels, cache)
    found = run.scores("retain", cache.heads)
    np.testing.assert_array_equal(found, 0.0)  # a single key is its own mean
    assert [len(x) for x in run.lowest(cache.heads, found, room=0, front=0, recent=1 << 30)] == [
        1, 0,
    ]  # fmt: skip


def test_window_scores(each_kernels, guard):
    cache = Cache(guard, np.random.default_rng(2), 8, 3, 192, 32, 64)
    found = evictor(each_kernels, cache).scores("window", cache.heads)
    for head in range(3):
        at = cache.held(head)
        expected = POLICIES["window"].score(cache.view(head))
        np.testing.assert_array_equal(found[head, at], expected)
    with pytest.raises(ShapeError, match="policy 'h2o' has no kernel"):
        evictor(each_kernels, cache).scores("h2o", cache.heads)


def evicted(cache, head, score, room, front, recent, around, far, most_far):
    """The kernel chooses as a cache does with NumPy."""
    at = cache.held(head)
    at = at[np.argsort(cache.heads.tokens[head, at])]
    seen, own, last = cache.heads.tokens[head, at], score[head, at], len(at) - 1
    score = own.copy()
    if around:
        for i in range(len(at)):
            score[i] = own[max(i - 2, 0)]
            for j in (i - 1, i, i + 1, i + 2):
                score[i] += own[min(max(j, 0), last)]
    kept = (seen < front) | (seen >= recent)
    score[kept] = np.inf
    order = list(np.argsort(score, kind="stable"))
    beyond = [i for i in order if seen[i] < far and not kept[i]]
    gone = beyond[: max(0, len(beyond) - most_far)]
    others = [i for i in order if i not in gone]
    return np.sort(at[gone + others[: max(0, len(others) - room)]])


@pytest.mark.parametrize("room", [0, 1, 60, 150, 400])
@pytest.mark.parametrize("kind", ["spread", "equal", "few values", "not numbers"])
@pytest.mark.parametrize("around", [0, 2])
@pytest.mark.parametrize(("far", "most_far"), [(0, 0), (500, 12), (500, 0), (1 << 30, 70)])
def test_the_lowest_go(each_kernels, guard, room, kind, around, far, most_far):
    rng = np.random.default_rng(3)
    cache = Cache(guard, rng, 8, 4, 256, 16, 256)
    score = rng.standard_normal((4, 256)).astype(np.float32)
    if kind == "equal":
        score[:] = 0.0
    elif kind == "few values":
        score = rng.choice(np.float32([-1.0, -0.0, 0.0, 2.0]), (4, 256))
    elif kind == "not numbers":
        score[rng.random((4, 256)) < 0.3] = np.nan
        score[rng.random((4, 256)) < 0.3] = np.inf
    run = evictor(each_kernels, cache)
    for front, recent in ((0, 1 << 30), (200, 700), (1 << 30, 0)):
        given = score.copy()
        found = run.lowest(
            cache.heads, score, room=room, front=front, recent=recent, around=around,
            far=far, most_far=most_far,
        )  # fmt: skip
        np.testing.assert_array_equal(score, given)
        for head in range(4):
            plain = np.where(np.isnan(score), np.inf, score)
            expected = evicted(cache, head, plain, room, front, recent, around, far, most_far)
            np.testing.assert_array_equal(found[head], expected)


@pytest.mark.parametrize("kind", ["spread", "zeros in a head", "nothing in a head"])
def test_heads_judge_together(each_kernels, guard, kind):
    """By hand in float64, token by token: own / mean own, plus half its mean over heads."""
    rng = np.random.default_rng(5)
    cache = Cache(guard, rng, 8, 4, 256, 16, 256)
    score = rng.exponential(size=(4, 256)).astype(np.float32) * np.float32([[1], [30], [1], [9]])
    if kind == "zeros in a head":
        score[2] = 0.0
    if kind == "nothing in a head":
        cache.heads.positions[2] = EMPTY
    found = evictor(each_kernels, cache).shared(cache.heads, score)
    by_token = {}
    for head in range(4):
        at = cache.held(head)
        usual = score[head, at].mean(dtype=np.float64) if len(at) else 0.0
        for slot, token in zip(at, cache.heads.tokens[head, at], strict=True):
            own = score[head, slot] / usual if usual > 0 else 0.0
            by_token.setdefault(int(token), []).append((head, slot, own))
    assert len({len(several) for several in by_token.values()}) > 1
    expected = score.astype(np.float64)
    for several in by_token.values():
        for head, slot, own in several:
            expected[head, slot] = own + 0.5 * np.mean([each for _, _, each in several])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    held = [cache.held(head) for head in range(4)]
    held = [at[np.argsort(cache.heads.tokens[head, at])] for head, at in enumerate(held)]
    tokens = [cache.heads.tokens[head, at] for head, at in enumerate(held)]
    with_numpy = shared([score[head, at] for head, at in enumerate(held)], tokens)
    for head, at in enumerate(held):
        np.testing.assert_array_equal(found[head, at], with_numpy[head])


@pytest.mark.parametrize("front", [0, 5, 10_000])
@pytest.mark.parametrize("shift", [0, 1, 500, 1 << 20])
def test_renumbering(each_kernels, guard, front, shift):
    cache = Cache(guard, np.random.default_rng(4), 8, 3, 320, 16, 64)
    cache.heads.positions[2] = EMPTY
    positions, by = evictor(each_kernels, cache).renumbered(cache.heads, shift=shift, front=front)
    for head in range(3):
        at = cache.held(head)
        at = at[np.argsort(cache.heads.positions[head, at])]
        for rank, slot in enumerate(at.tolist()):
            before = cache.heads.positions[head, slot]
            place = before - shift
            if cache.heads.tokens[head, slot] < front or place < rank:
                place = rank
            assert positions[head, slot] == place
            assert by[head, slot] == place - before
        empty = np.setdiff1d(np.arange(320), at)
        assert (positions[head, empty] == EMPTY).all()
        assert (by[head, empty] == 0).all()


@pytest.mark.parametrize(("kv_bits", "constants"), KINDS)
@pytest.mark.parametrize(("heads", "slots", "dims", "page_slots"), SHAPES)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_rotated_keys(
    each_kernels, guard, kv_bits, constants, heads, slots, dims, page_slots, share
):
    rng = np.random.default_rng(5)
    cache = Cache(guard, rng, kv_bits, heads, slots, dims, page_slots, constants=constants)
    pairs = int(dims * share) // 2
    frequencies = 10_000.0 ** (-np.arange(pairs) / pairs)
    ropes = [frequencies if head != 1 else None for head in range(heads)]
    table = replace(cache.heads, frequencies=ropes)
    by = np.zeros((heads, slots), np.int32)
    before, values = [], []
    for head in range(heads):
        at = cache.held(head)
        by[head, at] = rng.choice([0, -7, -3000, 12], len(at))
        before.append(cache.read(head, at, 0))
        values.append(cache.read(head, at, 1))
    evictor(each_kernels, cache).rotate(table, guard(by))
    for head in range(heads):
        at = cache.held(head)
        after = cache.read(head, at, 0)
        np.testing.assert_array_equal(cache.read(head, at, 1), values[head])
        moved = by[head, at] != 0 if ropes[head] is not None else np.zeros(len(at), bool)
        np.testing.assert_array_equal(after[~moved], before[head][~moved])
        if not moved.any():
            continue
        angle = by[head, at][moved, None] * frequencies
        cos, sin = np.cos(angle), np.sin(angle)
        old = before[head][moved].astype(np.float64)
        a, b = old[:, :pairs], old[:, pairs : 2 * pairs]
        expected = np.concatenate(
            [a * cos - b * sin, b * cos + a * sin, old[:, 2 * pairs :]], axis=1
        )
        # Half a step of the codes: 1/30 of the range at 4 bits, 1/254 of the largest at 8, of the
        # rotated key; a factor of 1/2 doubles it, and a centre moves the key.
        largest = np.abs(expected).max(axis=1, keepdims=True)
        norm = np.linalg.norm(expected, axis=1, keepdims=True)
        allowed = {
            32: 1e-6 * largest, 16: 2**-11 * largest * 1.01, 8: norm * 0.0075, 5: norm * 0.031,
            4: norm * 0.12,
        }[kv_bits]  # fmt: skip
        if constants:
            allowed = 2.0 * allowed * (1.0 + 8.0 * np.sqrt(dims) / norm)
        assert (np.abs(after[moved] - expected) <= allowed).all()
        # And as NumPy stores them, up to a code that lies between two.
        cache.write(head, at[moved], expected.astype(np.float32), values[head][moved])
        again = cache.read(head, at, 0)[moved]
        differ = np.abs(again - after[moved]) > 2e-5 * norm
        # A code that rounds the other way is an error of all dims of a rotated key.
        share = differ.any(axis=1) if kv_bits <= 8 else differ
        assert share.mean() < (0.1 if kv_bits <= 8 else 0.01)


def test_a_team_gives_the_same_bits(each_kernels, guard):
    rng = np.random.default_rng(6)
    cache = Cache(guard, rng, 8, 7, 320, 64, 64)
    alone = evictor(each_kernels, cache)
    team, ctx = Team(each_kernels, 3), np.zeros(CTX_SLOTS, np.int64)
    shared = evictor(
        each_kernels, cache, threads=3,
        run=lambda instructions: team.run(Program(instructions), ctx.ctypes.data),
    )  # fmt: skip
    try:
        score = alone.scores("retain", cache.heads)
        np.testing.assert_array_equal(shared.scores("retain", cache.heads), score)
        for one, other in zip(
            alone.lowest(cache.heads, score, room=100, front=9, recent=1000),
            shared.lowest(cache.heads, score, room=100, front=9, recent=1000),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)
        for one, other in zip(
            alone.renumbered(cache.heads, shift=320, front=4),
            shared.renumbered(cache.heads, shift=320, front=4),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)
    finally:
        team.close()


def test_wrong_arrays_are_refused(kernels):
    positions, tokens = np.zeros((2, 128), np.int32), np.zeros((2, 128), np.int32)
    pages = np.zeros((2, 2, 4), np.int64)
    heads = Heads(pages, 64, 16, positions, tokens)
    for bad in (
        (pages[:, :1], 64, 16, positions, tokens),
        (pages, 64, 16, positions.astype(np.int64), tokens),
        (pages, 64, 16, positions, tokens[:, :64]),
        (pages.astype(np.int32), 64, 16, positions, tokens),
    ):
        with pytest.raises(ShapeError, match="expected contiguous"):
            Heads(*bad)
    with pytest.raises(ShapeError, match="1 frequencies for 2 heads"):
        Heads(pages, 64, 16, positions, tokens, [None])
    narrow = np.zeros((2, 8), np.float32)
    with pytest.raises(ShapeError, match=r"constants are float32 \(2, 8\), expected .* \(2, 16\)"):
        Heads(pages, 64, 16, positions, tokens, centre=narrow, factor=narrow)
    run = Evictor(kernels, kv_bits=8)
    with pytest.raises(ShapeError, match="expected int32 as slots"):
        run.rotate(heads, np.zeros((2, 64), np.int32))
    with pytest.raises(ShapeError, match="without frequencies"):
        run.rotate(heads, np.zeros((2, 128), np.int32))
    with pytest.raises(ShapeError, match="expected float32 as slots"):
        run.lowest(heads, np.zeros((2, 128)), room=1, front=0, recent=0)
    with pytest.raises(ShapeError, match="100 slots in pages of 100"):
        launch.renumber(
            kernels, heads=1, records=0, slots=100, shift=1, front=0, positions=0, by=0, scratch=0,
            wait=False,
        )  # fmt: skip
