"""The rules for the next step's contents, without threads and without a clock.

A prompt is read in chunks, one chunk of one prompt a step. While a reader waits for tokens, the
step has a row of every sequence that writes as well, and the chunk is so small that the step stays
within the time that a token may take, and within three times what it takes without the chunk: then
two thirds of the time are the prompt's already. Sharing a step, all its rows read the weights once:
on a CPU eight rows cost three times what one does, and sixteen five times. Otherwise chunks are as
large as a step may be, and prompts are read before answers in the background are written: the more
rows a decode step has, the less it costs a row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from edgetok.engine.costs import Costs
from edgetok.engine.drafts import Draft
from edgetok.errors import BusyError
from edgetok.runtime.options import DEFAULT_WAIT_S

_AIM = 0.75  # share of the wait that is planned for: steps vary, 95 of 100 are to be within it
_TIMES = 3  # that a step with a chunk may take what it takes without, or
_LEAST_AIM_S = 0.05  # so long, if that is more: 20 tokens a second are faster than anybody reads
_LEAST_ROWS = 8  # of a chunk: fewer cost nearly as much
# Rows of a step come in fours: kernels compute so many tokens at once, at the price of one (AVX2,
# the 1B shape, one thread: 4 rows take 79 ms, 5 take 149 and 8 take 143).
_TILE_ROWS = 4
_FIRST_CHUNK_ROWS = 64  # of the first chunk where its time is bounded, likewise
_FIRST_ROWS = 16  # of the first chunk beside running answers, before its cost is known


class Work(Protocol):
    """The scheduler's view of a sequence."""

    @property
    def reading(self) -> bool:
        """Return whether its prompt is not computed yet."""

    @property
    def rows(self) -> int:
        """Rows that it has to compute next."""

    @property
    def most_rows(self) -> int:
        """Return how many of them a step may compute."""

    def propose(self, most: int, tokens: float, cost: Callable[[int], float]) -> Draft:
        """Propose a draft of at most `most` tokens after the row that it writes next.

        Args:
            most: tokens of the draft.
            tokens: that the step gives without it.
            cost: seconds of the step with so many more rows.
        """

    @property
    def priority(self) -> int:
        """0 while somebody waits for its tokens; more in the background. Lower goes first."""


W = TypeVar("W", bound=Work)


@dataclass(frozen=True, slots=True)
class Planned(Generic[W]):
    """One step.

    Attributes:
        chunk: rows of the prompt that is read, whose share is the last; 0 where none is.
        shares: sequences and their numbers of rows.
    """

    chunk: int
    shares: tuple[tuple[W, int], ...]

    @property
    def rows(self) -> int:
        """Return the rows of all sequences together."""
        return sum(rows for _, rows in self.shares)


class Scheduler(Generic[W]):
    """Chooses steps. One thread at a time asks for them; any may add and remove.

    Attributes:
        costs: of steps, as measured.
        chunk_s: seconds that a chunk of a prompt may take though nobody waits for tokens, so that
            it can be given up soon; None for any time.
        wait_s: seconds that a token may take while a prompt is read.
    """

    def __init__(
        self,
        step_rows: int,
        *,
        most_running: int = 32,
        most_waiting: int | None = None,
        wait_s: float = DEFAULT_WAIT_S,
    ) -> None:
        """Begin without sequences.

        Args:
            step_rows: most rows of a step.
            most_running: sequences that are read and written at the same time; others wait.
            most_waiting: sequences that may wait; None for any number.
            wait_s: see above.
        """
        self.costs = Costs()
        self.chunk_s: float | None = None
        self._step_rows, self.wait_s = step_rows, wait_s
        self._most_running, self._most_waiting = most_running, most_waiting
        self._served: dict[W, int] = {}  # the step in which each was in last; -1 before its first
        self._steps = 0

    def add(self, work: W) -> None:
        """Take in a sequence.

        Raises:
            BusyError: too many wait already.
        """
        if self._most_waiting is not None:
            served = list(self._served.values())  # at once: others may add at the same time
            waiting = sum(last < 0 for last in served)
            running = len(served) - waiting
            room = max(0, self._most_running - running) + self._most_waiting
            if waiting >= room:
                raise BusyError(
                    f"{running} answers are being written and {waiting} wait; try again later"
                )
        self._served[work] = -1

    def remove(self, work: W) -> None:
        """Let go of a sequence; of an unknown one nothing happens."""
        self._served.pop(work, None)

    def next(self, wanted: Iterable[W], *, rest: bool = False) -> Planned[W] | None:
        """Choose the next step.

        Args:
            wanted: the sequences whose next token somebody waits for, or may be computed ahead.
            rest: whether prompts alone are read now, and answers wait.

        Returns:
            None where there is nothing to do.
        """
        chosen = [work for work in wanted if work in self._served and work.rows]
        reading = self._running(chosen)
        writing = [work for work in chosen if not work.reading and not rest]
        if writing and not reading:
            return self._decode(writing)
        if any(work.priority == 0 for work in writing):
            return self._beside(writing, self._turn(reading))
        return self._chunk(self._turn(reading)) if reading else None

    def done(self, step: Planned[W], seconds: float) -> None:
        """Note that a step was computed and what it took."""
        self._steps += 1
        for work, _ in step.shares:
            if work in self._served:
                self._served[work] = self._steps
        if step.chunk == step.rows:
            self.costs.read(step.rows, seconds)
        elif step.chunk:
            self.costs.read_beside(step.rows, seconds)
        else:
            self.costs.decoded(step.rows, seconds)

    def _running(self, chosen: list[W]) -> list[W]:
        """The prompts that may be read: begun ones, and others while there is room for them."""
        running = sum(not work.reading or self._served[work] >= 0 for work in chosen)
        found = []
        for work in sorted(chosen, key=lambda work: work.priority):
            if work.reading:
                begun = self._served[work] >= 0
                if begun or running < self._most_running:
                    running += not begun
                    found.append(work)
        return found

    def _decode(self, writing: list[W]) -> Planned[W]:
        """Make a step of all that write, with drafts where they pay."""
        shares = self._rows_of(writing, self._step_rows)
        room = self._step_rows - sum(rows for _, rows in shares)
        return Planned(0, tuple(self._with_drafts(shares, room)))

    def _rows_of(self, writing: list[W], room: int) -> list[tuple[W, int]]:
        """Choose who decodes: all, or where they are too many those that waited longest."""
        shares = []
        for work in sorted(writing, key=lambda work: self._served[work]):
            rows = min(work.rows, work.most_rows, self._step_rows)
            if rows <= room:
                shares.append((work, rows))
                room -= rows
        return shares

    def _with_drafts(self, shares: list[tuple[W, int]], room: int) -> list[tuple[W, int]]:
        """Add rows of drafts where they pay: where tokens a second, of all together, grow.

        Every so often a step goes without, so that the cost of one without stays known.
        """
        rows = sum(own for _, own in shares)
        if not self.costs.is_fresh(rows):
            return shares
        tokens, drafting_s, made = float(len(shares)), 0.0, []
        for work, own in shares:
            cost = functools.partial(self._step_s, rows, drafting_s)
            draft = work.propose(min(room, work.most_rows - own), tokens, cost)
            rows, room = rows + draft.count, room - draft.count
            tokens, drafting_s = tokens + draft.right, drafting_s + draft.seconds
            made.append((work, own + draft.count))
        return made

    def _step_s(self, rows: int, drafting_s: float, more: int) -> float:
        return self.costs.decode_s(rows + more) + drafting_s

    def _turn(self, reading: list[W]) -> W:
        """The prompt whose turn it is: priority first, then who was served longest ago.

        Ties go to who came first.
        """
        return min(reading, key=lambda work: (work.priority, self._served[work]))

    def _chunk(self, work: W) -> Planned[W]:
        """A chunk of a prompt that nobody's tokens wait for."""
        rows = min(work.rows, work.most_rows, self._step_rows)
        if self.chunk_s is not None:
            fitting = self.costs.rows_within(self.chunk_s)
            rows = min(rows, _FIRST_CHUNK_ROWS if fitting is None else max(_LEAST_ROWS, fitting))
        return Planned(rows, ((work, rows),))

    def _beside(self, writing: list[W], work: W) -> Planned[W]:
        """All that write, and as many rows of a prompt as their tokens may wait for."""
        shares = self._rows_of(writing, self._step_rows - _TILE_ROWS)
        decoded = sum(rows for _, rows in shares)
        fitting = self.costs.rows_beside(self._aim_s(decoded))
        every = decoded + _FIRST_ROWS if fitting is None else fitting
        least = -(-(decoded + _TILE_ROWS // 2) // _TILE_ROWS)  # a prompt that gets one row crawls
        every = max(every // _TILE_ROWS, least) * _TILE_ROWS
        rows = min(work.rows, work.most_rows, min(every, self._step_rows) - decoded)
        return Planned(rows, (*shares, (work, rows)))

    def _aim_s(self, decoded: int) -> float:
        """Seconds that a step of a chunk and so many rows beside it is to take.

        With 8 clients and a model of 135M parameters (AVX2, measured) the 95th percentile between
        two tokens is 0.6 times what it is where chunks take all of `wait_s`, and a token costs some
        per cent more. For a model of 1B, whose steps take long, nothing changes: smaller chunks
        would cost it a tenth of its tokens, and a fifth where few rows cost as much as one
        (simulated with measured and with assumed costs).
        """
        alone_s, aim_s = self.costs.decode_s(decoded), _AIM * self.wait_s
        return min(aim_s, max(_TIMES * alone_s, _LEAST_AIM_S)) if alone_s else aim_s
