"""A conversation's whole state as one block of bytes: for a copy, a branch or a file.

    magic, 8 bytes | version, uint32 | sections, uint32 | bytes of the block, uint64
    for each section: kind, uint32 | group, uint32 | offset, uint64 | bytes, uint64 | 0, uint64
    the sections, each at a multiple of 64 bytes, zeros in between

all little-endian. Sections of a kind belong to a group of layers (0 where there is only one):

| kind | what |
|---|---|
| SHAPE | canonical JSON: all that another cache must have in common to take this state |
| COUNTERS | int64: named by `saved.COUNTERS` |
| TABLE | int32: see `SlotTable.state` |
| ROWS | uint8: keys, values and scales of the slots that the table lists, head by head |
| MASS | float32: attention that each of these slots got, row by row; where tokens are evicted |
| REST | float32: `GroupMemory.rests`, where heads leave any; a block without it has none yet |
| QUERIES | float32: the latest queries and their moments; where a policy looks at queries |
| SNAPSHOT | see `recurrent.History.state`; one each, numbered as groups are; the last is now |
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.errors import SessionError
from edgetok.formats import strict_json

MAGIC = b"edgetokS"
VERSION = 3  # 1: a cache's whole memory, in parts of a container; 2: 8 bits not rotated
SHAPE, COUNTERS, TABLE, ROWS, MASS, QUERIES, REST, SNAPSHOT = 1, 2, 3, 4, 5, 6, 7, 16
KINDS = frozenset((SHAPE, COUNTERS, TABLE, ROWS, MASS, QUERIES, REST, SNAPSHOT))

_HEAD = struct.Struct("<8sIIQ")
_ENTRY = struct.Struct("<IIQQQ")
_ALIGNMENT_BYTES = 64
_MOST_SECTIONS = 1024
_MOST_SHAPE_BYTES = 1 << 16

Bytes = npt.NDArray[np.uint8]


class CacheState:
    """A state block, read strictly. Restored only into a cache of the same `shape`.

    Attributes:
        block: uint8, the whole of it.
        shape: JSON values.
    """

    def __init__(self, block: Bytes) -> None:
        """View a block; its bytes are not copied.

        Raises:
            SessionError: it is not a block, or a section lies outside it.
        """
        size = block.nbytes
        head = block[: _HEAD.size].tobytes()
        if len(head) < _HEAD.size or head[:8] != MAGIC:
            raise SessionError("this is not a saved cache")
        _, version, count, total = _HEAD.unpack(head)
        if version != VERSION:
            raise SessionError(
                f"the saved cache has version {version}, this edgetok reads {VERSION}; use the "
                "edgetok that saved it"
            )
        end = _HEAD.size + count * _ENTRY.size
        if total != size or count > _MOST_SECTIONS or end > size:
            raise SessionError(f"the saved cache says {total:,} bytes and has {size:,}")
        self.block = block
        self._sections: dict[tuple[int, int], tuple[int, int]] = {}
        at = end
        for entry in _ENTRY.iter_unpack(block[_HEAD.size : end].tobytes()):
            kind, group, offset, nbytes, zero = entry
            if (
                kind not in KINDS
                or (kind, group) in self._sections
                or offset != _aligned(at)
                or offset + nbytes > size
                or zero
            ):
                raise SessionError("the saved cache's sections do not add up; it is damaged")
            self._sections[kind, group] = offset, nbytes
            at = offset + nbytes
        if at != size:
            raise SessionError("the saved cache's sections do not add up; it is damaged")
        self.shape = _shape(self.section(SHAPE, np.uint8))

    @classmethod
    def of(
        cls, shape: Mapping[str, Any], sections: Iterable[tuple[int, int, npt.NDArray[Any]]]
    ) -> CacheState:
        """Write a block.

        Args:
            shape: JSON values.
            sections: (kind, group, numbers) of each.
        """
        text = json.dumps(dict(shape), sort_keys=True, separators=(",", ":")).encode()
        every = [(SHAPE, 0, np.frombuffer(text, np.uint8)), *sections]
        at, entries = _HEAD.size + len(every) * _ENTRY.size, []
        for kind, group, numbers in every:
            entries.append((kind, group, _aligned(at), numbers.nbytes, 0))
            at = _aligned(at) + numbers.nbytes
        block = np.zeros(at, np.uint8)
        head = _HEAD.pack(MAGIC, VERSION, len(every), at)
        head += b"".join(_ENTRY.pack(*entry) for entry in entries)
        block[: len(head)] = np.frombuffer(head, np.uint8)
        for (_, _, numbers), (_, _, offset, nbytes, _) in zip(every, entries, strict=True):
            block[offset : offset + nbytes] = np.ascontiguousarray(numbers).reshape(-1).view("u1")
        return cls(block)

    @property
    def nbytes(self) -> int:
        """Bytes of the block."""
        return self.block.nbytes

    @property
    def length_tokens(self) -> int:
        """Tokens seen: the first counter.

        Raises:
            SessionError: there is none.
        """
        counters = self.section(COUNTERS, np.int64)
        if not len(counters):
            raise SessionError("the saved cache has no counters; it is damaged")
        return int(counters[0])

    @property
    def sections(self) -> frozenset[tuple[int, int]]:
        """(kind, group) of each."""
        return frozenset(self._sections)

    def section(self, kind: int, dtype: npt.DTypeLike, group: int = 0) -> npt.NDArray[Any]:
        """A section's numbers, as a view.

        Raises:
            SessionError: there is none, or its bytes are not a multiple of a number's.
        """
        found = self._sections.get((kind, group))
        size = np.dtype(dtype).itemsize
        if found is None or found[1] % size:
            raise SessionError(f"the saved cache has no section {kind} of group {group}")
        return self.block[found[0] : found[0] + found[1]].view(dtype)

    def check_shape(self, shape: Mapping[str, Any]) -> None:
        """Refuse a state of a cache of another shape.

        Raises:
            SessionError: names what differs, and the option that it follows from.
        """
        saved = self.shape
        for name, (what, option) in _OPTIONS.items():
            if shape.get(name) != saved.get(name):
                raise SessionError(
                    f"it was saved with {_told(what, saved.get(name))}, this cache has "
                    f"{_told(what, shape.get(name))}; start with {option} as it was then"
                )
        if shape.get("wide") != saved.get("wide"):
            raise SessionError(
                "it was saved with more slots for other heads; load it with the artefact and the "
                "version of edgetok that it was saved with"
            )
        if shape != saved:  # sizes of pages and rings follow from the size of the cache
            raise SessionError(
                "it was saved with a cache of another size; start with --kv-budget and --context "
                "as they were then"
            )


_OPTIONS = MappingProxyType(
    {
        "kind": ("a cache of the {}", "--device"),
        "policy": ("the policy {}", "--kv-policy"),
        "kv_bits": ("{} bits per value", "--kv-bits"),
        "context": ("a context of {} tokens", "--context"),
        "slots": ("{} tokens a head", "--kv-budget and --context"),
    }
)
"""Differences in users' words, and the options that they follow from; the plainest first."""


def _told(what: str, value: object) -> str:
    return what.format("none" if value is None else f"{value!s:.40}")


def _aligned(at: int) -> int:
    return -(-at // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _shape(text: Bytes) -> dict[str, Any]:
    """The shape, from bytes that nobody vouches for."""
    return strict_json.loads_object(
        text.tobytes(), "the saved cache", max_bytes=_MOST_SHAPE_BYTES, error=SessionError
    )
