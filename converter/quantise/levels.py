"""Levels that weights are rounded to, w ~ level * scale: the search for scales, and rounding.

A kind of levels says how a code gives a level (`loops`), which scales to try, and how a scale is
stored; everything else is common.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.converter.quantise.inner_loops import Loops, Reals

Scales = npt.NDArray[np.float16]
Codes = npt.NDArray[np.uint8]

_REFITS = 2


class Levels(ABC):
    """The levels of one format, as numbers of one floating type, which all arithmetic uses.

    Attributes:
        dtype: that type.
    """

    def __init__(self, loops: Loops, levels: Any, dtype: npt.DTypeLike) -> None:
        """Keep the loops and the levels that they are given."""
        self._loops, self._levels = loops, levels
        self.dtype = np.dtype(dtype)

    @abstractmethod
    def values(self, codes: Codes) -> Reals:
        """Return the numbers that `descend_group` moves: levels for a zero point of 0."""

    @abstractmethod
    def codes(self, values: Reals) -> Codes:
        """Return the codes of such numbers: uint8 of any shape."""

    @abstractmethod
    def _rounded(self, relative: Reals, zero: Codes) -> Reals | Codes:
        """Return the nearest codes of [N, g] weights divided by their scales; zero points [N]."""

    @abstractmethod
    def _candidates(self, group: Reals, thorough: bool) -> tuple[Scales, Codes]:
        """Return scales and zero points to try for each output: [candidates, N]."""

    @abstractmethod
    def _stored(self, refitted: Reals, scale: Scales) -> Scales:
        """Return refitted scales [N] as they are stored, or the old one where one cannot be."""

    def search(
        self, group: Reals, importance: Reals, *, thorough: bool = False
    ) -> tuple[Scales, Codes]:
        """Scale and zero point with the least sum of importance * (w - w')^2, rounded to nearest.

        Args:
            group: [N, g] weights of one group.
            importance: [g] of each input; in GPTQ the loss of an error in it is 1 / factor_jj^2.
            thorough: try more candidates, and then the scale that is best for the codes found, in
                closed form.

        Returns:
            [N] float16 scales, not zero, and [N] uint8 zero points (0 where there are none).
        """
        scale, zero = self._best(group, importance, *self._candidates(group, thorough))
        for _ in range(_REFITS if thorough else 0):
            refitted = self._stored(self._refit(group, importance, scale, zero), scale)
            both = np.stack([scale, refitted])
            scale, zero = self._best(group, importance, both, np.stack([zero, zero]))
        return scale, zero

    def round_alike(
        self, weight: npt.NDArray[np.float32], group_size: int, *, thorough: bool = False
    ) -> tuple[Codes, Scales, Codes]:
        """Round each weight to nearest, scales and zero points searched, all inputs alike.

        Args:
            weight: [N, K] float32, finite.
            group_size: inputs that share a scale.
            thorough: as for `search`.

        Returns:
            [N, K] codes, and [N, groups] scales and zero points.
        """
        N, K = weight.shape
        codes = np.empty((N, K), np.uint8)
        scales = np.empty((N, -(-K // group_size)), np.float16)
        zeros = np.empty(scales.shape, np.uint8)
        for g, first in enumerate(range(0, K, group_size)):
            group = np.ascontiguousarray(weight[:, first : first + group_size])
            alike = np.ones(group.shape[1], np.float32)
            scale, zero = self.search(group, alike, thorough=thorough)
            wide: npt.NDArray[np.float32] = scale[:, None].astype(np.float32)
            codes[:, first : first + group_size] = self._rounded(group / wide, zero)
            scales[:, g], zeros[:, g] = scale, zero
        return codes, scales, zeros

    def round_group(
        self,
        values: Reals,
        inside: tuple[int, int],
        factor: Reals,
        scale: Scales,
        zero: Codes,
        codes: Codes,
        errors: Reals,
    ) -> None:
        """Round inputs `inside` of a block by GPTQ; see `inner_loops.loops_to`."""
        wide, offset = scale.astype(self.dtype), zero.astype(self.dtype)
        self._loops.round_group(values, *inside, factor, wide, offset, self._levels, codes, errors)

    def descend_group(
        self,
        gradient: Reals,
        inside: tuple[int, int],
        hessian: Reals,
        scale: Scales,
        values: Reals,
        change: Reals,
    ) -> None:
        """Move values of inputs `inside` of a block; see `inner_loops.loops_to`."""
        wide = scale.astype(self.dtype)
        self._loops.descend_group(gradient, *inside, hessian, wide, self._levels, values, change)

    def _best(
        self, group: Reals, importance: Reals, scales: Scales, zeros: Codes
    ) -> tuple[Scales, Codes]:
        """Return the best of some scales and zero points [candidates, N] for each output."""
        best = np.zeros(len(group), np.int64)
        wide, offsets = scales.astype(self.dtype), zeros.astype(self.dtype)
        self._loops.best_candidate(group, importance, wide, offsets, self._levels, best)
        outputs = np.arange(len(group))
        return scales[best, outputs], zeros[best, outputs]

    def _refit(self, group: Reals, importance: Reals, scale: Scales, zero: Codes) -> Reals:
        """Return the least-squares scale [N] for the levels that a scale gives."""
        refitted = np.empty(len(group), self.dtype)
        wide, offset = scale.astype(self.dtype), zero.astype(self.dtype)
        self._loops.refit(group, importance, wide, offset, self._levels, refitted)
        return refitted
