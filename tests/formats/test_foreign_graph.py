"""Graphs of other exporters: what would kill or hang the process is refused beforehand."""

# ruff: noqa: E501 - a case is one line

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetok.errors import ArtefactError
from edgetok.formats.foreign_graph import check_foreign_graph

PATH = Path("model.onnx")


def graph(*nodes: onnx.NodeProto, **constants: Any) -> onnx.ModelProto:
    values = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, [1, None]),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, None, 8]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    return helper.make_model(helper.make_graph(list(nodes), "g", inputs, outputs, values))


def node(kind: str, *inputs: str, out: str = "y", **more: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), [out], **more)


BODY = helper.make_graph([], "body", [], [])
I64 = np.int64
REFUSED = {
    "endless Loop": (graph(node("Loop", "m", "c", body=BODY), m=I64(1 << 62), c=np.bool_(True)), "not an operator"),
    "If": (graph(node("If", "c", then_branch=BODY, else_branch=BODY), c=np.bool_(True)), "not an operator"),
    "Scan": (graph(node("Scan", "ids", body=BODY, num_scan_inputs=1)), "not an operator"),
    "a graph in an operator": (graph(node("Add", "x", "x", body=BODY)), "graph of its own"),
    "other domain": (graph(node("Add", "x", "x", domain="evil")), "not an operator"),
    "SIGFPE": (graph(node("Div", "a", "b"), a=I64(-(1 << 63)), b=I64(-1)), "by 0 or -1"),
    "Div by 0": (graph(node("Div", "ids", "b"), b=I64(0)), "by 0 or -1"),
    "Div by a 0 among others": (graph(node("Div", "ids", "b"), b=np.array([1, 0, 2])), "by 0 or -1"),
    "Mod by -1": (graph(node("Mod", "ids", "b"), b=np.int32(-1)), "by 0 or -1"),
    "Div by an input": (graph(node("Div", "ids", "ids")), "not a constant"),
    "Div by a computed integer": (graph(node("Shape", "x", out="s"), node("Sub", "s", "s", out="z"), node("Div", "ids", "z")), "not a constant"),
    "Div by a cast": (graph(node("Cast", "x", out="s", to=TensorProto.INT64), node("Div", "ids", "s")), "not a constant"),
    "Div by Constant": (graph(helper.make_node("Constant", [], ["b"], value_int=-1), node("Div", "ids", "b")), "by 0 or -1"),
    "huge Range": (graph(node("Range", "a", "b", "c"), a=I64(0), b=I64(10**12), c=I64(1)), "makes a size"),
    "huge shape": (graph(node("ConstantOfShape", "s"), s=np.array([1 << 15, 1 << 15])), "makes a size"),
    "huge factor": (graph(node("Mul", "ids", "b"), b=I64(1 << 40)), "makes a size"),
    "circle": (graph(node("Add", "b", "b", out="a"), node("Add", "a", "a", out="b"), node("Div", "ids", "a")), "not a constant"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    model, message = REFUSED[what]
    with pytest.raises(ArtefactError, match=rf"^model\.onnx: .*{message}") as caught:
        check_foreign_graph(PATH, model)
    assert "\n" not in str(caught.value)


def test_functions_are_looked_into() -> None:
    model = graph(node("g", "x", domain="f"))
    good = helper.make_function("f", "g", ["a"], ["b"], [node("Add", "a", "a", out="b")], [])
    model.functions.append(good)
    check_foreign_graph(PATH, model)
    for bad, message in (
        (node("g", "a", out="b", domain="f"), "calls itself"),
        (node("Loop", "a", out="b", body=BODY), "not an operator"),
        (node("Div", "a", "a", out="b"), "not a constant"),
    ):
        del model.functions[:]
        model.functions.append(helper.make_function("f", "g", ["a"], ["b"], [bad], []))
        with pytest.raises(ArtefactError, match=message):
            check_foreign_graph(PATH, model)


def test_arithmetic_of_decoders_passes() -> None:
    model = graph(
        node("Mul", "x", "x", out="q"),
        node("ReduceMean", "q", out="m"),
        node("Add", "m", "eps", out="e"),
        node("Sqrt", "e", out="r"),
        node("Div", "x", "r", out="n"),
        node("Shape", "ids", out="s"),
        node("Div", "s", "two", out="h"),
        node("Range", "zero", "s", "one", out="p"),
        node("Cast", "p", out="pf", to=TensorProto.FLOAT),
        node("Div", "pf", "base", out="f"),
        node("Div", "f", "pf", out="g"),
        node("Where", "mask", "g", "f", out="w"),
        node("Div", "g", "w"),
        eps=np.float32(1e-6), two=I64(2), zero=I64(0), one=I64(1), base=np.float32(0),
        mask=np.bool_(True),
    )  # fmt: skip
    check_foreign_graph(PATH, model)
