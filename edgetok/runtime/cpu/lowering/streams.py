"""Several residual streams, and sparse gates, as CPU instructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgetok.kernels_cpu.elementwise import launch_streams
from edgetok.models.layers.altup import AddEach, CorrectStreams, MatchSize, MixStreams
from edgetok.models.ops import Sparsify
from edgetok.runtime.cpu.lowering.target import Instructions, Near, Target


def sparsify(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """Cut off small gates."""
    op: Sparsify = group[0]
    return [
        launch_streams.sparsify(
            to.kernels, x=to.at(op.value), size=op.size, spread=op.spread, wait=near.wait
        )
    ]


def mix_streams(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """Predict all streams."""
    op: MixStreams = group[0]
    return [
        launch_streams.mix_streams(
            to.kernels,
            x=to.at(op.value),
            others=to.at(op.others),
            coefs=to.at(op.coefs),
            out=to.at(op.result),
            streams=op.streams,
            size=op.size,
            wait=near.wait,
        )
    ]


def correct_streams(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """Correct all streams."""
    op: CorrectStreams = group[0]
    return [
        launch_streams.correct_streams(
            to.kernels,
            x=to.at(op.value),
            source=to.at(op.source),
            coefs=to.at(op.coefs),
            others=to.at(op.others),
            out=to.at(op.result),
            scale=to.weight(op.scale) if op.scale else 0,
            streams=op.streams,
            size=op.size,
            wait=near.wait,
        )
    ]


def match_size(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """Give streams the size of another."""
    op: MatchSize = group[0]
    return [
        launch_streams.match_size(
            to.kernels,
            x=to.at(op.value),
            like=to.at(op.like),
            count=op.count,
            size=op.size,
            eps=op.eps,
            wait=near.wait,
        )
    ]


def add_each(to: Target, group: Sequence[Any], near: Near) -> Instructions:
    """Add the same to several streams."""
    op: AddEach = group[0]
    return [
        launch_streams.add_each(
            to.kernels,
            x=to.at(op.value),
            y=to.at(op.source),
            count=op.count,
            size=op.size,
            wait=near.wait,
        )
    ]
