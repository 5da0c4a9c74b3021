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

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgetok.converter.allocate.whole_model_probe import PROBE_BITS, PROBE_GROUP, PROBE_HEAD, probe
from edgetok.converter.calibrate.block import Block
from edgetok.converter.calibrate.compare import head_agreement, head_logits
from edgetok.converter.calibrate.original_model import Original, gather_rows
from edgetok.converter.calibrate.windows import Tokens, spread
from edgetok.converter.durable import write_durably
from edgetok.converter.options import ConvertOptions, learns_whole
from edgetok.converter.progress import Progress
from edgetok.converter.quantise import gptq
from edgetok.converter.quantise import round_to_nearest as rtn
from edgetok.converter.quantise.recipe import rounder_of_ends
from edgetok.converter.quantised import fits_float16_scales
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.models.spec import DecoderSpec

Floats = npt.NDArray[np.float32]

LAYER_BITS = (2, 3, 4, 8)
HEAD_BITS = (2, 4, 8)
GROUP_SIZES = (32, 64, 128)

_TOKENS = 4096
_HEAD_TOKENS = 512
_ROWS = 128  # of each tensor; twice as many gave the same choice on three models
_SEED = 20
# `tune` repairs more of the loss of an embedding or a head than of the loss of layers. At 2.386 MB
# the default model had a KL of 0.0280 without this (a head of 8 bits), and 0.0197 with it (of 4).
_TUNED_END = 0.5


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The measured losses of every tensor.

    Attributes:
        kl: expected KL in nats by tensor and (bits, group_size), each tensor by itself.
        probes: (sum of such figures, KL measured) of the whole model rounded to nearest.
    """

    kl: Mapping[str, Mapping[tuple[int, int], float]]
    probes: tuple[tuple[float, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        kl = {
            name: [[bits, group, value] for (bits, group), value in costs.items()]
            for name, costs in self.kl.items()
        }
        return {"kl": kl, "probes": [list(probe) for probe in self.probes]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Sensitivity:
        """Read what `to_json` gave."""
        kl = {
            name: {(bits, group): value for bits, group, value in costs}
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
    original = Original(weights)
    states = _States(scratch, original.embed(windows))
    for index in range(spec.num_layers):
        with original.block(index) as block:
            states.push(block(states.last))
        progress.advance()
    gradient = _head(original, states.last, trial)
    progress.advance()
    for index in reversed(range(spec.num_layers)):
        with original.block(index) as block:
            gradient = _block(block, states.pop(), gradient, trial)
        progress.advance()
    _embedding(weights, windows, gradient, trial)
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
        self.kl: dict[str, dict[tuple[int, int], float]] = {}
        self.probes: dict[str, dict[int, float]] = {}
        self._greatest = greatest

    def ways(self, name: str) -> list[tuple[int, int]]:
        """Bits and group sizes that hold the tensor."""
        every = HEAD_BITS if _is_end(name) else LAYER_BITS
        return [
            (bits, group)
            for bits in every
            if fits_float16_scales(self._greatest[name], bits)
            for group in GROUP_SIZES
        ]

    def end(self, values: Floats, bits: int, group: int) -> Tensor:
        """Return the change that the recipe makes to an embedding or a head."""
        result = rounder_of_ends(self.options)(
            values, bits, group, symmetric=self.options.symmetric, threads=self.threads
        )
        return torch.from_numpy(result.dequantise() - values)

    def nearest(self, values: Floats, bits: int, group: int) -> Tensor:
        """Return the change that rounding to nearest makes."""
        result = rtn.quantise(
            values, bits, group, symmetric=self.options.symmetric, threads=self.threads
        )
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
            bits: cost(self.nearest(some.numpy(), bits, PROBE_GROUP))
            for bits in PROBE_BITS
            if fits_float16_scales(self._greatest[name], bits)
        }
        self.probes[name] = {bits: self.probes[name].get(bits, 0.0) for bits in PROBE_BITS}
        self.kl[name] = {}
        inverse: gptq.Inverse | None = None
        for bits, group in self.ways(name):
            if self.options.method == "rtn":
                difference = self.nearest(some.numpy(), bits, group)
            else:
                # In plain order one factor serves every group size.
                if inverse is None:
                    inverse = gptq.invert(
                        hessian, group, damping=self.options.damping, order="plain"
                    )
                groups = gptq.order_inputs(hessian.diagonal(), group, "plain")
                result = gptq.quantise(
                    some,
                    gptq.Inverse(groups, inverse.factor, inverse.damping),
                    bits,
                    group,
                    symmetric=self.options.symmetric,
                    threads=self.threads,
                )
                difference = torch.from_numpy(result.dequantise()) - some
            self.kl[name][bits, group] = cost(difference)


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
        seen, held_out = _halves(len(x), tokens)
        hessian = gptq.Hessian(x.shape[1])
        hessian.add(x[seen])
        mean = hessian.mean()
        for name in stage:
            weight = block.get(name + ".weight")
            g = torch.cat(gradients.pop(name))
            trial.linear(
                f"layers.{block.index}.{name}", weight, x[held_out], g[held_out], mean.clone()
            )
    return before


def _halves(count: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Split windows into every other one and the rest; split a single window into halves."""
    at = torch.arange(count)
    odd = (at // tokens) % 2 == 1 if count > tokens else at >= count // 2
    return at[~odd], at[odd]


def _head(original: Original, hidden: Tensor, trial: _Trial) -> Tensor:
    """Costs of the output head; gradient of log p of tokens drawn from it, before the last norm."""
    weights = original.weights
    spec = weights.family.spec
    norm = torch.from_numpy(weights.tensor("final_norm.weight"))
    start = hidden.detach().requires_grad_()
    normed = original.final_norm(start, norm)
    states = normed.detach().flatten(0, 1)
    some = states[torch.from_numpy(spread(len(states), min(len(states), _HEAD_TOKENS)))]
    targets = torch.zeros(len(some), dtype=torch.int64)
    costs = {}
    for bits, group in trial.ways("lm_head"):
        pieces = (
            piece + trial.end(piece, bits, group).numpy()
            for piece in weights.pieces("lm_head.weight")
        )
        result = head_agreement(some, some, weights.pieces("lm_head.weight"), pieces, targets, spec)
        costs[bits, group] = result.kl
    trial.kl["lm_head"] = costs
    gradient = drawn_gradient(states, lambda: weights.pieces("lm_head.weight"), spec)
    (back,) = torch.autograd.grad(normed, start, gradient.reshape(normed.shape))
    return back


def drawn_gradient(
    states: Tensor, head: Callable[[], Iterator[Floats]], spec: DecoderSpec
) -> Tensor:
    """Gradient of log p(token) with respect to the head's inputs, tokens drawn from p.

    Args:
        states: [n, hidden_size] inputs of the head.
        head: called for the head's rows, some at a time.
        spec: for what is done to logits.

    Returns:
        [n, hidden_size].
    """
    draw = torch.Generator().manual_seed(_SEED)
    n = len(states)
    best = torch.full((n,), -torch.inf, dtype=torch.float64)
    token = torch.zeros(n, dtype=torch.int64)
    total = torch.full((n,), -torch.inf, dtype=torch.float64)
    first = 0
    for rows in _row_pieces(head):
        logits = head_logits(states, rows, spec)
        total = torch.logaddexp(total, logits.logsumexp(1))
        # The greatest of logits plus Gumbel noise is a draw from their softmax.
        noise = torch.rand(logits.shape, generator=draw, dtype=torch.float64)
        value, at = (logits - noise.log().neg_().log_()).max(1)
        token = torch.where(value > best, at + first, token)
        best = torch.maximum(best, value)
        first += len(rows)
    gradient = torch.zeros_like(states)
    first = 0
    for rows in _row_pieces(head):
        logits = head_logits(states, rows, spec)
        slope = (logits - total[:, None]).exp_().neg_()
        here = (token >= first) & (token < first + len(rows))
        slope[here, token[here] - first] += 1
        if spec.logit_softcap:
            slope *= 1 - (logits / spec.logit_softcap).square_()
        gradient += (slope * spec.logit_scale).float() @ rows
        first += len(rows)
    return gradient


def _row_pieces(head: Callable[[], Iterator[Floats]]) -> Iterator[Tensor]:
    for piece in head():
        for first in range(0, len(piece), 4096):
            yield torch.from_numpy(piece[first : first + 4096])


def _embedding(weights: CanonicalWeights, windows: Tokens, gradient: Tensor, trial: _Trial) -> None:
    """Costs of the embedding, added to the head's where both are one matrix."""
    spec = weights.family.spec
    name = "lm_head" if spec.tied else "embed_tokens"
    known, at = np.unique(windows, return_inverse=True)
    rows = gather_rows(weights.pieces("embed_tokens.weight"), known).numpy()
    g = gradient.reshape(-1, rows.shape[1])
    index = torch.from_numpy(at.reshape(-1))

    def cost(bits: int, group: int) -> float:
        moved = trial.end(rows, bits, group)[index] * spec.embed_scale
        return 0.5 * float((moved * g).sum(1).double().square().mean())

    costs = trial.kl.setdefault(name, {})
    for way in trial.ways(name):
        costs[way] = costs.get(way, 0.0) + cost(*way)
    for end in {name, "lm_head"}:
        trial.probes[end] = dict.fromkeys(PROBE_BITS, trial.kl[end].get(PROBE_HEAD, 0.0))


def _is_end(name: str) -> bool:
    return name in ("lm_head", "embed_tokens")
