"""Order statistics of numbers in memory. For kernels; nothing is registered here."""

from __future__ import annotations

from typing import Any

from edgetok.kernels_cpu.simd.emit import outline
from edgetok.kernels_cpu.simd.memory import (
    read_f32,
    read_f64,
    read_i64,
    write_f32,
    write_f64,
    write_i64,
)


def _make(read: Any, write: Any, size: int) -> Any:
    @outline
    def nth(a: int, n: int, k: int) -> Any:
        low = 0
        high = n - 1
        while low < high:
            pivot = read(a + size * ((low + high) // 2))
            i = low
            j = high
            while i <= j:
                while read(a + size * i) < pivot:
                    i += 1
                while pivot < read(a + size * j):
                    j -= 1
                if i <= j:
                    x = read(a + size * i)
                    write(a + size * i, read(a + size * j))
                    write(a + size * j, x)
                    i += 1
                    j -= 1
            if k <= j:
                high = j
            elif k >= i:
                low = i
            else:
                return read(a + size * k)
        return read(a + size * k)

    return nth


# (address, n, k): the k-th smallest, from 0, of n numbers at an address. Reorders them; none may be
# NaN. Source: C. A. R. Hoare, Algorithm 65 (find), 1961.
nth_smallest = _make(read_f32, write_f32, 4)
nth_smallest_i64 = _make(read_i64, write_i64, 8)


@outline
def sort_i64(a: int, n: int) -> None:
    """Sort int64 [n] at address `a`, ascending.

    Source: J. W. J. Williams, Algorithm 232 (heapsort), 1964.
    """
    start = n // 2
    end = n
    while end > 1:
        if start > 0:
            start -= 1
            x = read_i64(a + 8 * start)
        else:
            end -= 1
            x = read_i64(a + 8 * end)
            write_i64(a + 8 * end, read_i64(a))
        root = start
        while 2 * root + 1 < end:
            child = 2 * root + 1
            if child + 1 < end and read_i64(a + 8 * child) < read_i64(a + 8 * (child + 1)):
                child += 1
            y = read_i64(a + 8 * child)
            if y <= x:
                break
            write_i64(a + 8 * root, y)
            root = child
        write_i64(a + 8 * root, x)


@outline
def nucleus(a: int, n: int, goal: float, bar_at: int) -> int:
    """Find how few of the largest weights reach `goal`: float64 [n] at `a`, n > 0; reorders them.

    Writes the smallest weight that is needed to `bar_at`; all larger ones are needed, too.

    Returns:
        How many weights equal to it are needed, at least 1.
    """
    low = 0
    high = n
    above = 0.0  # sum of the weights that are known to be needed
    while True:
        pivot = read_f64(a + 8 * ((low + high) // 2))
        # Larger ones before `i`, equal ones from `i` to `j`, smaller ones from `k` on.
        i = low
        j = low
        k = high
        larger = 0.0
        while j < k:
            x = read_f64(a + 8 * j)
            if x > pivot:
                larger += x
                write_f64(a + 8 * j, read_f64(a + 8 * i))
                write_f64(a + 8 * i, x)
                i += 1
                j += 1
            elif x < pivot:
                k -= 1
                write_f64(a + 8 * j, read_f64(a + 8 * k))
                write_f64(a + 8 * k, x)
            else:
                j += 1
        if i > low and above + larger >= goal:
            high = i
            continue
        total = above + larger
        equals = 0
        while equals < j - i:
            total += pivot
            equals += 1
            if total >= goal:
                break
        if total >= goal or k == high:
            write_f64(bar_at, pivot)
            return equals
        above = total
        low = k
