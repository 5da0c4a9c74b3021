"""Layout of `model.onnx.data`: the name, dtype, shape and offset of every tensor.

The converter writes by this table and the reader checks by it. It is a pure function of the spec
and the formats, so that tensors may be written in any order and an interrupted conversion can
continue. All arithmetic is on Python integers, which do not overflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgetok.errors import ArtefactError
from edgetok.models.layers.short_conv import Convolution
from edgetok.models.operations import operations
from edgetok.models.ops import PER_LAYER_TABLE, MatrixState, Store
from edgetok.models.spec import DecoderSpec
from edgetok.models.tensors import tensor_shapes

ALIGNMENT_BYTES = 4096
DATA_FILE = "model.onnx.data"
GRAPH_FILE = "model.onnx"
FORMAT_VERSION = "1"
FORMAT_KEY = "edgetok.format"
SPEC_KEY = "edgetok.spec"
CONSTANTS_KEY = "edgetok.cache_constants"
CONSTANTS_VERSION = "1"
LOGITS_START = "logits_start"
VECTORS = "vectors"  # output of a model whose tokens see both sides, [B, T, spec.vector_size]
# Of layer {}: what its convolution needs of the tokens before, [B, size, taps - 1], and the state
# of its delta net or Mamba2, [B, heads, key_dim, value_dim].
PAST_CONV, PRESENT_CONV = "past_conv.{}", "present_conv.{}"
PAST_STATE, PRESENT_STATE = "past_state.{}", "present_state.{}"

DType = Literal["float32", "float16", "uint8", "int8"]

_QUANTISED_BITS = (2, 3, 4, 5, 6, 8)
_SMALL_BYTES = 64  # small arrays begin at multiples of it
_GROUP_SIZES = (16, 32, 64, 128, 256)  # what MatMulNBits takes at every width
# Bits of a code in `.qweight`, and in `.qweight_high` where that is not all of them.
LOW_BITS = {2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 8: 8}
HIGH_BITS = {3: 1, 5: 1, 6: 2}
EMBEDDINGS = ("embed_tokens", PER_LAYER_TABLE)  # rows of these are looked up
SUPER_GROUP = 256  # inputs that share a super-scale
TABLE_LEVELS = 16
TABLE = ".table"  # suffix of the levels


@dataclass(frozen=True, slots=True)
class TensorFormat:
    """The format of a linear layer's or an embedding's weights.

        w = (q - zero) * scale      zero a whole number
        w = q * scale + offset      with `offsets`
        w = table[q] * scale        with `table`

    Attributes:
        bits: 2, 3, 4, 5, 6 or 8 quantised; 16 float16; 32 float32, where float16 would overflow.
        group_size: inputs that share a scale; without meaning for 16 and 32 bits.
        zeros: whether each group has its zero point; otherwise it is 2^(bits - 1).
        offsets: whether each group has an offset, a floating-point number, in its place.
        supers: whether scales and offsets are int8, times a super-scale every SUPER_GROUP inputs.
        table: whether codes, of 4 bits, choose levels of a table of int8 that the whole matrix has.
    """

    bits: int
    group_size: int = 32
    zeros: bool = False
    offsets: bool = False
    supers: bool = False
    table: bool = False

    def __post_init__(self) -> None:
        """Refuse what no operator takes."""
        if self.bits not in (*_QUANTISED_BITS, 16, 32):
            raise ArtefactError(f"format: {self.bits!r} bits, expected 2 to 6, 8, 16 or 32")
        if self.quantised and self.group_size not in _GROUP_SIZES:
            raise ArtefactError(
                f"format: group_size is {self.group_size!r}, expected one of {_GROUP_SIZES}"
            )
        if self.zeros and (self.offsets or self.supers or self.bits in (5, 6)):
            raise ArtefactError(
                f"format: {self.bits} bits have no zero points beside offsets or super-scales"
            )
        if self.bits not in (4, 5, 6) and (self.offsets or (self.supers and self.bits != 3)):
            raise ArtefactError(
                f"format: {self.bits} bits with offsets or super-scales, expected 4, 5 or 6; 3 "
                "have super-scales alone"
            )
        if self.table and (self.bits != 4 or self.zeros or self.offsets):
            raise ArtefactError(
                f"format: {self.bits} bits with a table, expected 4 without zero points or offsets"
            )
        if self.bits == 6 and not self.supers and (self.offsets or self.group_size != 32):
            raise ArtefactError(
                f"format: 6 bits in groups of {self.group_size} without super-scales, expected "
                "groups of 32 without offsets"
            )

    @property
    def direct(self) -> bool:
        """Return whether MatMulNBits and GatherBlockQuantized take the tensors as they are."""
        return self.bits in (2, 4, 8) and not (self.offsets or self.supers or self.table)

    @property
    def grouped(self) -> bool:
        """Return whether there may be offsets, super-scales, a table; inputs are whole groups."""
        return self.quantised and not self.direct and (self.bits != 3 or self.supers)

    def holds(self, inputs: int) -> bool:
        """Return whether a matrix with so many inputs can be stored: whole groups, where grouped.

        At 6 bits there are two groups at least, or super-scales: one would look like one of 3 bits.
        """
        if not self.grouped:
            return True
        plain_6 = self.bits == 6 and not self.supers
        whole = SUPER_GROUP if self.supers else self.group_size
        return inputs % whole == 0 and inputs >= whole * (2 if plain_6 else 1)

    @property
    def quantised(self) -> bool:
        """Return whether the weights are codes with scales."""
        return self.bits in _QUANTISED_BITS


@dataclass(frozen=True, slots=True)
class LinearShape:
    """Size of a linear layer or embedding.

    Attributes:
        N: outputs (vocabulary size for the embedding).
        K: inputs (hidden size for the embedding).
        bias: whether it has a bias.
    """

    N: int
    K: int
    bias: bool = False


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """One tensor's place in the data file; `offset` and `nbytes` in bytes."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The data file.

    Attributes:
        tensors: by name, in the order in which a decode step reads them.
        aliases: further names for bytes that are stored once: a tied, quantised embedding needs
            its codes as a matrix, the output head as groups.
        constants: the cache's (`constant_shapes`), after the tensors; not part of the graph. Empty
            where an artefact has none.
        file_bytes: size of the file; at least 4096 bytes of zeros follow the last tensor.
    """

    tensors: dict[str, TensorSlot]
    aliases: dict[str, TensorSlot]
    constants: dict[str, TensorSlot]
    file_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors without alignment."""
        return sum(slot.nbytes for slot in self.tensors.values())


def linear_shapes(spec: DecoderSpec) -> dict[str, LinearShape]:
    """Return every matrix of the decoder by canonical name, in execution order.

    `embed_tokens` is absent where it is tied: `lm_head` holds its weights.
    """
    shapes = tensor_shapes(spec)
    if spec.tied:
        shapes["lm_head.weight"] = shapes.pop("embed_tokens.weight")
    return {
        name.removesuffix(".weight"): LinearShape(
            dims[0], dims[1], name.removesuffix("weight") + "bias" in shapes
        )
        for name, dims in shapes.items()
        if len(dims) == 2
    }


def cache_head_dim(head_dim: int) -> int:
    """Head size of the graph's past and present: GroupQueryAttention wants a multiple of 8."""
    return -(-head_dim // 8) * 8


def present_name(layer: int | None, kind: str, shares: int | None) -> str:
    """Return the name of a layer's keys or values behind its attention.

    It is an output of the graph, but where the layer looks at another's: GroupQueryAttention then
    appends the same to the same past once more, and nothing reads that.
    """
    return f"present.{layer}.{kind}" if shares is None else f"layers.{layer}/present.{kind}"


@dataclass(frozen=True, slots=True)
class GraphState:
    """State of a layer without keys and values, as an input and an output of the graph.

    Attributes:
        past: name of the input.
        present: name of the output.
        shape: without the batch.
    """

    past: str
    present: str
    shape: tuple[int, ...]


def graph_states(spec: DecoderSpec) -> list[GraphState]:
    """Return the states of the graph, in order of execution."""
    found = []
    for op in operations(spec):
        i = op.layer
        if isinstance(op, Convolution):
            left = (op.size, op.taps - 1)
            found.append(GraphState(PAST_CONV.format(i), PRESENT_CONV.format(i), left))
        elif isinstance(op, MatrixState):
            names = PAST_STATE.format(i), PRESENT_STATE.format(i)
            found.append(GraphState(*names, op.state_shape))
    return found


def constant_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Return the cache's constants: float32 [KH, D] of each layer that stores keys.

    Slots of 4 to 8 bits hold (k - centre) * factor and meet q * query_factor, which is 1 / factor.
    """
    return {
        f"{op.constants}.{name}": (op.heads, op.head_dim)
        for op in operations(spec)
        if isinstance(op, Store) and op.constants
        for name in ("centre", "factor", "query_factor")
    }


def expert_name(name: str, expert: int) -> str:
    """Return the name of one expert's matrix in the graph, where the artefact has them stacked."""
    return f"{name}.{expert}"


def groups_of(K: int, group_size: int) -> int:
    """ceil(K / group_size)."""
    return -(-K // group_size)


def linear_tensors(
    name: str, shape: LinearShape, form: TensorFormat
) -> dict[str, tuple[DType, tuple[int, ...]]]:
    """Tensors that hold one linear layer: dtype and shape by name with suffix.

    Quantised at g inputs a group, G = ceil(K / g): `.qweight` uint8 [N, G, g * low / 8], and where
    a code has more bits than that `.qweight_high` [N, G, g * high / 8] (LOW_BITS, HIGH_BITS);
    `.scales` float16 [N, G]; `.zeros` uint8 [N, ceil(G * bits / 8)], for 3 bits [N, G]; `.offsets`
    like `.scales`. With super-scales both are int8, and `.super_scales` is float16
    [N, K / 256, 1], or [N, K / 256, 2] with offsets: of scales and of offsets. `.table` is int8
    [16]. An embedding's `.qweight` is the same bytes seen as a matrix, if GatherBlockQuantized
    takes it. Not quantised: `.weight` [N, K]. `.bias` float32 [N].

    Raises:
        ArtefactError: inputs are not whole groups, where the format has no padding.
    """
    N, K = shape.N, shape.K
    tensors: dict[str, tuple[DType, tuple[int, ...]]] = {}
    if form.quantised:
        bits, g = form.bits, form.group_size
        G = groups_of(K, g)
        if not form.holds(K):
            whole = SUPER_GROUP if form.supers else g
            least = ", two at least" if bits == 6 and not form.supers else ""
            raise ArtefactError(f"{name}: {K} inputs, expected a multiple of {whole}{least}")
        low = g * LOW_BITS[bits] // 8
        as_matrix = name in EMBEDDINGS and form.direct
        tensors[name + ".qweight"] = ("uint8", (N, G * low) if as_matrix else (N, G, low))
        if bits in HIGH_BITS:
            tensors[name + ".qweight_high"] = ("uint8", (N, G, g * HIGH_BITS[bits] // 8))
        kind: DType = "int8" if form.supers else "float16"
        tensors[name + ".scales"] = (kind, (N, G))
        if form.zeros:
            tensors[name + ".zeros"] = ("uint8", (N, G if bits == 3 else -(-G * bits // 8)))
        if form.offsets:
            tensors[name + ".offsets"] = (kind, (N, G))
        if form.supers:
            each = 2 if form.offsets else 1
            tensors[name + ".super_scales"] = ("float16", (N, K // SUPER_GROUP, each))
        if form.table:
            tensors[name + TABLE] = ("int8", (TABLE_LEVELS,))
    else:
        tensors[name + ".weight"] = ("float16" if form.bits == 16 else "float32", (N, K))
    if shape.bias:
        tensors[name + ".bias"] = ("float32", (N,))
    return tensors


def plan(
    spec: DecoderSpec, formats: Mapping[str, TensorFormat], *, constants: bool = False
) -> Layout:
    """Give every tensor its place.

    Args:
        spec: the decoder.
        formats: one for each name of `linear_shapes(spec)`.
        constants: leave room for the cache's constants.

    Returns:
        The layout; tensors start at multiples of 4096, tables in what is left of a page.

    Raises:
        ArtefactError: `formats` has a name too many or too few.
    """
    shapes = linear_shapes(spec)
    if set(formats) != set(shapes):
        odd = sorted(set(formats) ^ set(shapes))
        raise ArtefactError(
            f"formats: {odd[0]!r} (of {len(odd)} such names) is "
            f"{'unknown' if odd[0] in formats else 'missing'}; expected one for each linear layer"
        )
    sizes = tensor_shapes(spec)
    if spec.tied:
        sizes["lm_head.weight"] = sizes.pop("embed_tokens.weight")
    tensors: dict[str, TensorSlot] = {}
    end = 0
    for full_name, size in sizes.items():
        name, _, suffix = full_name.rpartition(".")
        parts: dict[str, tuple[DType, tuple[int, ...]]]
        if len(size) == 2:
            parts = linear_tensors(name, shapes[name], formats[name])
        elif suffix == "weight":
            parts = {full_name: ("float32", size)}
        else:
            continue  # a bias stands with its layer
        for tensor, (dtype, dims) in parts.items():
            nbytes = tensor_bytes(dtype, dims)
            small = tensor.endswith(TABLE)
            begin = _round_up(end, _SMALL_BYTES if small else ALIGNMENT_BYTES)
            tensors[tensor] = TensorSlot(tensor, dtype, dims, begin, nbytes)
            end = begin + nbytes
    end = _round_up(end, ALIGNMENT_BYTES)
    aliases = {}
    head = formats["lm_head"]
    if spec.tied and head.quantised and head.direct:
        stored = tensors["lm_head.qweight"]
        N, G, group_bytes = stored.shape
        aliases["embed_tokens.qweight"] = TensorSlot(
            "embed_tokens.qweight", "uint8", (N, G * group_bytes), stored.offset, stored.nbytes
        )
    more = {}
    for name, dims in constant_shapes(spec).items() if constants else ():
        nbytes = tensor_bytes("float32", dims)
        more[name] = TensorSlot(name, "float32", dims, end, nbytes)
        end = _round_up(end + nbytes, _SMALL_BYTES)
    return Layout(tensors, aliases, more, _round_up(end, ALIGNMENT_BYTES) + ALIGNMENT_BYTES)


def tensor_bytes(dtype: DType, shape: tuple[int, ...]) -> int:
    """Size of a tensor, in Python integers."""
    nbytes = np.dtype(dtype).itemsize
    for size in shape:
        nbytes *= size
    return nbytes


def _round_up(offset: int, multiple: int) -> int:
    return -(-offset // multiple) * multiple
