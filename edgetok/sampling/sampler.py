"""From logits to the next token of one generation: the steps of `edgetok.sampling.steps`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgetok.sampling.device import Draw
from edgetok.sampling.options import SamplingOptions
from edgetok.sampling.random_shares import RandomShares
from edgetok.sampling.steps import (
    Choices,
    Logits,
    Penalties,
    Pick,
    Step,
    likeliest,
    narrowing,
    penalises,
)


class Sampler:
    """The sampler of one generation; not to be shared.

    Attributes:
        steps: what is done to the logits, in order, before one token is picked.
        on_device: whether a backend that chooses tokens itself can do all of it.
    """

    def __init__(
        self, options: SamplingOptions, vocab_size: int, prompt: Sequence[int] = ()
    ) -> None:
        """Start a generation.

        Args:
            options: how to choose.
            vocab_size: number of logits.
            prompt: tokens that the repetition penalty counts as seen.
        """
        self._options = options
        self._shares = RandomShares(options.seed)
        self._pick = Pick(options)
        self._penalties = Penalties(options, vocab_size, prompt) if penalises(options) else None
        before: list[Step] = [] if self._penalties is None else [self._penalties]
        self._narrowing = narrowing(options)
        self.steps = (*before, *self._narrowing)
        self.on_device = self._pick.on_device and all(step.on_device for step in self.steps)

    def sample(self, logits: Logits) -> int:
        """Choose the next token and remember it.

        Args:
            logits: [vocab_size]; not changed.

        Raises:
            ArtefactError: the logits are not numbers.
        """
        choices = Choices(logits)
        if self._penalties is not None:
            self._penalties(choices)
        token = likeliest(choices.logits)
        if self._options.temperature > 0.0:
            for step in self._narrowing:
                step(choices)
            token = self._pick(choices, self._shares.next())
        if self._penalties is not None:
            self._penalties.chosen(token)
        return token

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
