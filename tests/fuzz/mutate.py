"""Structure-aware damage: of bytes, of JSON, of messages of protobuf, of files with a JSON header.

Every function takes a whole, valid input and a random generator and returns a damaged one. JSON is
changed as a tree and written anew, so that most inputs get past the parser; so are messages.
"""

from __future__ import annotations

import copy
import functools
import json
import marshal
import random
import struct
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**400, 0.0, -0.5, 1e308, 1e-320,
    "", " ", "x", "../x", "/etc/passwd", "\x00", "\ud800", "é" * 50, "a" * 5000, [], [[]], {}, [0],
    [None, 1, "x"], {"": {}}, {"type": "x"}, [[[[[[[[[[0]]]]]]]]]],
)  # fmt: skip
NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**63,
    2**64 - 1,
)


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few bytes flipped, replaced, taken out, doubled; little-endian numbers; the end cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not out:
            break
        at, kind = rng.randrange(len(out)), rng.randrange(7)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            del out[at : at + rng.randint(1, 30)]
        elif kind == 3:
            out[at:at] = out[at : at + rng.randint(1, 60)]
        elif kind == 4:
            size = rng.choice((1, 2, 4, 8))
            number = rng.choice(NUMBERS) & ((1 << 8 * size) - 1)
            out[at : at + size] = number.to_bytes(size, "little")
        elif kind == 5:
            del out[at:]
        else:
            out[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
    return bytes(out)


def _places(tree: Any, found: list[tuple[Any, Any]]) -> None:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        found.append((tree, key))
        if isinstance(value, (dict, list)) and len(found) < 20_000:
            _places(value, found)


def of_tree(tree: Any, rng: random.Random) -> None:
    """Change a parsed JSON object in place, at one or a few places."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found: list[tuple[Any, Any]] = []
        _places(tree, found)
        if not found:
            return
        inside, key = rng.choice(found)
        _, other = rng.choice(found)
        kind = rng.randrange(6)
        if kind == 0:
            del inside[key]
        elif kind == 1 and isinstance(inside, dict):
            inside[str(other)] = inside.pop(key)
        elif kind == 2:
            value = inside[key]
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                inside[key] = rng.choice((value + 1, value - 1, -value, value * 2, value // 3))
            elif isinstance(value, str):
                inside[key] = rng.choice((value + value, value[1:], value.upper(), [value]))
            else:
                inside[key] = [value]
        elif kind == 3:
            holder, name = rng.choice(found)
            if holder is not inside or name != key:
                inside[key] = json.loads(json.dumps(holder[name])) if _small(holder[name]) else 1
        else:
            inside[key] = copy.deepcopy(rng.choice(ODD))  # later changes must not reach ODD


def _small(value: Any) -> bool:
    return len(repr(value)) < 20_000


@functools.lru_cache(maxsize=64)
def _marshalled(data: bytes) -> bytes:
    return marshal.dumps(json.loads(data))


def tree_of(data: bytes) -> Any:
    """Return a new tree of a valid input, in a third of the time that parsing takes."""
    return marshal.loads(_marshalled(data))


def of_json(data: bytes, rng: random.Random) -> bytes:
    """Mostly another tree; sometimes other bytes, a key twice, or NaN."""
    kind = rng.randrange(8)
    if kind == 0:
        return of_bytes(data, rng)
    if kind == 1:
        text = data.decode(errors="replace")
        at = text.find('"', rng.randrange(len(text) or 1))
        end = text.find(",", at)
        if 0 <= at < end:
            return (text[:at] + text[at:end] + "," + text[at:]).encode()
        return text.replace("1", "NaN", 1).encode()
    tree = tree_of(data)
    of_tree(tree, rng)
    return json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def of_headed(data: bytes, rng: random.Random, length: str = "<Q", before: int = 0) -> bytes:
    """A file of a length, a JSON header of that length and bytes: mostly the header changes.

    Args:
        data: the file.
        rng: source of chance.
        length: format of the length.
        before: bytes before it.
    """
    begin = before + struct.calcsize(length)
    (size,) = struct.unpack_from(length, data, before)
    if rng.randrange(4) == 0:
        return of_bytes(data, rng)
    header = of_json(data[begin : begin + size], rng)
    told = len(header) if rng.randrange(8) else rng.choice((0, len(header) + 1, 2**62))
    return data[:before] + struct.pack(length, told) + header + data[begin + size :]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def of_protobuf(data: bytes, rng: random.Random, depth: int = 0) -> bytes:
    """Damage one field at some depth, and write the lengths around it anew."""
    if depth > 6 or rng.randrange(5) == 0:
        return of_bytes(data, rng)
    fields: list[tuple[int, int, int, int]] = []  # begin, key, begin of the value, end
    at = 0
    while at < len(data) and len(fields) < 5000:
        begin = at
        numbers = []
        for _ in range(2):
            number = shift = 0
            while at < len(data):
                number |= (data[at] & 127) << shift
                shift += 7
                at += 1
                if data[at - 1] < 128:
                    break
            numbers.append(number)
            if number & 7 not in (0, 2) and len(numbers) == 1:
                break
        key = numbers[0]
        if key & 7 == 2 and len(numbers) == 2:
            fields.append((begin, key, at, at + numbers[1]))
            at += numbers[1]
        elif key & 7 in (1, 5):
            at += 8 if key & 7 == 1 else 4
    if not fields:
        return of_bytes(data, rng)
    begin, key, value, end = rng.choice(fields)
    inner = data[value:end]
    kind = rng.randrange(8)
    if kind == 0:
        return data[:begin] + data[end:]
    if kind == 1:
        return data[:end] + data[begin:end] + data[end:]
    if kind == 2:
        key = rng.choice((key ^ 8, key ^ 1, key ^ 16, 8 * rng.randrange(30) | 2))
    else:
        inner = of_protobuf(inner, rng, depth + 1)
    return data[:begin] + _varint(key) + _varint(len(inner)) + inner + data[end:]
