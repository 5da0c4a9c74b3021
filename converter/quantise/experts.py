"""Quantise a block's experts, each with the tokens that the router sends to it.

An expert's result counts by its share s of the token's, so its inputs X do, too: the loss of an
error dW is |dW X diag(s)|^2, and GPTQ's and AWQ's statistics are those of s x. The inputs of the
last matrix come out of the matrices before it as they were written. One expert's statistics are in
memory at a time.

An expert that few tokens reach has no statistics to speak of: it is rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgetok.converter.calibrate.block import Block
from edgetok.converter.options import ConvertOptions
from edgetok.converter.quantise import gptq
from edgetok.converter.quantise.awq import GroupProducts, quantise_clipped
from edgetok.converter.quantise.error import relative
from edgetok.converter.quantise.recipe import round_layers, rounder_of_ends
from edgetok.converter.quantised import Quantised, below_each_other
from edgetok.formats.layout import TensorFormat
from edgetok.models.layers.experts import ExpertLinear, Route, inputs_of
from edgetok.models.ops import SWIGLU_ALPHA, SWIGLU_LIMIT, ActivationMul, Norm

LEAST_TOKENS = 32
_ERROR_TOKENS = 32  # of each expert
_BEFORE = ("gate", "up")


def _clamped_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    gate, up = gate.clamp(max=SWIGLU_LIMIT), up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)
    return gate * torch.sigmoid(SWIGLU_ALPHA * gate) * (up + 1)


_GATED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": lambda gate, up: torch.nn.functional.silu(gate) * up,
    "gelu": lambda gate, up: torch.nn.functional.gelu(gate) * up,
    "gelu_tanh": lambda gate, up: torch.nn.functional.gelu(gate, approximate="tanh") * up,
    "relu2": lambda gate, up: torch.nn.functional.relu(gate) ** 2 * up,
    "clamped_swiglu": _clamped_swiglu,
}


@dataclass(frozen=True, slots=True)
class Rounded:
    """A stage's matrices, all experts' below each other.

    Attributes:
        layers: those that are quantised, by name.
        few: experts that fewer than LEAST_TOKENS tokens reached.
    """

    layers: dict[str, Quantised]
    few: tuple[int, ...]


class Routed:
    """Inputs of a block's experts.

    Attributes:
        inputs: [tokens, hidden_size].
        chosen: [tokens, top] numbers of experts.
        shares: [tokens, top] of each in the result.
    """

    def __init__(self, block: Block, inputs: Tensor) -> None:
        """Choose experts for tokens by the block's router.

        Args:
            block: materialised.
            inputs: of its `before_experts`.
        """
        self._block = block
        (self._route,) = (op for op in block.operations if isinstance(op, Route))
        self._linears = {
            op.weight.rpartition(".")[2]: op
            for op in block.operations
            if isinstance(op, ExpertLinear)
        }
        acts = (op for op in block.operations if isinstance(op, ActivationMul))
        (self._gate,) = (op for op in acts if op.gate == "experts_gate")
        found = inputs_of(block.operations)
        if found is None:
            raise ValueError("the block has no experts")
        self._router = found.router
        routing, self.inputs = inputs, inputs
        if found.norms is not None:
            routing, self.inputs = (_normed(block, norm, inputs) for norm in found.norms)
        self.chosen, self.shares = self._choose(routing)

    @classmethod
    def behind(cls, block: Block, hidden: Tensor) -> Routed:
        """Run the block up to its router, on [B, T, hidden_size]."""
        seen: list[Tensor] = []
        block.observe(hidden, (block.before_experts,), lambda _, x: seen.append(x.clone()))
        return cls(block, torch.cat(seen))

    def _choose(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Choose experts as `Route` says, by the router's inputs."""
        op, block = self._route, self._block
        scores = inputs @ block.get("router.weight").T
        if self._router.bias:
            scores += block.get("router.bias")
        scores *= self._router.scale
        p = scores.sigmoid() if op.score == "sigmoid" else scores.softmax(-1)
        keys = p + block.get("router_choice.weight") if op.bias else p
        chosen = keys.topk(op.top, dim=-1).indices
        shares = p.gather(1, chosen)
        if op.normed:
            shares = shares / (shares.sum(-1, keepdim=True) + op.sum_eps)
        shares = op.factor * shares
        if op.scales:
            shares = shares * block.get("router_scale.weight")[chosen]
        return chosen, shares

    def linear(self, name: str) -> ExpertLinear:
        """Return the operation of a matrix, such as `experts_up`."""
        return self._linears[name]

    def of(self, expert: int) -> tuple[Tensor, Tensor]:
        """Inputs [n, hidden_size] of the tokens that one expert gets, and its shares [n, 1]."""
        tokens, place = self._places(expert)
        return self.inputs[tokens], self.shares[tokens, place, None]

    def tokens_of(self, expert: int) -> Tensor:
        """Return the numbers [n] of the tokens that one expert gets."""
        return self._places(expert)[0]

    def _places(self, expert: int) -> tuple[Tensor, Tensor]:
        tokens, place = (self.chosen == expert).nonzero(as_tuple=True)
        return tokens, place

    def stacks(self) -> dict[str, Tensor]:
        """Return the matrices and biases that make the inputs of the last one, as they are now."""
        names = (f"experts_{which}.{kind}" for which in _BEFORE for kind in ("weight", "bias"))
        return {name: self._block.get(name) for name in names if name in self._block.names}

    def inner(self, stacks: Mapping[str, Tensor], expert: int, inputs: Tensor) -> Tensor:
        """Return the inputs [n, size] of an expert's last matrix.

        Args:
            stacks: what `stacks` returned.
            expert: which.
            inputs: [n, hidden_size].
        """
        return _GATED[self._gate.kind](*self._before(stacks, expert, inputs))

    def back(
        self, stacks: Mapping[str, Tensor], expert: int, inputs: Tensor, gradient: Tensor
    ) -> dict[str, Tensor]:
        """Return the gradients [n, size] with respect to what the first matrices give, by name.

        Args:
            stacks: see `inner`.
            expert: which.
            inputs: [n, hidden_size].
            gradient: [n, size] with respect to the inputs of the last matrix.
        """
        both = [y.requires_grad_() for y in self._before(stacks, expert, inputs)]
        with torch.enable_grad():
            result = _GATED[self._gate.kind](*both)
        found = torch.autograd.grad(result, both, gradient)
        return {f"experts_{which}": g for which, g in zip(_BEFORE, found, strict=True)}

    def _before(self, stacks: Mapping[str, Tensor], expert: int, inputs: Tensor) -> list[Tensor]:
        both = []
        for name in (f"experts_{which}" for which in _BEFORE):
            rows = rows_of(self.linear(name).outputs, expert)
            both.append(inputs @ stacks[f"{name}.weight"][rows].T)
            if f"{name}.bias" in stacks:
                both[-1] += stacks[f"{name}.bias"][rows]
        return both


def _normed(block: Block, norm: Norm, x: Tensor) -> Tensor:
    weight = block.get(norm.weight.rpartition(".")[2] + ".weight")
    return torch.nn.functional.rms_norm(x, (norm.size,), weight, norm.eps)


def rows_of(rows: int, expert: int) -> slice:
    """Return the rows of one expert in a stacked matrix that has `rows` of each."""
    return slice(expert * rows, (expert + 1) * rows)


def round_experts(
    block: Block,
    routed: Routed,
    forms: Mapping[str, TensorFormat],
    options: ConvertOptions,
    threads: int = 1,
) -> Rounded:
    """Round the matrices of all experts in one stage, by the method of `options`.

    Args:
        block: materialised.
        routed: the tokens of each expert.
        forms: bits and group size by name, such as `experts_up`.
        options: method, steps, damping and order.
        threads: for rounding.
    """
    linears = {name: routed.linear(name) for name in forms}
    weights = {name: block.get(name + ".weight") for name in forms}
    first = next(iter(linears.values()))
    stacks = routed.stacks() if first.apart else {}
    found: dict[str, list[Quantised]] = {name: [] for name in forms}
    few = []
    for expert in range(first.experts):
        x, share = routed.of(expert)
        own = [weights[name][rows_of(op.outputs, expert)] for name, op in linears.items()]
        if len(x) < LEAST_TOKENS:
            few.append(expert)
            layers = _round_alone(own, list(forms.values()), options, threads)
        else:
            x = routed.inner(stacks, expert, x) if first.apart else x
            layers = _round_together(own, x * share, list(forms.values()), options, threads)
        for name, layer in zip(forms, layers, strict=True):
            found[name].append(layer)
    joined = {name: below_each_other(name, layers) for name, layers in found.items()}
    return Rounded({name: q for name, q in joined.items() if q is not None}, tuple(few))


def output_error(routed: Routed, name: str, weight: Tensor, written: Tensor) -> float | None:
    """|(W' - W) s x| / |W s x| over some tokens of each expert; None where no expert has any.

    Args:
        routed: the tokens of each expert.
        name: of the stacked matrix.
        weight: W, [experts * N, K].
        written: W'.
    """
    op, error, norm = routed.linear(name), 0.0, 0.0
    stacks = routed.stacks() if op.apart else {}
    for expert in range(op.experts):
        x, share = (values[:_ERROR_TOKENS] for values in routed.of(expert))
        if op.apart:
            x = routed.inner(stacks, expert, x)
        rows = rows_of(op.outputs, expert)
        before, after = (share * (x @ w[rows].T) for w in (weight, written))
        error += float((after - before).square().sum(dtype=torch.float64))
        norm += float(before.square().sum(dtype=torch.float64))
    return relative(error, norm) if norm else None


def _round_together(
    weights: list[Tensor],
    inputs: Tensor,
    forms: list[TensorFormat],
    options: ConvertOptions,
    threads: int,
) -> list[Quantised]:
    if options.method != "awq":
        hessian = gptq.Hessian(inputs.shape[1], threads)
        hessian.add(inputs)
        return round_layers(weights, hessian.mean(), forms, options, threads)
    result = []
    for weight, form in zip(weights, forms, strict=True):
        products = GroupProducts(inputs.shape[1], form.group_size)
        products.add(inputs)
        total, symmetric = products.total(), not form.zeros
        result.append(
            quantise_clipped(
                weight, total, form.bits, form.group_size, symmetric=symmetric, threads=threads
            )
        )
    return result


def _round_alone(
    weights: list[Tensor], forms: list[TensorFormat], options: ConvertOptions, threads: int
) -> list[Quantised]:
    rounder = rounder_of_ends(options)
    return [
        rounder(np.ascontiguousarray(weight.numpy()), form, threads=threads)
        for weight, form in zip(weights, forms, strict=True)
    ]
