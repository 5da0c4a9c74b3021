"""Experts as CPU instructions.

    router | route and sort | quantise | gather | gate, up | act * up | quantise | down | mix

A bar is a barrier. Rows of what experts read and write are sorted by expert (`experts/launch.py`),
so that an expert's rows lie one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgetok.kernels_cpu.attention import launch as launch_attention
from edgetok.kernels_cpu.experts import launch
from edgetok.kernels_cpu.program.memory import Floats, Span
from edgetok.models.layers.experts import ExpertLinear, MixExperts, Route
from edgetok.runtime.cpu.lowering.target import Instructions, Near, Target

MODULES = ("experts.route", "experts.products")


def route(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """The choice of experts, and the run's lists."""
    del near  # one thread writes what all read
    op: Route = group[0]
    tokens = to.buffers.values[op.source].tokens_max
    return [
        launch.route(
            to.kernels,
            scores=to.at(op.source),
            chosen=to.at(op.chosen),
            shares=to.at(op.shares),
            bias=to.weight(op.bias) if op.bias else 0,
            lists=_lists(to, tokens, op.experts, op.top),
            tokens=tokens,
            experts=op.experts,
            top=op.top,
            sigmoid=op.score == "sigmoid",
            normed=op.normed,
            sum_eps=op.sum_eps,
            factor=op.factor,
            scales=to.weight(op.scales) if op.scales else 0,
        )
    ]


def products(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """Layers that share their input, of the chosen experts."""
    del near  # products share work out in their own way
    ops: Sequence[ExpertLinear] = group
    first, values, linears = ops[0], to.buffers.values, to.linears
    tokens = values[first.chosen].tokens_max
    lists = _lists(to, tokens, first.experts, first.top)
    x = values[first.source]
    if first.apart:
        x = _rows(x, first.top, first.inputs)
    weights = {op.weight: linears.weight(op.weight) for op in ops}
    made, inputs = linears.quantised(x, weights.values(), rows=first.top if first.apart else 1)
    alone = dict.fromkeys(inputs, 0)
    if not first.apart:
        gathered = {id(given): linears.sorted_rows(given, first.top) for given in inputs.values()}
        alone = {name: given.address for name, given in inputs.items()}
        different = {id(given): given for given in inputs.values()}
        for i, (key, given) in enumerate(different.items()):
            made.append(
                launch.gather(
                    to.kernels,
                    x=given,
                    to=gathered[key],
                    lists=lists,
                    experts=first.experts,
                    top=first.top,
                    wait=i == len(different) - 1,
                )
            )
        inputs = {name: gathered[id(given)] for name, given in inputs.items()}
    for i, op in enumerate(ops):
        made += launch.expert_products(
            to.kernels,
            weight=weights[op.weight],
            experts=op.experts,
            x=inputs[op.weight],
            alone=alone[op.weight],
            y=_rows(values[op.result], op.top, op.outputs),
            lists=lists,
            scratch=linears.scratch,
            own=to.buffers.scratch,
            own_bytes=launch_attention.scratch_bytes(to.head_dim),
            barrier=i == len(ops) - 1,
        )
    return made


def mix(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """The sum of the experts' results."""
    op: MixExperts = group[0]
    tokens = to.buffers.values[op.chosen].tokens_max
    return [
        launch.mix(
            to.kernels,
            source=to.at(op.source),
            shares=to.at(op.shares),
            result=to.at(op.result),
            lists=_lists(to, tokens, op.experts, op.top),
            tokens=tokens,
            experts=op.experts,
            top=op.top,
            size=op.size,
            scale=op.scale,
            add=op.add,
            wait=near.wait,
        )
    ]


def _rows(value: Floats, top: int, columns: int) -> Floats:
    """A value with `top` times `columns` columns as that many rows."""
    return Floats(value.address, value.tokens_max * top, columns, columns)


def _lists(to: Target, tokens: int, experts: int, top: int) -> Span:
    """The lists, which layers share: they are filled again by each."""
    nbytes = launch.lists_bytes(tokens, experts, top)
    return to.linears.shared(f"experts {tokens} {experts} {top}", nbytes)
