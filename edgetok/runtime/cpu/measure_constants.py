"""Measure an artefact's cache constants (`cache/key_constants.py`) by running it on a text.

    centre = mean over positions p < POSITIONS of rope_p(m),    m the mean key before rope
    factor = (E q^2 / E (k - centre)^2)^(1/4), of both dims of a rotated pair together

A centre has to be the same at every position, but rope rotates the mean key as well: what rotates
quickly averages out, what stays is the part of the mean that hardly rotates. A mean over the text's
own first few hundred positions is twice as close there and worse than none at position 8,000.

Rounding spreads an error over all dims that is as large as the largest rotated dim; a score has it
times |q|. Both change with the factor, and their product is least where E (q / factor)^2 and
E (k factor)^2 are proportional (as SmoothAttention of arXiv 2405.04532 has it, with its exponent
of one half). Rope rotates the two dims of a pair into each other, so they share a factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetok.cache.query_log import query_dim
from edgetok.cache.rotation import Rotations
from edgetok.errors import OptionError
from edgetok.kernels_cpu.program.abi import PART_QUERIES, PART_QUERY_ROWS
from edgetok.models.operations import operations
from edgetok.models.ops import Attend, Store
from edgetok.models.rope import inv_freq
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.cpu.backend import CpuBackend

POSITIONS = 8192  # or the trained length: measured on SmolLM2 and gemma-3, November 2026
_ROWS = 64  # tokens of a run, whose queries are all kept
_MOST = 64.0  # of a factor: a dim that is hardly ever used must not decide over the others

Floats = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


class _Sums:
    """Sums of one layer's keys and queries, over all tokens and over the first one of each text."""

    def __init__(self, kv_heads: int, head_dim: int) -> None:
        def zeros() -> Sums:
            return np.zeros((kv_heads, head_dim))

        self.plain = zeros()  # keys before rope
        self.keys, self.squares, self.tokens = zeros(), zeros(), 0
        self.first_keys, self.first_squares, self.texts = zeros(), zeros(), 0
        self.queries = zeros()  # squares, of all query heads of a KV head

    def add(self, seen: _Seen, plain: Floats) -> None:
        """Count some tokens; `plain` are the keys before rope."""
        keys = seen.keys.astype(np.float64)
        self.plain += plain.sum(axis=1, dtype=np.float64)
        self.keys += keys.sum(axis=1)
        self.squares += np.square(keys).sum(axis=1)
        self.tokens += len(seen.positions)
        first = keys[:, seen.positions == 0]
        self.first_keys += first.sum(axis=1)
        self.first_squares += np.square(first).sum(axis=1)
        self.texts += first.shape[1]
        self.queries += np.square(seen.queries, dtype=np.float64).sum(axis=(0, 2))

    def mean_squares(self, centre: Sums) -> Sums:
        """Mean squares [KH, D] of keys less a centre, half of it the first token's of each text.

        Heads that have nothing to look for look there, so an error of that key is one of all
        answers.
        """
        every = (self.squares - 2 * centre * self.keys) / self.tokens
        first = (self.first_squares - 2 * centre * self.first_keys) / self.texts
        return np.asarray(np.maximum((every + first) / 2 + np.square(centre), 0.0))


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Keys [KH, T, D] after rope and queries [T, KH, G, D] before it, of tokens of one layer."""

    layer: int
    positions: Places
    keys: Floats
    queries: Floats


def constants_of(
    folder: Path, windows: Sequence[npt.NDArray[np.int32]], *, threads: int | None = None
) -> dict[str, Floats]:
    """Run windows and return the constants by name, as `layout.constant_shapes` has them.

    Args:
        folder: the artefact.
        windows: tokens, each a text by itself.
        threads: how many compute; the result does not depend on it.

    Raises:
        OptionError: nothing to run.
        UnsupportedError: the CPU backend does not run this model.
    """
    if not windows:
        raise OptionError("no tokens to measure cache constants on")
    backend = CpuBackend(folder, kv_bits=32, threads=threads, block_tokens=_ROWS, releases=True)
    try:
        return _measure(backend, windows)
    finally:
        backend.close()


def _measure(backend: CpuBackend, windows: Sequence[npt.NDArray[np.int32]]) -> dict[str, Floats]:
    spec = backend.spec
    longest = max(len(window) for window in windows)
    rotations = Rotations(spec, [inv_freq(rope, longest) for rope in spec.ropes])
    sums = [_Sums(*spec.kv_sizes(i)) for i in range(spec.num_layers)]
    for window in windows:
        for seen in _run(backend, window):
            rope = spec.layers[seen.layer].rope
            plain = rotations.rotate(rope, seen.keys, -seen.positions, scaled=False)
            sums[seen.layer].add(seen, plain)
    # A cap is no longer the same when all scores of a query are moved.
    capped = any(isinstance(op, Attend) and op.softcap for op in operations(spec))
    made: dict[str, Floats] = {}
    for op in operations(spec):
        if not isinstance(op, Store) or not op.constants or op.layer is None:
            continue
        of, rope = sums[op.layer], spec.layers[op.layer].rope
        centre = np.zeros((op.heads, op.head_dim))
        without = of.mean_squares(centre)
        if not capped:
            centre = _everywhere(spec, rotations, rope, of.plain / of.tokens)
            worse = of.mean_squares(centre).sum(axis=1) >= without.sum(axis=1)
            centre[worse] = 0.0
        group = spec.num_heads // op.heads
        factor = _factor(spec, rope, of.queries / (of.tokens * group), of.mean_squares(centre))
        made[f"{op.constants}.centre"] = centre.astype(np.float32)
        made[f"{op.constants}.factor"] = factor
        made[f"{op.constants}.query_factor"] = np.float32(1.0) / factor
    return made


def _run(backend: CpuBackend, window: npt.NDArray[np.int32]) -> Iterator[_Seen]:
    """Yield what each layer computes of each run of tokens."""
    spec = backend.spec
    cache = backend.new_cache(len(window))
    ring = np.zeros((spec.num_layers, _ROWS * spec.num_heads * query_dim(spec)), np.float32)
    cache.memory.part[PART_QUERIES], cache.memory.part[PART_QUERY_ROWS] = ring.ctypes.data, _ROWS
    for first in range(0, len(window), _ROWS):
        rows = window[first : first + _ROWS]
        backend.forward(cache, rows)
        at = np.arange(len(rows), dtype=np.int64) + first
        for group_of, memory in zip(cache.groups, cache.memory.groups, strict=True):
            table = group_of.table
            slots = table.slots(0)
            places = table.positions[0, slots]
            slots = slots[np.argsort(places)][-len(at) :]
            for layer in group_of.layers:
                kv_heads, dim = spec.kv_sizes(layer)
                heads = [memory.keys(layer, head).read(slots) for head in range(kv_heads)]
                queries = ring[layer, : _ROWS * spec.num_heads * dim]
                queries = queries.reshape(_ROWS, kv_heads, spec.num_heads // kv_heads, dim)
                yield _Seen(layer, at, np.stack(heads), queries[at % _ROWS])


def _everywhere(spec: DecoderSpec, rotations: Rotations, rope: int, mean: Sums) -> Sums:
    """Mean of a vector [KH, D] rotated to all positions."""
    if rope < 0:
        return mean
    last = min(POSITIONS, spec.context_tokens)
    turn = rotations.mean(rope, np.arange(0, last, max(1, last // 1024)), head_dim=mean.shape[1])
    # Not by BLAS, whose last bit depends on the number of threads.
    turned: Sums = np.einsum("hd,de->he", mean, turn / spec.ropes[rope].attention_factor)
    return turned


def _factor(spec: DecoderSpec, rope: int, queries: Sums, keys: Sums) -> Floats:
    """Factors [KH, D] from mean squares of queries and keys."""
    if rope >= 0:
        half = spec.ropes[rope].rotary_dim // 2
        for squares in (queries, keys):
            both = (squares[:, :half] + squares[:, half : 2 * half]) / 2
            squares[:, :half] = squares[:, half : 2 * half] = both
    known = (queries > 0) & (keys > 0)
    ratio = np.ones_like(keys)
    np.divide(queries, keys, out=ratio, where=known)
    logs = np.log(ratio) / 4
    logs -= logs.mean(axis=-1, keepdims=True)
    most = np.log(_MOST)
    return np.exp(np.clip(logs, -most, most)).astype(np.float32)
