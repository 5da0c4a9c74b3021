"""Constants of an artefact by which keys of 4 to 8 bits are changed before they are rounded.

    k' = (k - centre) * factor,    q' = q / factor

leave softmax(q k^T) as it is: one vector less in all keys is one number less in all scores of a
query. What single dims have too much of is then not in the range that codes have to cover. The
converter measures both (docs/cache.md); an artefact of an earlier version has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgetok.errors import ArtefactError
from edgetok.models.operations import operations
from edgetok.models.ops import Store
from edgetok.models.spec import DecoderSpec

Floats = npt.NDArray[np.float32]


class Tensors(Protocol):
    """An artefact, as far as constants go."""

    @property
    def constants(self) -> Any:
        """Names of its constants."""

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """One of its tensors."""


@dataclass(frozen=True, eq=False)
class KeyConstants:
    """Centre and factor of one head [D], of a layer [KH, D] or of all layers [L, KH, D].

    Of all layers KH and D are the largest, see `key_constants`.
    """

    centre: Floats
    factor: Floats

    def __getitem__(self, at: int | tuple[int, ...] | npt.NDArray[np.intp]) -> KeyConstants:
        """Return the constants of a layer or head."""
        return KeyConstants(self.centre[at], self.factor[at])

    def of(self, heads: Sequence[tuple[int, int]], dims: int) -> KeyConstants:
        """Gather the constants of (layer, KV head) pairs with `D` dims: [heads, D]."""
        layers, columns = np.array(heads, np.intp).T
        return KeyConstants(
            self.centre[layers, columns, :dims], self.factor[layers, columns, :dims]
        )

    def apply(self, keys: Floats) -> Floats:
        """Keys [n, D] of one head as they are rounded."""
        return np.asarray((keys - self.centre) * self.factor, np.float32)

    def undo(self, keys: Floats) -> Floats:
        """Undo `apply`: [..., D] as stored -> plain keys."""
        return np.asarray(keys / self.factor + self.centre, np.float32)


def key_constants(artefact: Tensors, spec: DecoderSpec, first: int = 0) -> KeyConstants | None:
    """Copy an artefact's constants.

    Args:
        artefact: their file.
        spec: the decoder, or some layers of the artefact's.
        first: which layer of the artefact its first one is.

    Returns:
        Arrays [layers, KH, D], of the most heads and dims of any layer; None for an artefact
        without constants.

    Raises:
        ArtefactError: a number cannot be.
    """
    shape = (spec.num_layers, spec.most_kv_heads, spec.most_head_dim)
    made = KeyConstants(np.zeros(shape, np.float32), np.ones(shape, np.float32))
    known = artefact.constants
    found = False
    for op in operations(spec, first):
        if isinstance(op, Store) and op.layer is not None and f"{op.constants}.factor" in known:
            mine = (op.layer, slice(op.heads), slice(op.head_dim))
            made.centre[mine] = artefact.tensor(f"{op.constants}.centre")
            made.factor[mine] = artefact.tensor(f"{op.constants}.factor")
            found = True
    finite = np.isfinite(made.centre).all() and np.isfinite(made.factor).all()
    if not (finite and made.factor.all()):
        raise ArtefactError("the cache's constants are not finite, or a factor is 0; convert again")
    return made if found else None
