"""Compare an artefact's graph with the one that the converter writes for its spec.

`edgetok.formats.graph_check` sees that a graph has the tensors, sizes and kinds of operators that
its spec calls for, without the onnx package. It does not see that a Sigmoid became a Tanh: both are
operators of edgetok. Here every node, constant, input and output is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx

from edgetok.converter.write.onnx_graph import build
from edgetok.errors import UnsupportedError
from edgetok.formats.artefact import Artefact


def first_difference(artefact: Artefact) -> str | None:
    """Return where an artefact's graph is another one than this version writes; None: nowhere.

    Args:
        artefact: an opened one of edgetok.

    Returns:
        What was found and what is expected, in words.

    Raises:
        UnsupportedError: another exporter wrote it.
    """
    if artefact.spec is None or artefact.layout is None:
        raise UnsupportedError(f"{artefact.folder}: has no edgetok spec to write a graph for")
    expected = build(artefact.spec, artefact.layout, artefact.formats)
    found = onnx.ModelProto.FromString(artefact.graph_path.read_bytes())
    return (
        _sequence("node", found.graph.node, expected.graph.node)
        or _named("constant", found.graph.initializer, expected.graph.initializer)
        or _sequence("input", found.graph.input, expected.graph.input)
        or _sequence("output", found.graph.output, expected.graph.output)
        or _named("function", found.functions, expected.functions)
        or _named("operator set", found.opset_import, expected.opset_import)
    )


def _sequence(what: str, found: Sequence[Any], expected: Sequence[Any]) -> str | None:
    for item, right in zip(found, expected, strict=False):
        if not _same(item, right):
            return f"{what} {item.name!r:.80} is {_words(item)}, expected {_words(right)}"
    if len(found) != len(expected):
        return f"{len(found)} {what}s, expected {len(expected)}"
    return None


def _named(what: str, found: Iterable[Any], expected: Iterable[Any]) -> str | None:
    """Compare what has no order."""
    mine, right = ({_name(x): x for x in items} for items in (found, expected))
    odd = sorted(mine.keys() ^ right.keys())
    if odd:
        return f"{what} {odd[0]!r:.80} is {'missing' if odd[0] in right else 'not expected'}"
    for name, item in mine.items():
        if not _same(item, right[name]):
            return f"{what} {name!r:.80} has another value than is expected"
    return None


def _name(item: Any) -> str:
    return str(item.domain if isinstance(item, onnx.OperatorSetIdProto) else item.name)


def _same(one: Any, other: Any) -> bool:
    return bool(
        one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    )


def _words(item: Any) -> str:
    if not isinstance(item, onnx.NodeProto):
        return "another type or shape"
    values = [f"{a.name}={onnx.helper.get_attribute_value(a)!r:.40}" for a in item.attribute]
    return (
        f"{item.op_type}({', '.join(item.input)!s:.200}{''.join(f'; {v}' for v in values)!s:.200})"
    )
