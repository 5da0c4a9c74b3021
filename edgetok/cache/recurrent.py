"""States of layers that keep no keys and values, and copies of them further back.

A convolution needs the last `taps - 1` values of what it convolves. Its history is a ring of these
and some more, so that the latest tokens can be taken back at once. Further back there are
snapshots: the values that the next token would need, of all layers together. They are taken where a
prompt begins and ends and every SNAPSHOT_TOKENS tokens, and thinned out where there are too many,
most of all where they are old and close to each other. A snapshot also serves the length before its
own: who answers again computes the prompt's last token anew, whose logits it wants.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetok.errors import SessionError
from edgetok.models.layers.short_conv import ShortConv
from edgetok.models.operations import operations
from edgetok.models.spec import DecoderSpec

SNAPSHOT_TOKENS = 512
MOST_SNAPSHOTS = 32
_LEAST_TOKENS = 16  # between two of them
_HEAD_BYTES = 16  # of a saved one: both lengths

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The states behind some token.

    Attributes:
        length_tokens: how many tokens they have seen.
        first_tokens: the least length that it serves: the same, or one less.
        values: float32, layer by layer the values of the last `taps` tokens; not written to.
    """

    length_tokens: int
    first_tokens: int
    values: Floats

    def serves(self, length_tokens: int) -> bool:
        """Return whether one can go back to a length by it."""
        return self.first_tokens <= length_tokens <= self.length_tokens


class History:
    """The histories of a decoder's convolutions. See above.

    Attributes:
        rings: by layer float32 [rows, size], the value of token t in row t % rows.
        snapshots: ascending.
    """

    def __init__(self, spec: DecoderSpec, rows_of: dict[int, int]) -> None:
        """Begin before the first token.

        Args:
            spec: the decoder.
            rows_of: rows of a ring by taps.
        """
        convolutions = [op for op in operations(spec) if isinstance(op, ShortConv)]
        self._taps = {op.layer: op.taps for op in convolutions if op.layer is not None}
        self.rings: dict[int, Floats] = {
            op.layer: np.zeros((rows_of[op.taps], op.size), np.float32)
            for op in convolutions
            if op.layer is not None
        }
        self.snapshots: list[Snapshot] = []
        self._oldest = 0  # tokens before this one are in no ring
        self._several = False  # whether the latest step had several tokens

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of one snapshot."""
        return sum(4 * taps * self.rings[layer].shape[1] for layer, taps in self._taps.items())

    @property
    def nbytes(self) -> int:
        """Bytes of everything, when there are most snapshots."""
        rings = sum(ring.nbytes for ring in self.rings.values())
        return rings + (MOST_SNAPSHOTS + 1) * self.snapshot_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes in use."""
        rings = sum(ring.nbytes for ring in self.rings.values())
        return rings + len(self.snapshots) * self.snapshot_bytes

    @property
    def spare_tokens(self) -> int:
        """The most tokens of a step that can be taken back, whatever was before."""
        return min(
            (len(self.rings[layer]) - taps + 1 for layer, taps in self._taps.items()),
            default=1 << 40,
        )

    def begin(self, tokens: int, length_tokens: int) -> None:
        """Before a step of `tokens` tokens: take a snapshot where one is due."""
        turns = (tokens > 1) or self._several
        self._several = tokens > 1
        if not self.rings or length_tokens == 0:
            return
        latest = self.snapshots[-1].length_tokens if self.snapshots else 0
        if length_tokens - latest >= (_LEAST_TOKENS if turns else SNAPSHOT_TOKENS):
            self.snapshots.append(self._taken(length_tokens))
            self._thin(length_tokens)

    def advance(self, length_tokens: int) -> None:
        """After a step: so many tokens were seen."""
        rows = min((len(ring) for ring in self.rings.values()), default=0)
        self._oldest = max(self._oldest, length_tokens - rows)

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
            self._oldest = 0
        self._several = True  # where one goes back to once, one goes back to again

    def retract(self, length_tokens: int) -> None:
        """Forget what was beyond a length that is in the rings."""
        while self.snapshots and self.snapshots[-1].length_tokens > length_tokens:
            self.snapshots.pop()

    def take(self, other: History) -> None:
        """Become a copy of another; snapshots are shared, as nobody writes to them."""
        for layer, ring in self.rings.items():
            ring[:] = other.rings[layer]
        self.snapshots = list(other.snapshots)
        self._oldest, self._several = other._oldest, other._several

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
                raise SessionError("the saved cache's snapshots cannot be; it is damaged")
        lengths = [0, *(s.length_tokens for s in found)]
        if (
            len(found) > MOST_SNAPSHOTS + 1
            or any(a >= b for a, b in itertools.pairwise(lengths))
            or (self.rings and lengths[-1] != length_tokens)
        ):
            raise SessionError("the saved cache's snapshots cannot be; it is damaged")
        return found

    def restore(self, found: Sequence[Snapshot]) -> None:
        """Become what `parsed` gave."""
        self.snapshots, self._several, self._oldest = list(found[:-1]), True, 0
        if found:
            self._put(found[-1])

    def _in_rings(self, length_tokens: int) -> bool:
        """Return whether the rings hold all that the token behind a length needs."""
        needed = max((taps - 1 for taps in self._taps.values()), default=0)
        return max(0, length_tokens - needed) >= self._oldest

    def _taken(self, length_tokens: int) -> Snapshot:
        parts = []
        for layer, taps in self._taps.items():
            tokens = np.arange(length_tokens - taps, length_tokens)
            rows = self.rings[layer][tokens % len(self.rings[layer])]
            held = tokens[:, None] >= self._oldest
            parts.append(np.where(held, rows, np.float32(0.0)).reshape(-1))
        first = length_tokens - self._in_rings(length_tokens - 1)
        return Snapshot(length_tokens, first, np.concatenate(parts))

    def _put(self, snapshot: Snapshot) -> None:
        """Write a snapshot's values into the rings, which then hold no others."""
        at, length = 0, snapshot.length_tokens
        for layer, taps in self._taps.items():
            ring = self.rings[layer]
            tokens = np.arange(length - taps, length)
            values = snapshot.values[at : at + len(tokens) * ring.shape[1]]
            ring[tokens % len(ring)] = values.reshape(len(tokens), -1)
            at += values.size
        self._oldest = max(0, snapshot.first_tokens - max(self._taps.values()) + 1)

    def _thin(self, length_tokens: int) -> None:
        """Let go of the snapshot that is missed least, where there are too many."""
        if len(self.snapshots) <= MOST_SNAPSHOTS:
            return
        lengths = [0, *(s.length_tokens for s in self.snapshots)]
        missed = [
            (lengths[i + 1] - lengths[i - 1]) / (length_tokens - lengths[i] + SNAPSHOT_TOKENS)
            for i in range(1, len(lengths) - 1)
        ]
        del self.snapshots[missed.index(min(missed))]
