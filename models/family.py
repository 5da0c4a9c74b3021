"""The result of a family file, and the functions that family files are built from."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.errors import CheckpointError
from edgetok.models.config.reader import ConfigReader
from edgetok.models.layers.attention import Attention
from edgetok.models.layers.experts import ExpertLinear, Experts
from edgetok.models.operations import operations
from edgetok.models.ops import Activation
from edgetok.models.spec import DecoderSpec, LayerSpec
from edgetok.models.tensors import tensor_shapes

# Buffers that older releases of transformers saved; they are computed, not trained.
_COMPUTED = re.compile(r"(.*\.)?rotary_emb(_local)?\.(inv_freq|original_inv_freq)")
# Layers that guess further tokens. They change no logits, and transformers does not load them.
_GUESSING = re.compile(r"mtp\..*")

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
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
PRE_NORMS = {"pre_mlp_norm": "post_attention_layernorm"}
SANDWICH_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "pre_mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True, slots=True)
class Stack:
    """The places where checkpoints may have the matrices of a layer's experts.

    Attributes:
        count: how many experts there are.
        rows: of one of their matrices.
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
    """

    name: str
    rows: tuple[int, int] | None = None
    add: float = 0.0
    stack: Stack | None = None
    flat: bool = False
    pieces: tuple[tuple[int, int], ...] = ()
    columns: tuple[int, int] | None = None

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
            dims: of the canonical tensor; one: rows lie behind each other.
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
        """Return what it takes of rows of a tensor, before anything is added; see `shape`."""
        if self.columns is None:
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
    """

    spec: DecoderSpec
    tensors: Mapping[str, TensorSource] = field(hash=False)
    unused: frozenset[str] = frozenset()

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
        expert_names: of an expert's modules.
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
        names: of an expert's modules.
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


def decoder_sizes(
    config: ConfigReader,
    *,
    tied: bool = False,
    kv_heads: int | None = None,
    head_dim: int = 0,
    norm_eps: str = "rms_norm_eps",
) -> dict[str, Any]:
    """Return the fields of `DecoderSpec` that every family reads under the same keys.

    Args:
        config: read, and the keys are marked as understood.
        tied: default for an absent `tie_word_embeddings`.
        kv_heads: default for an absent `num_key_value_heads`; None: as many as heads.
        head_dim: default for an absent `head_dim`; 0: hidden_size / num_attention_heads.
        norm_eps: key of what norms add to the mean.
    """
    hidden_size = config.integer("hidden_size", high=1 << 20)
    num_heads = config.integer("num_attention_heads", high=1 << 12)
    num_kv_heads = config.optional_integer("num_key_value_heads", kv_heads, high=1 << 12)
    dim = config.optional_integer("head_dim", head_dim or None, high=1 << 12)
    if dim is None:
        dim, rest = divmod(hidden_size, num_heads)
        if rest or not dim:
            raise CheckpointError(
                f"{config.where}: hidden_size {hidden_size} is not a multiple of "
                f"num_attention_heads {num_heads} and head_dim is not given; add head_dim"
            )
    if num_heads % (num_kv_heads or num_heads):
        raise CheckpointError(
            f"{config.where}: num_attention_heads {num_heads} is not a multiple of "
            f"num_key_value_heads {num_kv_heads}"
        )
    return {
        "family": config.text("model_type"),
        "vocab_size": config.integer("vocab_size", high=1 << 24),
        "hidden_size": hidden_size,
        "intermediate_size": config.integer("intermediate_size", high=1 << 22),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads or num_heads,
        "head_dim": dim,
        "context_tokens": config.integer("max_position_embeddings", high=1 << 28),
        "norm_eps": config.number(norm_eps, low=0.0, high=1.0),
        "tied": config.flag("tie_word_embeddings", tied),
        "attn_scale": dim**-0.5,
    }


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
        names: of modules that are named otherwise, by canonical name.
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


def sqrt_embed_scale(config: ConfigReader) -> float:
    """sqrt(hidden_size), rounded to the type that the checkpoint was trained and is run in."""
    scale = np.float32(config.integer("hidden_size", high=1 << 20) ** 0.5)
    dtype = config.text("dtype", config.text("torch_dtype", "float32")).removeprefix("torch.")
    if dtype == "float16":
        return float(np.float16(scale))
    if dtype == "bfloat16":
        # Round half to even on the upper 16 bits of a positive float32.
        bits = int(scale.view(np.uint32))
        bits += 0x7FFF + (bits >> 16 & 1)
        return float(np.uint32(bits & 0xFFFF0000).view(np.float32))
    return float(scale)


def read_activation(
    config: ConfigReader, key: str = "hidden_act", absent: str = "silu"
) -> Activation:
    """Return the MLP's activation."""
    name = config.text(key, absent)
    if name not in _ACTIVATIONS:
        raise config.unsupported(key, name, ", ".join(sorted(_ACTIVATIONS)))
    return _ACTIVATIONS[name]


def layer_count(config: ConfigReader) -> int:
    """Return the number of decoder layers."""
    return config.integer("num_hidden_layers", high=4096)


def read_window(config: ConfigReader, absent: int | None = None) -> int:
    """`sliding_window` in tokens; 0 where it is null."""
    return config.optional_integer("sliding_window", absent, high=1 << 28) or 0


def uniform_layers(config: ConfigReader, window: int = 0) -> tuple[LayerSpec, ...]:
    """Layers that are all alike."""
    return (LayerSpec(window=window),) * layer_count(config)


def expert_layers(config: ConfigReader, experts: Experts, window: int) -> tuple[LayerSpec, ...]:
    """Layers of which each `decoder_sparse_step`-th has experts, but none of `mlp_only_layers`.

    Args:
        config: read, and the keys are marked as understood.
        experts: of those layers.
        window: of all layers' attention; 0 is none.
    """
    config.value("router_aux_loss_coef")  # of the training
    count = layer_count(config)
    step = config.integer("decoder_sparse_step", 1, high=4096)
    dense = config.value("mlp_only_layers") or []
    if not isinstance(dense, list | tuple) or not all(type(i) is int for i in dense):
        raise config.unsupported("mlp_only_layers", dense, "a list of layers")
    mixer = Attention(window=window)
    return tuple(
        LayerSpec(mixer=mixer, ffn=None if i in dense or (i + 1) % step else experts)
        for i in range(count)
    )


def mixed_layers(
    config: ConfigReader, window: int, sliding: Callable[[int], bool]
) -> tuple[LayerSpec, ...]:
    """Layers of which some have a sliding window.

    Args:
        config: its `layer_types`, where given, says which layers slide.
        window: window of the sliding layers, in tokens; 0 is none.
        sliding: whether layer i slides, where `layer_types` is absent.

    Raises:
        UnsupportedError: a layer type is neither full nor sliding attention.
        CheckpointError: not as many layer types as layers.
    """
    count = layer_count(config)
    types = config.choices("layer_types", ("full_attention", "sliding_attention"), count)
    slides = (
        sliding(i) if types is None else types[i] == "sliding_attention" for i in range(count)
    )
    return tuple(LayerSpec(window=window if slide else 0) for slide in slides)


def upper_window_layers(config: ConfigReader) -> tuple[LayerSpec, ...]:
    """Layers of which those from `max_window_layers` on slide if `use_sliding_window` says so."""
    window = read_window(config, absent=4096)
    first = config.integer("max_window_layers", 28, low=0)
    used = config.flag("use_sliding_window")
    return mixed_layers(config, window if used else 0, lambda i: i >= first)
