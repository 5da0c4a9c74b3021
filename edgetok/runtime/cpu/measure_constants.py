"""Measure an artefact's cache constants (`cache/key_constants.py`) by running it on a text.

    centre = mean over positions p < POSITIONS of rope_p(m),    m the mean key before rope
    factor = (E q^2 / E (k - centre)^2)^(1/4), of both dims of a rotated pair together

A centre has to be the same at every position, but rope rotates the mean key as well: what turns
quickly averages out, what stays is the part of the mean that hardly turns. A mean over the text's
own first few hundred positions is twice as close there and worse than none at position 8,000.

Rounding spreads an error over all dims that is as large as the largest rotated dim; a score has it
times |q|. Both change with the factor, and their product is least where E (q / factor)^2 and
E (k factor)^2 are proportional (as SmoothAttention of arXiv 2405.04532 has it, with its exponent
of one half). Rope turns the two dims of a pair into each other, so they share a factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from edgetok.cache.rotation import Rotations
from edgetok.errors import OptionError
from edgetok.kernels_cpu.program.abi import PART_QUERIES, PART_QUERY_ROWS
from edgetok.models.operations import operations
from edgetok.models.ops import Attend, Store
from edgetok.models.rope import inv_freq
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.cpu.backend import CpuBackend

POSITIONS = 8192  # or the trained length: measured on SmolLM2 and gemma-3, November 2026
_ROWS = 32  # tokens of a run, whose queries are all kept
_MOST = 64.0  # of a factor: a dim that is hardly ever used must not decide over the others

Floats = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]


def measure_constants(
    backend: CpuBackend, windows: Sequence[npt.NDArray[np.int32]]
) -> dict[str, Floats]:
    """Run windows and return the constants by name, as `layout.constant_shapes` has them.

    Args:
        backend: with a cache of 32 bits.
        windows: tokens, each a text by itself.

    Raises:
        OptionError: another cache, or nothing to run.
    """
    spec = backend.spec
    if backend.kv_bits != 32 or not windows:
        raise OptionError("cache constants are measured with a cache of 32 bits and some tokens")
    longest = max(len(window) for window in windows)
    rotations = Rotations(spec, [inv_freq(rope, longest) for rope in spec.ropes])
    shape = (spec.num_layers, spec.num_kv_heads, spec.head_dim)
    mean, total = np.zeros(shape), np.zeros(shape)
    keys = [np.zeros((spec.num_kv_heads, 0, spec.head_dim), np.float32)] * spec.num_layers
    squares, count = np.zeros(shape), 0
    for window in windows:
        for layer, found, ring in _run(backend, window):
            squares[layer] += np.square(ring.astype(np.float64)).sum(axis=(0, 2))
            keys[layer] = np.concatenate([keys[layer], found], axis=1)
        count += len(window)
    stores = {
        op.layer: op
        for op in operations(spec)
        if isinstance(op, Store) and op.constants and op.layer is not None
    }
    capped = any(isinstance(op, Attend) and op.softcap for op in operations(spec))
    made: dict[str, Floats] = {}
    for layer, store in stores.items():
        positions = np.concatenate([np.arange(len(window)) for window in windows])
        rope = spec.layers[layer].rope
        plain = rotations.turn(rope, keys[layer], -positions, scaled=False)
        mean[layer] = plain.mean(axis=1, dtype=np.float64)
        # A cap is no longer the same when all scores of a query are moved.
        centre = np.zeros(shape[1:], np.float32)
        if not capped:
            centre = _everywhere(spec, rotations, rope, mean[layer].astype(np.float32))
        plain_squares = _squares(keys[layer], positions)
        centred = _squares(keys[layer] - centre[:, None], positions)
        worse = centred.sum(axis=1) >= plain_squares.sum(axis=1)
        centre[worse] = 0.0
        total[layer] = np.where(worse[:, None], plain_squares, centred)
        group = spec.num_heads // spec.num_kv_heads
        factor = _factor(spec, rope, squares[layer] / (count * group), total[layer])
        made[f"{store.constants}.centre"] = centre
        made[f"{store.constants}.factor"] = factor
        made[f"{store.constants}.query_factor"] = np.float32(1.0) / factor
    return made


def _run(
    backend: CpuBackend, window: npt.NDArray[np.int32]
) -> Iterator[tuple[int, Floats, Floats]]:
    """Yield each layer, its keys [KH, T, D] after rope, its queries [T, KH, G, D] before."""
    spec = backend.spec
    cache = backend.new_cache(len(window))
    group = spec.num_heads // spec.num_kv_heads
    ring = np.zeros((spec.num_layers, _ROWS, spec.num_kv_heads, group, spec.head_dim), np.float32)
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
                heads = [memory.keys(layer, head).read(slots) for head in range(spec.num_kv_heads)]
                queries = ring[layer, at % _ROWS]
                yield layer, np.stack(heads), queries


def _squares(keys: Floats, positions: npt.NDArray[np.int64]) -> Sums:
    """Mean squares [KH, D] of keys [KH, T, D], half of it the first token's of each text.

    Heads that have nothing to look for look there, so an error of that key is one of all answers.
    """
    squares = np.square(keys, dtype=np.float64)
    first, every = squares[:, positions == 0].mean(axis=1), squares.mean(axis=1)
    return np.asarray((first + every) / 2, np.float64)


def _everywhere(spec: DecoderSpec, rotations: Rotations, rope: int, mean: Floats) -> Floats:
    """Mean of a vector [KH, D] rotated to all positions."""
    if rope < 0:
        return mean
    last = min(POSITIONS, spec.context_tokens)
    turn = rotations.mean(rope, np.arange(0, last, max(1, last // 1024)))
    return (mean @ turn / np.float32(spec.ropes[rope].attention_factor)).astype(np.float32)


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
