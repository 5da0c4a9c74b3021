"""Train scales, norms and biases of the whole quantised model against the original.

    least over scales s, vectors v and, if refined, codes q of  KL(p_original || p_quantised),
    w = (q - z) s

on the calibration text. Zero points stay, and so does the model's size. Training repairs a wrong
balance between layers, which no layer's own loss shows. Of the change, all, half, a quarter or
nothing is kept, whichever has the least KL on held-out windows: the less there is to repair, the
more of the change fits the training text alone.

Source: arXiv 2407.11062 (EfficientQAT), section 3.3; the original as teacher: arXiv 2305.17888.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import functional_call

from edgetok.converter.calibrate.expert_parameters import put_stacked
from edgetok.converter.calibrate.transformers_model import (
    attention_of,
    build_on_meta,
    joined,
    multiplies_bfloat16,
    original_parameters,
)
from edgetok.converter.calibrate.windows import Tokens
from edgetok.converter.progress import Progress
from edgetok.converter.quantise.experts import rows_of
from edgetok.converter.quantise.trainable_matrix import (
    BATCH_TOKENS,
    LANES,
    Learned,
    LearnedMatrix,
    best_share,
    learn,
    mean_loss,
    split,
)
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.converter.write.pack_codes import pack_linear
from edgetok.converter.write.written_weights import WrittenWeights

STEPS = 100
_ROUTERS = (".router", ".router_choice", ".router_norm", ".router_scale")

Arrays = dict[str, npt.NDArray[np.generic]]
_LearnedModel = tuple[dict[str, Tensor], dict[str, Learned]]


@dataclass(frozen=True, slots=True)
class Tuned:
    """The result of training.

    Attributes:
        tensors: `.scales` float16, `.weight` of norms and `.bias` float32, and if refined codes as
            they are packed, by name in the layout; empty where the model did not get better.
        kl_before: on held-out windows, in nats.
        kl_after: as above.
    """

    tensors: Arrays
    kl_before: float
    kl_after: float


class _Student:
    """The quantised model as a function of its trainable parameters.

    Attributes:
        matrices: by the module whose bytes hold them.
        changes: changes of vectors, in units of their size.
    """

    def __init__(
        self,
        weights: CanonicalWeights,
        written: WrittenWeights,
        module: Any,
        teacher: Mapping[str, Tensor],
        few: Mapping[str, Sequence[int]],
        *,
        codes: bool,
    ) -> None:
        self._tensors = weights.family.tensors
        self._in_module = {
            weights.family.file_name(name): name for name, _ in module.named_parameters()
        }
        self._original = {weights.family.file_name(name): x for name, x in teacher.items()}
        self._formats = written.formats
        self.matrices: dict[str, LearnedMatrix] = {}
        self.changes: dict[str, Tensor] = {}
        self._vectors: dict[str, tuple[Tensor, Tensor]] = {}  # values, their size
        self._fixed: dict[str, Tensor] = {}
        self._module: dict[str, str] = {}
        for name in self._tensors:
            self._module[name] = module = written.stored_module(name)
            if module in self.matrices and name.endswith(".weight"):
                continue
            matrix = written.quantised(module) if name.endswith(".weight") else None
            values = None if matrix else torch.from_numpy(written.tensor(name).copy())
            if matrix is not None:
                learns = codes and matrix.bits < 8
                still = self._still(name, few)
                self.matrices[module] = LearnedMatrix(matrix, codes=learns, still=still)
            elif values is not None and values.ndim == 1 and not module.endswith(_ROUTERS):
                size = values.square().mean().sqrt().clamp_min(1e-6)
                self._vectors[name] = (values, size)
                self.changes[name] = torch.zeros_like(values, requires_grad=True)
            elif values is not None:
                self._fixed[name] = values

    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters by their names in the module, which may not be the checkpoint's."""
        matrices = {module: matrix.weight() for module, matrix in self.matrices.items()}
        parts = []
        stacked: dict[str, Tensor] = {}
        for name, source in self._tensors.items():
            if name in self._vectors:
                value = self._vector(name)
            elif name in self._fixed:
                value = self._fixed[name]
            else:
                value = matrices[self._module[name]]
            if source.stack is not None:
                put_stacked(source.stack, value, self._original, stacked)
                continue
            name_there = self._in_module.get(source.name, source.name)
            parts.append((name_there, source, value - source.add))
        return joined(parts) | {self._in_module[name]: values for name, values in stacked.items()}

    def learned(self) -> _LearnedModel:
        """Return a copy of the trained vectors and matrices so far."""
        changes = {name: change.detach().clone() for name, change in self.changes.items()}
        return changes, {module: matrix.learned() for module, matrix in self.matrices.items()}

    @torch.no_grad()
    def take(self, learned: _LearnedModel, share: float) -> Arrays:
        """Apply a share of the change and return the weights as stored."""
        changes, matrices = learned
        for name, change in changes.items():
            self.changes[name].copy_(share * change)
        result: Arrays = {name: self._vector(name).numpy() for name in self._vectors}
        for module, matrix in self.matrices.items():
            stored = matrix.take(matrices[module], share)
            parts: Arrays = {".scales": stored.scales}
            if matrix.moves is not None:
                form = self._formats[module]
                parts = pack_linear(stored.codes, stored.scales, stored.zeros, form)
            result |= {module + suffix: values for suffix, values in parts.items()}
        return result

    def _still(self, name: str, few: Mapping[str, Sequence[int]]) -> list[slice]:
        """Return the rows of some experts where `name` is a stacked matrix."""
        stack = self._tensors[name].stack
        if stack is None:
            return []
        experts = few.get(".".join(name.split(".")[:2]), ())
        return [rows_of(stack.rows, expert) for expert in experts]

    def _vector(self, name: str) -> Tensor:
        values, size = self._vectors[name]
        return values + self.changes[name] * size


def tune(
    weights: CanonicalWeights,
    written: WrittenWeights,
    windows: Tokens,
    progress: Progress,
    *,
    few: Mapping[str, Sequence[int]] = MappingProxyType({}),
    refine: int = 0,
    threads: int = 1,
) -> Tuned:
    """Learn scales, norms and biases.

    Routers stay, and so do experts that hardly any token reaches.

    Args:
        weights: the original's.
        written: the artefact's.
        windows: [B, T] token ids; some are kept to judge by.
        progress: called for each step.
        few: numbers of those experts by layer, such as `layers.3`.
        refine: over how many batches codes learn, too; 0: over `STEPS` all but codes.
        threads: how many compute; the result does not depend on it.
    """
    steps = refine or STEPS
    progress.begin("Refining codes and scales" if refine else "Tuning scales", steps)
    spec = weights.family.spec
    module = build_on_meta(weights.checkpoint.config, attention_of(spec))
    modules = [module, *(copy.deepcopy(module) for _ in range(LANES - 1))]
    teacher = original_parameters(module, weights)
    student = _Student(weights, written, module, teacher, few, codes=refine > 0)
    ids = torch.from_numpy(windows)
    given, judged = split(ids)
    batch = max(1, BATCH_TOKENS // ids.shape[1])
    short = multiplies_bfloat16()  # results are judged in float32

    def loss(chosen: Tensor, lane: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=short):
            return _kl(modules[lane], teacher, student.parameters(), ids[chosen])

    @torch.no_grad()
    def judge() -> float:
        parameters = student.parameters()
        return mean_loss(
            lambda chosen, lane: _kl(modules[lane], teacher, parameters, ids[chosen]),
            judged,
            batch,
            threads,
        )

    before = judge()
    learn(
        student.matrices.values(),
        student.changes.values(),
        loss,
        given,
        steps=steps,
        batch=batch,
        advance=progress.advance,
        threads=threads,
    )
    result, after = best_share(partial(student.take, student.learned()), judge, before)
    return Tuned(result or {}, before, after)


def _kl(
    module: Any, teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], ids: Tensor
) -> Tensor:
    """Mean KL of the original from the quantised model, in nats."""
    arguments = {"input_ids": ids, "use_cache": False}
    with torch.no_grad():
        wanted = (
            functional_call(module, dict(teacher), (), arguments).logits.float().log_softmax(-1)
        )
    result = functional_call(module, dict(student), (), arguments).logits.float().log_softmax(-1)
    loss: Tensor = (wanted.exp() * (wanted - result)).sum(-1).mean()
    return loss
