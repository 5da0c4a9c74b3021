"""The result of a family file: a decoder, and where its tensors are in a checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from edgetok.models.layers.experts import ExpertLinear
from edgetok.models.operations import operations
from edgetok.models.spec import DecoderSpec
from edgetok.models.tensors import tensor_shapes

# Buffers that older releases of transformers saved; they are computed, not trained.
_COMPUTED = re.compile(r"(.*\.)?rotary_emb(_local)?\.(inv_freq|original_inv_freq)")
# Layers that guess further tokens. They change no logits, and transformers does not load them.
_GUESSING = re.compile(r"(mtp\.|model\.mtp_).*")

_MODULES = {
    "embed_tokens": "model.embed_tokens",
    "final_norm": "model.norm",
    "lm_head": "lm_head",
    "input_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
    "router": "mlp.gate",
    "shared_gate_proj": "mlp.shared_expert.gate_proj",
    "shared_up_proj": "mlp.shared_expert.up_proj",
    "shared_down_proj": "mlp.shared_expert.down_proj",
    "shared_router": "mlp.shared_expert_gate",
}
EXPERTS = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
PRE_NORMS = {"pre_mlp_norm": "post_attention_layernorm"}
SANDWICH_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "pre_mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}
# Of layers that have an input of their own (`layers/layer_input.py`).
INPUT_NAMES = {
    "embed_per_layer": "model.embed_tokens_per_layer",
    "per_layer_proj": "model.per_layer_model_projection",
    "per_layer_norm": "model.per_layer_projection_norm",
    "per_layer_gate": "per_layer_input_gate",
    "per_layer_out": "per_layer_projection",
    "per_layer_out_norm": "post_per_layer_input_norm",
}


@dataclass(frozen=True, slots=True)
class Stack:
    """The places where checkpoints may have the matrices of a layer's experts.

    Attributes:
        count: how many experts there are.
        rows: rows of one of their matrices.
        each: names of the matrices where each is a tensor, with {} for its number.
        joined: tensors that hold those of all experts, [experts, every, inputs]: names, `every`,
            and the first of the matrix's rows there.
        turned: tensors that hold them by input, [experts, inputs, every]: the name, inputs, the
            first of the matrix's outputs there, and from each to the next.
    """

    count: int
    rows: int
    each: str
    joined: tuple[tuple[str, int, int], ...] = ()
    turned: tuple[tuple[str, int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class TensorSource:
    """The source of a canonical tensor: `checkpoint[name][rows[0]:rows[1]] + add`.

    Attributes:
        name: the tensor's name in the checkpoint.
        rows: the half-open range of its rows; None takes them all.
        add: what is added to every value, in float32 (1.0 for norms stored as w - 1).
        stack: where it is put together of the experts' matrices; the name has {} then.
        flat: whether all dims but the last count as rows.
        pieces: half-open ranges of rows that lie below each other in it, in the place of `rows`.
        columns: the first column of those rows that is taken, and from each to the next: they are
            its rows; None takes the rows as they are.
        pairs: dims of a head, and how many of them rotate, where rows that rotate together lie
            beside each other in the checkpoint; None: they are half of the rotating dims apart.
    """

    name: str
    rows: tuple[int, int] | None = None
    add: float = 0.0
    stack: Stack | None = None
    flat: bool = False
    pieces: tuple[tuple[int, int], ...] = ()
    columns: tuple[int, int] | None = None
    pairs: tuple[int, int] | None = None

    def order(self, count: int) -> npt.NDArray[np.int64]:
        """Return the checkpoint's row of each of its `count` rows."""
        if self.pieces:
            return np.concatenate([np.arange(*piece) for piece in self.pieces])
        return self.paired(count) + (0 if self.rows is None else self.rows[0])

    def paired(self, count: int) -> npt.NDArray[np.int64]:
        """Return which of the checkpoint's `count` rows for it each of its rows is, by `pairs`."""
        rows = np.arange(count)
        if self.pairs is None:
            return rows
        dim, rotary = self.pairs
        heads = rows.reshape(-1, dim)
        parts = [heads[:, 0:rotary:2], heads[:, 1:rotary:2], heads[:, rotary:]]
        return np.concatenate(parts, axis=1).reshape(-1)

    @property
    def in_order(self) -> bool:
        """Return whether its rows lie one behind the other in the checkpoint."""
        return not self.pieces and self.pairs is None

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """Return the ranges of the tensor's rows that it consists of; none where that is all."""
        return self.pieces or (() if self.rows is None else (self.rows,))

    def parts(self, names: Container[str]) -> list[TensorSource]:
        """Return the tensors that it is made of, below each other, in a checkpoint with `names`."""
        stack = self.stack
        if self.pieces:
            return [TensorSource(self.name, rows, self.add) for rows in self.pieces]
        if stack is None:
            return [self]
        for name, every, first in stack.joined:
            if name in names:
                starts = (e * every + first for e in range(stack.count))
                return [
                    TensorSource(name, (start, start + stack.rows), self.add, flat=True)
                    for start in starts
                ]
        for name, inputs, first, step in stack.turned:
            if name in names:
                rows = ((e * inputs, (e + 1) * inputs) for e in range(stack.count))
                return [TensorSource(name, own, flat=True, columns=(first, step)) for own in rows]
        return [TensorSource(stack.each.format(e), add=self.add) for e in range(stack.count)]

    def shape(self, stored: tuple[int, ...], dims: int) -> tuple[int, ...]:
        """Return the shape of what it takes of a tensor of shape `stored`.

        Args:
            stored: see above.
            dims: dims of the canonical tensor; one: rows lie behind each other.
        """
        if self.flat and stored:
            stored = (math.prod(stored[:-1]), stored[-1])
        if self.rows is not None and stored and self.rows[1] <= stored[0]:
            stored = (self.rows[1] - self.rows[0], *stored[1:])
        if self.columns is None or len(stored) != 2:
            return stored
        outputs = len(range(self.columns[0], stored[1], self.columns[1]))
        return (outputs, stored[0]) if dims > 1 else (outputs * stored[0],)

    def taken(self, values: npt.NDArray[np.float32], dims: int) -> npt.NDArray[np.float32]:
        """Return its part of a tensor [N, K], before anything is added; see `shape`."""
        if self.columns is None or values.ndim < 2:
            return values
        first, step = self.columns
        own = np.ascontiguousarray(values[:, first::step].T)
        return own if dims > 1 else own.reshape(-1)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all tensors that may belong to it."""
        if self.stack is None:
            return (self.name,)
        separate = (self.stack.each.format(e) for e in range(self.stack.count))
        joined = (name for name, _, _ in self.stack.joined)
        turned = (name for name, _, _, _ in self.stack.turned)
        return (*joined, *turned, *separate)


@dataclass(frozen=True, slots=True)
class Family:
    """A checkpoint's description.

    Attributes:
        spec: the decoder.
        tensors: for each canonical tensor that the spec calls for (`tensor_shapes(spec)` has the
            same keys) where it comes from. `lm_head.weight` is there only where it is not tied.
        unused: names of tensors that checkpoints may have and transformers does not load.
        renamed: parts of names of parameters in modules of transformers 5, and what files have
            in their place.
    """

    spec: DecoderSpec
    tensors: Mapping[str, TensorSource] = field(hash=False)
    unused: frozenset[str] = frozenset()
    renamed: tuple[tuple[str, str], ...] = ()

    def file_name(self, parameter: str) -> str:
        """Return the name that files have for a parameter of a module of transformers."""
        for theirs, stored in self.renamed:
            parameter = parameter.replace(theirs, stored)
        return parameter

    def unclaimed(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the checkpoint's tensors among `names` that this description does not know.

        A tensor that no canonical one uses is arithmetic that was not understood. Known computed
        buffers, the stored copy of a tied head and layers that guess further tokens do not count.
        """
        claimed = {name for source in self.tensors.values() for name in source.names} | self.unused
        if self.spec.tied:
            claimed.add(_MODULES["lm_head"] + ".weight")
        known = (_COMPUTED, _GUESSING)
        return tuple(
            n for n in names if n not in claimed and not any(k.fullmatch(n) for k in known)
        )


def in_pairs(spec: DecoderSpec, tensors: Mapping[str, TensorSource]) -> dict[str, TensorSource]:
    """Return the sources of a family that rotates pairs of neighbours: (2 i, 2 i + 1).

    Queries times keys are the same with their dims in another order, so that the rows of both
    projections are taken in the order in which pairs are half of the rotating dims apart.
    """
    sources = dict(tensors)
    for i, layer in enumerate(spec.layers):
        if layer.attention is None or layer.rope < 0:
            continue
        pairs = (spec.kv_sizes(i)[1], spec.ropes[layer.rope].rotary_dim)
        for which in ("q", "k"):
            for suffix in ("weight", "bias"):
                name = f"layers.{i}.{which}_proj.{suffix}"
                if name in sources:
                    sources[name] = replace(sources[name], pairs=pairs)
    return sources


def standard_tensors(
    spec: DecoderSpec,
    names: Mapping[str, str] = PRE_NORMS,
    norm_add: float = 0.0,
    *,
    experts: str = "mlp.experts",
    expert_names: Mapping[str, str] = EXPERTS,
) -> dict[str, TensorSource]:
    """Sources under the names that most families use.

    Args:
        spec: says which tensors exist.
        names: of modules that are named otherwise, such as the norms around attention and MLP, by
            canonical name.
        norm_add: added to every norm's weight.
        experts: the module that holds a layer's experts.
        expert_names: names of an expert's modules.
    """
    stacked = _expert_tensors(spec, experts, expert_names)
    modules = {**_MODULES, **names}
    sources = {}
    for canonical in tensor_shapes(spec):
        *layer, module, suffix = canonical.split(".")
        prefix = f"model.{'.'.join(layer)}." if layer else ""
        add = norm_add if module.endswith("_norm") else 0.0
        if canonical in stacked:
            sources[canonical] = stacked[canonical]
            continue
        sources[canonical] = TensorSource(f"{prefix}{modules[module]}.{suffix}", add=add)
    return sources


def _expert_tensors(
    spec: DecoderSpec, place: str, names: Mapping[str, str]
) -> dict[str, TensorSource]:
    """Sources of the experts' matrices, as most families have them.

    They are one tensor each (`experts.7.gate_proj.weight`), or those of all experts are one
    (`experts.gate_proj`), gate and up together or not (`experts.gate_up_proj`), as transformers 5
    holds them.

    Args:
        spec: says which layers have experts.
        place: the module that holds them in a layer.
        names: names of an expert's modules.
    """
    sources = {}
    for op in operations(spec):
        if not isinstance(op, ExpertLinear):
            continue
        which = op.weight.rpartition("experts_")[2]
        prefix = f"model.layers.{op.layer}.{place}"
        alone = EXPERTS[which]
        joined = [(f"{prefix}.{alone}{suffix}", op.outputs, 0) for suffix in ("", ".weight")]
        if which != "down":
            first = op.outputs if which == "up" else 0
            joined.append((f"{prefix}.gate_up_proj", 2 * op.outputs, first))
        each = f"{prefix}.{{}}.{names[which]}.weight"
        stack = Stack(op.experts, op.outputs, each, tuple(joined))
        sources[f"{op.weight}.weight"] = TensorSource(each, stack=stack)
    return sources


def fused_tensors(
    spec: DecoderSpec,
    fused: Mapping[str, tuple[str, ...]],
    names: Mapping[str, str] = PRE_NORMS,
    *,
    experts: str = "mlp.experts",
    expert_names: Mapping[str, str] = EXPERTS,
) -> dict[str, TensorSource]:
    """Return `standard_tensors` with some projections as rows of one tensor.

    Args:
        spec: says which tensors exist.
        fused: for each module of a layer that holds several projections, which, in order.
        names: names of modules that are named otherwise, by canonical name.
        experts: see `standard_tensors`.
        expert_names: as above.
    """
    shapes = tensor_shapes(spec)
    apart = {part: part for parts in fused.values() for part in parts}
    sources = standard_tensors(spec, {**apart, **names}, experts=experts, expert_names=expert_names)
    for i in range(spec.num_layers):
        for module, parts in fused.items():
            first = 0
            for part in parts:
                if f"layers.{i}.{part}.weight" not in shapes:
                    continue  # a layer of another kind
                last = first + shapes[f"layers.{i}.{part}.weight"][0]
                for suffix in ("weight", "bias"):
                    if f"layers.{i}.{part}.{suffix}" in sources:
                        sources[f"layers.{i}.{part}.{suffix}"] = TensorSource(
                            f"model.layers.{i}.{module}.{suffix}", rows=(first, last)
                        )
                first = last
    return sources
