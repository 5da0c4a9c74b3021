"""Rows to columns: what lies row by row in an artefact, to a lane for each row."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from edgetok.kernels_cpu.linear.code_orders import load_f16_first, load_words
from edgetok.kernels_cpu.simd.composing import at, clamped, number, transposed
from edgetok.kernels_cpu.simd.emit import (
    _I16,
    _I32,
    _I64,
    I32,
    LANES,
    U8,
    VB,
    _load,
    _shuffle,
    _store,
    i64,
    op,
    void,
)
from edgetok.kernels_cpu.simd.memory import (
    load_f16,
    load_f32,
    load_f32_first,
    store_f32,
    store_u8,
)


@op(void, i64, i64, i64, i64, i64)
def transpose_words(b: Any, w: Any, wb: Any, last: Any, nbytes: Any, out: Any) -> None:
    """LANES rows of `nbytes` (at most VB) to vectors of one word of every row, VB bytes apart.

    Rows after number `last` repeat it; words that are not there are zero.
    """
    rows = []
    for r in range(LANES):
        v = load_words.emit(b, clamped(b, w, r, last, wb), nbytes)
        rows.append(b.bitcast(v, I32.ll))
    for i, v in enumerate(transposed(b, rows)):
        store_u8.emit(b, at(b, out, i, number(VB)), b.bitcast(v, U8.ll))


def transpose_floats(bits: int, part: bool, row_bytes: int) -> Any:
    """LANES rows of LANES float16 or float32 to vectors of one column each, `row_bytes` apart.

    Args of the operation: address, bytes to the next row, number of the last row, result; with
    `part`, how many columns there are: the others become zero.
    """
    full, first = (load_f16, load_f16_first) if bits == 16 else (load_f32, load_f32_first)

    def emit(b: Any, w: Any, wb: Any, last: Any, out: Any, *count: Any) -> None:
        rows = []
        for r in range(LANES):
            row = clamped(b, w, r, last, wb)
            rows.append(first.emit(b, row, *count) if part else full.emit(b, row))
        for i, v in enumerate(transposed(b, rows)):
            store_f32.emit(b, at(b, out, i, number(row_bytes)), v)

    return op(void, *[i64] * (5 if part else 4))(emit)


def transpose_halves(rows: int) -> Any:
    """Rows of 8 numbers of 16 bits to 8 columns of `rows` such numbers, one after the other.

    Args of the operation: address, bytes to the next row, result.

    Vectors hold 8 numbers of a row in each 128 bits. Three times the first four are interleaved
    with the last four: each time the top bit of a number's column becomes the low one of its row.
    """
    parts = max(min(VB // 16, rows // 8), 1)
    part, half = ir.VectorType(_I16, 8), min(rows, 8)
    low = [8 * p + k // 2 + 8 * parts * (k % 2) for p in range(parts) for k in range(8)]
    high = [k + 4 for k in low]

    def whole(b: Any, w: Any, wb: Any, row: int) -> Any:
        """Those of `row`, row + 8, ... as one vector."""
        values = [_load(b, at(b, w, row + 8 * p, wb), part) for p in range(parts)]
        while len(values) > 1:
            pairs = zip(values[::2], values[1::2], strict=True)
            values = [_shuffle(b, x, list(range(2 * x.type.count)), y) for x, y in pairs]
        return values[0]

    @op(void, i64, i64, i64)
    def transpose(b: Any, w: Any, wb: Any, out: Any) -> None:
        for start in range(0, rows, 8 * parts):
            there = [whole(b, w, wb, start + r) for r in range(half)]
            there += [ir.Constant(there[0].type, ir.Undefined)] * (8 - half)
            for _ in range(3):
                pairs = zip(there[:4], there[4:], strict=True)
                there = [_shuffle(b, x, order, y) for x, y in pairs for order in (low, high)]
            for column, v in enumerate(there):
                value = v if half == 8 else _shuffle(b, v, list(range(half)))
                _store(b, b.add(out, number(2 * (column * rows + start))), value)

    return transpose


def transpose_pieces(nbytes: int) -> Any:
    """LANES rows of 8 or 4 bytes to a vector or two of one word of every row, VB bytes apart.

    Args of the operation: address, bytes to the next row, result.
    """

    @op(void, i64, i64, i64)
    def transpose(b: Any, w: Any, wb: Any, out: Any) -> None:
        element = _I64 if nbytes == 8 else _I32
        v: Any = ir.Constant(ir.VectorType(element, LANES), ir.Undefined)
        for r in range(LANES):
            v = b.insert_element(v, _load(b, at(b, w, r, wb), element), ir.Constant(_I32, r))
        count = nbytes // 4
        v = b.bitcast(v, ir.VectorType(_I32, LANES * count))
        for i in range(count):
            word = _shuffle(b, v, list(range(i, LANES * count, count)))
            _store(b, b.add(out, number(i * VB)), word)

    return transpose
