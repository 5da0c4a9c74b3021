"""Sampling where the logits are: what a backend that chooses tokens itself is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgetok.sampling.options import SamplingOptions

MOST_CANDIDATES = 64  # that a backend which chooses tokens itself draws among


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How one token is chosen where its logits are.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: among so many, 1..MOST_CANDIDATES; of no meaning where the temperature is 0.
        top_p, min_p: as in `SamplingOptions`.
        share: of what may be drawn, in rising order of ids, that comes before the token; 0..1.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    share: float


def device_draws(options: SamplingOptions, share: Callable[[], float]) -> Callable[[], Draw] | None:
    """How a backend that can choose tokens itself does so, with the sampler's random numbers.

    Returns:
        None where the host has to: the choice looks back at what was said, or is among more
        candidates than a device keeps.
    """
    looks_back = (
        options.repetition_penalty != 1.0
        or options.presence_penalty != 0.0
        or options.frequency_penalty != 0.0
    )
    if looks_back or (options.temperature > 0 and not 1 <= options.top_k <= MOST_CANDIDATES):
        return None

    def draw() -> Draw:
        return Draw(
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            share=share(),
        )

    return draw
