"""Scales, norms and biases of the whole quantised model learn to predict what the original does.

    least over scales s and vectors v of  KL(p_original || p_quantised),  w = (q - z) s

on the calibration text. Codes and zero points stay, so the model has the same size; a wrong balance
between layers, which no layer's own loss sees, is mended. Of what was learned all, half or a
quarter is taken, whichever has the least KL on windows that were not learned from, or nothing: the
less there is to mend, the more of what is learned holds for its text alone.

Source: arXiv 2407.11062 (EfficientQAT), section 3.3; the original as teacher: arXiv 2305.17888;
between the old weights and the new: arXiv 2109.01903, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import functional_call

from edgetok.converter.blocks import build_on_meta, multiplies_bfloat16, original_parameters
from edgetok.converter.calibration import Tokens
from edgetok.converter.progress import Progress
from edgetok.converter.readback import WrittenWeights
from edgetok.converter.rtn import FLOAT16_MAX, float16_scales
from edgetok.converter.weights import CanonicalWeights

MOST_WEIGHTS = 20_000_000  # beyond, three copies in float32 and the steps' time are too much
STEPS = 100
_BATCH_TOKENS = 1024  # twice as many took twice as long for 3 % less KL
# Of Adam, relative to each vector's size and to each scale of 4 bits; in halves or doubles where
# the steps between codes are finer or coarser. At 2 bits 0.02 left 0.93 nats where 0.003 left 1.12.
_RATE = 5e-3
_WARM_UP = 10
_HELD_OUT = 8  # one window in so many
_SHARES = (1.0, 0.5, 0.25)  # of what was learned

Arrays = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was learned.

    Attributes:
        tensors: `.scales` float16, and `.weight` of norms and `.bias` float32, by name in the
            layout; empty where the model did not get better.
        kl_before: on held-out windows, in nats.
        kl_after: likewise.
    """

    tensors: Arrays
    kl_before: float
    kl_after: float


class _Student:
    """The quantised model as a function of what is learned.

    Attributes:
        steps: what is learned: logarithms of the scales' factors, in units of 16 codes, and changes
            of vectors, in units of their size.
    """

    def __init__(self, weights: CanonicalWeights, written: WrittenWeights) -> None:
        self._tensors = weights.family.tensors
        # Levels [N, G, g], the last group padded with zeros, scales [N, G], and (N, K).
        self._matrices: dict[str, tuple[Tensor, Tensor, tuple[int, ...]]] = {}
        self._reach: dict[str, float] = {}
        self._vectors: dict[str, tuple[Tensor, Tensor]] = {}  # values, their size
        self._fixed: dict[str, Tensor] = {}
        self._module: dict[str, str] = {}
        for name in self._tensors:
            self._module[name] = module = written.stored_module(name)
            if module in self._matrices and name.endswith(".weight"):
                continue
            matrix = written.quantised(module) if name.endswith(".weight") else None
            values = None if matrix else torch.from_numpy(written.tensor(name).copy())
            if matrix is not None:
                scales = torch.from_numpy(matrix.scales.astype(np.float32))
                padding = scales.shape[1] * matrix.group_size - matrix.codes.shape[1]
                levels = torch.nn.functional.pad(torch.from_numpy(matrix.levels()), (0, padding))
                levels = levels.reshape(*scales.shape, matrix.group_size)
                self._matrices[module] = (levels, scales, matrix.codes.shape)
                self._reach[module] = 2.0 ** (4 - matrix.bits)
            elif values is not None and values.ndim == 1:
                size = values.square().mean().sqrt().clamp_min(1e-6)
                self._vectors[name] = (values, size)
            elif values is not None:
                self._fixed[name] = values
        learned = {name: scales for name, (_, scales, _) in self._matrices.items()}
        learned |= {name: values for name, (values, _) in self._vectors.items()}
        self.steps = {
            name: torch.zeros_like(values, requires_grad=True) for name, values in learned.items()
        }

    def parameters(self) -> dict[str, Tensor]:
        """By the names that the checkpoint gives them."""
        matrices = {}
        for module, (levels, _, shape) in self._matrices.items():
            # As groups times scales: the gradient of a scale is then a sum along one axis.
            padded = levels * self._scales(module)[:, :, None]
            matrices[module] = padded.reshape(shape[0], -1)[:, : shape[1]]
        parts: dict[str, list[tuple[int, Tensor]]] = {}
        for name, source in self._tensors.items():
            if name in self._vectors:
                value = self._vector(name)
            elif name in self._fixed:
                value = self._fixed[name]
            else:
                value = matrices[self._module[name]]
            first = 0 if source.rows is None else source.rows[0]
            parts.setdefault(source.name, []).append((first, value - source.add))
        return {
            name: torch.cat([value for _, value in sorted(found, key=lambda part: part[0])])
            for name, found in parts.items()
        }

    @torch.no_grad()
    def result(self, steps: Mapping[str, Tensor], share: float) -> Arrays:
        """A share of `steps` as stored; this model then computes with the rounded scales, too."""
        for name, values in steps.items():
            self.steps[name].copy_(share * values)
        found: Arrays = {name: self._vector(name).numpy() for name in self._vectors}
        for module, (_, scales, _) in self._matrices.items():
            stored = float16_scales(self._scales(module).clamp_max(FLOAT16_MAX).numpy())
            found[module + ".scales"] = stored
            factors = torch.from_numpy(stored.astype(np.float32)) / scales
            self.steps[module].copy_(factors.log() / self._reach[module])
        return found

    def _scales(self, module: str) -> Tensor:
        return self._matrices[module][1] * (self.steps[module] * self._reach[module]).exp()

    def _vector(self, name: str) -> Tensor:
        values, size = self._vectors[name]
        return values + self.steps[name] * size


def tune(
    weights: CanonicalWeights,
    written: WrittenWeights,
    windows: Tokens,
    progress: Progress,
    *,
    steps: int | None = None,
) -> Tuned:
    """Learn scales, norms and biases.

    Args:
        weights: the original's.
        written: the artefact's.
        windows: [B, T] token ids; some are kept to judge by.
        progress: told of each step.
        steps: how many batches are learned from; None: `STEPS`.
    """
    steps = STEPS if steps is None else steps
    progress.begin("Tuning scales", steps)
    spec = weights.family.spec
    module = build_on_meta(weights.checkpoint.config, "eager" if spec.attn_softcap else "sdpa")
    teacher = original_parameters(module, weights)
    student = _Student(weights, written)
    ids = torch.from_numpy(windows)
    judged = ids[_HELD_OUT - 1 :: _HELD_OUT] if len(ids) >= _HELD_OUT else ids
    learned = ids[torch.arange(len(ids)) % _HELD_OUT != _HELD_OUT - 1]
    before = _divergence(module, teacher, student, judged)
    optimiser = torch.optim.Adam(student.steps.values(), lr=_RATE, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    batch = max(1, _BATCH_TOKENS // ids.shape[1])
    order: list[int] = []
    short = multiplies_bfloat16()  # what is found is judged in float32
    for step in range(steps):
        for group in optimiser.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = _RATE * min(1.0, (step + 1) / _WARM_UP) * cosine
        if len(order) < min(batch, len(learned)):
            order = torch.randperm(len(learned), generator=generator).tolist()
        chosen, order = learned[order[:batch]], order[batch:]
        with torch.autocast("cpu", torch.bfloat16, enabled=short):
            loss = _kl(module, teacher, student.parameters(), chosen)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        progress.advance()
    everything = {name: values.detach().clone() for name, values in student.steps.items()}
    best = Tuned({}, before, before)
    for share in _SHARES:
        found = student.result(everything, share)
        after = _divergence(module, teacher, student, judged)
        if after < best.kl_after:
            best = Tuned(found, before, after)
    return best


def _kl(
    module: Any, teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], ids: Tensor
) -> Tensor:
    """Mean KL of the original from the quantised model, in nats."""
    arguments = {"input_ids": ids, "use_cache": False}
    with torch.no_grad():
        wanted = (
            functional_call(module, dict(teacher), (), arguments).logits.float().log_softmax(-1)
        )
    found = functional_call(module, dict(student), (), arguments).logits.float().log_softmax(-1)
    loss: Tensor = (wanted.exp() * (wanted - found)).sum(-1).mean()
    return loss


@torch.no_grad()
def _divergence(
    module: Any, teacher: Mapping[str, Tensor], student: _Student, ids: Tensor
) -> float:
    parameters = student.parameters()
    batch = max(1, _BATCH_TOKENS // ids.shape[1])
    return math.fsum(
        float(_kl(module, teacher, parameters, part)) * len(part)
        for part in (ids[first : first + batch] for first in range(0, len(ids), batch))
    ) / len(ids)
