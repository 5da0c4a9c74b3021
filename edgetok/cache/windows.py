"""Which slots tokens are in, without the slots: what the caches of all devices have in common.

Layers that look equally far back keep the same tokens: all of them, or a ring of the window and one
prefill block, since a block's tokens are stored before they are attended to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgetok.errors import OptionError
from edgetok.models.spec import DecoderSpec


class Ring(Protocol):
    """Position p is in slot p % slots; those before `oldest` were overwritten."""

    @property
    def window(self) -> int:
        """How far back its layers look, in tokens; 0 for all."""

    @property
    def oldest(self) -> int:
        """The first token that it still holds."""


class Windows(Protocol):
    """The rings of a cache that forgets: its layers with a sliding window."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""

    @property
    def oldest(self) -> list[int]:
        """The first token that each ring still holds."""

    @property
    def memory(self) -> npt.NDArray[np.uint8]:
        """All slots' bytes."""

    def begin(self, tokens: int) -> int:
        """Name the slots of the next tokens; gives the first one's position."""

    def advance(self, tokens: int) -> None:
        """Count tokens that were computed."""

    def truncate(self, length_tokens: int) -> bool:
        """Forget every token from `length_tokens` on; False where a ring cannot."""

    def restore(
        self,
        memory: npt.NDArray[np.uint8],
        length: int,
        shift: int,
        oldest: npt.NDArray[np.int64],
    ) -> None:
        """Become what `memory` and the counters were."""

    def shift(self, by: int, turn: Callable[[int, Any, npt.NDArray[np.int64]], Any]) -> None:
        """Lower all positions by `by`, turning keys with `turn(layer, keys [n, D], by [n])`."""


def ring_slots(
    spec: DecoderSpec, capacity_tokens: int, block_tokens: int, multiple: int
) -> dict[int, int]:
    """Slots by window, in the order of the first layer that has it, rounded up to `multiple`."""
    sizes = {}
    for window in dict.fromkeys(layer.window for layer in spec.layers):
        wanted = min(capacity_tokens, window + block_tokens - 1) if window else capacity_tokens
        sizes[window] = -(-wanted // multiple) * multiple
    return sizes


def check_cut(length_tokens: int, seen_tokens: int) -> None:
    """Refuse to keep a negative number of tokens, or more than were seen.

    Raises:
        OptionError: it is so.
    """
    if not 0 <= length_tokens <= seen_tokens:
        raise OptionError(f"cannot keep {length_tokens} of {seen_tokens} tokens of the cache")


def can_cut(rings: Iterable[Ring], length_tokens: int) -> bool:
    """Whether all rings still hold what the token after the first `length_tokens` sees."""
    return length_tokens == 0 or all(
        ring.oldest <= (max(0, length_tokens - ring.window + 1) if ring.window else 0)
        for ring in rings
    )
