"""States of layers that keep no keys and values, and copies of them further back.

A convolution needs the last `taps - 1` values of what it convolves, a delta net or Mamba2 the state
behind the token before. A history is a ring of these and some more, so that the latest tokens can
be taken back at once. Further back there are snapshots: the values that the next token would need,
of all layers together. They are taken where a prompt begins and ends, between the chunks that it is
read in and every SNAPSHOT_TOKENS tokens, and thinned out where there are too many, most of all
where they are old and close to each other. The one that the next turn goes back to (`mark`) stays.

Who answers again computes the prompt's last token anew, whose logits it wants. So a snapshot also
serves the length before its own; where states are bulky it serves that alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetok.errors import SessionError
from edgetok.models.operations import operations, stateful
from edgetok.models.ops import Stateful
from edgetok.models.spec import DecoderSpec

SNAPSHOT_TOKENS = 512
MOST_SNAPSHOTS = 32
SNAPSHOTS_BYTES = 128 << 20  # of all snapshots, but at least FEWEST_SNAPSHOTS
FEWEST_SNAPSHOTS = 3
SNAPSHOT_GAP_TOKENS = 16  # at least, between two of them
_ALIGNED_BYTES = 64
_HEAD_BYTES = 16  # of a saved one: both lengths

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The states behind some token.

    Attributes:
        length_tokens: how many tokens they have seen.
        first_tokens: the least length that it serves: the same, or one less.
        values: float32, ring by ring the rows of the latest tokens; not written to.
    """

    length_tokens: int
    first_tokens: int
    values: Floats

    def serves(self, length_tokens: int) -> bool:
        """Return whether one can go back to a length by it."""
        return self.first_tokens <= length_tokens <= self.length_tokens


class History:
    """The histories of a decoder's recurrent operations. See above.

    Attributes:
        rings: by `Stateful.state` float32 [rows, columns], what token t left in row t % rows.
        snapshots: ascending.
        most_snapshots: of which there are never more.
    """

    def __init__(self, spec: DecoderSpec, shape_of: Callable[[Stateful], tuple[int, int]]) -> None:
        """Begin before the first token.

        Args:
            spec: the decoder.
            shape_of: rows and columns of an operation's ring; more rows than the next token needs.
        """
        kept = stateful(operations(spec))
        self._needed = {op.state: op.kept_tokens for op in kept}
        self.rings: dict[int, Floats] = {op.state: _zeros(*shape_of(op)) for op in kept}
        self.snapshots: list[Snapshot] = []
        self._oldest = dict.fromkeys(self.rings, 0)  # earlier tokens are not in the ring
        self._bulky = any(op.BULKY for op in kept)
        most = SNAPSHOTS_BYTES // max(1, self.snapshot_bytes)
        self.most_snapshots = max(FEWEST_SNAPSHOTS, min(most, MOST_SNAPSHOTS))
        self._several = False  # whether the latest step had several tokens
        self._marked = 0  # the length that is gone back to next

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of one snapshot."""
        return sum(4 * self._rows(key) * ring.shape[1] for key, ring in self.rings.items())

    @property
    def step_bytes(self) -> int:
        """Bytes of states that the next token reads."""
        return sum(4 * self._needed[key] * ring.shape[1] for key, ring in self.rings.items())

    @property
    def nbytes(self) -> int:
        """Bytes of everything, when there are most snapshots."""
        rings = sum(ring.nbytes for ring in self.rings.values())
        return rings + (self.most_snapshots + 1) * self.snapshot_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes in use."""
        rings = sum(ring.nbytes for ring in self.rings.values())
        return rings + len(self.snapshots) * self.snapshot_bytes

    @property
    def spare_tokens(self) -> int:
        """The most tokens of a step that can be taken back, whatever was before."""
        return min(
            (len(self.rings[key]) - needed for key, needed in self._needed.items()),
            default=1 << 40,
        )

    def mark(self, length_tokens: int) -> None:
        """Keep the snapshot that serves a length, until another one is marked; 0 for none."""
        self._marked = length_tokens

    def begin(self, tokens: int, length_tokens: int) -> None:
        """Before a step of `tokens` tokens: take a snapshot where one is due."""
        turns = (tokens > 1) or self._several
        self._several = tokens > 1
        if not self.rings or length_tokens == 0:
            return
        latest = self.snapshots[-1].length_tokens if self.snapshots else 0
        if length_tokens - latest >= (SNAPSHOT_GAP_TOKENS if turns else SNAPSHOT_TOKENS):
            before = self._bulky and self._in_rings(length_tokens - 1)
            taken = self._taken(length_tokens - before)
            if taken.length_tokens > latest:
                self.snapshots.append(taken)
                self._thin(length_tokens)

    def advance(self, length_tokens: int) -> None:
        """After a step: so many tokens were seen."""
        for key, ring in self.rings.items():
            self._oldest[key] = max(self._oldest[key], length_tokens - len(ring))

    def reachable(self, length_tokens: int) -> int:
        """The longest beginning, of at most `length_tokens`, that `truncate` can go back to."""
        if not self.rings or self._in_rings(length_tokens):
            return length_tokens
        behind = [s for s in self.snapshots if s.first_tokens <= length_tokens]
        return min(length_tokens, behind[-1].length_tokens) if behind else 0

    def truncate(self, length_tokens: int) -> None:
        """Go back to a reachable length."""
        if not self._in_rings(length_tokens):
            found = next((s for s in self.snapshots if s.serves(length_tokens)), None)
            if found is not None:
                self._put(found)
        self.retract(length_tokens)
        if length_tokens == 0:
            self._oldest = dict.fromkeys(self.rings, 0)
        self._several = True  # where one goes back to once, one goes back to again

    def retract(self, length_tokens: int) -> None:
        """Forget what was beyond a length that is in the rings."""
        while self.snapshots and self.snapshots[-1].length_tokens > length_tokens:
            self.snapshots.pop()

    def take(self, other: History) -> None:
        """Become a copy of another; snapshots are shared, as nobody writes to them."""
        for key, ring in self.rings.items():
            ring[:] = other.rings[key]
        self.snapshots = list(other.snapshots)
        self._oldest, self._several = dict(other._oldest), other._several
        self._marked = other._marked

    def state(self, length_tokens: int) -> list[Bytes]:
        """Return all snapshots and the state now as bytes, each with its length before it."""
        if not self.rings or length_tokens == 0:
            return []
        behind = [s for s in self.snapshots if s.length_tokens < length_tokens]
        return [
            np.concatenate(
                [
                    np.array([s.length_tokens, s.first_tokens], "<i8").view(np.uint8),
                    s.values.view(np.uint8),
                ]
            )
            for s in (*behind, self._taken(length_tokens))
        ]

    def parsed(self, sections: Sequence[Bytes], length_tokens: int) -> list[Snapshot]:
        """Check what `state` gave, for a cache of so many tokens.

        Raises:
            SessionError: it cannot be.
        """
        found = []
        for section in sections:
            if section.nbytes != _HEAD_BYTES + self.snapshot_bytes:
                raise SessionError(
                    f"the saved cache has a snapshot of {section.nbytes:,} bytes, expected "
                    f"{_HEAD_BYTES + self.snapshot_bytes:,}"
                )
            values = section[_HEAD_BYTES:].view(np.float32).copy()
            length, first = section[:_HEAD_BYTES].view("<i8").tolist()
            found.append(Snapshot(length, first, values))
            if not np.isfinite(values).all() or first not in (length, length - 1):
                raise SessionError("the saved cache's snapshots do not add up; it is damaged")
        lengths = [0, *(s.length_tokens for s in found)]
        if (
            len(found) > self.most_snapshots + 1
            or any(a >= b for a, b in itertools.pairwise(lengths))
            or (self.rings and lengths[-1] != length_tokens)
        ):
            raise SessionError("the saved cache's snapshots do not add up; it is damaged")
        return found

    def restore(self, found: Sequence[Snapshot]) -> None:
        """Become what `parsed` gave."""
        self.snapshots, self._several = list(found[:-1]), True
        self._oldest = dict.fromkeys(self.rings, 0)
        if found:
            self._put(found[-1])

    def _in_rings(self, length_tokens: int) -> bool:
        """Return whether the rings hold all that the token behind a length needs."""
        return all(
            max(0, length_tokens - needed) >= self._oldest[key]
            for key, needed in self._needed.items()
        )

    def _rows(self, key: int) -> int:
        """Rows of a ring that a snapshot holds."""
        return self._needed[key] + (not self._bulky)

    def _taken(self, length_tokens: int) -> Snapshot:
        parts = []
        for key, ring in self.rings.items():
            tokens = np.arange(length_tokens - self._rows(key), length_tokens)
            held = tokens[:, None] >= self._oldest[key]
            rows = np.where(held, ring[tokens % len(ring)], np.float32(0.0))
            parts.append(rows.reshape(-1))
        first = length_tokens - (not self._bulky and self._in_rings(length_tokens - 1))
        return Snapshot(length_tokens, first, np.concatenate(parts))

    def _put(self, snapshot: Snapshot) -> None:
        """Write a snapshot's values into the rings, which then hold no others."""
        at, length = 0, snapshot.length_tokens
        for key, ring in self.rings.items():
            tokens = np.arange(length - self._rows(key), length)
            values = snapshot.values[at : at + len(tokens) * ring.shape[1]]
            ring[tokens % len(ring)] = values.reshape(len(tokens), -1)
            at += values.size
            self._oldest[key] = max(0, snapshot.first_tokens - self._needed[key])

    def _thin(self, length_tokens: int) -> None:
        """Let go of the snapshot that is missed least, where there are too many."""
        if len(self.snapshots) <= self.most_snapshots:
            return
        lengths = [0, *(s.length_tokens for s in self.snapshots)]
        missed = [
            (lengths[i + 1] - lengths[i - 1]) / (length_tokens - lengths[i] + SNAPSHOT_TOKENS)
            for i in range(1, len(lengths) - 1)
        ]
        marked = sum(s.first_tokens <= self._marked for s in self.snapshots) - 1
        if 0 <= marked < len(missed):
            missed[marked] = float("inf")
        del self.snapshots[missed.index(min(missed))]


def _zeros(rows: int, columns: int) -> Floats:
    """float32 [rows, columns], which begin with a cache line."""
    memory = np.zeros(4 * rows * columns + _ALIGNED_BYTES, np.uint8)
    first = -memory.ctypes.data % _ALIGNED_BYTES
    return memory[first : first + 4 * rows * columns].view(np.float32).reshape(rows, columns)
