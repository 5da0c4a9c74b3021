"""Random lives of sequences that share steps, and each sequence alone.

A schedule appends chunks of several sequences in steps of one to four parts, asks for logits of
some rows, drafts and takes some of the draft back, cuts sequences back, answers again, and copies
caches, as bytes or by shared pages.
Whatever happened, the logits of a token are those of the tokens before it, bit for bit: where
nothing is evicted, those of a fresh cache that was given one token after the other; where a policy
evicts, those of the same chunks and cuts with nobody else in a step.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from edgetok.cache.limits import CacheLimits
from edgetok.formats.layout import TensorFormat
from edgetok.models import read_family
from edgetok.runtime.backend import Part
from tests.rtn_artefact import random_tensors, uniform_formats, write_artefact
from tests.tiny import VOCAB_SIZE, sizes

STEPS = 45
SEQUENCES = 4
LONGEST = 110  # tokens: bounded caches of 64 slots evict, windows of 8 tokens go around their ring


class Alone:
    """Logits of every beginning of a text, from a fresh cache, one token after the other."""

    def __init__(self, backend):
        self.backend = backend
        self.known = {}
        self.text = ()
        self.cache = None

    def after(self, tokens):
        key = tuple(tokens)
        if key not in self.known:
            if self.cache is None or key[: len(self.text)] != self.text:
                self.text, self.cache = (), self.backend.new_cache(LONGEST)
            for token in key[len(self.text) :]:
                (found,) = self.backend.step([Part(self.cache, np.array([token], np.int32), 1)])
                self.text += (token,)
                self.known[self.text] = found.tobytes()
        return self.known[key]


@dataclass(frozen=True)
class Step:
    """One sequence's part of a step: tokens, rows of logits, how many of a draft were kept."""

    ids: np.ndarray
    wanted: int
    found: bytes
    kept: int | None = None

    @property
    def tokens(self):
        """Tokens that stayed."""
        return self.ids[: self.kept]


COPIED = "copied as bytes"


class Sequence:
    """A cache, the tokens that it stands for, and everything that was done to it."""

    def __init__(self, cache):
        self.cache = cache
        self.tokens = []
        self.done = []  # steps, lengths after a cut, COPIED
        self.drafted = 0

    def cut(self, wanted):
        """Go back to a length, or as near as the cache can; whether it is that length."""
        length = wanted
        if not self.cache.truncate(wanted):  # what the next token sees was overwritten or evicted
            length = self.cache.reachable(wanted)
            assert length < wanted
            assert self.cache.truncate(length)
        del self.tokens[length:]
        self.done.append(length)
        return length == wanted

    def copy_to(self, other, by_pages):
        other.done = list(self.done)
        if by_pages:
            other.cache.adopt(self.cache)
        else:
            other.cache.load(self.cache.save())
            other.done.append(COPIED)
        other.tokens = list(self.tokens)


def run_schedule(backend, make_cache, seed):
    """One schedule; its sequences."""
    rng = np.random.default_rng(seed)
    sequences = [Sequence(make_cache(i)) for i in range(SEQUENCES)]
    for _ in range(STEPS):
        one = sequences[rng.integers(SEQUENCES)]
        what = rng.random()
        if what < 0.1 and one.tokens:
            one.cut(int(rng.integers(max(0, len(one.tokens) - 12), len(one.tokens) + 1)))
        elif what < 0.16:
            answer_again(backend, one)
        elif what < 0.22:
            other = sequences[rng.integers(SEQUENCES)]
            if other is not one and one.cache.shape == other.cache.shape:
                one.copy_to(other, by_pages=rng.random() < 0.5)
        else:
            chosen, left = [], backend.capabilities.step_rows
            for i in rng.permutation(SEQUENCES)[: rng.integers(1, SEQUENCES + 1)]:
                sequence = sequences[i]
                most = min(left, sequence.cache.block_tokens, LONGEST - len(sequence.tokens))
                if most < 1:
                    continue
                count = int(rng.integers(1, most + 1)) if rng.random() < 0.5 else 1
                if rng.random() < 0.3 and (most := min(most, sequence.cache.draft_tokens)) > 1:
                    count = int(rng.integers(2, most + 1))
                    left -= count
                    ids = rng.integers(3, VOCAB_SIZE, count).astype(np.int32)
                    chosen.append((sequence, ids, count, int(rng.integers(1, count + 1))))
                    continue
                left -= count
                ids = rng.integers(3, VOCAB_SIZE, count).astype(np.int32)
                chosen.append((sequence, ids, int(rng.integers(0, count + 1)), None))
            append(backend, chosen)
    return sequences


def answer_again(backend, one):
    """Cut the latest step off and repeat it; of a draft the last token that was kept."""
    if not one.done or not isinstance(one.done[-1], Step):
        return
    step = one.done[-1]
    ids, wanted, found = step.ids, step.wanted, step.found
    if step.kept is not None:
        ids, wanted, found = step.tokens[-1:], 1, rows_of(step, step.kept - 1, step.kept)
    if len(ids) < len(one.tokens) and one.cut(len(one.tokens) - len(ids)):
        append(backend, [(one, ids, wanted, None)])
        assert one.done[-1].found == found


def rows_of(step, first, end):
    row = len(step.found) // step.wanted
    return step.found[row * first : row * end]


def append(backend, chosen):
    """A step of (sequence, tokens, rows of logits, rows of a draft that are kept or None)."""
    found = backend.step([Part(one.cache, ids, wanted) for one, ids, wanted, _ in chosen])
    for (one, ids, wanted, kept), logits in zip(chosen, found, strict=True):
        assert logits.shape == (wanted, VOCAB_SIZE)
        assert logits.dtype == np.float32
        step = Step(ids, wanted, logits.tobytes(), kept)
        if kept is not None:
            one.drafted += len(ids)
            if kept < len(ids):
                one.cache.retract(len(ids) - kept)
        one.tokens += step.tokens.tolist()
        one.done.append(step)
        assert one.cache.length_tokens == len(one.tokens)


def check_against_each_token_alone(sequence, alone):
    tokens = []
    for event in sequence.done:
        if isinstance(event, int):
            del tokens[event:]
        if not isinstance(event, Step):
            continue
        tokens += event.tokens.tolist()
        wanted, found = event.wanted, event.found
        if event.kept is not None:
            wanted, found = event.kept, rows_of(event, 0, event.kept)
        ends = range(len(tokens) - wanted + 1, len(tokens) + 1)
        assert found == b"".join(alone.after(tokens[:end]) for end in ends), len(tokens)


def check_against_the_same_chunks_alone(sequence, backend, make):
    """Repeat what was done to a sequence with nobody else in a step.

    Drafts are repeated token by token; where there are states, as drafts, because how far back a
    cache can go depends on where its steps began.
    """
    cache, drafts = make(), backend.spec.keeps_states
    for event in sequence.done:
        if event == COPIED:
            copy = make()
            copy.load(cache.save())
            cache = copy
        elif isinstance(event, int):
            if not cache.truncate(event):
                assert event == 0
                cache.clear()
        elif event.kept is None or drafts:
            (found,) = backend.step([Part(cache, event.ids, event.wanted)])
            assert found.tobytes() == event.found, cache.length_tokens
            if event.kept is not None and event.kept < len(event.ids):
                cache.retract(len(event.ids) - event.kept)
        else:
            for i in range(event.kept):
                (found,) = backend.step([Part(cache, event.ids[i : i + 1], 1)])
                assert found.tobytes() == rows_of(event, i, i + 1), cache.length_tokens


def check_plain(backend, alone, seed):
    """Run one schedule of caches that do not evict; return how many tokens were drafted."""
    capacities = (LONGEST, 128, 300, 5000)
    if any(rope.scaling == "longrope" for rope in backend.spec.ropes):
        capacities = (LONGEST,) * SEQUENCES  # rotations depend on it
    sequences = run_schedule(backend, lambda i: backend.new_cache(capacities[i]), seed)
    for sequence in sequences:
        check_against_each_token_alone(sequence, alone)
    return sum(sequence.drafted for sequence in sequences)


def check_evicting(backend, policy, seed):
    """Run one schedule of caches that evict, and one that does not.

    Returns:
        How many caches evicted, and how many tokens were drafted for them.
    """

    def make(i):
        if i == SEQUENCES - 1:  # one that does not evict is in the same steps
            return backend.new_cache(LONGEST)
        return backend.new_bounded_cache(64, CacheLimits(policy=policy))

    evicted = drafted = 0
    for i, sequence in enumerate(run_schedule(backend, make, seed)):
        check_against_the_same_chunks_alone(sequence, backend, functools.partial(make, i))
        if i < SEQUENCES - 1:
            evicted += sequence.cache.retained < sequence.cache.length_tokens
            drafted += sequence.drafted
    return evicted, drafted


def write_random(family, folder):
    """Write an artefact of 4 bits with random weights, from a family's tiny config alone.

    transformers need not know the family, so that all can be had.
    """
    spec = read_family({**sizes(family), "model_type": family}).spec
    tensors = random_tensors(spec)
    for name, values in tensors.items():
        if name.endswith("layer_scale.weight"):
            values += 1.0
        elif name.endswith("q_norm.weight"):
            values *= len(values) ** -0.5  # no token is seen alone
    write_artefact(folder, spec, tensors, uniform_formats(spec, TensorFormat(4, 32)))
    return folder
