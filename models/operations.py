"""A decoder as a list of operations, from its spec alone, and what follows from their order.

The backends, the ONNX graph, the converter's stages, the order of tensors in an artefact and the
tests' NumPy decoder are all derived from this list.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence

from edgetok.models.layers.altup import joining_operations, streams_operations
from edgetok.models.layers.experts import ExpertLinear
from edgetok.models.layers.kind import LayerPart, Place
from edgetok.models.layers.layer_input import input_operations
from edgetok.models.ops import Embed, Linear, Norm, Op, SoftCap, Stateful
from edgetok.models.spec import DecoderSpec


@functools.lru_cache(maxsize=16)
def operations(spec: DecoderSpec, first_layer: int = 0) -> tuple[Op, ...]:
    """Return every operation from token ids to `logits` and `vector`, in order of execution.

    Values: `x` is the residual stream, `h` its norm or what is added to it, `logits` the result.

    Args:
        spec: the decoder, or consecutive layers of one.
        first_layer: the number of the spec's first layer in the names of weights.
    """
    return (
        *body_operations(spec, first_layer),
        *head_operations(spec),
        *vector_operations(spec),
    )


def body_operations(spec: DecoderSpec, first_layer: int = 0) -> Iterator[Op]:
    """Return the operations from token ids to the residual stream behind the last layer."""
    yield Embed(
        weight="embed_tokens",
        result="x",
        rows=spec.vocab_size,
        size=spec.hidden_size,
        scale=spec.embed_scale,
    )
    if spec.per_layer_size:
        yield from input_operations(spec)
    if spec.streams:
        yield from streams_operations(spec)
    for i in range(spec.num_layers):
        yield from layer_operations(spec, i, first_layer)
    if spec.streams:
        yield from joining_operations(spec)


def layer_operations(spec: DecoderSpec, layer: int, first_layer: int = 0) -> Iterator[Op]:
    """Return the operations of one layer: its mixer, then its feed-forward network."""
    prefix = f"layers.{first_layer + layer}."
    parts: tuple[tuple[LayerPart, str, str], ...] = (
        (spec.layers[layer].mixer, "input_norm", "post_attention_norm"),
        (spec.layers[layer].ffn, "pre_mlp_norm", "post_mlp_norm"),
    )
    for part, before, after in parts:
        source = "h" if spec.pre_norm else "x"
        place = Place(spec=spec, layer=layer, prefix=prefix, source=source, after=after)
        yield from part.before(place)
        if spec.pre_norm and not (spec.parallel and part is spec.layers[layer].ffn):
            yield Norm(
                layer=layer,
                weight=prefix + before,
                source="x",
                result="h",
                size=spec.hidden_size,
                eps=spec.norm_eps,
                centred=spec.centred_norms,
            )
        yield from part.operations(place)


def head_operations(spec: DecoderSpec) -> Iterator[Op]:
    """Return the operations from the residual stream to logits."""
    yield Norm(
        weight="final_norm",
        source="x",
        result="h",
        size=spec.hidden_size,
        eps=spec.norm_eps,
        centred=spec.centred_norms,
    )
    yield Linear(
        weight="lm_head",
        source="h",
        result="logits",
        inputs=spec.hidden_size,
        outputs=spec.vocab_size,
        scale=spec.logit_scale,
    )
    if spec.logit_softcap:
        yield SoftCap(value="logits", size=spec.vocab_size, limit=spec.logit_softcap)


def vector_operations(spec: DecoderSpec) -> Iterator[Op]:
    """Return the operations from `h`, behind the final norm, to `vector`; none: it is `h`.

    They have no bias, so that the mean over tokens may be taken before them.
    """
    inputs, source = spec.hidden_size, "h"
    for i, outputs in enumerate(spec.vector_sizes):
        yield Linear(
            weight=f"vector_proj_{i}",
            source=source,
            result="vector",
            inputs=inputs,
            outputs=outputs,
            kept=True,
        )
        inputs, source = outputs, "vector"


def grouped(ops: Iterable[Op]) -> list[tuple[Op, ...]]:
    """The operations in order, linear layers that follow each other and share their input as one.

    Such layers need the input's quantisation, norm or statistics only once.
    """
    groups: list[tuple[Op, ...]] = []
    for op in ops:
        before = groups[-1][-1] if groups else None
        if (
            isinstance(op, Linear | ExpertLinear)
            and isinstance(before, Linear | ExpertLinear)
            and type(op) is type(before)
            and op.source == before.source != before.result
        ):
            groups[-1] = (*groups[-1], op)
        else:
            groups.append((op,))
    return groups


def stages(ops: Iterable[Op]) -> list[tuple[Linear | ExpertLinear, ...]]:
    """Return the linear layers in order of execution, those that share an input together."""
    result = []
    for group in grouped(ops):
        linears = tuple(op for op in group if isinstance(op, Linear | ExpertLinear))
        if linears:
            result.append(linears)
    return result


def makers(
    ops: Sequence[Op], stage: Sequence[Linear | ExpertLinear]
) -> tuple[Op, Norm | Linear] | None:
    """Return the operations that can absorb scales of a stage's input.

    Args:
        ops: operations of the whole layer.
        stage: one of `stages(ops)`.

    Returns:
        The operation whose result the input is, and the norm or linear layer whose weights (rows,
        of a linear layer) the result scales with; None where there is none, as behind a sum.
    """
    source = stage[0].source
    first = next(i for i, op in enumerate(ops) if op is stage[0])
    before, behind = list(ops[:first]), ops[first + len(stage) :]
    maker = _last_writer(before, source)
    if maker is None or maker.scales_with is None:
        return None
    until = next((i for i, op in enumerate(behind) if source in op.writes), len(behind) - 1)
    others = (*before[before.index(maker) + 1 :], *behind[: until + 1])
    if any(source in op.reads for op in others):
        return None  # they would get the scales, too
    if isinstance(maker, Norm):
        return (maker, maker) if maker.heads is None else None
    scaled = _last_writer(before[: before.index(maker)], maker.scales_with)
    return (maker, scaled) if isinstance(scaled, Linear) and not scaled.add else None


def expert_counts(ops: Iterable[Op]) -> dict[str, tuple[int, int]]:
    """Return the experts of each stacked matrix, by its weight, and how many a token reads."""
    return {op.weight: (op.experts, op.top) for op in ops if isinstance(op, ExpertLinear)}


def stateful(ops: Iterable[Op]) -> list[Stateful]:
    """Return the operations that keep something of earlier tokens, in order."""
    return [op for op in ops if isinstance(op, Stateful)]


def kept_at_16_bits(ops: Iterable[Op]) -> frozenset[str]:
    """Return the linear layers that are not quantised, whatever the bits of the others."""
    return frozenset(op.weight for op in ops if isinstance(op, Linear) and op.kept)


def value_columns(ops: Iterable[Op]) -> dict[str, int]:
    """Return the number of columns that a buffer of each value needs."""
    columns: dict[str, int] = {}
    for op in ops:
        for name, count in op.writes.items():
            columns[name] = max(count, columns.get(name, 0))
    return columns


def _last_writer(ops: Sequence[Op], value: str) -> Op | None:
    return next((op for op in reversed(ops) if value in op.writes), None)
