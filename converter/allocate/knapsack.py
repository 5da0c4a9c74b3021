"""Bits and group sizes per tensor: the least loss that fits, or the least size within a loss.

Tensors with the same input form a unit and share a group size, because they share an order of
inputs in GPTQ and a quantised activation at run time; their bits are free. Choices that another
beats in both size and loss are dropped. A table then gives the least loss for every number of
bytes, counted in steps of 1 / 8192 of the range, and with it the curve of size against loss. Bytes
lost to this rounding go to single choices at the end.

Source: the multiple-choice knapsack problem by dynamic programming, Kellerer, Pferschy, Pisinger
(2004), 11.5.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from edgetok.converter.allocate.sensitivity import Sensitivity, is_end
from edgetok.converter.card.report import Fit, FitPoint
from edgetok.errors import OptionError
from edgetok.formats.layout import (
    TensorFormat,
    linear_shapes,
    linear_tensors,
    plan,
    tensor_bytes,
)
from edgetok.models.operations import operations, stages
from edgetok.models.spec import DecoderSpec

_UNIFORM = ((2, 64), (2, 32), (3, 64), (3, 32), (4, 64), (4, 32), (8, 32))
_UNIFORM_HEAD = (8, 32)
_STEPS = 8192
_POINTS = 129  # of the curve in the report


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to store a unit: its bytes, what it costs, and its tensors' formats."""

    nbytes: int
    loss: float
    formats: tuple[tuple[str, TensorFormat], ...]


@dataclass(frozen=True, slots=True)
class Allocation:
    """A choice for every unit.

    Attributes:
        formats: by tensor.
        nbytes: bytes of all tensors.
        file_bytes: bytes of the data file, in which each tensor begins a page.
        loss: sum of the units' own losses.
    """

    formats: dict[str, TensorFormat]
    nbytes: int
    file_bytes: int
    loss: float


def require_room(budget: int, needed: int) -> None:
    """Refuse a size that weights do not fit in.

    Raises:
        OptionError: they take more bytes than there are.
    """
    if needed > budget:
        raise OptionError(
            f"{max(budget, 0) / 1e6:,.2f} MB are left for the weights, which need "
            f"{needed / 1e6:,.2f} MB at the fewest bits; give a larger --fit"
        )


class Allocator:
    """The measured sensitivities, and the choice of formats within a limit."""

    def __init__(
        self,
        spec: DecoderSpec,
        sensitivity: Sensitivity,
        kept: Mapping[str, TensorFormat],
    ) -> None:
        """Enumerate the choices.

        Args:
            spec: the decoder.
            sensitivity: losses by tensor and way.
            kept: formats of tensors that no width holds, such as float32.
        """
        self._spec = spec
        self._kept = dict(kept)
        self._sensitivity = sensitivity
        self._curve = _LogLog(sensitivity.probes)
        shapes = linear_shapes(spec)
        self._nbytes = {
            name: {
                way: sum(
                    tensor_bytes(*part) for part in linear_tensors(name, shapes[name], way).values()
                )
                for way in sensitivity.kl[name]
            }
            for name in shapes
            if name not in self._kept
        }
        stage_of = {
            op.weight: stage[0].weight for stage in stages(operations(spec)) for op in stage
        }
        units: dict[str, list[str]] = {}
        for name in self._nbytes:
            units.setdefault(stage_of.get(name, name), []).append(name)
        self._units = [self._choices(names) for names in units.values()]
        self._fixed = 0
        self._fixed = self._allocation([0] * len(self._units)).nbytes - self._total(
            [0] * len(self._units)
        )
        most = self._total([len(unit) - 1 for unit in self._units])
        self._step = max(1.0, (most - self._total([0] * len(self._units))) / _STEPS)
        self._least, self._taken = self._tabulate()

    def within_bytes(self, budget: int, *, padded: bool = True) -> Allocation:
        """Return the least loss in at most `budget` bytes.

        Args:
            budget: bytes.
            padded: count the data file with its padding, or else the tensors alone.

        Raises:
            OptionError: the fewest bits take more.
        """
        low = self._total([0] * len(self._units))
        best = self._allocation(self._share_out(low))
        needed = best.file_bytes if padded else best.nbytes
        require_room(budget, needed)
        high = room = budget
        while low <= high:
            result = self._allocation(self._share_out(room))
            if not padded or result.file_bytes <= budget:
                best, low = min(best, result, key=lambda a: a.loss), room + 1
            else:
                high = min(room, result.nbytes) - 1
            room = (low + high) // 2
        return best

    def _share_out(self, budget: int) -> list[int]:
        """Choices with the least loss whose tensors have at most `budget` bytes together."""
        smallest = self._total([0] * len(self._units))
        at = self._trace(min(int((budget - smallest) / self._step), _STEPS))
        total = self._total(at)
        while True:
            gains = [
                (self._units[u][at[u]].loss - choice.loss, u, i)
                for u in range(len(self._units))
                for i, choice in enumerate(self._units[u])
                if choice.loss < self._units[u][at[u]].loss
                and total + choice.nbytes - self._units[u][at[u]].nbytes <= budget
            ]
            if not gains:
                return at
            _, unit, step = max(gains)
            total += self._units[unit][step].nbytes - self._units[unit][at[unit]].nbytes
            at[unit] = step

    def within_loss(self, most_kl: float) -> Allocation:
        """The smallest file of which a KL of at most `most_kl` nats is expected; else the best."""
        enough = [self.expected_kl(loss) <= most_kl for loss in self._least]
        if not any(enough):
            return self._allocation([len(unit) - 1 for unit in self._units])
        at = self._trace(enough.index(True))
        # What counting lost is taken back, the greatest saving first.
        while True:
            spare = [
                (self._units[u][at[u]].nbytes - choice.nbytes, u, i)
                for u in range(len(self._units))
                for i, choice in enumerate(self._units[u])
                if choice.nbytes < self._units[u][at[u]].nbytes
                and self.expected_kl(self._loss(at) + choice.loss - self._units[u][at[u]].loss)
                <= most_kl
            ]
            if not spare:
                return self._allocation(at)
            _, unit, step = max(spare)
            at[unit] = step

    def expected_kl(self, loss: float) -> float:
        """KL in nats to expect of a sum of losses."""
        return self._curve(loss)

    def report(
        self,
        wanted: str,
        chosen: Allocation,
        measured: float | None = None,
        average_bits: int = 0,
    ) -> Fit:
        """Return the curve, what uniform bits give, and the choice.

        Args:
            wanted: the goal, in words.
            chosen: what was written.
            measured: its KL, which tells what sums of losses mean where nothing else does.
            average_bits: see `Fit`.
        """
        probes = len(self._sensitivity.probes)
        if not probes and measured is not None:
            probes, self._curve = 1, _LogLog([(chosen.loss, measured)])
        smallest = self._total([0] * len(self._units))
        every = [round(i * _STEPS / (_POINTS - 1)) for i in range(_POINTS)]
        points = [
            FitPoint(smallest + math.ceil(step * self._step), self.expected_kl(self._least[step]))
            for step in every
        ]
        return Fit(
            wanted=wanted,
            curve=tuple(points),
            uniform=tuple(self._uniform()),
            chosen=FitPoint(chosen.nbytes, self.expected_kl(chosen.loss), "chosen"),
            probes=probes,
            average_bits=average_bits,
        )

    def _uniform(self) -> list[FitPoint]:
        result = []
        for way in _UNIFORM:
            ways = {
                name: form
                for name, known in self._nbytes.items()
                for form in known
                if (form.bits, form.group_size) == (_UNIFORM_HEAD if is_end(name) else way)
            }
            if len(ways) == len(self._nbytes):
                nbytes = self._fixed + sum(self._nbytes[name][way] for name, way in ways.items())
                loss = math.fsum(self._sensitivity.kl[name][way] for name, way in ways.items())
                name = f"{way[0]} bits in groups of {way[1]}"
                result.append(FitPoint(nbytes, self.expected_kl(loss), name))
        return result

    def _choices(self, names: Sequence[str]) -> list[Choice]:
        """Return the combinations with one group size that no other beats, by rising bytes."""
        kl = self._sensitivity.kl
        combined = []
        for group in {form.group_size for name in names for form in kl[name]}:
            ways = [[form for form in kl[name] if form.group_size == group] for name in names]
            for combination in itertools.product(*ways):
                pairs = list(zip(names, combination, strict=True))
                combined.append(
                    Choice(
                        sum(self._nbytes[name][way] for name, way in pairs),
                        math.fsum(kl[name][way] for name, way in pairs),
                        tuple(pairs),
                    )
                )
        combined.sort(key=lambda choice: (choice.nbytes, choice.loss))
        best: list[Choice] = []
        for choice in combined:
            if not best or choice.loss < best[-1].loss:
                best.append(choice)
        return best

    def _tabulate(self) -> tuple[list[float], list[npt.NDArray[np.uint16]]]:
        """The least loss in each number of steps above the smallest size; each unit's choice."""
        least = np.zeros(_STEPS + 1)
        taken = []
        for unit in self._units:
            best = np.full(_STEPS + 1, np.inf)
            choice = np.zeros(_STEPS + 1, np.uint16)
            for i, way in enumerate(unit):
                steps = math.ceil((way.nbytes - unit[0].nbytes) / self._step)
                if steps > _STEPS:
                    continue
                loss = least[: len(least) - steps] + way.loss
                better = loss < best[steps:]
                best[steps:][better], choice[steps:][better] = loss[better], i
            least = best
            taken.append(choice)
        return least.tolist(), taken

    def _trace(self, step: int) -> list[int]:
        """Return every unit's choice for a total number of steps."""
        at = []
        for unit, choice in zip(reversed(self._units), reversed(self._taken), strict=True):
            i = int(choice[step])
            at.append(i)
            step -= math.ceil((unit[i].nbytes - unit[0].nbytes) / self._step)
        return at[::-1]

    def _total(self, at: Sequence[int]) -> int:
        return self._fixed + sum(unit[i].nbytes for unit, i in zip(self._units, at, strict=True))

    def _loss(self, at: Sequence[int]) -> float:
        return math.fsum(unit[i].loss for unit, i in zip(self._units, at, strict=True))

    def _allocation(self, at: Sequence[int]) -> Allocation:
        formats = self._formats([unit[i] for unit, i in zip(self._units, at, strict=True)])
        layout = plan(self._spec, formats, constants=True)
        return Allocation(formats, layout.weight_bytes, layout.file_bytes, self._loss(at))

    def _formats(self, choices: Sequence[Choice]) -> dict[str, TensorFormat]:
        result = dict(self._kept)
        result.update(form for choice in choices for form in choice.formats)
        return {name: result[name] for name in linear_shapes(self._spec)}


class _LogLog:
    """A rising curve through points, in logarithms straight between them and beyond of slope 1."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self._points: list[tuple[float, float]] = []
        for x, y in sorted((x, y) for x, y in points if x > 0 and y > 0):
            if not self._points or y > self._points[-1][1]:
                self._points.append((x, y))

    def __call__(self, x: float) -> float:
        if x <= 0 or not self._points:
            return max(x, 0.0)
        for (x0, y0), (x1, y1) in pairwise(self._points):
            if x0 <= x <= x1:
                share = math.log(x / x0) / math.log(x1 / x0)
                return float(y0 * (y1 / y0) ** share)
        x0, y0 = self._points[0] if x < self._points[0][0] else self._points[-1]
        return y0 * x / x0
