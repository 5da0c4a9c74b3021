"""Two engines on one artefact: do they compute the same?

Both run the same real text with float caches, twice: with exact float32 products, and as they
usually do, with activations of 8 bits. The exact runs differ by float32 rounding alone, so their
difference shows a wrong weight, position, window or constant, however small. The usual runs differ
by the noise of 8 bits, each from its own exact run; edgetok's noise is held against onnxruntime's.

Measured on SmolLM2-135M and gemma-3-270m: exact runs differ by 2e-6 of the logits' range, usual
ones by 2e-2, at KL 0.003 to 0.005. A window of 512 tokens or less is exceeded by the text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetok.errors import UnsupportedError
from edgetok.evaluation.perplexity import log_softmax
from edgetok.evaluation.sample_text import SAMPLE_TEXT
from edgetok.formats.artefact import Artefact, open_artefact
from edgetok.models.layers.attention import Attention
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.backend import Backend, Logits
from edgetok.runtime.options import Compute, Device, RunOptions
from edgetok.runtime.select import load_backend
from edgetok.text.tokenizer import Tokenizer

Tokens = npt.NDArray[np.int32]

ROUNDING = 1e-5
"""Share of the range by which exact runs may differ: five times the greatest that was measured."""
SHARE_OF_NOISE = 1 / 1000
"""Exact runs of a model that loses much at 8 bits differ more, too."""
TIMES_OF_NOISE = 4
LEAST_NOISE = 0.01
"""KL that 8-bit activations may cost in any case: onnxruntime computes some widths exactly."""
MAX_STEP_ERROR = 0.05
_READ_TOKENS = 64  # at least; more where a window has to be exceeded
_MOST_TOKENS = 1024
_ROWS = 32  # logits of the last tokens are compared


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendAgreement:
    """The result of a comparison.

    Attributes:
        backends: whose logits were compared; one where only one can run the artefact.
        tokens: number of predictions.
        context_tokens: length of the text that they continue.
        max_error: largest difference of two logits between exact runs, over the range.
        kl: mean Kullback-Leibler divergence between exact runs, in nats.
        top1_agreement: share of positions with the same most likely token in the usual runs.
        int8_kl: KL of each engine's usual run from its exact one, by name.
        int8_error: largest difference of logits between the two, of the second engine.
        step_error: largest difference between one block and token by token, over the range.
        longest_window: sliding window that the text does not exceed; 0 for none.
    """

    backends: tuple[str, ...]
    tokens: int
    context_tokens: int
    max_error: float
    kl: float
    top1_agreement: float
    int8_kl: dict[str, float]
    int8_error: float
    step_error: float
    longest_window: int = 0

    @property
    def finite(self) -> bool:
        """Return whether every logit is finite; the figures above are then finite, too."""
        return bool(np.isfinite([self.max_error, self.kl, self.step_error]).all())

    @property
    def faults(self) -> tuple[str, ...]:
        """Return what rounding does not explain, in words; empty where all is well."""
        if not self.finite:
            return ("some logits are not finite numbers",)
        found = []
        if self.max_error > (most := max(ROUNDING, SHARE_OF_NOISE * self.int8_error)):
            found.append(
                f"exact products differ by {self.max_error:.1e} of the range, expected at most "
                f"{most:.1e}"
            )
        if len(self.backends) == 2:
            ours, theirs = (self.int8_kl[name] for name in self.backends)
            if ours > (most := max(LEAST_NOISE, TIMES_OF_NOISE * theirs)):
                found.append(
                    f"8-bit activations cost {self.backends[0]} a KL of {ours:.1e}, expected at "
                    f"most {most:.1e}"
                )
        if self.step_error > MAX_STEP_ERROR:
            found.append(f"one block and token by token differ by {self.step_error:.1e}")
        return tuple(found)

    @property
    def good(self) -> bool:
        """Return whether rounding explains the differences."""
        return not self.faults


def compare_backends(folder: Path, *, threads: int | None = None) -> BackendAgreement:
    """Run a text through each backend that can run an artefact.

    Args:
        folder: the artefact.
        threads: threads of each backend.

    Raises:
        ArtefactError: the artefact is damaged, or onnxruntime refuses its graph.
        MissingExtraError: onnxruntime is not installed.
    """
    artefact = open_artefact(folder)
    if artefact.spec is None:
        return _alone(artefact, threads)
    artefact.close()
    return compare(lambda: open_artefact(folder), lambda: open_artefact(folder), threads=threads)


def compare(
    ours: Callable[[], Artefact], theirs: Callable[[], Artefact], *, threads: int | None = None
) -> BackendAgreement:
    """Run a text through edgetok's own backend and through onnxruntime.

    Args:
        ours: opens what edgetok runs.
        theirs: opens what onnxruntime runs: the same artefact, but for tests.
        threads: threads of each.
    """
    with ours() as artefact:
        spec, folder = artefact.spec, artefact.folder
    if spec is None:
        raise UnsupportedError(f"{folder}: has no edgetok spec, so only onnxruntime runs it")
    ids = _text(folder, spec)
    exact, _ = _run(ours(), "cpu", "float32", ids, threads)
    usual, step_error = _run(ours(), "cpu", "int8", ids, threads, steps=True)
    their_exact, _ = _run(theirs(), "onnxruntime", "float32", ids, threads)
    their_usual, _ = _run(theirs(), "onnxruntime", "int8", ids, threads)
    logits = (exact, usual, their_exact, their_usual)
    finite = all(bool(np.isfinite(item).all()) for item in logits)
    windows = [layer.mixer.window for layer in spec.layers if isinstance(layer.mixer, Attention)]
    return BackendAgreement(
        backends=("cpu", "onnxruntime"),
        tokens=len(exact),
        context_tokens=len(ids),
        max_error=_relative(exact, their_exact) if finite else np.nan,
        kl=_kl(their_exact, exact) if finite else np.nan,
        top1_agreement=float((usual.argmax(1) == their_usual.argmax(1)).mean()),
        int8_kl={
            "cpu": _kl(exact, usual) if finite else np.nan,
            "onnxruntime": _kl(their_exact, their_usual) if finite else np.nan,
        },
        int8_error=_relative(their_usual, their_exact) if finite else np.nan,
        step_error=step_error,
        longest_window=max((w for w in windows if w >= len(ids)), default=0),
    )


def _alone(artefact: Artefact, threads: int | None) -> BackendAgreement:
    """Return what can be said of a graph that only onnxruntime runs."""
    backend, _ = load_backend(artefact, RunOptions(device="onnxruntime", threads=threads))
    try:
        ids = _ids(artefact.folder, backend.vocab_size, min(_ROWS, backend.context_tokens))
        logits = _last_rows(backend, ids)
        finite = bool(np.isfinite(logits).all())
        return BackendAgreement(
            backends=(backend.name,),
            tokens=len(logits),
            context_tokens=len(ids),
            max_error=0.0 if finite else np.nan,
            kl=0.0 if finite else np.nan,
            top1_agreement=1.0,
            int8_kl={},
            int8_error=0.0,
            step_error=_step_error(backend, ids, logits),
        )
    finally:
        backend.close()


def _text(folder: Path, spec: DecoderSpec) -> Tokens:
    """Return enough tokens that every window is exceeded which is not longer than the limit."""
    windows = [layer.mixer.window for layer in spec.layers if isinstance(layer.mixer, Attention)]
    reached = [window + _ROWS for window in windows if window + _ROWS <= _MOST_TOKENS]
    wanted = min(max([_READ_TOKENS, *reached]), spec.context_tokens)
    return _ids(folder, spec.vocab_size, wanted)


def _ids(folder: Path, vocab_size: int, count: int) -> Tokens:
    """Return the first tokens of the text, which is repeated as often as needed."""
    tokenizer = Tokenizer.from_folder(folder, vocab_size)
    ids = tokenizer.encode(SAMPLE_TEXT)
    again = tokenizer.encode(SAMPLE_TEXT, special=False)
    while len(ids) < count and again:
        ids += again
    return np.array(ids[:count], np.int32)


def _run(
    artefact: Artefact,
    device: Device,
    compute: Compute,
    ids: Tokens,
    threads: int | None,
    *,
    steps: bool = False,
) -> tuple[Logits, float]:
    """Return the logits of the last tokens, and the step error if `steps`; closes the artefact."""
    options = RunOptions(device=device, threads=threads, kv_bits=32, compute=compute)
    backend, _ = load_backend(artefact, options)
    try:
        logits = _last_rows(backend, ids)
        return logits, _step_error(backend, ids, logits) if steps else 0.0
    finally:
        backend.close()


def _last_rows(backend: Backend, ids: Tokens) -> Logits:
    """Return the logits of the last tokens of a text: [at most 32, V]."""
    cache = backend.new_cache(len(ids))
    first = max(0, len(ids) - _ROWS)
    if first:
        backend.forward(cache, ids[:first])
    return backend.forward(cache, ids[first:], all_logits=True).copy()


def _step_error(backend: Backend, ids: Tokens, block: Logits) -> float:
    """Return how far the last tokens one by one are from the same tokens at once."""
    cache = backend.new_cache(len(ids))
    first = len(ids) - len(block)
    if first:
        backend.forward(cache, ids[:first])
    steps = [backend.forward(cache, ids[i : i + 1]).copy() for i in range(first, len(ids))]
    return _relative(np.stack(steps), block)


def _kl(of: Logits, other: Logits) -> float:
    p, q = log_softmax(of), log_softmax(other)
    return max(0.0, float((np.exp(p) * (p - q)).sum(1).mean()))


def _relative(a: Logits, b: Logits) -> float:
    """Return the largest difference over the range; NaN if a logit is not finite."""
    return float(np.abs(a - b).max() / max(float(np.ptp(b)), 1e-30))
