"""States of layers that keep no keys and values, and snapshots of them further back. For kernels.

As `edgetok/cache/recurrent.py`, in memory that is taken once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetok.kernels_cpu.cache.launch import (
    H_BULKY,
    H_BYTES,
    H_COUNT,
    H_MARKED,
    H_MOST,
    H_RINGS,
    H_SEVERAL,
    H_SNAPSHOTS,
    H_STATES,
    H_TAKEN,
    SNAPSHOT_GAP_TOKENS,
    SNAPSHOT_TOKENS,
)
from edgetok.kernels_cpu.cache.tables import copy_words, get, put
from edgetok.kernels_cpu.simd.emit import inline, outline
from edgetok.kernels_cpu.simd.memory import read_i64, read_int, write_i32, write_i64

HEAD_BYTES = 16  # of a saved snapshot: both lengths
_ROWS, _COLUMNS, _NEEDED = 8, 16, 24  # in a state
_STATE, _RING, _SNAPSHOT = 32, 16, 24  # bytes
_OLDEST = 8  # in a ring
_FIRST, _VALUES = 8, 16  # in a snapshot, after its length
_INFINITE = 0x7F800000  # bits of a float32


@inline
def _state(h: int, i: int) -> Any:
    return get(h, H_STATES) + _STATE * i


@inline
def _ring(h: int, i: int) -> Any:
    return get(h, H_RINGS) + _RING * i


@inline
def _snapshot(h: int, i: int) -> Any:
    return get(h, H_SNAPSHOTS) + _SNAPSHOT * i


@inline
def _kept(h: int, i: int) -> Any:
    """Rows of a ring that a snapshot holds."""
    return read_i64(_state(h, i) + _NEEDED) + (1 - get(h, H_BULKY))


@outline
def _row(h: int, i: int, token: int) -> Any:
    """Address of a token's row of a ring."""
    s = _state(h, i)
    return read_i64(_ring(h, i)) + 4 * read_i64(s + _COLUMNS) * (token % read_i64(s + _ROWS))


@outline
def _in_rings(h: int, length: int) -> Any:
    """Whether the rings hold all that the token behind a length needs."""
    for i in range(get(h, H_COUNT)):
        needed = read_i64(_state(h, i) + _NEEDED)
        if max(0, length - needed) < read_i64(_ring(h, i) + _OLDEST):
            return False
    return True


@outline
def _take(h: int, length: int, values: int) -> Any:
    """Write a snapshot's values; returns the least length that it serves."""
    for i in range(get(h, H_COUNT)):
        columns = read_i64(_state(h, i) + _COLUMNS)
        for token in range(length - _kept(h, i), length):
            if token >= read_i64(_ring(h, i) + _OLDEST):
                copy_words(values, _row(h, i, token), columns)
            else:
                for k in range(columns):
                    write_i32(values + 4 * k, np.int32(0))
            values += 4 * columns
    if get(h, H_BULKY) == 0 and _in_rings(h, length - 1):
        return length - 1
    return length


@outline
def _go_back(h: int, length: int, first: int, values: int) -> None:
    """Write a snapshot's values into the rings, which then hold no others."""
    for i in range(get(h, H_COUNT)):
        columns = read_i64(_state(h, i) + _COLUMNS)
        for token in range(length - _kept(h, i), length):
            copy_words(_row(h, i, token), values, columns)
            values += 4 * columns
        write_i64(_ring(h, i) + _OLDEST, max(0, first - read_i64(_state(h, i) + _NEEDED)))


@outline
def _thin(h: int, length: int) -> None:
    """Let go of the snapshot that is missed least, where there are too many."""
    taken = get(h, H_TAKEN)
    if taken <= get(h, H_MOST):
        return
    marked = -1
    for i in range(taken):
        if read_i64(_snapshot(h, i) + _FIRST) <= get(h, H_MARKED):
            marked = i
    worst = -1
    fewest = 0.0
    before = 0
    for i in range(taken - 1):
        own, after = read_i64(_snapshot(h, i)), read_i64(_snapshot(h, i + 1))
        missed = np.float64(after - before) / np.float64(length - own + SNAPSHOT_TOKENS)
        if i != marked and (worst < 0 or missed < fewest):
            fewest = missed
            worst = i
        before = own
    values = read_i64(_snapshot(h, worst) + _VALUES)
    for i in range(worst, taken - 1):
        copy_words(_snapshot(h, i), _snapshot(h, i + 1), _SNAPSHOT // 4)
    write_i64(_snapshot(h, taken - 1) + _VALUES, values)  # its memory is the next one's
    put(h, H_TAKEN, taken - 1)


@outline
def begin_history(h: int, tokens: int, length: int) -> None:
    """Before a step: take a snapshot where one is due."""
    gap = SNAPSHOT_GAP_TOKENS if tokens > 1 or get(h, H_SEVERAL) != 0 else SNAPSHOT_TOKENS
    put(h, H_SEVERAL, 1 if tokens > 1 else 0)
    if get(h, H_COUNT) == 0 or length == 0:
        return
    taken = get(h, H_TAKEN)
    latest = read_i64(_snapshot(h, taken - 1)) if taken > 0 else 0
    if length - latest < gap:
        return
    at = length
    if get(h, H_BULKY) != 0 and _in_rings(h, length - 1):
        at = length - 1
    if at > latest:
        made = _snapshot(h, taken)
        write_i64(made + _FIRST, _take(h, at, read_i64(made + _VALUES)))
        write_i64(made, at)
        put(h, H_TAKEN, taken + 1)
        _thin(h, length)


@outline
def advance_history(h: int, length: int) -> None:
    """After a step: so many tokens were seen."""
    for i in range(get(h, H_COUNT)):
        oldest = _ring(h, i) + _OLDEST
        write_i64(oldest, max(read_i64(oldest), length - read_i64(_state(h, i) + _ROWS)))


@outline
def history_reaches(h: int, length: int) -> Any:
    """The longest beginning, of at most `length` tokens, that one can go back to."""
    if get(h, H_COUNT) == 0 or _in_rings(h, length):
        return length
    for i in range(get(h, H_TAKEN) - 1, -1, -1):
        if read_i64(_snapshot(h, i) + _FIRST) <= length:
            return min(length, read_i64(_snapshot(h, i)))
    return 0


@outline
def truncate_history(h: int, length: int) -> None:
    """Go back to a reachable length."""
    taken = get(h, H_TAKEN)
    if not _in_rings(h, length):
        for i in range(taken):
            s = _snapshot(h, i)
            if read_i64(s + _FIRST) <= length and length <= read_i64(s):
                _go_back(h, read_i64(s), read_i64(s + _FIRST), read_i64(s + _VALUES))
                break
    while taken > 0 and read_i64(_snapshot(h, taken - 1)) > length:
        taken -= 1
    put(h, H_TAKEN, taken)
    put(h, H_SEVERAL, 1)  # where one goes back to once, one goes back to again
    if length == 0:
        for i in range(get(h, H_COUNT)):
            write_i64(_ring(h, i) + _OLDEST, 0)


# In blocks: snapshots that lie behind, then the states now.


@outline
def snapshot_sections(h: int, length: int) -> Any:
    """How many sections a block has of snapshots."""
    taken = get(h, H_TAKEN)
    if get(h, H_COUNT) == 0 or length == 0:
        return 0
    if taken > 0 and read_i64(_snapshot(h, taken - 1)) == length:
        return taken
    return taken + 1


@outline
def write_snapshot(h: int, length: int, i: int, sections: int, to: int) -> None:
    """Write section i."""
    if i < sections - 1:
        s = _snapshot(h, i)
        copy_words(to, s, HEAD_BYTES // 4)
        copy_words(to + HEAD_BYTES, read_i64(s + _VALUES), get(h, H_BYTES) // 4)
    else:
        write_i64(to, length)
        write_i64(to + 8, _take(h, length, to + HEAD_BYTES))


@outline
def snapshot_fits(h: int, section: int, nbytes: int, latest: int) -> Any:
    """Whether a section can come after a snapshot of `latest` tokens."""
    if nbytes != HEAD_BYTES + get(h, H_BYTES):
        return False
    length, first = read_i64(section), read_i64(section + 8)
    if length <= latest or first > length or first < length - 1:
        return False
    for i in range(get(h, H_BYTES) // 4):
        if read_int(section + HEAD_BYTES + 4 * i) & _INFINITE == _INFINITE:
            return False
    return True


@outline
def clear_history(h: int) -> None:
    """Forget everything."""
    put(h, H_TAKEN, 0)
    put(h, H_SEVERAL, 1)
    for i in range(get(h, H_COUNT)):
        write_i64(_ring(h, i) + _OLDEST, 0)


@outline
def read_snapshot(h: int, section: int, last: int) -> None:
    """Take over a section; the last one is the states now."""
    taken = get(h, H_TAKEN)
    s = _snapshot(h, taken)
    values = read_i64(s + _VALUES)
    copy_words(s, section, HEAD_BYTES // 4)
    copy_words(values, section + HEAD_BYTES, get(h, H_BYTES) // 4)
    if last != 0:
        _go_back(h, read_i64(s), read_i64(s + _FIRST), values)
    else:
        put(h, H_TAKEN, taken + 1)
