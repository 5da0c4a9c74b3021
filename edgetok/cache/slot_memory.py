"""Slot memory on a device: read, write and copy slots.

Which slots hold what is said by tables on the host (`table.py`); choosing, renumbering, saving and
forking are written once, against these interfaces.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgetok.cache.groups import Group
from edgetok.cache.query_log import QueryLog
from edgetok.cache.recurrent import History
from edgetok.cache.table import Places

REST_TOKENS = 512  # most that a rest stands for: more would outweigh what is held
Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class Rows(Protocol):
    """The keys, or the values, of one head's slots. Arrays may be on the device (NEP 18)."""

    def read(self, at: Places) -> Floats:
        """Return rows as float32 [n, D]."""

    def write(self, at: Places, x: Floats) -> None:
        """Store x [n, D] as `kv_append` does."""


class DeviceEviction(Protocol):
    """Evicting and renumbering by kernels, where a group's slots are. `Eviction` defines results.

    Attributes:
        policies: names of the policies whose scores there are kernels for.
    """

    @property
    def policies(self) -> Collection[str]:
        """See above."""

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
    ) -> Sequence[Places]:
        """Choose the slots that each head gives up until it holds `room` tokens; change nothing.

        Args:
            policy: one of `policies`.
            frequencies: of each row, radians a position; None where keys are not rotated.
            room: tokens that each head keeps.
            front: tokens before it go last.
            recent: tokens from it on go last.
            around: as in `Bounds`.
            far: tokens before it, but for those that go last, are far from the next one.
            most_far: how many of them a head keeps, even where there is room.
            share: whether heads judge together.

        Returns:
            Of each row of the table its slots, ascending.
        """

    def join(self, slots: Sequence[Places]) -> None:
        """Let what slots hold join the rests of their heads, before the slots are emptied.

        Args:
            slots: of each row of the table.
        """

    def renumber(
        self, frequencies: Sequence[npt.NDArray[np.float64] | None], *, shift: int, front: int
    ) -> None:
        """Lower the table's positions by `shift` and rotate keys by the difference.

        No position gets below its token's rank among those of its head. Mean keys of rests are
        rotated by -`shift`.

        Args:
            frequencies: of each row, radians a position; None where keys are not rotated.
            shift: how much lower the position of the next token becomes.
            front: tokens before it get their rank: 0, 1, ...
        """

    def rotate(
        self, frequencies: Sequence[npt.NDArray[np.float64] | None], slots: Places, by: int
    ) -> None:
        """Rotate the keys of slots in all heads of a table with one row; positions stay.

        Args:
            frequencies: of each layer and KV head in turn, otherwise as for `lowest`.
            slots: of each head, its own to write to.
            by: how many positions further.
        """


class Rest(Protocol):
    """Stands for the tokens that one head gave up: their number, mean key and mean value.

    A key as `Rows` has it, a value as they are stored.
    """

    def read(self) -> tuple[float, Floats, Floats]:
        """Return the number, the key [D] and the value [D]."""

    def write(self, count: float, key: Floats, value: Floats) -> None:
        """Set them."""


class GroupMemory(Protocol):
    """The slots of one group of layers.

    Attributes:
        mass: float32 [table.rows, table.size] on the host, attention that each slot got so far as
            of the last `pull`; None where it is not kept.
        rests: float32 [table.rows, n] on the host, what stands for evicted tokens: first for how
            many, 0 to `REST_TOKENS`; then what only the device knows. None where nothing does.
        row_bytes: of one slot of one head in `take`.
    """

    mass: Floats | None
    rests: Floats | None
    row_bytes: int

    @property
    def eviction(self) -> DeviceEviction | None:
        """Kernels that evict and renumber, as slots are now: ask anew after any change.

        None where there are none; NumPy then reads keys and values through `keys` and `values`.
        """

    @property
    def held_bytes(self) -> int:
        """Bytes allocated now."""

    @property
    def most_bytes(self) -> int:
        """Bytes when all slots exist."""

    @property
    def is_shared(self) -> bool:
        """Return whether another cache refers to any of this memory."""

    def reserve(self, slots: int) -> None:
        """Have memory for slots 0..slots-1 of each head; grows the table.

        Raises:
            ContextError: there is none; nothing was changed.
        """

    def own(self, slots: Places | None) -> None:
        """Prepare slots (int64, of any head; None for all) to be written to.

        Raises:
            ContextError: there is no memory for copies of what is shared.
        """

    def append(self, slots: Places) -> None:
        """Say where the next tokens go, int64 [table.rows, tokens]; the table holds them."""

    def tell(self) -> None:
        """Take over a table, and mass, that changed otherwise than by `append`."""

    def pull(self) -> None:
        """Fetch `mass` as the kernels left it."""

    def keys(self, layer: int, head: int) -> Rows:
        """A head's keys."""

    def values(self, layer: int, head: int) -> Rows:
        """A head's values."""

    def rest(self, layer: int, head: int) -> Rest:
        """A head's rest, where there are any."""

    def take(self, lists: Sequence[Places]) -> Bytes:
        """Keys, values, key scales and value scales of slots, head by head, as one array.

        Args:
            lists: slots of each row of the table.
        """

    def put(self, lists: Sequence[Places], stored: Bytes) -> None:
        """Write what `take` gave into the same slots, which are this cache's own."""

    def share(self, other: Any) -> None:
        """Take over a copy of what the same group of another cache holds; tables are equal."""

    def trim(self) -> None:
        """Give back memory in which no slot holds a token."""


class CacheMemory(Protocol):
    """The memory of a whole cache on a device.

    Attributes:
        queries: of the latest tokens.
        history: states of layers that keep no keys and values.
        shares: whether forks share memory with their origin.
        retracts: whether slots may be emptied in the tables without `tell`.
    """

    shares: bool
    retracts: bool

    queries: QueryLog
    history: History

    @property
    def groups(self) -> Sequence[GroupMemory]:
        """The memory of each of the cache's groups."""

    @property
    def nbytes(self) -> int:
        """Bytes when all groups are full; never more."""

    @property
    def fixed_bytes(self) -> int:
        """Bytes beside those of the groups."""

    def begin(self, tokens: int, length_tokens: int, position: int) -> None:
        """After every group's `append`: all else that a run is told of this cache."""

    def fork(self, groups: Sequence[Group]) -> CacheMemory:
        """Empty memory of the same kind for other tables."""
