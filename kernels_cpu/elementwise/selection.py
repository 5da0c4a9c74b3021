"""Order statistics of numbers in memory. For kernels; nothing is registered here."""

from __future__ import annotations

from edgetok.kernels_cpu.simd.emit import outline
from edgetok.kernels_cpu.simd.memory import (
    read_f32,
    read_f64,
    write_f32,
    write_f64,
)


@outline
def nth_smallest(a: int, n: int, k: int) -> float:
    """The k-th smallest, from 0, of float32 [n] without NaN at address `a`; reorders them.

    Source: C. A. R. Hoare, Algorithm 65 (find), 1961.
    """
    low = 0
    high = n - 1
    while low < high:
        pivot = read_f32(a + 4 * ((low + high) // 2))
        i = low
        j = high
        while i <= j:
            while read_f32(a + 4 * i) < pivot:
                i += 1
            while pivot < read_f32(a + 4 * j):
                j -= 1
            if i <= j:
                x = read_f32(a + 4 * i)
                write_f32(a + 4 * i, read_f32(a + 4 * j))
                write_f32(a + 4 * j, x)
                i += 1
                j -= 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            return read_f32(a + 4 * k)
    return read_f32(a + 4 * k)


@outline
def nucleus(a: int, n: int, goal: float, bar_at: int) -> int:
    """How few of the largest weights reach `goal`: float64 [n] at `a`, n > 0; reorders them.

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
