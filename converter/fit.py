"""Bits and group sizes per tensor: the least loss that fits, or the least size within a loss.

Tensors that take the same input share a group size, as they share an order of inputs in GPTQ and a
quantised activation at run time; their bits are free. Each such unit has its choices, of which
those on the lower convex hull of (bytes, loss) are stepped through from the smallest model upwards,
the step that gains most for its bytes first: no other sequence is better at the sizes it passes
(Lagrange). What is left of the budget then goes to single choices beside the hull.

Source: the multiple-choice knapsack problem, Kellerer, Pferschy, Pisinger (2004), 11.2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgetok.converter.blocks import STAGES
from edgetok.converter.report import Fit, FitPoint
from edgetok.converter.sensitivity import Sensitivity
from edgetok.errors import OptionError
from edgetok.formats.layout import (
    ALIGNMENT_BYTES,
    TensorFormat,
    linear_shapes,
    linear_tensors,
    plan,
    tensor_bytes,
)
from edgetok.models.spec import DecoderSpec

_UNIFORM = ((2, 64), (2, 32), (3, 64), (3, 32), (4, 64), (4, 32), (8, 32))
_UNIFORM_HEAD = (8, 32)
_MOST_POINTS = 200  # of the curve in the report


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
        nbytes: of all tensors.
        file_bytes: of the data file, in which each tensor begins a page.
        loss: sum of the units' own losses.
    """

    formats: dict[str, TensorFormat]
    nbytes: int
    file_bytes: int
    loss: float


class Allocator:
    """Everything that `measure` found, ready to be shared out."""

    def __init__(
        self,
        spec: DecoderSpec,
        sensitivity: Sensitivity,
        kept: Mapping[str, TensorFormat],
        *,
        symmetric: bool,
    ) -> None:
        """Enumerate the choices.

        Args:
            spec: the decoder.
            sensitivity: losses by tensor and way.
            kept: formats of tensors that no width holds, such as float32.
            symmetric: no zero points.
        """
        self._spec = spec
        self._kept = dict(kept)
        self._symmetric = symmetric
        self._sensitivity = sensitivity
        self._curve = _LogLog(sensitivity.probes)
        shapes = linear_shapes(spec)
        self._nbytes = {
            name: {
                way: sum(
                    tensor_bytes(*part)
                    for part in linear_tensors(name, shapes[name], self._form(way)).values()
                )
                for way in sensitivity.kl[name]
            }
            for name in shapes
            if name not in self._kept
        }
        units: dict[str, list[str]] = {}
        for name in self._nbytes:
            layer, _, module = name.rpartition(".")
            stage = next((stage[0] for stage in STAGES if module in stage), module)
            units.setdefault(f"{layer}.{stage}", []).append(name)
        self._units = [self._choices(names) for names in units.values()]
        self._fixed = 0
        self._fixed = self._allocation([0] * len(self._units)).nbytes - self._total(
            [0] * len(self._units)
        )
        self._path = _hull_path(self._units)

    def within_bytes(self, budget: int) -> Allocation:
        """The least loss in a data file of at most `budget` bytes.

        Raises:
            OptionError: the smallest file is larger.
        """
        room = budget
        while room >= self._total([0] * len(self._units)):
            found = self._allocation(self._share_out(room))
            if found.file_bytes <= budget:
                return found
            room = found.nbytes - 1 - max(0, found.file_bytes - budget - ALIGNMENT_BYTES)
        smallest = self._allocation([0] * len(self._units)).file_bytes
        raise OptionError(
            f"{max(budget, 0) / 1e6:,.2f} MB for the weights, but with the fewest bits they take "
            f"{smallest / 1e6:,.2f} MB; allow more"
        )

    def _share_out(self, budget: int) -> list[int]:
        """Choices with the least loss whose tensors have at most `budget` bytes together."""
        at = [0] * len(self._units)
        total = self._total(at)
        for unit, step in self._path:
            more = self._units[unit][step].nbytes - self._units[unit][at[unit]].nbytes
            if total + more <= budget:
                at[unit], total = step, total + more
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
        at = [0] * len(self._units)
        for unit, step in self._path:
            if self.expected_kl(self._loss(at)) <= most_kl:
                break
            at[unit] = step
        # Steps that a later one made needless are taken back, the greatest saving first.
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

    def report(self, wanted: str, chosen: Allocation) -> Fit:
        """The curve, what uniform bits give, and the choice."""
        at, points = [0] * len(self._units), []
        for unit, step in [(0, 0), *self._path]:
            at[unit] = step
            found = self._total(at), self._loss(at)
            points.append(FitPoint(found[0], self.expected_kl(found[1])))
        every = max(1, math.ceil(len(points) / _MOST_POINTS))
        return Fit(
            wanted=wanted,
            curve=(*points[:-1:every], points[-1]),
            uniform=tuple(self._uniform()),
            chosen=FitPoint(chosen.nbytes, self.expected_kl(chosen.loss), "chosen"),
            probes=len(self._sensitivity.probes),
        )

    def _uniform(self) -> list[FitPoint]:
        found = []
        for way in _UNIFORM:
            ways = {
                name: _UNIFORM_HEAD if name in ("lm_head", "embed_tokens") else way
                for name in self._nbytes
            }
            if all(way in self._nbytes[name] for name, way in ways.items()):
                nbytes = self._fixed + sum(self._nbytes[name][way] for name, way in ways.items())
                loss = math.fsum(self._sensitivity.kl[name][way] for name, way in ways.items())
                name = f"{way[0]} bits in groups of {way[1]}"
                found.append(FitPoint(nbytes, self.expected_kl(loss), name))
        return found

    def _form(self, way: tuple[int, int]) -> TensorFormat:
        return TensorFormat(*way, zeros=not self._symmetric)

    def _choices(self, names: Sequence[str]) -> list[Choice]:
        """Of all combinations with one group size those that no other beats, by rising bytes."""
        kl = self._sensitivity.kl
        combined = []
        for group in {group for name in names for _, group in kl[name]}:
            ways = [[way for way in kl[name] if way[1] == group] for name in names]
            for combination in itertools.product(*ways):
                pairs = list(zip(names, combination, strict=True))
                combined.append(
                    Choice(
                        sum(self._nbytes[name][way] for name, way in pairs),
                        math.fsum(kl[name][way] for name, way in pairs),
                        tuple((name, self._form(way)) for name, way in pairs),
                    )
                )
        combined.sort(key=lambda choice: (choice.nbytes, choice.loss))
        best: list[Choice] = []
        for choice in combined:
            if not best or choice.loss < best[-1].loss:
                best.append(choice)
        return best

    def _total(self, at: Sequence[int]) -> int:
        return self._fixed + sum(unit[i].nbytes for unit, i in zip(self._units, at, strict=True))

    def _loss(self, at: Sequence[int]) -> float:
        return math.fsum(unit[i].loss for unit, i in zip(self._units, at, strict=True))

    def _allocation(self, at: Sequence[int]) -> Allocation:
        formats = self._formats([unit[i] for unit, i in zip(self._units, at, strict=True)])
        layout = plan(self._spec, formats)
        return Allocation(formats, layout.weight_bytes, layout.file_bytes, self._loss(at))

    def _formats(self, choices: Sequence[Choice]) -> dict[str, TensorFormat]:
        found = dict(self._kept)
        found.update(form for choice in choices for form in choice.formats)
        return {name: found[name] for name in linear_shapes(self._spec)}


def _hull_path(units: Sequence[Sequence[Choice]]) -> list[tuple[int, int]]:
    """Steps (unit, choice) along every unit's lower convex hull, best gain for its bytes first."""
    steps = []
    for u, unit in enumerate(units):
        hull = [0]
        for i in range(1, len(unit)):
            while len(hull) > 1 and _slope(unit, hull[-2], hull[-1]) <= _slope(unit, hull[-1], i):
                hull.pop()
            hull.append(i)
        steps += [(_slope(unit, a, b), u, b) for a, b in pairwise(hull)]
    return [(u, i) for _, u, i in sorted(steps, key=lambda step: -step[0])]


def _slope(unit: Sequence[Choice], a: int, b: int) -> float:
    """Loss that a step from choice a to b saves for each byte."""
    return (unit[a].loss - unit[b].loss) / (unit[b].nbytes - unit[a].nbytes)


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
