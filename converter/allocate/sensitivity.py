"""Sensitivity of each tensor: the expected KL of every way to store it, measured.

A small change dW of a layer with inputs x moves the model's next-token distribution by

    KL ~ 1/2 E[(g . dW x)^2],  g = gradient of log p(token) with respect to the layer's outputs,

the token being drawn from the model's own distribution (the Fisher information). Errors of two rows
are independent, so this is the sum over rows of g_i^2 (dW_i x)^2, and a sample of the rows is
enough. The rows are rounded as the conversion will round them, with a Hessian from other tokens
than those that measure their error. One forward and one backward pass, with one block in memory at
a time, measure all tensors; the losses of the output head and the embedding are measured directly.

A sum over tensors is inaccurate where errors are large. It is therefore calibrated against whole
models rounded to nearest at several widths.

Source: Fisher information as the curvature of KL: arXiv 1412.1193, section 6; as a measure for
mixed widths: arXiv 2306.07629, section 4.1 (diagonal, per weight; here per output and token).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgetok.converter.allocate.sensitivity_of_ends import Ends, fitting, halves
from edgetok.converter.allocate.whole_model_probe import PROBE_BITS, PROBE_GROUP, PROBE_HEAD, probe
from edgetok.converter.calibrate.block import Block
from edgetok.converter.calibrate.original_model import Original
from edgetok.converter.calibrate.windows import Tokens, spread
from edgetok.converter.durable import write_durably
from edgetok.converter.options import ConvertOptions, learns_whole
from edgetok.converter.progress import Progress
from edgetok.converter.quantise import gptq
from edgetok.converter.quantise import round_to_nearest as rtn
from edgetok.converter.quantise.level_table import LEVELS
from edgetok.converter.quantised import fits_float16_scales
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.formats.layout import TensorFormat

Floats = npt.NDArray[np.float32]

GROUP_SIZES = (32, 64, 128)

_TOKENS = 4096
_ROWS = 128  # of each tensor; twice as many gave the same choice on three models
# `tune` repairs more of the loss of an embedding or a head than of the loss of layers. At 2.386 MB
# the default model had a KL of 0.0280 without this (a head of 8 bits), and 0.0197 with it (of 4).
_TUNED_END = 0.5


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The measured losses of every tensor.

    Attributes:
        kl: expected KL in nats by tensor and format, each tensor by itself.
        probes: (sum of such figures, KL measured) of the whole model rounded to nearest.
    """

    kl: Mapping[str, Mapping[TensorFormat, float]]
    probes: tuple[tuple[float, float], ...]

    def without_grouped(self) -> Sensitivity:
        """Return it without the formats that the GPU backend does not take."""
        kl = {
            name: {form: cost for form, cost in costs.items() if not form.grouped}
            for name, costs in self.kl.items()
        }
        return Sensitivity(kl, self.probes)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        kl = {
            name: [[dataclasses.asdict(form), value] for form, value in costs.items()]
            for name, costs in self.kl.items()
        }
        return {"kl": kl, "probes": [list(probe) for probe in self.probes]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Sensitivity:
        """Read what `to_json` gave."""
        kl = {
            name: {TensorFormat(**form): value for form, value in costs}
            for name, costs in values["kl"].items()
        }
        return cls(kl, tuple((predicted, result) for predicted, result in values["probes"]))


def measure(
    weights: CanonicalWeights,
    options: ConvertOptions,
    greatest: Mapping[str, float],
    windows: Tokens,
    scratch: Path,
    progress: Progress,
    threads: int,
) -> Sensitivity:
    """Run the original forward and back over some tokens and try every way to store each tensor.

    Args:
        weights: weights of the checkpoint.
        options: method, symmetry and damping are taken from them.
        greatest: magnitude in each matrix, see `survey`.
        windows: [B, T] token ids.
        scratch: a folder for activations, [B, T, hidden_size] float32 a layer.
        progress: called for each block.
        threads: number of chunks of rows rounded at once.

    Returns:
        Costs; a tensor whose scales do not fit float16 at some width has none for it.
    """
    spec = weights.family.spec
    count = max(2, _TOKENS // windows.shape[1])
    windows = windows[spread(len(windows), min(count, len(windows)))]
    progress.begin("Measuring sensitivity", 2 * spec.num_layers + 2)
    trial = _Trial(options, greatest, threads)
    original = Original(weights, threads=threads)
    states = _States(scratch, original.embed(windows))
    for index in range(spec.num_layers):
        with original.block(index) as block:
            states.push(block(states.last))
        progress.advance()
    ends = Ends(original, options, greatest, threads)
    trial.kl["lm_head"], gradient = ends.head(states.last)
    progress.advance()
    for index in reversed(range(spec.num_layers)):
        with original.block(index) as block:
            gradient = _block(block, states.pop(), gradient, trial)
        progress.advance()
    name = "lm_head" if spec.tied else "embed_tokens"
    for form, cost in ends.embedding(windows, gradient).items():
        # A tied matrix loses in both places.
        costs = trial.kl.setdefault(name, {})
        costs[form] = costs.get(form, 0.0) + cost
    for end in {name, "lm_head"}:
        known = trial.kl[end].get(trial.probed(PROBE_HEAD[0]), 0.0)
        trial.probes[end] = dict.fromkeys(PROBE_BITS, known)
    if "tune" in options.steps and learns_whole(weights.parameters):
        for end in filter(_is_end, trial.kl):
            trial.kl[end] = {way: _TUNED_END * cost for way, cost in trial.kl[end].items()}
    states.close()
    result = probe(weights, windows, options, progress, threads)
    sums = [math.fsum(costs[bits] for costs in trial.probes.values()) for bits in PROBE_BITS]
    return Sensitivity(trial.kl, tuple(zip(sums, result, strict=True)))


class _Trial:
    """A trial of every way to store a tensor, with the losses."""

    def __init__(
        self, options: ConvertOptions, greatest: Mapping[str, float], threads: int
    ) -> None:
        self.options = options
        self.threads = threads
        self.kl: dict[str, dict[TensorFormat, float]] = {}
        self.probes: dict[str, dict[int, float]] = {}
        self._greatest = greatest

    def ways(self, name: str, inputs: int) -> list[TensorFormat]:
        """Formats that hold a tensor with so many inputs."""
        zeros = not self.options.symmetric
        found = [
            form
            for group in GROUP_SIZES
            for form in (
                *(TensorFormat(bits, group, zeros=zeros) for bits in (2, 3, 4, 8)),
                TensorFormat(8, group),
            )
        ]
        # Kernels for these take no other groups.
        found += [TensorFormat(5, 32), TensorFormat(4, 32, table=True)]
        return fitting(found, inputs, self._greatest[name])

    def nearest(self, values: Floats, form: TensorFormat) -> Tensor:
        """Return the change that rounding to nearest makes."""
        result = rtn.nearest(values, form, threads=self.threads)
        return torch.from_numpy(result.dequantise() - values)

    def linear(self, name: str, weight: Tensor, x: Tensor, g: Tensor, hessian: Tensor) -> None:
        """Take the costs of a layer: x [n, K], g [n, N], `hessian` of other tokens."""
        N = len(weight)
        rows = torch.from_numpy(spread(N, min(N, _ROWS)))
        some = weight[rows].contiguous()
        g = g[:, rows]

        def cost(difference: Tensor) -> float:
            moved = (x @ difference.T).mul_(g)
            return 0.5 * N / len(rows) * float(moved.square_().sum(dtype=torch.float64)) / len(x)

        self.probes[name] = {
            bits: cost(self.nearest(some.numpy(), self.probed(bits)))
            for bits in PROBE_BITS
            if fits_float16_scales(self._greatest[name], bits)
        }
        self.probes[name] = {bits: self.probes[name].get(bits, 0.0) for bits in PROBE_BITS}
        self.kl[name] = {}
        inverse: gptq.Inverse | None = None
        for form in self.ways(name, x.shape[1]):
            if self.options.method == "rtn":
                difference = self.nearest(some.numpy(), form)
            else:
                # In plain order one factor serves every group size.
                if inverse is None:
                    inverse = gptq.invert(
                        hessian, form.group_size, damping=self.options.damping, order="plain"
                    )
                groups = gptq.order_inputs(hessian.diagonal(), form.group_size, "plain")
                result = gptq.quantise(
                    some,
                    gptq.Inverse(groups, inverse.factor, inverse.damping),
                    form.bits,
                    form.group_size,
                    symmetric=not form.zeros,
                    table=LEVELS if form.table else None,
                )
                difference = torch.from_numpy(result.dequantise()) - some
            self.kl[name][form] = cost(difference)

    def probed(self, bits: int) -> TensorFormat:
        """Return the format of so many bits that whole models are probed with."""
        return TensorFormat(bits, PROBE_GROUP, zeros=not self.options.symmetric)


class _States:
    """The stream between blocks, on the disk but for its last."""

    def __init__(self, folder: Path, first: Tensor) -> None:
        self._folder = folder
        self._shape = first.shape
        self._count = 0
        self.last = first

    def push(self, hidden: Tensor) -> None:
        write_durably(self._path(self._count), self.last.contiguous().numpy().data)
        self._count += 1
        self.last = hidden

    def pop(self) -> Tensor:
        """Return the outputs of the previous block, and remove their file."""
        self._count -= 1
        path = self._path(self._count)
        kept = torch.from_numpy(np.fromfile(path, np.float32)).reshape(self._shape).clone()
        path.unlink()
        return kept

    def close(self) -> None:
        self.last = torch.empty(0)

    def _path(self, index: int) -> Path:
        return self._folder / f"sensitivity-{index}.f32"


def _block(block: Block, hidden: Tensor, gradient: Tensor, trial: _Trial) -> Tensor:
    """Costs of a block's layers; the gradient before it."""
    inputs: dict[str, list[Tensor]] = {}
    gradients: dict[str, list[Tensor]] = {}

    def see(name: str, x: Tensor, g: Tensor) -> None:
        if any(name == stage[0] for stage in block.stages):
            inputs.setdefault(name, []).append(x)
        gradients.setdefault(name, []).append(g.clone())

    before = block.backward(hidden, gradient, see)
    tokens = hidden.shape[1]
    for stage in block.stages:
        x = torch.cat(inputs[stage[0]])
        seen, held_out = halves(len(x), tokens)
        hessian = gptq.Hessian(x.shape[1], trial.threads)
        hessian.add(x[seen])
        mean = hessian.mean()
        for name in stage:
            weight = block.get(name + ".weight")
            g = torch.cat(gradients.pop(name))
            trial.linear(
                f"layers.{block.index}.{name}", weight, x[held_out], g[held_out], mean.clone()
            )
    return before


def _is_end(name: str) -> bool:
    return name in ("lm_head", "embed_tokens")
