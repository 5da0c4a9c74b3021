"""Helpers to write an ONNX graph: nodes, tiny constants, external tensors, functions.

Only operators of opset 21 and `com.microsoft` are used, so that plain onnxruntime runs the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgetok.formats.layout import DATA_FILE, TensorSlot

OPSET = 21
IR_VERSION = 10
MICROSOFT = "com.microsoft"
EDGETOK = "edgetok"

_ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
}


class GraphWriter:
    """A writer that appends nodes in order. Values are named after the node that computes them."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._used: dict[str, int] = {}

    def op(
        self,
        op_type: str,
        inputs: Sequence[str],
        scope: str,
        *,
        domain: str = "",
        outputs: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        """Append a node and name its first output.

        Args:
            op_type: the operator.
            inputs: names of values; "" leaves an optional one out.
            scope: where in the model this is, as `layers.3.q_proj`.
            domain: the operator's domain.
            outputs: names, where they matter; otherwise one output named `scope/op_type`.
            attributes: the node's attributes.
        """
        name = f"{scope}/{op_type}"
        count = self._used.get(name, 0)
        self._used[name] = count + 1
        if count:
            name = f"{name}_{count}"
        result = list(outputs) or [name]
        self.nodes.append(
            helper.make_node(op_type, list(inputs), result, name=name, domain=domain, **attributes)
        )
        return result[0]

    def ints(self, *values: int) -> str:
        """Return the name of a tiny int64 vector."""
        return self._constant(np.array(values, np.int64), "ints." + ".".join(map(str, values)))

    def int(self, value: int) -> str:
        """Return the name of an int64 scalar."""
        return self._constant(np.array(value, np.int64), f"int.{value}")

    def float(self, value: float) -> str:
        """Return the name of a float32 scalar."""
        return self._constant(np.array(value, np.float32), f"float.{value!r}")

    def array(self, name: str, values: np.ndarray) -> str:
        """Return the name of a small constant."""
        return self._constant(np.ascontiguousarray(values), name)

    def _constant(self, values: np.ndarray, name: str) -> str:
        name = "const." + name
        if name not in self.constants:
            self.constants[name] = helper.make_tensor(
                name, _ONNX_TYPES[values.dtype.name], values.shape, values.tobytes(), raw=True
            )
        return name


def external_tensor(slot: TensorSlot) -> onnx.TensorProto:
    """Return an initializer whose bytes are in `model.onnx.data`."""
    tensor = TensorProto(name=slot.name, data_type=_ONNX_TYPES[slot.dtype], dims=slot.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", DATA_FILE),
        ("offset", str(slot.offset)),
        ("length", str(slot.nbytes)),
    ):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def three_bit_functions() -> list[onnx.FunctionProto]:
    """Model-local functions for 3 bits, which no operator of onnxruntime has.

    Dequantize3Bits(low, high, scales, zeros; K) -> w: low [N, G, g / 4], high [N, G, g / 8] uint8,
        scales float16 [N, G], zeros uint8 [N, G] or [1, 1]; w float32 [N, K] is
        (low bits + 4 * high bit - zero) * scale without the last group's padding.
    MatMul3Bits(x, low, high, scales, zeros; N, K, block_size) -> x w^T.
    """
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(EDGETOK, 1)]
    return [
        helper.make_function(
            EDGETOK,
            "Dequantize3Bits",
            ["low", "high", "scales", "zeros"],
            ["w"],
            _dequantize_nodes(),
            opsets,
            attributes=["K"],
        ),
        helper.make_function(
            EDGETOK,
            "MatMul3Bits",
            ["x", "low", "high", "scales", "zeros"],
            ["y"],
            [
                _with_attribute_of_function(
                    helper.make_node(
                        "Dequantize3Bits", ["low", "high", "scales", "zeros"], ["w"], domain=EDGETOK
                    ),
                    "K",
                    "K",
                ),
                helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
                helper.make_node("MatMul", ["x", "wt"], ["y"]),
            ],
            opsets,
            attributes=["N", "K", "block_size"],
        ),
    ]


def _dequantize_nodes() -> list[onnx.NodeProto]:
    nodes: list[onnx.NodeProto] = []

    def add(op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def constant(output: str, values: np.ndarray) -> str:
        value = helper.make_tensor(
            output, _ONNX_TYPES[values.dtype.name], values.shape, values.tobytes(), raw=True
        )
        return add("Constant", [], output, value=value)

    def plane(name: str, bits: int) -> str:
        """[N, G, m] bytes -> [N, G, m * 8 / bits] codes."""
        shifts = constant(f"{name}_shifts", np.arange(0, 8, bits, dtype=np.uint8))
        mask = constant(f"{name}_mask", np.array((1 << bits) - 1, np.uint8))
        column = add("Unsqueeze", [name, last], f"{name}_column")
        shifted = add("BitShift", [column, shifts], f"{name}_shifted", direction="RIGHT")
        codes = add("BitwiseAnd", [shifted, mask], f"{name}_codes")
        return add("Reshape", [codes, per_group], f"{name}_flat")

    last = constant("last", np.array([-1], np.int64))
    first = constant("first", np.array([0], np.int64))
    second = constant("second", np.array([1], np.int64))
    per_group = constant("per_group", np.array([0, 0, -1], np.int64))
    per_row = constant("per_row", np.array([0, -1], np.int64))
    two = constant("two", np.array(2, np.uint8))
    high = add("BitShift", [plane("high", 1), two], "high_shifted_back", direction="LEFT")
    codes = add("BitwiseOr", [plane("low", 2), high], "codes")
    q = add("Cast", [codes], "q", to=TensorProto.FLOAT)
    zero = add("Unsqueeze", [add("Cast", ["zeros"], "zero", to=TensorProto.FLOAT), last], "zero3")
    scale = add("Unsqueeze", [add("Cast", ["scales"], "s", to=TensorProto.FLOAT), last], "scale3")
    w = add("Mul", [add("Sub", [q, zero], "centred"), scale], "w_groups")
    rows = add("Reshape", [w, per_row], "w_rows")
    nodes.append(
        _with_attribute_of_function(helper.make_node("Constant", [], ["k"]), "value_int", "K")
    )
    end = add("Unsqueeze", ["k", first], "end")
    add("Slice", [rows, first, end, second], "w")
    return nodes


def _with_attribute_of_function(node: onnx.NodeProto, name: str, of: str) -> onnx.NodeProto:
    """Let the attribute `name` of a node inside a function be the function's attribute `of`."""
    attribute = node.attribute.add()
    attribute.name, attribute.ref_attr_name, attribute.type = name, of, onnx.AttributeProto.INT
    return node
