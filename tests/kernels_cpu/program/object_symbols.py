"""Symbols of ELF, Mach-O, COFF and wasm objects, read by hand."""

from __future__ import annotations

import struct

Symbols = dict[str, tuple[bool, bool]]


def symbols(code: bytes) -> Symbols:
    """Name, as C has it -> (defined, visible to others) of an object's functions and variables."""
    if code[:6] == b"\x7fELF\x02\x01":
        return _elf(code)
    if code[:4] == b"\xcf\xfa\xed\xfe":
        return _macho(code)
    if code[:4] == b"\0asm":
        return _wasm(code)
    assert struct.unpack_from("<H", code)[0] in (0x8664, 0xAA64), "a foreign object"
    return _coff(code)


def _text(code: bytes, at: int) -> str:
    return code[at : code.index(b"\0", at)].decode()


def _elf(code: bytes) -> Symbols:
    (at,) = struct.unpack_from("<Q", code, 40)
    size, count = struct.unpack_from("<HH", code, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, at + i * size) for i in range(count)]
    found = {}
    for _, kind, _, _, offset, length, link, *_ in sections:
        if kind != 2:  # SHT_SYMTAB
            continue
        names = sections[link][4]
        for i in range(1, length // 24):
            name, info, _, section = struct.unpack_from("<IBBH", code, offset + 24 * i)
            text = _text(code, names + name)
            if text and info & 15 < 3:  # not a section or file
                found[text] = (section != 0, info >> 4 != 0)
    return found


def _macho(code: bytes) -> Symbols:
    (commands,) = struct.unpack_from("<I", code, 16)
    at, found = 32, {}
    for _ in range(commands):
        command, length = struct.unpack_from("<II", code, at)
        if command == 2:  # LC_SYMTAB
            first, count, names, _ = struct.unpack_from("<IIII", code, at + 8)
            for i in range(count):
                name, kind, _, _, _ = struct.unpack_from("<IBBHQ", code, first + 16 * i)
                text = _text(code, names + name).removeprefix("_")
                if not kind & 0xE0:  # not for a debugger
                    found[text] = (kind & 0x0E != 0, bool(kind & 1))
        at += length
    return found


def _coff(code: bytes) -> Symbols:
    first, count = struct.unpack_from("<II", code, 8)
    found, i = {}, 0
    while i < count:
        at = first + 18 * i
        if code[at : at + 4] == b"\0\0\0\0":
            name = _text(code, first + 18 * count + struct.unpack_from("<I", code, at + 4)[0])
        else:
            name = code[at : at + 8].rstrip(b"\0").decode()
        _, section, _, kind, more = struct.unpack_from("<IhHBB", code, at + 8)
        if kind == 2 and section >= 0:  # external, with or without a section of its own
            found[name] = (section > 0, True)
        i += 1 + more
    return found


def _wasm(code: bytes) -> Symbols:
    at = 8

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = code[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def text() -> str:
        nonlocal at
        length = number()
        at += length
        return code[at - length : at].decode()

    imported: list[str] = []
    found = {}
    while at < len(code):
        kind = number()
        end = number() + at
        if kind == 2:  # imports
            for _ in range(number()):
                text()
                name, what = text(), number()
                if what == 0:
                    imported.append(name)
                    number()
                elif what == 3:
                    at += 2
                else:
                    at += what == 1  # the kind of a table's elements
                    for _ in range(1 + (number() & 1)):
                        number()
        if kind == 0 and text() == "linking":
            number()
            while at < end:
                part, part_end = number(), 0
                part_end = number() + at
                for _ in range(number() if part == 8 else 0):
                    what, flags = number(), number()
                    defined = not flags & 0x10
                    if what == 3:  # a section
                        number()
                        continue
                    name = ""
                    if what != 1:
                        index = number()
                        if defined or flags & 0x40:
                            name = text()
                        elif what == 0:
                            name = imported[index]
                    else:
                        name = text()
                        for _ in range(3 if defined else 0):
                            number()
                    if what < 2:
                        found[name] = (defined, not flags & 2)
                at = part_end
        at = end
    return found
