"""Table of slots: the token and the position in each. No device, no keys, no values.

A table has one row where all heads of its layers hold the same tokens, and one row a head where
each head evicts on its own. It grows as slots are first used, up to `limit`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgetok.errors import SessionError

Ints = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]

EMPTY = 2**31 - 1  # position of a slot that holds nothing; kernels use the same number
SLOT_TILE = 64  # attention reads whole tiles, so a table's size is a multiple of it


class SlotTable:
    """The tokens of `rows` lists of slots.

    Attributes:
        rows: how many lists.
        limit: most slots of each; a multiple of SLOT_TILE.
        positions: int32 [rows, size], the position that a slot's key is rotated to, or EMPTY.
        tokens: int32 [rows, size], which token of the sequence it is, counted from 0; of an empty
            slot any number.
        held: int64 [rows], slots that hold a token.
        used: int64 [rows], slots from this one on hold nothing.
        row_numbers: int64 [rows, 1], to index with.
    """

    def __init__(self, rows: int, limit: int) -> None:
        """Make an empty table of no size."""
        self.rows, self.limit = rows, limit
        self.positions: Ints = np.zeros((rows, 0), np.int32)
        self.tokens: Ints = np.zeros((rows, 0), np.int32)
        self.held = np.zeros(rows, np.int64)
        self.used = np.zeros(rows, np.int64)
        self.row_numbers = np.arange(rows)[:, None]

    @property
    def size(self) -> int:
        """Slots of each row so far."""
        return int(self.positions.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return self.positions.nbytes + self.tokens.nbytes

    def grow(self, size: int) -> None:
        """Have at least `size` slots, empty ones at the end; arrays move."""
        more = size - self.size
        if more > 0:
            empty = np.full((self.rows, more), EMPTY, np.int32)
            self.positions = np.concatenate([self.positions, empty], axis=1)
            self.tokens = np.concatenate([self.tokens, np.zeros_like(empty)], axis=1)

    def put(self, slots: Places, token: int, position: int) -> None:
        """Append: slot `slots[r, i]` of each row r now holds token + i at position + i.

        Args:
            slots: int64 [rows, n] below `size`; those of a row differ.
            token: the first token's number.
            position: the first token's position.
        """
        if slots.size == 1:  # a decode step of a table with one row: many times a second
            slot = slots.item()
            if self.positions[0, slot] == EMPTY:
                self.held[0] += 1
            self.positions[0, slot] = position
            self.tokens[0, slot] = token
            if slot >= self.used[0]:
                self.used[0] = slot + 1
            return
        count = slots.shape[1]
        at = slots + self.row_numbers * self.size
        overwritten = self.positions.reshape(-1).take(at) != EMPTY
        self.held += count
        if overwritten.any():
            self.held -= overwritten.sum(axis=1)
        if count == 1:
            self.positions.reshape(-1)[at] = position
            self.tokens.reshape(-1)[at] = token
            np.maximum(self.used, slots[:, 0] + 1, out=self.used)
        else:
            order = np.arange(count, dtype=np.int32)
            self.positions.reshape(-1)[at] = position + order
            self.tokens.reshape(-1)[at] = token + order
            np.maximum(self.used, slots.max(axis=1) + 1, out=self.used)

    def slots(self, row: int) -> Places:
        """Slots of a row that hold a token, ascending."""
        return np.flatnonzero(self.positions[row, : self.used[row]] != EMPTY)

    def free(self, row: int) -> Places:
        """Slots of a row, of those that exist, that hold none, ascending."""
        return np.flatnonzero(self.positions[row] == EMPTY)

    def evict(self, row: int, slots: Places) -> None:
        """Empty slots of a row that hold a token."""
        self.positions[row, slots] = EMPTY
        self.held[row] -= len(slots)
        left = self.slots(row)
        self.used[row] = left[-1] + 1 if len(left) else 0

    def retract(self, slots: Places) -> None:
        """Empty the slots that the latest tokens took, int64 [rows, n]."""
        positions = self.positions
        positions[self.row_numbers, slots] = EMPTY
        self.held -= slots.shape[1]
        used, row = self.used, self.row_numbers[:, 0]
        while (empty := (used > 0) & (positions[row, used - 1] == EMPTY)).any():
            used -= empty

    def truncate(self, length_tokens: int) -> None:
        """Empty every slot whose token is `length_tokens` or later."""
        for row in range(self.rows):
            at = self.slots(row)
            gone = at[self.tokens[row, at] >= length_tokens]
            if len(gone):
                self.evict(row, gone)

    def shift(self, by: int) -> None:
        """Lower all positions by `by`; a slot whose position would be negative becomes empty."""
        for row in range(self.rows):
            at = self.slots(row)
            self.positions[row, at] -= by
            gone = at[self.positions[row, at] < 0]
            if len(gone):
                self.evict(row, gone)

    def copy(self, limit: int) -> SlotTable:
        """A table of its own with the same contents, without empty slots beyond `limit`."""
        made = SlotTable(self.rows, limit)
        made.positions = self.positions[:, :limit].copy()
        made.tokens = self.tokens[:, :limit].copy()
        made.held, made.used = self.held.copy(), self.used.copy()
        return made

    # As numbers, for a saved state

    def state(self) -> Ints:
        """Counts [rows], then slots, tokens and positions of what is held, row by row: int32."""
        slots = [self.slots(row) for row in range(self.rows)]
        lists = [
            [at.astype(np.int32) for at in slots],
            [self.tokens[row, at] for row, at in enumerate(slots)],
            [self.positions[row, at] for row, at in enumerate(slots)],
        ]
        return np.concatenate([self.held.astype(np.int32), *(np.concatenate(x) for x in lists)])

    def parsed(self, numbers: Ints, length_tokens: int, position: int) -> SlotTable:
        """Return a table like this one from the result of `state`; this one does not change.

        Args:
            numbers: int32, from a file that nobody vouches for.
            length_tokens: tokens seen; all held are before it.
            position: position of the next token; all held are before it.

        Raises:
            SessionError: a count, slot, token or position cannot be.
        """
        counts = numbers[: self.rows].astype(np.int64)
        total = int(counts.sum()) if len(counts) == self.rows else -1
        if (
            total < 0
            or counts.min(initial=0) < 0
            or counts.max(initial=0) > self.limit
            or len(numbers) != self.rows + 3 * total
        ):
            raise SessionError("the saved cache's tables do not add up; it is damaged")
        slots, tokens, positions = numbers[self.rows :].reshape(3, total)
        row = np.repeat(np.arange(self.rows), counts)
        order = np.lexsort((tokens, row))
        same = np.diff(row[order]) == 0
        if total and (
            slots.min() < 0
            or slots.max() >= self.limit
            or (np.diff(slots)[np.diff(row) == 0] <= 0).any()
            or tokens.min() < 0
            or tokens.max() >= length_tokens
            or positions.min() < 0
            or positions.max() >= position
            or (np.diff(tokens[order])[same] <= 0).any()
            or (np.diff(positions[order])[same] <= 0).any()
        ):
            raise SessionError("the saved cache's tokens are out of range or order; it is damaged")
        made = SlotTable(self.rows, self.limit)
        made.grow(max(self.size, int(slots.max(initial=-1)) + 1))
        made.positions[row, slots] = positions
        made.tokens[row, slots] = tokens
        made.held = counts
        np.maximum.at(made.used, row, slots + 1)
        return made
