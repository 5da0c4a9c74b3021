"""Measure the speed of prefill and decode, and their share of the memory's read bandwidth.

Decoding reads every weight once a token, so its limit is the machine's read bandwidth: that is
measured in the same process, between the runs, because it varies from hour to hour.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgetok.energy import EnergyMeter
from edgetok.environment import read_settings
from edgetok.errors import OptionError
from edgetok.formats.artefact import Artefact
from edgetok.formats.layout import EMBEDDINGS
from edgetok.models.operations import expert_counts, operations
from edgetok.runtime.backend import Backend


@dataclass(slots=True, kw_only=True)
class Samples:
    """Repeated measurements of one engine at one number of threads and one depth.

    Attributes:
        engine: the backend's name.
        threads: that computed.
        depth_tokens: in the cache before the first decoded token.
        prefill_tokens_per_s, decode_tokens_per_s: one value a repeat.
        bytes_per_token: read from memory to decode one token: weights, and keys and values.
        joules_per_token: of decoding, one value a repeat for which it is known.
    """

    engine: str
    threads: int
    depth_tokens: int
    prefill_tokens_per_s: list[float] = field(default_factory=list)
    decode_tokens_per_s: list[float] = field(default_factory=list)
    bytes_per_token: int = 0
    joules_per_token: list[float] = field(default_factory=list)


def measure(
    backend: Backend,
    samples: Samples,
    artefact: Artefact,
    *,
    prompt_tokens: int,
    decode_tokens: int,
    seed: int,
    meter: EnergyMeter | None = None,
) -> None:
    """Read a prompt, then write tokens at a depth; add one value to each of the samples.

    Args:
        backend: computes the steps.
        samples: what to add to.
        artefact: that the backend runs.
        prompt_tokens: length of the prompt whose reading is timed.
        decode_tokens: number of steps timed.
        seed: seed of the random tokens, which differ from run to run so that nothing is remembered.
        meter: measures the energy of decoding.
    """
    rng = np.random.default_rng(seed)
    capacity = max(prompt_tokens, samples.depth_tokens + decode_tokens)

    def tokens(count: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        return rng.integers(0, backend.vocab_size, count, np.int32)

    cache = backend.new_cache(capacity)
    begin = time.perf_counter()
    backend.forward(cache, tokens(prompt_tokens))
    samples.prefill_tokens_per_s.append(prompt_tokens / (time.perf_counter() - begin))
    if prompt_tokens > samples.depth_tokens and not cache.truncate(samples.depth_tokens):
        cache.clear()
    if cache.length_tokens < samples.depth_tokens:
        backend.forward(cache, tokens(samples.depth_tokens - cache.length_tokens))
    steps, before = tokens(decode_tokens), cache.read_bytes
    reading = None if meter is None else meter.read()
    begin = time.perf_counter()
    for i in range(decode_tokens):
        backend.forward(cache, steps[i : i + 1])
    samples.decode_tokens_per_s.append(decode_tokens / (time.perf_counter() - begin))
    joules = None if meter is None else meter.joules(reading)
    if joules is not None:
        samples.joules_per_token.append(joules / decode_tokens)
    read = (before + cache.read_bytes) // 2  # of the step in the middle
    samples.bytes_per_token = weight_bytes_per_token(artefact) + read


def weight_bytes_per_token(artefact: Artefact) -> int:
    """Bytes of weights that one decoded token reads.

    That is all but tables of which it reads rows, and of experts those that a token gets.
    """
    if artefact.layout is None or artefact.spec is None:
        return artefact.weight_bytes
    stacked = expert_counts(operations(artefact.spec))
    total = 0
    for name, slot in artefact.layout.tensors.items():
        if name.partition(".")[0] not in EMBEDDINGS:
            experts, read = stacked.get(name.rpartition(".")[0], (1, 1))
            total += slot.nbytes // experts * read
    return total


def read_bandwidth(threads: int, progress: Callable[[int, int], None] | None = None) -> float:
    """Return the bandwidth at which `threads` threads read memory together, in GB/s (10^9 bytes).

    Args:
        threads: number of threads.
        progress: called where the loop has to be compiled first.
    """
    from edgetok.kernels_cpu.bandwidth import measure as bandwidth
    from edgetok.kernels_cpu.program import loader
    from edgetok.kernels_cpu.simd import isa

    settings = read_settings()
    kernels = loader.load(
        isa.choose(None),
        settings.cache_dir,
        progress,
        ("bandwidth.kernels",),
        kernels_dir=settings.kernels_dir,
    )
    return bandwidth.read_bandwidth(kernels, threads)


def anonymous_mb() -> float | None:
    """Memory that is this process's own, in 10^6 bytes: without mapped files. None off Linux."""
    try:
        text = Path("/proc/self/smaps_rollup").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None


def check_sizes(
    context_tokens: int, prompt_tokens: int, decode_tokens: int, depths: Sequence[int]
) -> None:
    """Refuse sizes that the model cannot hold.

    Raises:
        OptionError: names the size.
    """
    if prompt_tokens < 1 or decode_tokens < 1 or any(depth < 0 for depth in depths):
        raise OptionError("prompt, decode and depth tokens: expected positive numbers")
    longest = max(prompt_tokens, max(depths) + decode_tokens)
    if longest > context_tokens:
        raise OptionError(
            f"{longest:,} tokens are to be measured, the model's context is {context_tokens:,}; "
            "give a smaller --prompt-tokens or --depth"
        )


def median(values: Sequence[float]) -> float:
    """Return the middle one of repeated measurements."""
    return float(statistics.median(values))
