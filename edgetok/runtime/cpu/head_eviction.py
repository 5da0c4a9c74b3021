"""Eviction by kernel: loads them, and runs them over the heads of one group of a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetok.cache.key_constants import KeyConstants
from edgetok.cache.table import Places, SlotTable
from edgetok.kernels_cpu.attention.launch import PAGE_SLOTS
from edgetok.kernels_cpu.eviction.evictor import POLICIES, Evictor, Floats, Heads
from edgetok.kernels_cpu.program import loader
from edgetok.kernels_cpu.program.abi import CTX_SLOTS
from edgetok.kernels_cpu.program.compiling import Progress
from edgetok.kernels_cpu.program.tables import Instruction
from edgetok.kernels_cpu.simd.isa import Isa
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.cpu.team import Program, Team

_OF_BITS = {
    4: "eviction.int4",
    5: "eviction.int6_int4",
    8: "eviction.int8",
    16: "eviction.float16",
    32: "eviction.float32",
}
_OF_ALL = ("eviction.choose", "eviction.renumber")
EVICTION_MODULES = (*_OF_ALL, *_OF_BITS.values())


def modules_of(kv_bits: int) -> tuple[str, ...]:
    """The modules of kernels that evict from caches of so many bits."""
    return (*_OF_ALL, _OF_BITS[kv_bits])


class HeadEviction:
    """The kernels and one group's heads. See `DeviceEviction`."""

    policies = POLICIES

    def __init__(
        self,
        evictor: Evictor,
        table: SlotTable,
        pages: Places,
        head_dim: int,
        constants: KeyConstants | None = None,
        rests: Floats | None = None,
    ) -> None:
        """Look at heads as they are.

        Args:
            evictor: runs the kernels.
            table: which slots hold what, a row for each head or one for all of them.
            pages: int64 [heads, pages, 4] as for `Heads`.
            head_dim: D.
            constants: of the heads' keys.
            rests: as for `Heads`.
        """
        self._evictor, self._table = evictor, table
        centre, factor = (None, None) if constants is None else (constants.centre, constants.factor)
        alike = len(pages) // table.rows
        self._heads = Heads(
            pages,
            PAGE_SLOTS,
            head_dim,
            table.positions if alike == 1 else np.repeat(table.positions, alike, axis=0),
            table.tokens if alike == 1 else np.repeat(table.tokens, alike, axis=0),
            centre=centre,
            factor=factor,
            rests=rests,
        )

    def lowest(
        self,
        policy: str,
        frequencies: Sequence[npt.NDArray[np.float64] | None],
        *,
        room: int,
        front: int,
        recent: int,
        around: int,
        far: int,
        most_far: int,
        share: bool,
    ) -> list[Places]:
        """Choose what each head gives up. See `DeviceEviction`."""
        scores = self._evictor.scores(policy, replace(self._heads, frequencies=frequencies))
        if share:
            scores = self._evictor.shared(self._heads, scores)
        return self._evictor.lowest(
            self._heads,
            scores,
            room=room,
            front=front,
            recent=recent,
            around=around,
            far=far,
            most_far=most_far,
        )

    def join(self, slots: Sequence[Places]) -> None:
        """Let what slots hold join their heads' rests. See `DeviceEviction`."""
        self._evictor.join(self._heads, slots)

    def renumber(
        self, frequencies: Sequence[npt.NDArray[np.float64] | None], *, shift: int, front: int
    ) -> None:
        """Lower positions and rotate keys along. See `DeviceEviction`."""
        positions, by = self._evictor.renumbered(self._heads, shift=shift, front=front)
        self._evictor.rotate(replace(self._heads, frequencies=frequencies), by, -shift)
        self._table.positions[:] = positions  # in place: records say where they are

    def rotate(
        self, frequencies: Sequence[npt.NDArray[np.float64] | None], slots: Places, by: int
    ) -> None:
        """Rotate the keys of slots in all heads. See `DeviceEviction`."""
        every = np.zeros((self._heads.count, self._heads.slots), np.int32)
        every[:, slots] = by
        self._evictor.rotate(replace(self._heads, frequencies=frequencies), every)


def evicting_dim(spec: DecoderSpec) -> int:
    """Return the dims of the heads that see every token, which are those that evict."""
    seeing = (i for i in spec.attention_layers if not spec.layers[i].window)
    return next((spec.kv_sizes(i)[1] for i in seeing), spec.head_dim)


def load_evictor(
    team: Team,
    isa: Isa,
    cache_dir: Path,
    progress: Progress | None,
    *,
    kv_bits: int,
    kernels_dir: Path | None = None,
) -> Evictor:
    """Load the kernels, and let a team run them.

    Args:
        team: runs them; its turn is taken each time.
        isa: instruction set of the team's kernels.
        cache_dir: as for `loader.load`.
        progress: likewise.
        kv_bits: bits of keys and values.
        kernels_dir: as for `loader.load`.

    Raises:
        OutputError: as `loader.load`.
        EdgetokError: likewise.
    """
    kernels = loader.load(
        isa, cache_dir, progress, modules=modules_of(kv_bits), kernels_dir=kernels_dir
    )
    ctx = np.zeros(CTX_SLOTS, np.int64)

    def run(instructions: Sequence[Instruction]) -> None:
        with team.turn:  # a step that evicts has it already, who truncates a cache does not
            team.run(Program(instructions), ctx.ctypes.data)

    return Evictor(kernels, kv_bits=kv_bits, threads=team.threads, run=run)
