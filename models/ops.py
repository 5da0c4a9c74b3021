"""The operations that a decoder is made of: names of values and weights, sizes, no arithmetic.

An operation reads values, writes values and multiplies by weights, all of them by name. A value is
a float32 matrix with a row for each token; its name may be written again, as a variable may. A
backend lowers each kind of operation in its own way (docs/add-a-layer-kind.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from edgetok.errors import UnsupportedError

Activation = Literal["silu", "gelu", "gelu_tanh", "relu2", "clamped_swiglu"]
Gate = Activation | Literal["sigmoid"]
Ungated = Literal["silu", "gelu", "gelu_tanh", "relu2"]
Shape = tuple[int, ...]
STATES = 2  # states that a layer may keep
# The table of per-layer embeddings: rows are read from the file, nothing else of it is in memory.
PER_LAYER_TABLE = "embed_per_layer"
SWIGLU_ALPHA = 1.702  # of clamped_swiglu
SWIGLU_LIMIT = 7.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operation. A kind says in capitals which of its fields mean what.

    Attributes:
        layer: index of the layer that it belongs to; None before and after the layers.
        READS: fields that name the values that it reads.
        WRITES: fields that name the values that it writes.
        COLUMNS: fields whose product is the number of columns that are written.
        SCALES_WITH: the field that names the value or weight `a` for which, with s per column,
            result(a * s) = result(a) * s.
        STORES: whether it leaves something of every token behind for later runs.
    """

    layer: int | None = None
    READS: ClassVar[tuple[str, ...]] = ()
    WRITES: ClassVar[tuple[str, ...]] = ()
    COLUMNS: ClassVar[tuple[str, ...]] = ()
    SCALES_WITH: ClassVar[str | None] = None
    STORES: ClassVar[bool] = False

    @property
    def own_layer(self) -> int:
        """Index of its layer, where a cache keeps something of it.

        Raises:
            UnsupportedError: it belongs to none.
        """
        if self.layer is None:
            raise UnsupportedError(
                f"{type(self).__name__} outside of a layer: caches are a layer's"
            )
        return self.layer

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the values that it reads."""
        return tuple(getattr(self, field) for field in self.READS)

    @property
    def writes(self) -> dict[str, int]:
        """Return the columns of each value that it writes."""
        columns = math.prod(getattr(self, field) or 1 for field in self.COLUMNS)
        return {getattr(self, field): columns for field in self.WRITES}

    @property
    def tensors(self) -> dict[str, Shape]:
        """Shapes of the weights that it uses, by canonical name with suffix."""
        return {}

    @property
    def scales_with(self) -> str | None:
        """Name of what SCALES_WITH says; None where there is nothing of that kind."""
        return None if self.SCALES_WITH is None else getattr(self, self.SCALES_WITH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stateful(Op):
    """An operation that keeps something of earlier tokens which does not grow with their number.

    A cache holds a ring of rows for it, one for each of the latest tokens.

    Attributes:
        STATE: tells apart what operations of one layer keep; below STATES.
        BULKY: whether a row is as large as many tokens' keys and values.
    """

    STORES: ClassVar[bool] = True
    STATE: ClassVar[int]
    BULKY: ClassVar[bool] = False

    @property
    def kept_tokens(self) -> int:
        """Tokens of which the next one needs what is kept."""
        raise NotImplementedError

    @property
    def state(self) -> int:
        """Index in a cache's table of states."""
        return STATES * self.own_layer + self.STATE


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixState(Stateful):
    """An operation that keeps a matrix for each head behind the token before."""

    STATE: ClassVar[int] = 1
    BULKY: ClassVar[bool] = True

    @property
    def kept_tokens(self) -> int:
        """See `Stateful`."""
        return 1

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Heads, and rows and columns of each matrix: dims of its keys and of its values."""
        raise NotImplementedError

    @property
    def query_scale(self) -> float:
        """Return what queries are multiplied by before they meet the matrix."""
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Embed(Op):
    """result = scale * weight[token], `weight` being [rows, size]."""

    weight: str
    result: str
    rows: int
    size: int
    scale: float
    WRITES: ClassVar[tuple[str, ...]] = ("result",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("size",)

    @property
    def tensors(self) -> dict[str, Shape]:
        """See `Op.tensors`."""
        return {f"{self.weight}.weight": (self.rows, self.size)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm(Op):
    """result = source / sqrt(mean(source^2) + eps) * weight, for every `size` columns.

    Attributes:
        weight: "" for a norm without one.
        heads: number of times `size` columns a row has, each normalised by itself; None: the row is
            one.
        centred: whether the mean of the columns is taken away from source first.
    """

    weight: str
    source: str
    result: str
    size: int
    heads: int | None = None
    eps: float
    centred: bool = False
    READS: ClassVar[tuple[str, ...]] = ("source",)
    WRITES: ClassVar[tuple[str, ...]] = ("result",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("size", "heads")
    SCALES_WITH: ClassVar[str | None] = "weight"

    @property
    def tensors(self) -> dict[str, Shape]:
        """See `Op.tensors`."""
        return {f"{self.weight}.weight": (self.size,)} if self.weight else {}

    @property
    def scales_with(self) -> str | None:
        """The weight, where there is one."""
        return self.weight or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear(Op):
    """result = scale * (source weight^T + bias), or result += with `add`.

    Attributes:
        weight: [outputs, inputs].
        bias: whether it has one, [outputs].
        kept: whether its weights stay at 16 bits, as those of routers do.
    """

    weight: str
    source: str
    result: str
    inputs: int
    outputs: int
    bias: bool = False
    scale: float = 1.0
    add: bool = False
    kept: bool = False
    READS: ClassVar[tuple[str, ...]] = ("source",)
    WRITES: ClassVar[tuple[str, ...]] = ("result",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("outputs",)

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the source, and the result where something is added to it."""
        return (self.source, self.result) if self.add else (self.source,)

    @property
    def tensors(self) -> dict[str, Shape]:
        """See `Op.tensors`."""
        shapes: dict[str, Shape] = {f"{self.weight}.weight": (self.outputs, self.inputs)}
        return shapes | ({f"{self.weight}.bias": (self.outputs,)} if self.bias else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Queries(Op):
    """Show a layer's queries, before their rotation, to a cache that judges tokens by them."""

    source: str
    heads: int
    head_dim: int
    READS: ClassVar[tuple[str, ...]] = ("source",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope(Op):
    """Rotate each head of `value` by its token's position; `rope` is an index of `spec.ropes`."""

    value: str
    heads: int
    head_dim: int
    rope: int
    READS: ClassVar[tuple[str, ...]] = ("value",)
    WRITES: ClassVar[tuple[str, ...]] = ("value",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("heads", "head_dim")


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionScale(Op):
    """value = (1 + growth * log(1 + floor(position / every))) * value.

    Attributes:
        every: the factor of so many tokens is the same, that of the first ones 1.
    """

    value: str
    heads: int
    head_dim: int
    growth: float
    every: int
    READS: ClassVar[tuple[str, ...]] = ("value",)
    WRITES: ClassVar[tuple[str, ...]] = ("value",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("heads", "head_dim")


@dataclass(frozen=True, slots=True, kw_only=True)
class Store(Op):
    """Append keys and values of every token to the layer's cache.

    Attributes:
        constants: what the artefact's cache constants are named after; "" for a store without any.
    """

    keys: str
    values: str
    heads: int
    head_dim: int
    constants: str = ""
    STORES: ClassVar[bool] = True
    READS: ClassVar[tuple[str, ...]] = ("keys", "values")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attend(Op):
    """result = softmax(softcap(scale * queries keys^T)) values, over what the layer has stored.

    Attributes:
        values: the value that was stored as values: a row of the result is a mean of such rows.
        kv_heads: `heads / kv_heads` query heads share one of keys and values.
        window: a token attends to itself and the `window - 1` before it; 0 is all.
        both_sides: whether it attends to as many behind it, too.
        softcap: c * tanh(x / c); 0 is none.
        constants: those of the `Store` that it looks at.
        shares: the layer whose stored keys and values it looks at; None: its own.
        sinks: name of a tensor [heads], scores of one more value for each head, of zeros; "": none.
    """

    queries: str
    values: str
    result: str
    heads: int
    kv_heads: int
    head_dim: int
    window: int
    scale: float
    softcap: float
    constants: str = ""
    shares: int | None = None
    sinks: str = ""
    both_sides: bool = False
    READS: ClassVar[tuple[str, ...]] = ("queries",)
    WRITES: ClassVar[tuple[str, ...]] = ("result",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("heads", "head_dim")
    SCALES_WITH: ClassVar[str | None] = "values"

    @property
    def scales_with(self) -> str | None:
        """The values; None where another layer has made them."""
        return self.values if self.shares is None else None

    @property
    def stored_layer(self) -> int:
        """The layer whose stored keys and values it looks at."""
        return self.own_layer if self.shares is None else self.shares

    @property
    def tensors(self) -> dict[str, Shape]:
        """See `Op.tensors`."""
        return {self.sinks: (self.heads,)} if self.sinks else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationMul(Op):
    """result = activation(gate) * up; the result may be called as one of both.

    `relu2` is max(g, 0)^2 * u (arXiv 2109.08668).
    `clamped_swiglu` is g * sigmoid(1.702 * g) * (u + 1), of g = min(gate, 7) and u = up within -7
    and 7.
    """

    kind: Gate
    gate: str
    up: str
    result: str
    size: int
    READS: ClassVar[tuple[str, ...]] = ("gate", "up")
    WRITES: ClassVar[tuple[str, ...]] = ("result",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("size",)
    SCALES_WITH: ClassVar[str | None] = "up"

    @property
    def scales_with(self) -> str | None:
        """See `Op.scales_with`; a clamped value is added to one."""
        return None if self.kind == "clamped_swiglu" else self.up


@dataclass(frozen=True, slots=True, kw_only=True)
class Activate(Op):
    """value = activation(value), a network's without a gate."""

    kind: Ungated
    value: str
    size: int
    READS: ClassVar[tuple[str, ...]] = ("value",)
    WRITES: ClassVar[tuple[str, ...]] = ("value",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("size",)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddScaled(Op):
    """value += scale * source."""

    value: str
    source: str
    size: int
    scale: float
    READS: ClassVar[tuple[str, ...]] = ("value", "source")
    WRITES: ClassVar[tuple[str, ...]] = ("value",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("size",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns(Op):
    """result = source[:, first : first + size], `source` being `width` wide."""

    source: str
    result: str
    first: int
    size: int
    width: int
    READS: ClassVar[tuple[str, ...]] = ("source",)
    WRITES: ClassVar[tuple[str, ...]] = ("result",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("size",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleBy(Op):
    """value = weight * value, `weight` being one number."""

    weight: str
    value: str
    size: int
    READS: ClassVar[tuple[str, ...]] = ("value",)
    WRITES: ClassVar[tuple[str, ...]] = ("value",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("size",)

    @property
    def tensors(self) -> dict[str, Shape]:
        """See `Op.tensors`."""
        return {f"{self.weight}.weight": (1,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleColumns(Op):
    """value = weight * value, `weight` being [size], for each of `heads` times `size` columns."""

    weight: str
    value: str
    size: int
    heads: int
    READS: ClassVar[tuple[str, ...]] = ("value",)
    WRITES: ClassVar[tuple[str, ...]] = ("value",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("size", "heads")

    @property
    def tensors(self) -> dict[str, Shape]:
        """See `Op.tensors`."""
        return {f"{self.weight}.weight": (self.size,)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SigmoidScale(Op):
    """value = sigmoid(gate) * value; the gate is one number for every `size` columns.

    Attributes:
        heads: number of times `size` columns a row has.
    """

    gate: str
    value: str
    size: int
    heads: int = 1
    READS: ClassVar[tuple[str, ...]] = ("gate", "value")
    WRITES: ClassVar[tuple[str, ...]] = ("value",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("size", "heads")
    SCALES_WITH: ClassVar[str | None] = "value"


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftCap(Op):
    """value = limit * tanh(value / limit)."""

    value: str
    size: int
    limit: float
    READS: ClassVar[tuple[str, ...]] = ("value",)
    WRITES: ClassVar[tuple[str, ...]] = ("value",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("size",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparsify(Op):
    """value = max(value - mean - spread * deviation, 0), both of them the row's.

    Of normally distributed values a share stays above 0 that depends on `spread` alone.
    """

    value: str
    size: int
    spread: float
    READS: ClassVar[tuple[str, ...]] = ("value",)
    WRITES: ClassVar[tuple[str, ...]] = ("value",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("size",)
