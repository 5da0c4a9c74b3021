"""Eviction by kernel, called from Python: scores, what goes, new positions, rotated keys."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.errors import ShapeError
from edgetok.kernels_cpu.attention.launch import rest_floats
from edgetok.kernels_cpu.eviction import launch
from edgetok.kernels_cpu.eviction.launch import (
    EV_CENTRE,
    EV_FACTOR,
    EV_FREQUENCIES,
    EV_PAGES,
    EV_PAIRS,
    EV_POSITIONS,
    EV_RECORD_SLOTS,
    EV_REST,
    EV_TOKENS,
)
from edgetok.kernels_cpu.program.abi import CTX_SLOTS
from edgetok.kernels_cpu.program.loader import Kernels
from edgetok.kernels_cpu.program.tables import Instruction, table

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Run = Callable[[Sequence[Instruction]], None]

POLICIES = ("content", "retain", "window")  # whose scores kernels compute


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads of a cache that evicts, where they lie.

    Attributes:
        pages: int64 [heads, pages, 4], C-contiguous: addresses of each page's keys, values, key
            scales and value scales; the scales' are not read where there are none. There may be
            more pages than slots need.
        page_slots: slots of each page but the last; a multiple of SLOT_TILE.
        head_dim: D.
        positions: int32 [heads, slots], C-contiguous, EMPTY where a slot holds nothing.
        tokens: int32 [heads, slots], C-contiguous: the token that a slot holds.
        frequencies: of each head float64 [pairs], radians a position; None where keys are not
            rotated. Needed by `Evictor.rotate` and for the scores of `content`.
        centre, factor: float32 [heads, D], C-contiguous: slots of 4 to 8 bits hold
            (k - centre) * factor. None for both: k.
        rests: float32 [heads, rest_floats] (`attention/launch.py`), C-contiguous, which `join` and
            `rotate` change; None: there are none.
    """

    pages: Longs
    page_slots: int
    head_dim: int
    positions: Ints
    tokens: Ints
    frequencies: Sequence[npt.NDArray[np.float64] | None] = ()
    centre: Floats | None = None
    factor: Floats | None = None
    rests: Floats | None = None

    def __post_init__(self) -> None:
        """Check shapes.

        Raises:
            ShapeError: an array is of another type, shape or layout, or a page is missing.
        """
        heads, slots = self.positions.shape
        least = -(-slots // self.page_slots)
        for name, array, dtype, shape in (
            ("positions", self.positions, np.int32, (heads, slots)),
            ("tokens", self.tokens, np.int32, (heads, slots)),
            ("pages", self.pages, np.int64, (heads, max(self.pages.shape[1], least), 4)),
        ):
            if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
                raise ShapeError(
                    f"{name} is {array.dtype} {array.shape}, expected contiguous "
                    f"{np.dtype(dtype)} {shape}"
                )
        for part in (self.centre, self.factor):
            if part is None:
                continue
            shape = heads, self.head_dim
            if part.dtype != np.float32 or part.shape != shape or not part.flags.c_contiguous:
                raise ShapeError(
                    f"constants are {part.dtype} {part.shape}, expected contiguous float32 {shape}"
                )
        if (self.centre is None) != (self.factor is None):
            raise ShapeError("a centre without a factor, or a factor without a centre")
        if len(self.frequencies) not in (0, heads):
            raise ShapeError(f"{len(self.frequencies)} frequencies for {heads} heads")
        for one in self.frequencies:
            if one is not None and (one.dtype != np.float64 or not one.flags.c_contiguous):
                raise ShapeError(f"frequencies are {one.dtype}, expected contiguous float64")

    @property
    def count(self) -> int:
        """Number of heads."""
        return len(self.positions)

    @property
    def slots(self) -> int:
        """Slots of each."""
        return int(self.positions.shape[1])

    def records(self) -> Longs:
        """Return the records that kernels read: int64 [heads, EV_RECORD_SLOTS]."""
        made = np.zeros((self.count, EV_RECORD_SLOTS), np.int64)
        for slot, array in (
            (EV_PAGES, self.pages),
            (EV_POSITIONS, self.positions),
            (EV_TOKENS, self.tokens),
            (EV_CENTRE, self.centre),
            (EV_FACTOR, self.factor),
            (EV_REST, self.rests),
        ):
            if array is not None:
                made[:, slot] = array.ctypes.data + np.arange(self.count) * array.strides[0]
        for head, one in enumerate(self.frequencies):
            if one is not None:
                made[head, EV_FREQUENCIES], made[head, EV_PAIRS] = one.ctypes.data, one.size
        return made


class Evictor:
    """Runs the kernels over all heads, shared out among threads where there is a team."""

    def __init__(
        self,
        kernels: Kernels,
        *,
        kv_bits: int,
        threads: int = 1,
        run: Run | None = None,
    ) -> None:
        """Use loaded kernels.

        Args:
            kernels: the modules `eviction.choose`, `eviction.renumber` and the one of `kv_bits`
                among them.
            kv_bits: of keys and values.
            threads: how many `run` uses.
            run: runs a program of instructions, as `Team.run` does; None for this thread alone.
        """
        self._kernels, self._bits = kernels, kv_bits
        self._threads = threads if run else 1
        self._run = run or _alone

    def scores(self, policy: str, heads: Heads) -> Floats:
        """Score every slot as a policy does; empty ones get 0.

        Args:
            policy: one of POLICIES.
            heads: whose slots.

        Returns:
            [heads, slots] float32.

        Raises:
            ShapeError: there is no kernel for that policy, or frequencies are missing.
        """
        if policy not in POLICIES:
            raise ShapeError(f"policy {policy!r} has no kernel, expected one of {POLICIES}")
        if policy == "content" and heads.count and not heads.frequencies:
            raise ShapeError("heads without frequencies have no contents")
        made = np.empty((heads.count, heads.slots), np.float32)
        if policy == "window":
            self._do(launch.window_scores, heads, scores=made)
        else:
            how = {"policy": policy, **self._stored(heads)}
            self._do(launch.key_scores, heads, scores=made, scratch=self._scratch(heads), **how)
        return made

    def shared(self, heads: Heads, scores: Floats) -> Floats:
        """Let heads judge together, as `cache/policies/shared.py` says.

        Args:
            heads: whose slots.
            scores: [heads, slots] float32, C-contiguous.

        Returns:
            The same shape.

        Raises:
            ShapeError: scores are of another type or shape.
        """
        made = self._copy(heads, scores)
        scratch = np.empty(launch.share_scratch_bytes(heads.count, scores.size), np.uint8)
        self._do(launch.share_scores, heads, scores=made, scratch=scratch)
        return made

    def lowest(
        self,
        heads: Heads,
        scores: Floats,
        *,
        room: int,
        front: int,
        recent: int,
        around: int = 0,
        far: int = 0,
        most_far: int = 0,
    ) -> list[Longs]:
        """Choose the slots that each head gives up until it holds `room` tokens.

        Tokens before `front` and from `recent` on go last; of those before `far` all but
        `most_far` go first, even where there is room. Of equal scores the oldest go.

        Args:
            heads: whose slots.
            scores: [heads, slots] float32, C-contiguous.
            room: tokens that each head keeps.
            front: see above.
            recent: see above.
            around: AROUND, or 0: how many before a token and after it count with their scores.
            far: see above; 0 for no such tokens.
            most_far: see above.

        Returns:
            Of each head its slots, ascending.
        """
        evicted = np.empty((heads.count, heads.slots), np.int32)
        counts = np.empty(heads.count, np.int64)
        self._do(
            launch.choose_evicted,
            heads,
            scores=self._copy(heads, scores),  # sums replace them
            room=room,
            front=front,
            recent=recent,
            around=around,
            far=far,
            most_far=most_far,
            evicted=evicted,
            counts=counts,
            scratch=self._scratch(heads),
        )
        return [row[:n].astype(np.int64) for row, n in zip(evicted, counts.tolist(), strict=True)]

    def join(self, heads: Heads, slots: Sequence[Longs]) -> None:
        """Let what slots hold join their heads' rests, as `rest.py` says.

        Args:
            heads: whose rests.
            slots: of each head, as `lowest` returns them.

        Raises:
            ShapeError: the rests are of another type or shape, or slots are out of range.
        """
        self._check_rests(heads)
        evicted = np.zeros((heads.count, heads.slots), np.int32)
        counts = np.array([len(at) for at in slots], np.int64)
        if len(slots) != heads.count or counts.max(initial=0) > heads.slots:
            raise ShapeError(f"slots of {len(slots)} heads, expected {heads.count}")
        for row, at in zip(evicted, slots, strict=True):
            row[: len(at)] = at
        if evicted.size and not 0 <= evicted.min() <= evicted.max() < heads.slots:
            raise ShapeError(f"slots beyond the {heads.slots} that there are")
        self._do(
            launch.join_rests,
            heads,
            evicted=evicted,
            counts=counts,
            scratch=self._scratch(heads),
            **self._stored(heads),
        )

    def renumbered(self, heads: Heads, *, shift: int, front: int) -> tuple[Ints, Ints]:
        """Lower positions by `shift`, but never below a token's rank among those of its head.

        Args:
            heads: whose slots; nothing of them is changed.
            shift: how much lower the position of the next token becomes.
            front: tokens before it get their rank: 0, 1, ...

        Returns:
            New positions, int32 [heads, slots], EMPTY as before, and how much higher they are.
        """
        positions, by = (np.empty((heads.count, heads.slots), np.int32) for _ in range(2))
        self._do(
            launch.renumber,
            heads,
            shift=shift,
            front=front,
            positions=positions,
            by=by,
            scratch=self._scratch(heads),
        )
        return positions, by

    def rotate(self, heads: Heads, by: Ints, rest_by: int = 0) -> None:
        """Rotate stored keys to positions `by` further, without the rope's attention factor.

        Args:
            heads: whose keys, with frequencies; their pages belong to nobody else.
            by: int32 [heads, slots], C-contiguous; 0 leaves a slot as it is.
            rest_by: likewise of the mean keys of rests, where heads have any.

        Raises:
            ShapeError: `by` is of another type, shape or layout, or frequencies are missing.
        """
        if heads.rests is not None:
            self._check_rests(heads)
        if by.shape != heads.positions.shape or by.dtype != np.int32 or not by.flags.c_contiguous:
            raise ShapeError(f"differences are {by.dtype} {by.shape}, expected int32 as slots")
        if heads.count and not heads.frequencies:
            raise ShapeError("heads without frequencies cannot be rotated")
        self._do(
            launch.rotate_keys,
            heads,
            by=by,
            rest_by=rest_by,
            scratch=self._scratch(heads),
            **self._stored(heads),
        )

    def _do(self, launcher: Callable[..., Instruction], heads: Heads, **own: Any) -> None:
        """Run a launcher's instruction on heads; arrays become their addresses."""
        records = heads.records()
        plain = {
            name: value.ctypes.data if isinstance(value, np.ndarray) else value
            for name, value in own.items()
        }
        where = {"heads": heads.count, "records": records.ctypes.data, "slots": heads.slots}
        self._run([launcher(self._kernels, **where, **plain, wait=True)])

    def _stored(self, heads: Heads) -> dict[str, Any]:
        """Return what launchers whose kernels read slots are told of them."""
        return {
            "kv_bits": self._bits,
            "page_slots": heads.page_slots,
            "head_dim": heads.head_dim,
        }

    def _check_rests(self, heads: Heads) -> None:
        shape, rests = (heads.count, rest_floats(heads.head_dim, self._bits)), heads.rests
        if rests is None:
            raise ShapeError(f"heads without rests, expected float32 {shape}")
        if rests.shape != shape or rests.dtype != np.float32 or not rests.flags.c_contiguous:
            raise ShapeError(f"rests are {rests.dtype} {rests.shape}, expected float32 {shape}")

    @staticmethod
    def _copy(heads: Heads, scores: Floats) -> Floats:
        if scores.shape != heads.positions.shape or scores.dtype != np.float32:
            raise ShapeError(f"scores are {scores.dtype} {scores.shape}, expected float32 as slots")
        return np.array(scores, order="C")

    def _scratch(self, heads: Heads) -> npt.NDArray[np.uint8]:
        return np.empty(
            self._threads * launch.scratch_bytes(heads.slots, heads.head_dim), dtype=np.uint8
        )


def _alone(instructions: Sequence[Instruction]) -> None:
    """Run instructions on this thread."""
    rows, ctx = table(instructions), np.zeros(CTX_SLOTS, np.int64)
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)
    for row in rows:
        kind(int(row[0]))(row.ctypes.data, ctx.ctypes.data, 0, 1)
