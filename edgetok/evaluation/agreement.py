"""Two engines on one artefact: do they say the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetok.evaluation.perplexity import log_softmax
from edgetok.formats.artefact import open_artefact
from edgetok.runtime.backend import Backend, Logits
from edgetok.runtime.options import Device, RunOptions
from edgetok.runtime.select import load_backend

MAX_KL = 0.02
"""Both engines round activations to 8 bits, each in its own way; a wrong weight or position costs
orders of magnitude more."""
MAX_STEP_ERROR = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendAgreement:
    """The result of a comparison.

    Attributes:
        backends: whose logits were compared; one where only one can run the artefact.
        tokens: number of predictions.
        max_error: largest difference of two logits, over the range of the logits.
        kl: mean Kullback-Leibler divergence in nats.
        top1_agreement: share of positions with the same most likely token.
        step_error: largest difference between one block and token by token, over the range.
    """

    backends: tuple[str, ...]
    tokens: int
    max_error: float
    kl: float
    top1_agreement: float
    step_error: float

    @property
    def good(self) -> bool:
        """Return whether rounding explains the differences."""
        return self.finite and self.kl <= MAX_KL and self.step_error <= MAX_STEP_ERROR

    @property
    def finite(self) -> bool:
        """Return whether every logit is finite; the figures above are then finite, too."""
        return bool(np.isfinite([self.max_error, self.kl, self.step_error]).all())


def compare_backends(
    folder: Path, *, tokens: int = 32, threads: int | None = None
) -> BackendAgreement:
    """Run the same random tokens through each backend that can run the artefact.

    Args:
        folder: the artefact.
        tokens: how many; fewer where the context is shorter.
        threads: threads of each backend.
    """
    result: dict[str, Logits] = {}
    step_error = 0.0
    running: list[Backend] = []
    with open_artefact(folder) as artefact:
        devices: tuple[Device, ...] = ("cpu", "onnxruntime")
        try:
            for device in devices if artefact.spec is not None else devices[1:]:
                backend, _ = load_backend(artefact, RunOptions(device=device, threads=threads))
                running.append(backend)
                count = min(tokens, backend.context_tokens)
                ids = np.random.default_rng(0).integers(0, backend.vocab_size, count, np.int32)
                result[backend.name] = _run(backend, ids)
                if len(result) == 1:
                    step_error = _step_error(backend, ids, result[backend.name])
        finally:
            for backend in running:
                backend.close()
    first, last = result[min(result)], result[max(result)]
    if not (np.isfinite(first).all() and np.isfinite(last).all()):
        return BackendAgreement(
            backends=tuple(result),
            tokens=len(first),
            max_error=np.nan,
            kl=np.nan,
            top1_agreement=0.0,
            step_error=np.nan,
        )
    p, q = log_softmax(last), log_softmax(first)
    return BackendAgreement(
        backends=tuple(result),
        tokens=len(first),
        max_error=_relative(first, last),
        kl=max(0.0, float((np.exp(p) * (p - q)).sum(1).mean())),
        top1_agreement=float((first.argmax(1) == last.argmax(1)).mean()),
        step_error=step_error,
    )


def _run(backend: Backend, ids: npt.NDArray[np.int32]) -> Logits:
    cache = backend.new_cache(len(ids))
    return backend.forward(cache, ids, all_logits=True).copy()


def _step_error(backend: Backend, ids: npt.NDArray[np.int32], block: Logits) -> float:
    cache = backend.new_cache(len(ids))
    steps = np.stack([backend.forward(cache, ids[i : i + 1]).copy() for i in range(len(ids))])
    return _relative(steps, block)


def _relative(a: Logits, b: Logits) -> float:
    return float(np.abs(a - b).max() / max(float(np.ptp(b)), 1e-30))
