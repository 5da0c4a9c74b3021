"""Batches: which source gives how many rows in which stage, tokenised, with loss weights.

A batch is a function of (seed, step) alone, so that a resumed run sees exactly what an
uninterrupted one would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import corpus
import dense_data
import language_data
import numpy as np
import recall_data
import story_data
from recall_data import LOOKUP, READ, SAID, Turn
from tokenizers import Tokenizer

RECALL = ("facts", "quiz", "pass_key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the curriculum.

    Attributes:
        name: for the log.
        tokens: how many tokens it lasts.
        lengths: tokens in a row; a batch is of one length, drawn by step, so that the short
            and dense ones go on while the long ones are learnt.
        shares: source -> share of the rows.
        read_weight: loss weight of text that only has to be read, in recall rows.
        language_weight: loss weight of stories and small talk, against 1 for a looked-up answer:
            nearly every token of theirs counts, of a recall row one in ten.
        span: how much of a recall conversation may be filled between telling and asking.
        lr: learning rate factor at its begin and end.
    """

    name: str
    tokens: int
    lengths: tuple[int, ...]
    shares: dict[str, float]
    read_weight: float = 0.05
    language_weight: float = 1.0
    span: tuple[float, float] = (0.0, 0.0)
    lr: tuple[float, float] = (1.0, 1.0)


class Batches:
    """Tokenised rows of a stage."""

    def __init__(self, tokenizer: Path, batch_tokens: int, seed: int) -> None:
        self.tok = Tokenizer.from_file(str(tokenizer))
        self.batch_tokens = batch_tokens
        self.seed = seed
        self.end = self.tok.token_to_id("<|endoftext|>")
        self.im_start = self.tok.token_to_id("<|im_start|>")
        self.im_end = self.tok.token_to_id("<|im_end|>")
        self.encode = lru_cache(maxsize=10_000)(self._encode)
        self.newline = self.encode("\n")

    def _encode(self, text: str) -> list[int]:
        return self.tok.encode(text, add_special_tokens=False).ids

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.encode(text))

    def batch(
        self, stage: Stage, step: int, part: int = 0, parts: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return one worker's rows of a batch: every `parts`-th row, from row `part` on.

        Returns: tokens [B, length + 1] int64; weights [B, length] float32 of tokens[:, 1:].
        """
        rng = random.Random(f"{self.seed}|{step}")
        length = rng.choice(stage.lengths)
        rows = max(2, self.batch_tokens // length)
        mine = range(part, rows, parts)
        tokens = np.empty((len(mine), length + 1), np.int64)
        weights = np.empty((len(mine), length), np.float32)
        # Shares hold in every batch, not only on average: what is left over is drawn.
        names = list(stage.shares)
        total = sum(stage.shares.values())
        offset = rng.random()
        edges = np.cumsum([stage.shares[n] / total for n in names])
        for i, row in enumerate(mine):
            place = (row + offset) / rows % 1
            name = names[min(int(np.searchsorted(edges, place)), len(names) - 1)]
            rng = random.Random(f"{self.seed}|{step}|{row}")
            ids, w = self.row(rng, name, stage, length + 1)
            tokens[i], weights[i] = ids, w[1:]
        return tokens, weights

    def row(
        self, rng: random.Random, source: str, stage: Stage, need: int
    ) -> tuple[list[int], list[float]]:
        """Return one full row of `need` tokens of a source."""
        if source == "copy":
            return dense_data.random_copy(rng, need, self.tok.get_vocab_size())
        if source == "terse":
            return dense_data.terse(rng, need, self.encode)
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < need:
            left = need - len(ids)
            if source == "story":
                if rng.random() < 0.3:
                    story = story_data.raw(rng)
                else:
                    story = corpus.rename(language_data.any_story(rng), rng)
                new = [*self.encode(story), self.end]
                ids += new
                weights += [stage.language_weight] * len(new)
                continue
            if source in RECALL:
                make: Callable = getattr(recall_data, source)
                budget = left if left < 130 else int(left * rng.choice((1, 1, 0.7, 0.4)))
                turns = make(
                    rng,
                    max(budget - 10, 50),
                    self.count,
                    language_data.filler_turns(rng),
                    rng.uniform(*stage.span),
                )
                value = {LOOKUP: 1.0, SAID: stage.read_weight, READ: stage.read_weight}
            else:
                turns = getattr(language_data, source)(rng)
                said = stage.language_weight
                value = {LOOKUP: 1.0, SAID: said, READ: 0.1 * said}
            new, w = self.chat(turns, value)
            ids += new
            weights += w
        ids, weights = ids[:need], weights[:need]
        if source in RECALL:
            # Small weights as a sample: the head then computes few positions, on average the same.
            weights = [x if x == 1.0 else (0.3 if rng.random() * 0.3 < x else 0.0) for x in weights]
        return ids, weights

    def chat(self, turns: list[Turn], value: dict[str, float]) -> tuple[list[int], list[float]]:
        """Return a conversation in the chat template, and `<|endoftext|>` after it."""
        ids: list[int] = []
        weights: list[float] = []
        read = value[READ]
        for turn in turns:
            w = value[turn.mark]
            head = [self.im_start, *self.encode(turn.role + "\n")]
            body = self.encode(turn.content)
            ids += [*head, *body, self.im_end, *self.newline]
            weights += [read] * len(head) + [w] * (len(body) + 1) + [read] * len(self.newline)
        return [*ids, self.end], [*weights, read]
