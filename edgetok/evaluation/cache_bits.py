"""The cost of rounding keys and values: KL of a cache of few bits from one of 32 bits.

Both run the same weights with exact products, so that nothing but the cache differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetok.errors import OptionError
from edgetok.evaluation.perplexity import log_softmax
from edgetok.formats.cache_losses import CacheLoss
from edgetok.runtime.cpu.backend import CpuBackend

WIDTHS = (8, 5, 4)  # of integers; 16 bits lost nothing on any model
_ROWS = 32  # of logits at a time: a large vocabulary must not fill the memory

Ids = npt.NDArray[np.int32]


def cache_costs(
    folder: Path,
    windows: Sequence[Ids],
    widths: Sequence[int] = WIDTHS,
    *,
    threads: int | None = None,
) -> list[CacheLoss]:
    """Compare caches on some texts.

    Args:
        folder: the artefact.
        windows: tokens, each a text by itself.
        widths: `kv_bits` of the caches.
        threads: number of threads of each backend.

    Raises:
        OptionError: there is nothing to compare.
    """
    tokens = sum(len(window) for window in windows)
    if not tokens or not widths:
        raise OptionError("no tokens, or no cache, to compare")
    kl, same = np.zeros(len(widths)), np.zeros(len(widths))
    with ExitStack() as stack:
        reference, *others = (
            stack.enter_context(_backend(folder, bits, threads)) for bits in (32, *widths)
        )
        for window in windows:
            caches = [backend.new_cache(len(window)) for backend in (reference, *others)]
            for first in range(0, len(window), _ROWS):
                rows = window[first : first + _ROWS]
                p = log_softmax(reference.forward(caches[0], rows, all_logits=True))
                weights, best = np.exp(p), p.argmax(axis=1)
                for i, (backend, cache) in enumerate(zip(others, caches[1:], strict=True)):
                    q = log_softmax(backend.forward(cache, rows, all_logits=True))
                    kl[i] += float((weights * (p - q)).sum())
                    same[i] += int((q.argmax(axis=1) == best).sum())
    return [
        CacheLoss(
            kv_bits=bits,
            kl=max(0.0, float(kl[i]) / tokens),
            top1_agreement=float(same[i]) / tokens,
            tokens=tokens,
        )
        for i, bits in enumerate(widths)
    ]


@contextmanager
def _backend(folder: Path, kv_bits: int, threads: int | None) -> Iterator[CpuBackend]:
    backend = CpuBackend(
        folder,
        kv_bits=kv_bits,
        compute="float32",
        threads=threads,
        block_tokens=_ROWS,
        releases=True,
    )
    try:
        yield backend
    finally:
        backend.close()
