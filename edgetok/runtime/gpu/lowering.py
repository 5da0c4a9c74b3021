"""Operations of a decoder as launches on a device: one entry for each kind.

Another kind is lowered by adding to `LOWERINGS`. A launch may do several operations that follow
each other: an entry gets all that are left and says how many it did. Inputs of products are kept in
plane order (`jit.py`); what is taken apart into heads lies side by side in rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgetok.errors import UnsupportedError
from edgetok.kernels_gpu.activation import KINDS, gated
from edgetok.kernels_gpu.attention import attention, attention_mass
from edgetok.kernels_gpu.embed import embed
from edgetok.kernels_gpu.matmul_nbits import Epilogue
from edgetok.kernels_gpu.norm import rms_norm
from edgetok.kernels_gpu.rope import rope_append
from edgetok.models import ops
from edgetok.models.operations import grouped
from edgetok.runtime.gpu.target import Rows, Target
from edgetok.runtime.gpu.weights import Product

if TYPE_CHECKING:
    import torch

Groups = Sequence[tuple[ops.Op, ...]]


Launch = Callable[[Rows], None]


def lower(operations: Sequence[ops.Op], target: Target) -> tuple[list[Launch], int | None]:
    """The launches of some operations.

    Returns:
        Launches, and which of them is the last one that stores for later runs.

    Raises:
        UnsupportedError: an operation has no entry in `LOWERINGS`, or one that asks for more.
    """
    launches: list[Launch] = []
    stored = None
    groups = grouped(operations)
    while groups:
        kind = type(groups[0][0])
        if kind not in LOWERINGS:
            raise _unsupported(groups[0][0], "expected one of " + _names(LOWERINGS))
        launch, done = LOWERINGS[kind](target, groups)
        if any(op.STORES for group in groups[:done] for op in group):
            stored = len(launches)
        launches.append(launch)
        groups = groups[done:]
    return launches, stored


def _embed(to: Target, groups: Groups) -> tuple[Launch, int]:
    op: Any = groups[0][0]
    table = to.weights.product("lm_head" if to.tied else op.weight).parts[0][1]
    x = to.planes(op.result, op.size)

    def launch(rows: Rows) -> None:
        embed(rows.run()[0].tokens, table, rows.of(x), op.scale)

    return launch, 1


def _norm(to: Target, groups: Groups) -> tuple[Launch, int]:
    op: Any = groups[0][0]
    if op.centred:
        raise _unsupported(op, "expected one that is not centred")
    if op.heads is not None:
        return _store(to, groups)
    following = groups[1][0] if len(groups) > 1 else None
    add = None
    done, target = 1, op.result
    if isinstance(following, ops.Linear) and following.source == op.result:
        if not _read_later(op.result, groups[2:]):
            launch, done = _product(to, groups[1:], norm=op)
            return launch, done + 1
    elif (
        isinstance(following, ops.AddScaled)
        and following.source == op.result
        and not _read_later(op.result, groups[2:])
    ):
        done, target, add = 2, following.value, following.scale
    place = to.columns(op.source)
    if place is not None:
        if target != op.source:
            raise _unsupported(op, f"{op.source} can only be normalised in place")
        buffer, at, width = place
        weight = to.weights.norm(op.weight, planes=False)

        def launch(rows: Rows) -> None:
            part = rows.of(buffer)[:, at : at + width]
            rms_norm(part, weight, part, size=op.size, eps=op.eps)

        return launch, done
    source, out = to.read_planes(op.source, op.size), to.planes(target, op.size)
    planes = to.weights.norm(op.weight, planes=True).view(-1)

    def launch_planes(rows: Rows) -> None:
        x, y = rows.of(source).flatten(1), rows.of(out).flatten(1)
        rms_norm(x, planes, y, size=op.size, eps=op.eps, add=add)

    return launch_planes, done


def _product(to: Target, groups: Groups, norm: ops.Norm | None = None) -> tuple[Launch, int]:
    """Layers that share an input, which may be normed in passing, and what follows them."""
    group: Any = groups[0]
    first: ops.Linear = group[0]
    product = to.weights.product(*(op.weight for op in group))
    source = to.read_planes(norm.source if norm is not None else first.source, first.inputs)
    weight = None if norm is None else to.weights.norm(norm.weight, planes=True)
    eps = 0.0 if norm is None else norm.eps
    following: Any = groups[1][0] if len(groups) > 1 else None
    if isinstance(following, ops.ActivationMul):
        names = [op.result for op in group]
        if names == [following.gate, following.up] and all(op.scale == 1 for op in group):
            return _gated_product(to, product, group, source, weight, eps, following), 2
    epilogue = Epilogue(factor=first.scale, add=first.add, planes=first.result != "logits")
    done = 1
    if isinstance(following, ops.SoftCap) and following.value == first.result == "logits":
        epilogue, done = replace(epilogue, cap=following.limit), 2
    if len(group) > 1:
        if any(op.scale != 1 or op.add for op in group):
            raise _unsupported(first, "layers that share an input cannot be scaled or added")
        epilogue, out = Epilogue(), to.side_by_side(group)
    elif first.result == "logits":

        def launch_head(rows: Rows) -> None:
            if rows.logits is None:
                raise UnsupportedError("logits are the head's result alone")
            to.multiply(product, rows.of(source), rows.logits, epilogue, weight, eps)

        return launch_head, done
    else:
        out = to.planes(first.result, first.outputs)

    def launch(rows: Rows) -> None:
        to.multiply(product, rows.of(source), rows.of(out), epilogue, weight, eps)

    return launch, done


def _gated_product(
    to: Target,
    product: Product,
    group: Sequence[ops.Linear],
    source: torch.Tensor,
    norm: torch.Tensor | None,
    eps: float,
    op: ops.ActivationMul,
) -> Launch:
    """Gate, up and activation: one launch where both are one product."""
    size = op.size
    if op.kind not in KINDS:
        raise _unsupported(op, f"{op.kind}, expected one of {', '.join(KINDS)}")
    if product.joined is not None:
        epilogue, out = Epilogue(gate=op.kind, planes=True), to.planes(op.result, size)

        def launch(rows: Rows) -> None:
            to.multiply(product, rows.of(source), rows.of(out), epilogue, norm, eps)

        return launch
    apart = to.side_by_side(group)
    result = to.planes(op.result, size)

    def launch_apart(rows: Rows) -> None:
        both = rows.of(apart)
        to.multiply(product, rows.of(source), both, Epilogue(), norm, eps)
        gated(both[:, :size], both[:, size:], rows.of(result), op.kind)

    return launch_apart


def _store(to: Target, groups: Groups) -> tuple[Launch, int]:
    """Norms of heads, rotations and the store: one launch for all."""
    norms: dict[str, ops.Norm] = {}
    ropes: dict[str, int] = {}
    done, op = 0, groups[0][0]
    while not isinstance(op, ops.Store):
        if isinstance(op, ops.Norm) and op.heads is not None and op.source == op.result:
            norms[op.source] = op
        elif isinstance(op, ops.Rope):
            ropes[op.value] = op.rope
        elif not isinstance(op, ops.Queries):
            raise _unsupported(op, "expected what rotates and stores heads")
        done += 1
        if done == len(groups):
            raise _unsupported(op, "heads are normed and rotated where they are stored")
        op = groups[done][0]
    store, attend = op, groups[done + 1][0] if done + 1 < len(groups) else None
    if not isinstance(attend, ops.Attend):
        raise _unsupported(store, "expected attention right behind it")
    values = (attend.queries, store.keys, store.values)
    places = [to.columns(value) for value in values]
    if any(place is None for place in places):
        raise _unsupported(store, "queries, keys and values must be one group of layers")
    buffer = to.buffers["columns", *values]
    turned = values[:2]
    rope = ropes.get(values[0], -1)
    if set(norms) not in (set(), set(turned)) or set(ropes) not in (set(), set(turned)):
        raise _unsupported(store, "queries and keys must be normed and rotated alike")
    weights, eps = None, 0.0
    if norms:
        q_norm, k_norm = (to.weights.norm(norms[v].weight, planes=False) for v in turned)
        weights, eps = (q_norm, k_norm), norms[values[0]].eps
    q = to.heads(attend.queries, attend.heads, attend.head_dim)
    layer = _layer(store)

    def launch(rows: Rows) -> None:
        inputs, cache = rows.run()
        begin, end = cache.rows[layer]
        rope_append(
            rows.of(buffer),
            rows.of(q),
            cache.layers[layer],
            token_positions=inputs.positions,
            token_slots=inputs.slots[begin:end],
            rope=inputs.ropes[rope] if rope >= 0 else None,
            norms=weights,
            eps=eps,
            query_row=inputs.query_row,
        )

    return launch, done + 1


def _attend(to: Target, groups: Groups) -> tuple[Launch, int]:
    op: Any = groups[0][0]
    if op.sinks:
        raise _unsupported(op, "expected heads without sinks")
    if op.both_sides:
        raise _unsupported(op, "expected tokens that see what is before them")
    q = to.heads(op.queries, op.heads, op.head_dim)
    mixed = to.planes(op.result, op.heads * op.head_dim)
    log_sums, partials = to.log_sums(op.heads), to.partials(op)
    layer = _layer(op)

    def launch(rows: Rows) -> None:
        inputs, cache = rows.run()
        slots, one = cache.layers[layer], rows.count == 1
        seen: dict[str, Any] = {
            "token_positions": rows.of(inputs.positions),
            "window": op.window,
            "scale": op.scale,
            "softcap": op.softcap,
        }
        lse = rows.of(log_sums) if slots.mass is not None else None
        attention(
            rows.of(q),
            slots,
            rows.of(mixed),
            ordered=cache.ordered[layer] and not one,
            partials=partials if one else None,
            lse=lse,
            **seen,
        )
        if lse is not None:
            attention_mass(rows.of(q), slots, lse, **seen)

    return launch, 1


def _add_scaled(to: Target, groups: Groups) -> tuple[Launch, int]:
    op: Any = groups[0][0]
    x, y = to.read_planes(op.value, op.size), to.read_planes(op.source, op.size)

    def launch(rows: Rows) -> None:
        rows.of(x).add_(rows.of(y), alpha=op.scale)

    return launch, 1


def _read_later(value: str, groups: Groups) -> bool:
    """Return whether a value is read before it is written again."""
    for group in groups:
        for op in group:
            if value in op.reads:
                return True
            if value in op.writes:
                return False
    return False


def _layer(op: ops.Op) -> int:
    """The layer of an operation that looks at a cache."""
    if op.layer is None:
        raise _unsupported(op, "expected it in a layer: caches are a layer's")
    return op.layer


def _unsupported(op: ops.Op, why: str) -> UnsupportedError:
    return UnsupportedError(f"the GPU backend does not compute {type(op).__name__}: {why}")


def _names(kinds: Any) -> str:
    return ", ".join(kind.__name__ for kind in kinds)


Lowering = Callable[[Target, Groups], tuple[Launch, int]]
LOWERINGS: dict[type[ops.Op], Lowering] = {
    ops.Embed: _embed,
    ops.Norm: _norm,
    ops.Linear: _product,
    ops.Queries: _store,
    ops.Rope: _store,
    ops.Store: _store,
    ops.Attend: _attend,
    ops.AddScaled: _add_scaled,
}
"""From the target and the operations that are left (`grouped`) to a launch, and how many groups it
did."""
