"""Write as JSON what another cache needs in common to take a state: `SlotCache.shape`."""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.cache.launch import (
    C_BLOCK_TOKENS,
    C_BOUNDED,
    C_BROAD,
    C_CAPACITY,
    C_GROUP_COUNT,
    C_KV_BITS,
    C_LONGROPE,
    C_POLICY_NAME,
    C_SHAPE,
    C_SHAPE_BYTES,
    C_SLOTS,
    G_HEAD,
    G_HEADS,
    G_LIMIT,
    G_WINDOW,
    R_KV_HEADS,
)
from edgetok.kernels_cpu.cache.sizes import run
from edgetok.kernels_cpu.cache.tables import get, group_at, put
from edgetok.kernels_cpu.simd.emit import outline
from edgetok.kernels_cpu.simd.memory import read_u8
from edgetok.kernels_cpu.text.json_write import write_number, write_string, written

_BLOCK_TOKENS = written(b'{"block_tokens":')
_CONTEXT = written(b',"context":')
_KIND = written(b',"kind":"cpu","kv_bits":')
_POLICY = written(b',"policy":')
_RINGS = written(b',"rings":[')
_SLOTS = written(b',"slots":')
_WIDE = written(b',"wide":[')
_OPEN, _COMMA, _CLOSE, _END = written(b"["), written(b","), written(b"]"), written(b"}")


@outline
def _write_pair(to: int, first: int, a: int, b: int) -> Any:
    """Write an element of a list: two numbers."""
    to = _OPEN(to if first != 0 else _COMMA(to))
    return _CLOSE(write_number(_COMMA(write_number(to, a)), b))


@outline
def write_shape(c: int) -> None:
    """Write it where there is room for it (`make.py`)."""
    to = write_number(_BLOCK_TOKENS(get(c, C_SHAPE)), get(c, C_BLOCK_TOKENS))
    bounded = get(c, C_BOUNDED)
    if get(c, C_LONGROPE) != 0 and bounded == 0:
        to = write_number(_CONTEXT(to), get(c, C_CAPACITY))
    to = write_number(_KIND(to), get(c, C_KV_BITS))
    if bounded != 0:
        size = 0
        while read_u8(get(c, C_POLICY_NAME) + size) != 0:
            size += 1
        to = write_string(_POLICY(to), get(c, C_POLICY_NAME), size)
    to = _RINGS(to)
    first = 1
    for i in range(get(c, C_GROUP_COUNT)):
        g = group_at(c, i)
        if get(g, G_WINDOW) != 0:
            to = _write_pair(to, first, get(g, G_WINDOW), get(g, G_LIMIT))
            first = 0
    to = _CLOSE(to)
    if bounded != 0:
        to = write_number(_SLOTS(to), get(c, C_SLOTS))
    if get(c, C_BROAD) != 0:
        to = _WIDE(to)
        wide = group_at(c, 1)
        for i in range(get(wide, G_HEADS)):
            head, heads = get(get(wide, G_HEAD), i), run(c, R_KV_HEADS)
            to = _write_pair(to, 1 - min(i, 1), head // heads, head % heads)
        to = _CLOSE(to)
    put(c, C_SHAPE_BYTES, _END(to) - get(c, C_SHAPE))
