"""Formats that MatMulNBits and GatherBlockQuantized do not take as they are, in their terms.

    5 and 6 bits   and 3 with super-scales: planes are joined to codes of 8 bits, with
                   128 - 2^(bits - 1) added: one MatMulNBits
    offsets        x w^T = MatMulNBits(x, codes) + (sums of x over each group) offsets^T
    super-scales   int8 scales times their super-scales
    a table        a byte of codes chooses two levels, 128 added: one MatMulNBits of 8 bits

What does not depend on x are nodes over initializers, which onnxruntime computes once, when it
loads the graph. The file holds the planes, the integers and the super-scales.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from edgetok.converter.write.onnx_nodes import MICROSOFT, GraphWriter
from edgetok.formats.layout import (
    HIGH_BITS,
    LOW_BITS,
    SUPER_GROUP,
    TABLE,
    LinearShape,
    TensorFormat,
)

CODES = ".codes"  # suffix of the value that holds joined planes


class Planes:
    """Writes nodes for layers of formats that are `TensorFormat.grouped`."""

    def __init__(self, g: GraphWriter, accuracy_level: int) -> None:
        self._g = g
        self._accuracy_level = accuracy_level

    def linear(self, x: str, name: str, form: TensorFormat, shape: LinearShape) -> str:
        """x w^T, x [batch, tokens, K]."""
        g, bits, size = self._g, form.bits, form.group_size
        tensors = {suffix: name + suffix for suffix in (*_suffixes(form), TABLE)}
        scales = self._floats(tensors, ".scales", 0, form, name)
        qweight, eight = name + ".qweight", form.table or bits in HIGH_BITS
        if eight:
            codes = self._codes(tensors, form, name)
            if not form.table:
                codes = g.op("Add", [codes, self._byte(128 - (1 << (bits - 1)))], name)
            rows = g.ints(0, 0, size)
            qweight = g.op("Reshape", [codes, rows], name, outputs=[name + CODES])
        y = g.op(
            "MatMulNBits",
            [x, qweight, scales],
            name,
            domain=MICROSOFT,
            bits=8 if eight else bits,
            accuracy_level=self._accuracy_level,
            N=shape.N,
            K=shape.K,
            block_size=size,
        )
        if not form.offsets:
            return y
        # MatMulNBits takes its codes less 2^(bits - 1).
        middle = g.op("Mul", [scales, g.float(float(1 << (bits - 1)))], name)
        offsets = self._floats(tensors, ".offsets", 1, form, name)
        offsets = g.op("Add", [offsets, middle], name)
        offsets = g.op("Transpose", [offsets], name, perm=[1, 0])
        groups = g.op("Reshape", [x, g.ints(0, 0, shape.K // size, size)], name)
        sums = g.op("ReduceSum", [groups, g.ints(-1)], name, keepdims=0)
        return g.op("Add", [y, g.op("MatMul", [sums, offsets], name)], name)

    def rows(self, ids: str, name: str, form: TensorFormat, hidden_size: int, scope: str) -> str:
        """Rows of an embedding: [batch, tokens, hidden_size]."""
        g = self._g
        flat = g.op("Reshape", [ids, g.ints(-1)], scope)
        rows = {
            suffix: g.op("Gather", [name + suffix, flat], scope, axis=0)
            for suffix in _suffixes(form)
        }
        rows |= {TABLE: name + TABLE} if form.table else {}
        codes = g.op("Cast", [self._codes(rows, form, scope)], scope, to=TensorProto.FLOAT)
        codes = g.op("Reshape", [codes, g.ints(0, -1, form.group_size)], scope)
        if not form.offsets:
            middle = 128 if form.table else 1 << (form.bits - 1)
            codes = g.op("Sub", [codes, g.float(float(middle))], scope)
        one = g.ints(-1)
        scales = self._floats(rows, ".scales", 0, form, scope)
        w = g.op("Mul", [codes, g.op("Unsqueeze", [scales, one], scope)], scope)
        if form.offsets:
            offsets = self._floats(rows, ".offsets", 1, form, scope)
            w = g.op("Add", [w, g.op("Unsqueeze", [offsets, one], scope)], scope)
        shape = [g.op("Shape", [ids], scope), g.ints(hidden_size)]
        return g.op("Reshape", [w, g.op("Concat", shape, scope, axis=0)], scope)

    def _codes(self, tensors: dict[str, str], form: TensorFormat, scope: str) -> str:
        """Codes, or with a table its levels plus 128, of a byte each, [N, G, group_size]."""
        g = self._g
        if form.table:
            return self._levels(tensors, scope)
        low = self._unpacked(tensors[".qweight"], LOW_BITS[form.bits], scope)
        if form.bits not in HIGH_BITS:
            return low
        high = self._unpacked(tensors[".qweight_high"], HIGH_BITS[form.bits], scope)
        by = self._byte(LOW_BITS[form.bits])
        high = g.op("BitShift", [high, by], scope, direction="LEFT")
        return g.op("BitwiseOr", [low, high], scope)

    def _levels(self, tensors: dict[str, str], scope: str) -> str:
        g = self._g
        table = g.op("Cast", [tensors[TABLE]], scope, to=TensorProto.INT32)
        table = g.op("Add", [table, g.array("middle.8", np.array(128, np.int32))], scope)
        table = g.op("Cast", [table], scope, to=TensorProto.UINT8)
        # Of each byte the levels of its two codes: fewer indices, which onnxruntime has as int32.
        every = np.arange(256, dtype=np.int32)
        both = g.array("codes_of_bytes", np.stack([every & 15, every >> 4], axis=1))
        pairs = g.op("Gather", [table, both], scope, axis=0)
        places = g.op("Cast", [tensors[".qweight"]], scope, to=TensorProto.INT32)
        levels = g.op("Gather", [pairs, places], scope, axis=0)
        return g.op("Reshape", [levels, g.ints(0, 0, -1)], scope)

    def _unpacked(self, packed: str, bits: int, scope: str) -> str:
        g = self._g
        shifts = g.array(f"shifts.{bits}", np.arange(0, 8, bits, dtype=np.uint8))
        column = g.op("Unsqueeze", [packed, g.ints(-1)], scope)
        fields = g.op("BitShift", [column, shifts], scope, direction="RIGHT")
        fields = g.op("BitwiseAnd", [fields, self._byte((1 << bits) - 1)], scope)
        return g.op("Reshape", [fields, g.ints(0, 0, -1)], scope)

    def _floats(
        self, tensors: dict[str, str], suffix: str, which: int, form: TensorFormat, scope: str
    ) -> str:
        """Scales or offsets as float32 [N, G]."""
        g = self._g
        values = g.op("Cast", [tensors[suffix]], scope, to=TensorProto.FLOAT)
        if not form.supers:
            return values
        factors = tensors[".super_scales"]
        if form.offsets:
            axis: dict[str, Any] = {"axis": 2}
            factors = g.op("Gather", [factors, g.ints(which)], scope, **axis)
        factors = g.op("Cast", [factors], scope, to=TensorProto.FLOAT)
        each = SUPER_GROUP // form.group_size
        values = g.op("Reshape", [values, g.ints(0, -1, each)], scope)
        values = g.op("Mul", [values, factors], scope)
        return g.op("Reshape", [values, g.ints(0, -1)], scope)

    def _byte(self, value: int) -> str:
        return self._g.array(f"byte.{value}", np.array(value, np.uint8))


def _suffixes(form: TensorFormat) -> list[str]:
    """Suffixes of the tensors that have rows."""
    return (
        [".qweight", ".scales"]
        + [".qweight_high"] * (form.bits in HIGH_BITS)
        + [".offsets"] * form.offsets
        + [".super_scales"] * form.supers
    )
