"""Tile sizes of products: what was measured on this device, else what should do.

A table keeps, for a device and a shape, which of the CANDIDATES was fastest: an index, so that a
damaged file can do no more than pick another candidate. `benchmarks/speed/gpu.py` measures.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgetok.errors import OutputError
from edgetok.kernels_gpu.jit import next_power

if TYPE_CHECKING:
    from edgetok.kernels_gpu.linear import Linear


@dataclass(frozen=True, slots=True)
class RowConfig:
    """A program's rows, the words of each that it takes at a time, its warps."""

    rows: int
    words: int
    warps: int


@dataclass(frozen=True, slots=True)
class TileConfig:
    """A program's tokens and rows, the words that it takes at a time, its warps."""

    tokens: int
    rows: int
    words: int
    warps: int


# One warp to 128 words: each thread has four neighbouring words of every row, and inputs and
# weights have one layout in registers (seen in the code for compute capability 9.0).
ROW_CANDIDATES = tuple(
    RowConfig(rows, 128 * warps, warps) for rows in (4, 2, 8, 1) for warps in (1, 2, 4)
)
TILE_CANDIDATES = (
    TileConfig(128, 128, 16, 8),
    TileConfig(128, 64, 16, 4),
    TileConfig(64, 64, 16, 4),
    TileConfig(64, 128, 32, 8),
    TileConfig(128, 128, 32, 8),
    TileConfig(256, 64, 16, 8),
)
# Few tokens: bound by memory again.
SMALL_TILE_CANDIDATES = (
    TileConfig(16, 32, 32, 4),
    TileConfig(16, 16, 64, 4),
    TileConfig(16, 64, 16, 4),
)
SMALL_TOKENS = 16
_MOST_BYTES = 1 << 20

_chosen: dict[str, int] = {}


def key(linear: Linear, tokens: int) -> str:
    """Return the key of a measurement: format, sizes, and 1, up to 16, or more tokens."""
    few = "row" if tokens == 1 else "small" if tokens <= SMALL_TOKENS else "tile"
    table = "" if linear.levels is None else " table"
    return f"{few} {linear.bits}{table} {linear.group_words} {linear.N} {linear.K}"


def row_config(linear: Linear, on_device: bool) -> RowConfig:
    """Return the tile sizes for one token."""
    if not on_device:
        rows, words = _interpreted(linear)
        return RowConfig(rows, words, 1)
    index = _chosen.get(key(linear, 1), 0)
    return ROW_CANDIDATES[index if index < len(ROW_CANDIDATES) else 0]


def tile_config(linear: Linear, tokens: int, on_device: bool) -> TileConfig:
    """Return the tile sizes for several tokens."""
    if not on_device:
        rows, words = _interpreted(linear)
        return TileConfig(128, rows, words, 1)
    candidates = SMALL_TILE_CANDIDATES if tokens <= SMALL_TOKENS else TILE_CANDIDATES
    index = _chosen.get(key(linear, tokens), 0)
    return candidates[index if index < len(candidates) else 0]


def _interpreted(linear: Linear) -> tuple[int, int]:
    """Rows and words for the interpreter, whose time is in the number of programs."""
    words = min(512, next_power(linear.words))
    return min(next_power(linear.N), max(256, (1 << 18) // words)), words


def tune(
    linear: Linear,
    tokens: int,
    milliseconds: Callable[[RowConfig | TileConfig], float],
) -> tuple[RowConfig | TileConfig, float]:
    """Measure every candidate and keep the fastest.

    Args:
        linear: the layers.
        tokens: how many at a time.
        milliseconds: runs the product with a candidate; infinity where it does not fit.

    Returns:
        The fastest and its time.
    """
    candidates: tuple[RowConfig | TileConfig, ...] = (
        ROW_CANDIDATES
        if tokens == 1
        else SMALL_TILE_CANDIDATES
        if tokens <= SMALL_TOKENS
        else TILE_CANDIDATES
    )
    times = [milliseconds(candidate) for candidate in candidates]
    best = times.index(min(times))
    _chosen[key(linear, tokens)] = best
    return candidates[best], times[best]


def table(folder: Path, device_name: str) -> Path:
    """Return the file of measurements for a GPU and this version of Triton."""
    from triton import __version__

    card = "".join(c if c.isalnum() else "-" for c in device_name)
    return folder / "gpu" / f"{card}-{__version__}.json"


def read(path: Path) -> int:
    """Take over what was measured before; returns how many entries there were.

    A file that is missing, foreign or damaged is passed over: it only costs speed.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            return 0
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        return 0
    if not isinstance(entries, dict):
        return 0
    good = {k: v for k, v in entries.items() if type(v) is int and v >= 0}
    _chosen.update(good)
    return len(good)


def write(path: Path) -> None:
    """Keep what was measured.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(json.dumps(_chosen, indent=1, sort_keys=True))
    except OSError as error:
        raise OutputError(f"{path}: cannot keep tile sizes ({error.strerror})") from error
