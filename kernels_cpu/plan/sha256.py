"""SHA-256 (FIPS 180-4), for kernels; nothing is registered here."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir

from edgetok.kernels_cpu.plan.launch import HASH_BYTES
from edgetok.kernels_cpu.simd.composing import number
from edgetok.kernels_cpu.simd.emit import _I32, _I64, _load, _store, i64, op, outline, void
from edgetok.kernels_cpu.simd.memory import read_u8, write_i64
from edgetok.kernels_cpu.text.characters import write_u8

_BLOCK = 64
_PRIMES = [n for n in range(2, 312) if all(n % k for k in range(2, math.isqrt(n) + 1))]


def _cube_root(n: int) -> int:
    """The greatest integer whose cube is at most n."""
    low, high = 0, 1 << (n.bit_length() // 3 + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**3 <= n else (low, middle)
    return low


# The first 32 bits of the fractions of roots of primes.
_FIRST = [math.isqrt(p << 64) % (1 << 32) for p in _PRIMES[:8]]
_ADDED = [_cube_root(p << 96) % (1 << 32) for p in _PRIMES]


def _constant(value: int) -> ir.Constant:
    return ir.Constant(_I32, value)


def _turned(b: Any, x: Any, *by: int) -> Any:
    """The xor of x rotated to the right by each of some numbers of bits."""
    made = _constant(0)
    for n in by:
        turned = b.or_(b.lshr(x, _constant(n)), b.shl(x, _constant(32 - n)))
        made = b.xor(made, turned)
    return made


def _sum(b: Any, *values: Any) -> Any:
    made = values[0]
    for value in values[1:]:
        made = b.add(made, value)
    return made


def _word(b: Any, address: Any, i: int) -> Any:
    return b.add(address, number(4 * i))


@op(void, i64)
def _begin(b: Any, state: Any) -> None:
    """Write the eight words that a hash begins with."""
    for i, value in enumerate(_FIRST):
        _store(b, _word(b, state, i), _constant(value))


@op(void, i64, i64)
def _mix(b: Any, state: Any, block: Any) -> None:
    """Change the eight words of a state by a block of 64 bytes."""
    w = [b.bswap(_load(b, _word(b, block, i), _I32)) for i in range(16)]
    for i in range(16, 64):
        x, y = w[i - 15], w[i - 2]
        x = b.xor(_turned(b, x, 7, 18), b.lshr(x, _constant(3)))
        y = b.xor(_turned(b, y, 17, 19), b.lshr(y, _constant(10)))
        w.append(_sum(b, w[i - 16], w[i - 7], x, y))
    before = [_load(b, _word(b, state, i), _I32) for i in range(8)]
    h = list(before)
    for i in range(64):
        a, e = h[0], h[4]
        chosen = b.xor(h[6], b.and_(e, b.xor(h[5], h[6])))
        majority = b.or_(b.and_(a, h[1]), b.and_(h[2], b.or_(a, h[1])))
        s = _sum(b, h[7], _turned(b, e, 6, 11, 25), chosen, _constant(_ADDED[i]), w[i])
        t = _sum(b, s, _turned(b, a, 2, 13, 22), majority)
        h = [t, a, h[1], h[2], b.add(h[3], s), e, h[5], h[6]]
    for i in range(8):
        _store(b, _word(b, state, i), b.add(before[i], h[i]))


@op(void, i64, i64)
def _write_word(b: Any, address: Any, value: Any) -> None:
    """Store the low 32 bits, the highest byte first."""
    _store(b, address, b.bswap(b.trunc(value, _I32)))


@op(i64, i64)
def _read_word(b: Any, address: Any) -> Any:
    return b.zext(_load(b, address, _I32), _I64)


@outline
def _mixed(state: int, block: int) -> None:
    _mix(state, block)


@outline
def hash_bytes(data: int, count: int, out: int) -> None:
    """Write the hash of bytes to `out`: 32 bytes, of HASH_BYTES that are used."""
    last = out + 32
    _begin(out)
    whole = count // _BLOCK * _BLOCK
    for at in range(0, whole, _BLOCK):
        _mixed(out, data + at)
    for i in range(0, HASH_BYTES - 32, 8):
        write_i64(last + i, 0)
    rest = count - whole
    for i in range(rest):
        write_u8(last + i, read_u8(data + whole + i))
    write_u8(last + rest, 0x80)
    end = _BLOCK if rest < _BLOCK - 8 else 2 * _BLOCK
    _write_word(last + end - 8, 8 * count >> 32)
    _write_word(last + end - 4, 8 * count)
    for at in range(0, end, _BLOCK):
        _mixed(out, last + at)
    for i in range(0, 32, 4):
        _write_word(out + i, _read_word(out + i))
