"""A whole decoder in plain NumPy: the truth that backends are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.formats.checkpoint import Checkpoint
from edgetok.kernels_cpu import reference, reference_delta, reference_space, reference_streams
from edgetok.models import DecoderSpec, Family, inv_freq, ops, tensor_shapes
from edgetok.models.family import TensorSource
from edgetok.models.layers.altup import AddEach, CorrectStreams, MatchSize, MixStreams
from edgetok.models.layers.experts import ExpertLinear, MixExperts, Route
from edgetok.models.layers.gated_delta import CausalConv, DeltaGates, DeltaRule
from edgetok.models.layers.mamba2 import StateSpace, StateSteps
from edgetok.models.layers.short_conv import ShortConv
from edgetok.models.operations import operations

Array = npt.NDArray[Any]
Attend = Callable[[int, Array, Array, Array], Array]


def canonical_weights(family: Family, checkpoint: Checkpoint) -> dict[str, Array]:
    """The checkpoint's tensors under their canonical names, float32."""
    shapes = tensor_shapes(family.spec)
    return {
        name: np.concatenate(
            [_taken(part, checkpoint, len(shapes[name])) for part in source.parts(checkpoint.infos)]
        )
        for name, source in family.tensors.items()
    }


def _taken(part: TensorSource, checkpoint: Checkpoint, dims: int) -> Array:
    values = part.taken(checkpoint.tensor(part.name, part.rows, flat=part.flat), dims)
    if part.pairs is not None:
        # Of each head's first dims the even ones, then the odd ones.
        dim, rotary = part.pairs
        heads = values.reshape(-1, dim, *values.shape[1:])
        turning = [heads[:, 0:rotary:2], heads[:, 1:rotary:2], heads[:, rotary:]]
        values = np.concatenate(turning, 1).reshape(values.shape)
    return values + np.float32(part.add)


@dataclass
class Run:
    """A pass over some tokens.

    Attributes:
        weights: by name with suffix.
        tokens: [T] ids.
        ropes: of each rope its frequencies and what cos and sin are multiplied by.
        attend: see `forward`.
        values: [T, columns] by name, as they are now.
        stored: keys and values [T, KH, D] of each layer.
    """

    spec: DecoderSpec
    weights: Mapping[str, Array]
    tokens: Array
    ropes: list[tuple[Array, float]]
    attend: Attend | None
    values: dict[str, Array] = field(default_factory=dict)
    stored: dict[int, tuple[Array, Array]] = field(default_factory=dict)

    def heads(self, value: str, head_dim: int) -> Array:
        """A value as [T, heads, head_dim]."""
        return self.values[value].reshape(len(self.tokens), -1, head_dim)

    def rows(self, values: Array) -> Array:
        """[T, heads, head_dim] as a value."""
        return values.reshape(len(self.tokens), -1)


def forward(
    spec: DecoderSpec,
    weights: Mapping[str, Array],
    tokens: npt.ArrayLike,
    *,
    capacity_tokens: int | None = None,
    dtype: npt.DTypeLike = np.float64,
    attend: Attend | None = None,
) -> Array:
    """Logits of every position, without a cache.

    Args:
        spec: the decoder.
        weights: by canonical name (`tensor_shapes(spec)`); for a quantised model the dequantised.
        tokens: [T] ids.
        capacity_tokens: what chooses between longrope's factors; None: T.
        dtype: what everything is computed in.
        attend: instead of causal attention: from a layer's index, its queries [T, H, D], keys and
            values [T, KH, D] before their rotation to [T, H, D].

    Returns:
        [T, vocab_size].
    """
    ids = np.asarray(tokens)
    w = {name: array.astype(dtype) for name, array in weights.items()}
    if spec.tied:
        w["lm_head.weight"] = w["embed_tokens.weight"]
    capacity = capacity_tokens or len(ids)
    ropes = [(inv_freq(rope, capacity), rope.attention_factor) for rope in spec.ropes]
    run = Run(spec, w, ids, ropes, attend)
    for op in operations(spec):
        HOW[type(op)](op, run)
    return run.values["logits"]


def _embed(op: ops.Embed, run: Run) -> None:
    run.values[op.result] = run.weights[f"{op.weight}.weight"][run.tokens] * op.scale


def _norm(op: ops.Norm, run: Run) -> None:
    x = run.heads(op.source, op.size)
    weight = run.weights[f"{op.weight}.weight"] if op.weight else np.ones(op.size, x.dtype)
    norm = reference.layer_norm if op.centred else reference.rms_norm
    run.values[op.result] = run.rows(norm(x, weight, op.eps))


def _linear(op: ops.Linear, run: Run) -> None:
    y = run.values[op.source] @ run.weights[f"{op.weight}.weight"].T
    if op.bias:
        y = y + run.weights[f"{op.weight}.bias"]
    run.values[op.result] = op.scale * y + (run.values[op.result] if op.add else 0)


def _queries(op: ops.Queries, run: Run) -> None:
    """A cache's, which there is none of."""


def _rope(op: ops.Rope, run: Run) -> None:
    if run.attend is None:
        frequencies, factor = run.ropes[op.rope]
        positions, x = np.arange(len(run.tokens)), run.heads(op.value, op.head_dim)
        run.values[op.value] = run.rows(reference.rope(x, positions, frequencies, factor))


def _position_scale(op: ops.PositionScale, run: Run) -> None:
    times = np.floor(np.arange(len(run.tokens)) / op.every)
    run.values[op.value] = (1 + op.growth * np.log1p(times))[:, None] * run.values[op.value]


def _store(op: ops.Store, run: Run) -> None:
    keys, values = (run.heads(value, op.head_dim) for value in (op.keys, op.values))
    run.stored[op.layer] = keys, values


def _attend(op: ops.Attend, run: Run) -> None:
    q, (k, v) = run.heads(op.queries, op.head_dim), run.stored[op.stored_layer]
    if run.attend is None:
        sinks = run.weights[op.sinks] if op.sinks else None
        a = reference.attention(
            q, k, v, scale=op.scale, window=op.window, cap=op.softcap, sinks=sinks
        )
    else:
        a = run.attend(op.stored_layer, q, k, v)
    run.values[op.result] = run.rows(a)


def _activation_mul(op: ops.ActivationMul, run: Run) -> None:
    gate, up = run.values[op.gate], run.values[op.up]
    run.values[op.result] = reference.gated(gate, up, op.kind)


def _activate(op: ops.Activate, run: Run) -> None:
    run.values[op.value] = reference.activation(run.values[op.value], op.kind)


def _add_scaled(op: ops.AddScaled, run: Run) -> None:
    run.values[op.value] = run.values[op.value] + op.scale * run.values[op.source]


def _columns(op: ops.Columns, run: Run) -> None:
    run.values[op.result] = run.values[op.source][:, op.first : op.first + op.size]


def _scale_by(op: ops.ScaleBy, run: Run) -> None:
    run.values[op.value] = run.weights[f"{op.weight}.weight"] * run.values[op.value]


def _scale_columns(op: ops.ScaleColumns, run: Run) -> None:
    x = run.heads(op.value, op.size)
    run.values[op.value] = run.rows(x * run.weights[f"{op.weight}.weight"])


def _sigmoid_scale(op: ops.SigmoidScale, run: Run) -> None:
    share = 1 / (1 + np.exp(-run.values[op.gate]))
    run.values[op.value] = run.rows(run.heads(op.value, op.size) * share[:, :, None])


def _softcap(op: ops.SoftCap, run: Run) -> None:
    run.values[op.value] = reference.softcap(run.values[op.value], op.limit)


def _sparsify(op: ops.Sparsify, run: Run) -> None:
    run.values[op.value] = reference_streams.sparsify(run.values[op.value], op.spread)


def _mix_streams(op: MixStreams, run: Run) -> None:
    s = np.concatenate([run.values[op.value], run.values[op.others]], axis=1)
    coefs = run.values[op.coefs].reshape(-1, op.streams, op.streams)
    run.values[op.result] = run.rows(
        reference_streams.mix_streams(s.reshape(len(s), op.streams, op.size), coefs)
    )


def _correct_streams(op: CorrectStreams, run: Run) -> None:
    p = run.values[op.source].reshape(-1, op.streams, op.size)
    s = reference_streams.correct_streams(p, run.values[op.value], run.values[op.coefs])
    run.values[op.value], run.values[op.others] = s[:, 0], run.rows(s[:, 1:])
    run.values[op.result] = s[:, 0] * (run.weights[op.scale] if op.scale else 1.0)


def _match_size(op: MatchSize, run: Run) -> None:
    matched = reference_streams.match_size(
        run.heads(op.value, op.size), run.values[op.like], op.eps
    )
    run.values[op.value] = run.rows(matched)


def _add_each(op: AddEach, run: Run) -> None:
    values = run.heads(op.value, op.size) + run.values[op.source][:, None]
    run.values[op.value] = run.rows(values)


def _short_conv(op: ShortConv, run: Run) -> None:
    b, c, x = (run.values[name] for name in (op.gate_in, op.gate_out, op.value))
    weight = run.weights[f"{op.weight}.weight"][:, 0, :]
    run.values[op.value] = reference.short_conv(b, c, x, weight)


def _causal_conv(op: CausalConv, run: Run) -> None:
    weight = run.weights[f"{op.weight}.weight"][:, 0, :]
    bias = run.weights[op.bias] if op.bias else 0.0
    run.values[op.value] = reference_delta.causal_conv(run.values[op.value], weight, bias)


def _delta_gates(op: DeltaGates, run: Run) -> None:
    run.values[op.beta], run.values[op.decay] = reference_delta.delta_gates(
        run.values[op.beta], run.values[op.decay], run.weights[op.log_rate], run.weights[op.bias]
    )


def _delta_rule(op: DeltaRule, run: Run) -> None:
    run.values[op.result] = reference_delta.delta_rule(
        run.values[op.source],
        run.values[op.beta],
        run.values[op.decay],
        key_heads=op.key_heads,
        value_heads=op.value_heads,
        key_dim=op.key_dim,
        value_dim=op.value_dim,
    )


def _state_steps(op: StateSteps, run: Run) -> None:
    run.values[op.value] = reference_space.state_steps(run.values[op.value], run.weights[op.bias])


def _state_space(op: StateSpace, run: Run) -> None:
    run.values[op.result] = reference_space.state_space(
        run.values[op.source],
        run.values[op.steps],
        run.weights[op.log_rate],
        run.weights[op.skip],
        groups=op.groups,
        state_dim=op.state_dim,
    )


def _route(op: Route, run: Run) -> None:
    run.values[op.chosen], run.values[op.shares] = reference.route(
        run.values[op.source],
        op.top,
        sigmoid=op.score == "sigmoid",
        bias=run.weights[op.bias] if op.bias else None,
        normed=op.normed,
        sum_eps=op.sum_eps,
        factor=op.factor,
        scales=run.weights[op.scales] if op.scales else None,
    )


def _expert_linear(op: ExpertLinear, run: Run) -> None:
    """Token by token and choice by choice."""
    weight = run.weights[f"{op.weight}.weight"].reshape(op.experts, op.outputs, op.inputs)
    chosen = run.values[op.chosen]
    source = run.values[op.source].reshape(len(run.tokens), -1, op.inputs)
    y = np.empty((len(run.tokens), op.top, op.outputs), weight.dtype)
    for t, experts in enumerate(chosen):
        for j, e in enumerate(experts):
            y[t, j] = weight[e] @ source[t, j if op.apart else 0]
            if op.bias:
                bias = run.weights[f"{op.weight}.bias"].reshape(op.experts, op.outputs)
                y[t, j] += bias[e]
    run.values[op.result] = run.rows(y)


def _mix_experts(op: MixExperts, run: Run) -> None:
    rows = run.values[op.source].reshape(len(run.tokens), op.top, op.size)
    y = op.scale * np.einsum("tj,tjn->tn", run.values[op.shares], rows)
    run.values[op.result] = y + (run.values[op.result] if op.add else 0)


HOW: dict[type[ops.Op], Callable[[Any, Run], None]] = {
    ops.Embed: _embed,
    ops.Norm: _norm,
    ops.Linear: _linear,
    ops.Queries: _queries,
    ops.Rope: _rope,
    ops.PositionScale: _position_scale,
    ops.Store: _store,
    ops.Attend: _attend,
    ops.ActivationMul: _activation_mul,
    ops.Activate: _activate,
    ops.AddScaled: _add_scaled,
    ops.Columns: _columns,
    ops.ScaleBy: _scale_by,
    ops.ScaleColumns: _scale_columns,
    ops.SigmoidScale: _sigmoid_scale,
    ops.SoftCap: _softcap,
    ops.Sparsify: _sparsify,
    MixStreams: _mix_streams,
    CorrectStreams: _correct_streams,
    MatchSize: _match_size,
    AddEach: _add_each,
    ShortConv: _short_conv,
    CausalConv: _causal_conv,
    DeltaGates: _delta_gates,
    DeltaRule: _delta_rule,
    StateSteps: _state_steps,
    StateSpace: _state_space,
    Route: _route,
    ExpertLinear: _expert_linear,
    MixExperts: _mix_experts,
}
