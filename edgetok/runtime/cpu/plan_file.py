"""A plan in a file, for another process or a program without Python.

All numbers are little-endian and every part begins at a multiple of 8, so that a program can map
the file and read it in place:

    magic         8 bytes, "edgeplan"
    header        int64 [len(HEADER)], named below
    weights       32 bytes, sha256 of the weight file
    table         int64 [instructions, 16]; in the place of addresses, offsets in their segments
    relocations   int32 [relocations, 2]: a number of the flat table that is an address, and its
                  segment (`arenas.Segment`). What to add is the segment's address; for KERNELS (1)
                  the offset counts the names below
    places        64 bytes each: name (32 bytes, padded with 0), int32 segment, int32 type
                  (0 float32, 1 int32), int64 offset, rows, columns
    kernels       names, each ended by a 0; padded
    spec          JSON, padded
    sha256        of all before it

Whoever can write a plan file chooses which kernels run on which memory: it is to be trusted like a
program. The hash finds damage, not malice.
"""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from edgetok.errors import ArtefactError, EdgetokError
from edgetok.formats.container import replace_file
from edgetok.kernels_cpu.plan.launch import CORE_VERSION, DIGEST_BYTES, HEADER, PLACE
from edgetok.kernels_cpu.program.abi import INSTR_SLOTS
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.cpu.arenas import Place, Segment, addressed, check, offsets, relocations
from edgetok.runtime.cpu.plan import Plan, PlanOptions

MAGIC = b"edgeplan"
_COMPUTES = ("int8", "float32")
_DTYPES = ("float32", "int32")
_NAME = re.compile(r"[a-z0-9_]{1,64}")


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    replace_file(path, [plan_bytes(plan)])


def read_plan(path: Path) -> Plan:
    """Read what `write_plan` wrote.

    Raises:
        ArtefactError: it is damaged, or of another version.
    """
    try:
        return plan_from_bytes(path.read_bytes())
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read: {error.strerror}") from error
    except ArtefactError as error:
        raise ArtefactError(f"{path}: {error}") from error


def plan_bytes(plan: Plan) -> bytes:
    """A plan as a file holds it."""
    at, segments = relocations(plan.table)
    kernels = _padded(b"".join(name.encode() + b"\0" for name in plan.kernels))
    spec = _padded(plan.spec.to_json().encode())
    header = {
        "version": CORE_VERSION,
        "kv_bits": plan.options.kv_bits,
        "compute": _COMPUTES.index(plan.options.compute),
        "block_tokens": plan.options.block_tokens,
        "head_tokens": plan.options.head_tokens,
        "instructions": len(plan.table),
        "body": plan.body,
        "trunk": plan.trunk,
        "relocations": len(at),
        "places": len(plan.places),
        "kernel_bytes": len(kernels),
        "spec_bytes": len(spec),
        **{f"{segment.name.lower()}_bytes": plan.sizes[segment] for segment in Segment},
    }
    parts = [
        MAGIC,
        np.array([header[name] for name in HEADER], "<i8").tobytes(),
        bytes.fromhex(plan.weights),
        offsets(plan.table).astype("<i8").tobytes(),
        np.stack([at, segments], 1).astype("<i4").tobytes(),
        *(_place_bytes(name, place) for name, place in plan.places.items()),
        kernels,
        spec,
    ]
    content = b"".join(parts)
    return content + hashlib.sha256(content).digest()


def plan_from_bytes(content: bytes) -> Plan:
    """Read what `plan_bytes` gave.

    Raises:
        ArtefactError: it is damaged, or of another version.
    """
    body, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if not body.startswith(MAGIC):
        raise ArtefactError("not a plan file")
    if hashlib.sha256(body).digest() != digest:
        raise ArtefactError("the plan is damaged; write it again")
    reader = _Reader(body)
    reader.bytes(len(MAGIC))
    header = dict(zip(HEADER, reader.numbers("<i8", len(HEADER)).tolist(), strict=True))
    if header["version"] != CORE_VERSION:
        raise ArtefactError(
            f"a plan of version {header['version']}, expected {CORE_VERSION}; write it again"
        )
    try:
        return _read(reader, header)
    except (ValueError, IndexError, KeyError, struct.error, EdgetokError) as error:
        raise ArtefactError(f"the plan is not readable: {error}") from error


def _read(reader: _Reader, header: dict[str, int]) -> Plan:
    weights = reader.bytes(DIGEST_BYTES).hex()
    count = header["instructions"]
    table = reader.numbers("<i8", count * INSTR_SLOTS).reshape(count, INSTR_SLOTS)
    moved = reader.numbers("<i4", 2 * header["relocations"]).reshape(-1, 2)
    at, segments = moved[:, 0], moved[:, 1]
    if len(relocations(table)[0]) or not np.isin(segments, list(Segment)).all():
        raise ValueError("a number is too large, or a segment unknown")
    if moved.size and not (at.min() >= 0 and at.max() < table.size):
        raise ValueError("a relocation is outside of the table")
    places = dict(_read_place(reader.bytes(PLACE.size)) for _ in range(header["places"]))
    names = reader.bytes(header["kernel_bytes"]).rstrip(b"\0").decode().split("\0")
    if not all(_NAME.fullmatch(name) for name in names):
        raise ValueError("a kernel's name is not one")
    spec = DecoderSpec.from_json(reader.bytes(header["spec_bytes"]).rstrip(b"\0").decode())
    reader.end()
    sizes = {segment: header[f"{segment.name.lower()}_bytes"] for segment in Segment}
    if sizes[Segment.KERNELS] != len(names):
        raise ValueError(f"{len(names)} kernels, expected {sizes[Segment.KERNELS]}")
    if not 0 < header["trunk"] <= header["body"] < count:
        raise ValueError("parts of the table overlap")
    for name, place in places.items():
        if place.offset < 0 or place.offset + place.nbytes > sizes[place.segment]:
            raise ValueError(f"{name} is outside of {place.segment.name}")
    full = addressed(table, at, segments)
    check(full, sizes)
    options = PlanOptions(
        kv_bits=header["kv_bits"],
        compute="float32" if header["compute"] else "int8",
        block_tokens=header["block_tokens"],
        head_tokens=header["head_tokens"],
    )
    return Plan(
        spec=spec,
        options=options,
        weights=weights,
        kernels=tuple(names),
        sizes=sizes,
        places=places,
        table=full,
        body=header["body"],
        trunk=header["trunk"],
    )


class _Reader:
    """Takes parts from the front of the bytes."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def bytes(self, count: int) -> bytes:
        found = self._content[self._at : self._at + max(0, count)]
        if len(found) != count:
            raise ValueError("the plan ends too soon")
        self._at += count
        return found

    def numbers(self, dtype: str, count: int) -> Any:
        found = self.bytes(np.dtype(dtype).itemsize * count)
        return np.frombuffer(found, dtype).astype(np.int64)

    def end(self) -> None:
        if self._at != len(self._content):
            raise ValueError("something follows the plan")


def _place_bytes(name: str, place: Place) -> bytes:
    return PLACE.pack(
        name.encode(),
        place.segment,
        _DTYPES.index(place.dtype),
        place.offset,
        place.rows,
        place.columns,
    )


def _read_place(content: bytes) -> tuple[str, Place]:
    name, segment, dtype, offset, rows, columns = PLACE.unpack(content)
    if rows < 1 or columns < 1:
        raise ValueError("a place is empty")
    return name.rstrip(b"\0").decode(), Place(
        segment=Segment(segment), offset=offset, rows=rows, columns=columns, dtype=_DTYPES[dtype]
    )


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 8)
