"""Sampling where the logits are: what a backend that chooses tokens itself is told."""

from __future__ import annotations

from dataclasses import dataclass

MOST_CANDIDATES = 64  # that a backend which chooses tokens itself draws among


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """The options and the random number of a draw on a device.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: among so many, 1..MOST_CANDIDATES; of no meaning where the temperature is 0.
        top_p, min_p: as in `SamplingOptions`.
        share: share of what may be drawn, in rising order of ids, that comes before the token;
            0..1.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    share: float
