"""The random numbers of a generation: SplitMix64, which every language repeats in ten lines.

A number belongs to a seed and a place in the answer, not to a history: a token that is drawn again,
after a rejected draft or by another backend, gets the same number. The algorithm, its constants and
test vectors are in docs/random.md; seeds are a promise. `kernels_cpu/sampling/random.py` is the
same for compiled code.
"""

from __future__ import annotations

import secrets

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def random_bits(seed: int, index: int) -> int:
    """Number `index`, from 0, of the stream of a seed, as 64 bits.

    Source: G. L. Steele, D. Lea, C. H. Flood: Fast Splittable Pseudorandom Number Generators, 2014.
    """
    z = (seed + (index + 1) * _STEP) & _MASK
    z = ((z ^ z >> 30) * _FIRST) & _MASK
    z = ((z ^ z >> 27) * _SECOND) & _MASK
    return z ^ z >> 31


def random_share(seed: int, index: int) -> float:
    """The same number as a float64 in [0, 1): its upper 53 bits divided by 2^53."""
    return (random_bits(seed, index) >> 11) * 2.0**-53


class RandomShares:
    """The numbers of one answer, in [0, 1); equal seeds give equal ones. Not to be shared.

    Attributes:
        seed: 0 .. 2^64 - 1.
        index: the place in the answer of the next number.
    """

    def __init__(self, seed: int | None) -> None:
        """Start a stream; None draws a seed from the operating system."""
        self.seed = secrets.randbits(64) if seed is None else seed
        self.index = 0

    def next(self) -> float:
        """Return the number of the next place."""
        share = random_share(self.seed, self.index)
        self.index += 1
        return share
