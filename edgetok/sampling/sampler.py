"""The sampler of one generation: logits to a token, by the steps of `edgetok.sampling.steps`.

Where a backend has compiled kernels, one of them does all steps at once (`TokenChooser`); the steps
say what it does, and do it everywhere else.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgetok.sampling.constraint import Mask, allowed_tokens
from edgetok.sampling.device import Draw
from edgetok.sampling.options import SamplingOptions
from edgetok.sampling.random_shares import RandomShares, random_share
from edgetok.sampling.steps import (
    Choices,
    Logits,
    Penalties,
    Pick,
    Step,
    likeliest,
    narrowing,
    not_finite,
    penalises,
)

_AGAIN = 0xA5A5A5A55A5A5A5A  # changes the seed for the draw after a refused one


class TokenChooser(Protocol):
    """Does all steps for the options that it was made with."""

    def choose(
        self,
        logits: Logits,
        seed: int,
        index: int,
        seen: npt.NDArray[np.int32] | None = None,
        mask: Mask | None = None,
    ) -> int:
        """Choose a token.

        Args:
            logits: [vocab_size], C-contiguous; not changed.
            seed: seed of the random number (`random_shares.py`).
            index: the token's place in the answer.
            seen: as `Penalties.seen`.
            mask: tokens that are allowed; None for all.

        Returns:
            The token; -1 - token where the logits are not numbers, that token's for one.
        """


class Sampler:
    """The sampler of one generation; not to be shared.

    Attributes:
        steps: what is done to the logits, in order, before one token is picked.
        on_device: whether a backend that chooses tokens itself can do all of it.
    """

    def __init__(
        self,
        options: SamplingOptions,
        vocab_size: int,
        prompt: Sequence[int] = (),
        chooser: TokenChooser | None = None,
    ) -> None:
        """Start a generation.

        Args:
            options: how to choose.
            vocab_size: number of logits.
            prompt: tokens that the repetition penalty counts as seen.
            chooser: does all steps, made with the same options; None for NumPy.
        """
        self._chooser = chooser
        self._options = options
        self._shares = RandomShares(options.seed)
        self._pick = Pick(options)
        self._penalties = Penalties(options, vocab_size, prompt) if penalises(options) else None
        before: list[Step] = [] if self._penalties is None else [self._penalties]
        self._narrowing = narrowing(options)
        self.steps = (*before, *self._narrowing)
        self.on_device = self._pick.on_device and all(step.on_device for step in self.steps)

    def fork(self) -> Sampler:
        """Return a copy that goes its own way, with the same random numbers."""
        made = copy.copy(self)
        made._shares = copy.copy(self._shares)
        if self._penalties is not None:
            made._penalties = self._penalties.fork()
            made.steps = (made._penalties, *self._narrowing)
        return made

    def sample(self, logits: Logits, mask: Mask | None = None) -> int:
        """Choose the next token and remember it.

        With a mask it is the token that would be chosen without one, if that is allowed; if not,
        another random number draws among those that are. So an answer that its grammar allows is
        the same as without it, and without top-k, top-p and min-p the probabilities are those of
        the mask alone.

        Args:
            logits: [vocab_size]; not changed.
            mask: tokens that are allowed, at least one; None for all.

        Raises:
            ArtefactError: the logits are not numbers.
        """
        index = self._shares.index
        self._shares.index += 1
        token = self._drawn(logits, self._shares.seed, index, None)
        if mask is not None and not mask[token // 32] >> np.uint32(token % 32) & np.uint32(1):
            token = self._drawn(logits, self._shares.seed ^ _AGAIN, index, mask)
        if self._penalties is not None:
            self._penalties.chosen(token)
        return token

    def _drawn(self, logits: Logits, seed: int, index: int, mask: Mask | None) -> int:
        """Choose with a random number, by kernel where there is one."""
        if self._chooser is None:
            return self._choose(logits, random_share(seed, index), mask)
        seen = None if self._penalties is None else self._penalties.seen
        token = self._chooser.choose(logits, seed, index, seen, mask)
        if token < 0:
            raise not_finite(float(logits[-1 - token]), -1 - token)
        return token

    def _choose(self, logits: Logits, share: float, mask: Mask | None) -> int:
        """Choose with NumPy."""
        choices = Choices(logits)
        if self._penalties is not None:
            self._penalties(choices)
        if mask is not None:
            choices.allow(allowed_tokens(mask, logits.size))
        token = likeliest(choices.logits)
        if self._options.temperature == 0.0:
            return token
        for step in self._narrowing:
            step(choices)
        return self._pick(choices, share)

    def draw(self) -> Draw:
        """Return the options and random number for a backend that draws the next token itself."""
        options = self._options
        return Draw(
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            share=self._shares.next(),
        )


def candidates(
    logits: Logits, options: SamplingOptions
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the tokens that may be drawn and how probable each is.

    Args:
        logits: [vocab_size], finite at the maximum.
        options: temperature above 0.

    Returns:
        Ids in rising order, and their probabilities, which add up to 1.
    """
    choices = Choices(logits)
    for step in narrowing(options):
        step(choices)
    ids = np.arange(logits.size) if choices.ids is None else choices.ids
    return ids, choices.probabilities
