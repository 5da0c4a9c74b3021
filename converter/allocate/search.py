"""Search for the formats of a conversion to a size or to a loss.

A size is met at once. For a loss, the artefact is measured after each conversion and the goal is
corrected, until the smallest artefact within the loss is reached. The journal holds the result of
each round, so that an interrupted search continues.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edgetok.converter.allocate.knapsack import Allocation, Allocator, require_room
from edgetok.converter.allocate.sensitivity import Sensitivity, measure
from edgetok.converter.allocate.target import Target
from edgetok.converter.calibrate.calibration_text import Texts
from edgetok.converter.card.report import Agreement, Fit
from edgetok.converter.options import BITS, GROUP_SIZES, ConvertOptions
from edgetok.converter.progress import Progress
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.converter.write.data_file import plan
from edgetok.converter.write.workspace import Workspace
from edgetok.errors import OptionError
from edgetok.formats.layout import TensorFormat, linear_shapes
from edgetok.models.operations import kept_at_16_bits, operations
from edgetok.models.spec import DecoderSpec

_ROUNDS = 6
_CLOSE = 0.85  # a loss this near to the limit is not worth another conversion
_MARGIN = 0.97


def check_room(spec: DecoderSpec, target: Target, *, symmetric: bool) -> None:
    """Refuse a size too small for any choice before anything is measured.

    Raises:
        OptionError: the fewest bits take more.
    """
    if target.nbytes is None:
        return
    least = TensorFormat(min(BITS), max(GROUP_SIZES), zeros=not symmetric)
    kept = dict.fromkeys(kept_at_16_bits(operations(spec)), TensorFormat(16))
    layout = plan(spec, dict.fromkeys(linear_shapes(spec), least) | kept, constants=True)
    needed = layout.file_bytes if target.padded else layout.weight_bytes
    require_room(target.nbytes - _cache_bytes(spec, target), needed)


def _cache_bytes(spec: DecoderSpec, target: Target) -> int:
    if target.cache_bytes is None or not target.context_tokens:
        return 0
    return target.cache_bytes(spec, target.context_tokens)


class Fitting:
    """A search for the formats that reach a target, round by round."""

    def __init__(
        self,
        weights: CanonicalWeights,
        target: Target,
        options: ConvertOptions,
        texts: Texts,
        workspace: Workspace,
        progress: Progress,
        threads: int,
        formats: Mapping[str, TensorFormat],
        *,
        compared: bool,
    ) -> None:
        """Measure, unless an earlier run did; `workspace` has the survey.

        `formats` are those of what is never quantised, or at no width that is tried. What is
        `compared` with the original needs no other runs of the whole model to tell its loss,
        unless that loss is the target.

        Raises:
            OptionError: the target cannot be met.
            OutputError: a write failed.
        """
        self._target = target
        self._workspace = workspace
        self._spec = weights.family.spec
        self._quick = weights.parameters <= 100_000_000
        if not workspace.done("sensitivity"):
            result = measure(
                weights,
                options,
                workspace.result("survey"),
                texts.calibration(options),
                workspace.folder,
                progress,
                threads,
                target.scope,
                probes=target.most_kl is not None or not compared,
            )
            workspace.finish("sensitivity", result.to_json())
        sensitivity = Sensitivity.from_json(workspace.result("sensitivity"))
        kept = {
            name: formats[name]
            for name in linear_shapes(self._spec)
            if not sensitivity.kl.get(name)
        }
        self._allocator = Allocator(self._spec, sensitivity, kept)
        self.kept = frozenset(kept)
        self.allocation = self._allocate()

    def accepts(self, agreement: Agreement | None) -> bool:
        """Return whether the artefact reaches the target; if not, `allocation` is the next to try.

        Raises:
            OptionError: no artefact has so small a loss.
        """
        limit = self._target.most_kl
        if limit is None or agreement is None:
            return True
        rounds = [*self._rounds(), (self._goal(), agreement.kl)]
        if agreement.kl > limit and self.allocation == self._allocator.within_loss(0.0):
            raise OptionError(
                f"--max-kl {limit:g}: at the most bits the loss is "
                f"{agreement.kl:.2g} nats; give a larger --max-kl"
            )
        # A goal that leads to the same choice has the same outcome.
        goal = next_goal(rounds, limit, loosen=self._quick)
        while goal is not None and self._allocator.within_loss(goal) == self.allocation:
            rounds.append((goal, agreement.kl))
            goal = next_goal(rounds, limit, loosen=self._quick)
        if goal is None:
            return True
        kept = [step for step in ("survey", "write", "sensitivity") if self._workspace.done(step)]
        self._workspace.begin_again(kept, "rounds", [list(item) for item in [*rounds, (goal, 0)]])
        self.allocation = self._allocate()
        return False

    def report(self, agreement: Agreement | None) -> Fit:
        """Return the choice for the quality card; the curve passes through the measured loss."""
        target, allocation = self._target, self.allocation
        if target.nbytes is None:
            wanted = f"a KL of at most {target.most_kl:g} nats"
        elif target.average_bits:
            wanted = (
                f"no more bytes than {target.average_bits} bits in all layers take "
                f"({target.nbytes / 1e6:,.2f} MB)"
            )
        else:
            wanted = f"at most {target.nbytes / 1e6:,.2f} MB"
            if target.context_tokens:
                wanted += (
                    f" with a cache of {target.context_tokens:,} tokens "
                    f"({_cache_bytes(self._spec, target) / 1e6:,.2f} MB)"
                )
        known = None if agreement is None else agreement.kl
        return self._allocator.report(wanted, allocation, known, target.average_bits)

    def _allocate(self) -> Allocation:
        if self._target.nbytes is None:
            return self._allocator.within_loss(self._goal())
        room = self._target.nbytes - _cache_bytes(self._spec, self._target)
        return self._allocator.within_bytes(room, padded=self._target.padded)

    def _stored(self) -> list[tuple[float, float]]:
        if not self._workspace.done("rounds"):
            return [(self._target.most_kl or 0.0, 0.0)]
        return [(goal, kl) for goal, kl in self._workspace.result("rounds")]

    def _rounds(self) -> list[tuple[float, float]]:
        """Goals and outcomes of the rounds that are over."""
        return self._stored()[:-1]

    def _goal(self) -> float:
        """Return the expected KL that this round aims at."""
        return self._stored()[-1][0]


def next_goal(rounds: Sequence[tuple[float, float]], limit: float, *, loosen: bool) -> float | None:
    """Return the expected KL to aim at next.

    Args:
        rounds: goal and measured KL of each round, at least one.
        limit: what the measured KL may be.
        loosen: whether a result better than it need be is worth another, smaller one.

    Returns:
        None where the last round's result is the one to keep.
    """
    good = [goal for goal, kl in rounds if kl <= limit]
    bad = [goal for goal, kl in rounds if kl > limit]
    goal, kl = rounds[-1]
    if good and (len(rounds) >= _ROUNDS or not loosen or _nearest(rounds, limit) >= _CLOSE * limit):
        return None if goal == max(good) else max(good)
    guess = goal * limit / kl * _MARGIN if kl > 0 else 4 * goal
    low, high = max(good, default=0.0), min(bad, default=math.inf)
    if low < guess < high:
        return guess
    if not good:
        return high / 2
    return math.sqrt(low * high) if high < math.inf else 1.5 * low


def _nearest(rounds: Sequence[tuple[float, float]], limit: float) -> float:
    return max((kl for _, kl in rounds if kl <= limit), default=0.0)
