"""A strict reader of protobuf messages, by tables of their fields.

Strict where protobuf is lenient, so that no two readers can understand one file differently: no
unknown field, no group, no field twice that occurs once, no number longer than it has to be, text
is UTF-8, every length ends where it says. What this reader accepts, protobuf reads the same way.

A message is a class with a `fields` table; its instances have an attribute a field, as messages of
the protobuf package have.

Source: protobuf.dev, "Encoding".
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar, cast

Kind = Literal["int64", "int32", "enum", "uint64", "float", "double", "text", "bytes"]

MAX_DEPTH = 24
MAX_FIELDS = 1 << 18  # of one file: a second, 100 MB; 126 layers need 100,000

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_WIRE: dict[str, int] = {"float": _FIXED32, "double": _FIXED64, "text": _LENGTH, "bytes": _LENGTH}
_DEFAULTS: dict[str, Any] = {"float": 0.0, "double": 0.0, "text": "", "bytes": b""}

M = TypeVar("M", bound="Message")


class WireError(ValueError):
    """The bytes are not a message of the kind that was expected."""


@dataclass(frozen=True, slots=True)
class Field:
    """One row of a message's table.

    Attributes:
        name: of the attribute.
        kind: of the value: a scalar's, or the class of a message.
        repeated: the attribute is a sequence.
        greatest: value of an enum; protobuf passes over greater ones as if they were absent.
        wire: wire type of one value.
    """

    name: str
    kind: Kind | type[Message]
    repeated: bool = False
    greatest: int = 0
    wire: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        """Work out the wire type once."""
        wire = _LENGTH if isinstance(self.kind, type) else _WIRE.get(self.kind, _VARINT)
        object.__setattr__(self, "wire", wire)

    @property
    def default(self) -> Any:
        """Value where the field is absent: for a message, an empty one."""
        if self.repeated:
            return ()
        return self.kind() if isinstance(self.kind, type) else _DEFAULTS.get(self.kind, 0)


class Message:
    """A message; a subclass names its fields.

    Attributes:
        fields: by number.
        keys: the same by what stands before a value in a file: number and wire type.
    """

    fields: ClassVar[Mapping[int, Field]] = MappingProxyType({})
    keys: ClassVar[Mapping[int, Field]] = MappingProxyType({})
    _nbytes = 0

    def __init_subclass__(cls) -> None:
        """Set the values of absent fields on the class: a model has a million of them."""
        for field in cls.fields.values():
            setattr(cls, field.name, field.default)
        # Looked up 34,000 times for a graph of 18 layers, so that wire types are compared here.
        cls.keys = {number << 3 | field.wire: field for number, field in cls.fields.items()}

    def HasField(self, name: str) -> bool:
        """Return whether a field that occurs once is there."""
        return name in self.__dict__

    def ByteSize(self) -> int:
        """Return the length in bytes of the message as it was read."""
        return self._nbytes


def parse(kind: type[M], data: bytes) -> M:
    """Read a message.

    Raises:
        WireError: naming the byte where it is not what was expected.
    """
    return _Reader(data).message(kind, 0, len(data), 0)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._fields_left = MAX_FIELDS

    def message(self, kind: type[M], at: int, end: int, depth: int) -> M:
        if depth > MAX_DEPTH:
            raise WireError(f"messages are nested more than {MAX_DEPTH} deep at byte {at:,}")
        result = kind()
        result._nbytes = end - at
        data, keys, values = self._data, kind.keys, result.__dict__
        while at < end:
            begin = at
            key = data[at]
            if key < 0x80:  # as nearly all are
                at += 1
            else:
                key, at = self._varint(at, end)
            field = keys.get(key)
            if field is None:
                at = self._unlisted(result, key, begin, at, end)
                continue
            value, at = self._value(field, at, end, depth)
            name = field.name
            if field.repeated:
                if name in values:
                    values[name].append(value)
                else:
                    values[name] = [value]
            elif name in values:
                raise self._odd(kind, field, "occurs twice", begin)
            else:
                values[name] = value
        return result

    def _unlisted(self, result: Message, key: int, begin: int, at: int, end: int) -> int:
        """Read the packed values of a repeated field; anything else is an error."""
        kind = type(result)
        field = kind.fields.get(key >> 3)
        if field is None:
            raise WireError(f"unknown field {key >> 3} of {kind.__name__} at byte {begin:,}")
        if key & 7 != _LENGTH or not field.repeated:
            raise self._odd(kind, field, f"has wire type {key & 7}", begin)
        return self._packed(field, result.__dict__.setdefault(field.name, []), at, end)

    def _odd(self, kind: type[Message], field: Field, what: str, at: int) -> WireError:
        return WireError(f"{kind.__name__}.{field.name} {what}, at byte {at:,}")

    def _packed(self, field: Field, values: list[Any], at: int, end: int) -> int:
        length, at = self._varint(at, end)
        if length > end - at:
            raise WireError(f"{field.name} ends beyond its message, at byte {at + length:,}")
        stop = at + length
        while at < stop:
            value, at = self._value(field, at, stop, 0)
            values.append(value)
        return stop

    def _value(self, field: Field, at: int, end: int, depth: int) -> tuple[Any, int]:
        self._fields_left -= 1
        if self._fields_left < 0:
            raise WireError(f"more than {MAX_FIELDS:,} fields")
        kind, wire, data = field.kind, field.wire, self._data
        if wire in (_FIXED32, _FIXED64):
            size, code = (4, "<f") if wire == _FIXED32 else (8, "<d")
            if end - at < size:
                raise WireError(f"{field.name} is cut off at byte {at:,}")
            return struct.unpack_from(code, data, at)[0], at + size
        if at < end and data[at] < 0x80:
            number = data[at]
            at += 1
        else:
            number, at = self._varint(at, end)
        if wire == _VARINT:
            return self._integer(field, number, at), at
        stop = at + number
        if stop > end:
            raise WireError(f"{field.name} ends beyond its message, at byte {stop:,}")
        if kind == "text":
            try:
                return data[at:stop].decode(), stop
            except UnicodeDecodeError as error:
                raw = data[at : min(stop, at + 40)]
                raise WireError(f"{field.name} {raw!r} is not UTF-8 text") from error
        if kind == "bytes":
            return data[at:stop], stop
        return self.message(cast(type[Message], kind), at, stop, depth + 1), stop

    def _integer(self, field: Field, number: int, at: int) -> int:
        if field.kind == "uint64":
            return number
        value = number - (1 << 64) if number >> 63 else number
        if field.kind == "enum" and not 0 <= value <= field.greatest:
            raise WireError(f"{field.name} {value} is not a known value before byte {at:,}")
        if field.kind == "int32" and not -(1 << 31) <= value < 1 << 31:
            raise WireError(f"{field.name} {value} has more than 32 bits before byte {at:,}")
        return value

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        data, result, shift, begin = self._data, 0, 0, at
        while True:
            if at >= end:
                raise WireError(f"a number is cut off at byte {begin:,}")
            byte = data[at]
            at += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise WireError(f"a number has more than 64 bits at byte {begin:,}")
        if result >> 64 or (byte == 0 and shift):
            raise WireError(f"a number is not as short as it could be, at byte {begin:,}")
        return result, at
