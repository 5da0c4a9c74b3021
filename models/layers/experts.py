"""A feed-forward network of experts, of which a router chooses a few for each token.

With r = router(h), a number for each expert, and k the experts that a token gets:

    p = softmax(r) or sigmoid(r)
    chosen = the k experts with the largest p + bias; of equals the first
    share = factor * p[chosen] * scale[chosen], before that divided by their sum where they are
        normed
    y = sum over the chosen e of share[e] * down[e](act(gate[e](h)) * up[e](h))

A shared expert, which every token gets, is a dense network beside them:

    y += sigmoid(shared_router(h)) * shared_down(act(shared_gate(h)) * shared_up(h))

The matrices of all experts lie below each other in one, those of expert e in its rows
[e * outputs, (e + 1) * outputs). Sources: arXiv 2101.03961, biases that only choose arXiv
2408.15664.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from edgetok.errors import ArtefactError
from edgetok.models.checks import check_choice, check_integer, check_number
from edgetok.models.layers.kind import FeedForward, Place, register
from edgetok.models.ops import ActivationMul, Linear, Norm, Op, Shape, SigmoidScale

if TYPE_CHECKING:
    from edgetok.models.spec import DecoderSpec

Score = Literal["softmax", "sigmoid"]
MOST_EXPERTS = 1024
MOST_CHOSEN = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Route(Op):
    """Choose experts for each token: their numbers, best first, and their shares.

    Attributes:
        source: the router's results, [experts] of each token.
        chosen: numbers of the chosen experts, as floats.
        shares: shares of the result, in the same order.
        bias: name of a tensor [experts] that is added for the choice alone; "" for none.
        scales: name of a tensor [experts] of factors of the shares; "" for none.
        top: how many are chosen.
        sum_eps: added to the sum that normed shares are divided by.
    """

    source: str
    chosen: str
    shares: str
    bias: str
    scales: str = ""
    experts: int
    top: int
    score: Score
    normed: bool
    sum_eps: float
    factor: float
    READS: ClassVar[tuple[str, ...]] = ("source",)
    WRITES: ClassVar[tuple[str, ...]] = ("chosen", "shares")
    COLUMNS: ClassVar[tuple[str, ...]] = ("top",)

    @property
    def tensors(self) -> dict[str, Shape]:
        """See `Op.tensors`."""
        return {name: (self.experts,) for name in (self.bias, self.scales) if name}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLinear(Op):
    """Multiply by the matrices of the chosen experts.

        result[t, j] = source weight[chosen[t, j]]^T + bias[chosen[t, j]]

    Attributes:
        weight: [experts * outputs, inputs]; `bias` says whether there is one, [experts * outputs].
        chosen: the result of `Route`.
        apart: whether the source has `inputs` columns for each of a token's choices.
    """

    weight: str
    source: str
    chosen: str
    result: str
    experts: int
    top: int
    inputs: int
    outputs: int
    bias: bool = False
    apart: bool = False
    READS: ClassVar[tuple[str, ...]] = ("source", "chosen")
    WRITES: ClassVar[tuple[str, ...]] = ("result",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("top", "outputs")

    @property
    def tensors(self) -> dict[str, Shape]:
        """See `Op.tensors`."""
        rows = self.experts * self.outputs
        shapes: dict[str, Shape] = {f"{self.weight}.weight": (rows, self.inputs)}
        return shapes | ({f"{self.weight}.bias": (rows,)} if self.bias else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class MixExperts(Op):
    """result = scale * sum over j of shares[t, j] * source[t, j], or result += with `add`."""

    source: str
    chosen: str
    shares: str
    result: str
    experts: int
    top: int
    size: int
    scale: float
    add: bool
    READS: ClassVar[tuple[str, ...]] = ("source", "chosen", "shares")
    WRITES: ClassVar[tuple[str, ...]] = ("result",)
    COLUMNS: ClassVar[tuple[str, ...]] = ("size",)

    @property
    def reads(self) -> tuple[str, ...]:
        """Return what it adds up, and the result where that is added to."""
        names = (self.source, self.chosen, self.shares)
        return (*names, self.result) if self.add else names


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Experts(FeedForward):
    """Experts that a router chooses, and perhaps a shared one; the activation is the decoder's.

    Attributes:
        experts: how many there are.
        top: how many a token gets.
        size: size of an expert's hidden layer.
        score: function from the router's results to probabilities.
        normed: whether shares are divided by their sum, and by `sum_eps` more.
        factor: shares are multiplied by it.
        choice_bias: whether a bias is added for the choice alone.
        router_bias: whether the router has a bias.
        bias: whether the experts' linear layers have biases.
        shared_size: size of the shared expert's hidden layer; 0: there is none.
        shared_router: whether the shared expert's result is multiplied by a sigmoid.
    """

    experts: int
    top: int
    size: int
    score: Score = "softmax"
    normed: bool = True
    sum_eps: float = 0.0
    factor: float = 1.0
    choice_bias: bool = False
    router_bias: bool = False
    bias: bool = False
    shared_size: int = 0
    shared_router: bool = False
    kind: ClassVar[str] = "experts"

    def __post_init__(self) -> None:
        """Refuse numbers that no kernel takes."""
        where = "experts: "
        check_integer(where, "experts", self.experts, 1, MOST_EXPERTS)
        check_integer(where, "top", self.top, 1, min(self.experts, MOST_CHOSEN))
        check_integer(where, "size", self.size, 1, 1 << 20)
        check_integer(where, "shared_size", self.shared_size, 0, 1 << 20)
        check_choice(where, "score", self.score, get_args(Score))
        check_number(where, "sum_eps", self.sum_eps, 0.0, 1.0)
        check_number(where, "factor", self.factor, 1e-6, 1e6)
        for name in ("normed", "choice_bias", "router_bias", "bias", "shared_router"):
            check_choice(where, name, getattr(self, name), (True, False))

    def check(self, where: str, spec: DecoderSpec) -> None:
        """Refuse a stacked matrix of more rows than any decoder has.

        Raises:
            ArtefactError: it begins with `where`.
        """
        rows = self.experts * max(self.size, spec.hidden_size)
        if rows > 1 << 24:
            raise ArtefactError(f"{where}: {rows:,} rows of experts, expected at most {1 << 24:,}")

    def operations(self, place: Place) -> Iterator[Op]:
        """Route; everything that reads the source; then what is added to the residual stream."""
        spec, hidden = place.spec, place.spec.hidden_size
        router = place.linear(
            "router", place.source, "routed", hidden, self.experts, self.router_bias
        )
        yield dataclasses.replace(router, kept=True)
        yield from self.chosen_operations(place)
        if self.shared_size:
            yield from self._shared(place)
        ends = not spec.post_norm
        yield self.mixed(
            place,
            "x" if ends else "h",
            spec.residual_scale if ends else 1.0,
            add=ends,
        )
        if self.shared_size:
            yield dataclasses.replace(
                place.linear("shared_down_proj", "shared", "h", self.shared_size, hidden),
                result="x" if ends else "h",
                scale=spec.residual_scale if ends else 1.0,
                add=True,
            )
        if not ends:
            yield from place.add("h")

    def chosen_operations(self, place: Place, scales: str = "") -> Iterator[Op]:
        """Return the operations from the router's results `routed` to those of the chosen experts.

        Args:
            place: its source is what the experts read.
            scales: see `Route`.
        """
        spec, layer, hidden = place.spec, place.layer, place.spec.hidden_size
        yield Route(
            layer=layer,
            source="routed",
            chosen="chosen",
            shares="shares",
            bias=f"{place.prefix}router_choice.weight" if self.choice_bias else "",
            scales=scales,
            experts=self.experts,
            top=self.top,
            score=self.score,
            normed=self.normed,
            sum_eps=self.sum_eps,
            factor=self.factor,
        )
        for which in ("gate", "up"):
            yield self._linear(place, which, place.source, hidden, self.size)
        yield ActivationMul(
            layer=layer,
            kind=spec.activation,
            gate="experts_gate",
            up="experts_up",
            result="experts_gate",
            size=self.top * self.size,
        )
        yield self._linear(place, "down", "experts_gate", self.size, hidden)

    def mixed(self, place: Place, result: str, scale: float = 1.0, *, add: bool = False) -> Op:
        """Return the operation that adds up what the chosen experts gave."""
        return MixExperts(
            layer=place.layer,
            source="experts_down",
            chosen="chosen",
            shares="shares",
            result=result,
            experts=self.experts,
            top=self.top,
            size=place.spec.hidden_size,
            scale=scale,
            add=add,
        )

    def _linear(
        self, place: Place, which: str, source: str, inputs: int, outputs: int
    ) -> ExpertLinear:
        return ExpertLinear(
            layer=place.layer,
            weight=f"{place.prefix}experts_{which}",
            source=source,
            chosen="chosen",
            result=f"experts_{which}",
            experts=self.experts,
            top=self.top,
            inputs=inputs,
            outputs=outputs,
            bias=self.bias,
            apart=which == "down",
        )

    def _shared(self, place: Place) -> Iterator[Op]:
        """The shared expert's hidden layer, multiplied by its sigmoid."""
        hidden, size = place.spec.hidden_size, self.shared_size
        for which, result in (("gate", "shared"), ("up", "shared_up")):
            yield place.linear(f"shared_{which}_proj", place.source, result, hidden, size)
        if self.shared_router:
            gate = place.linear("shared_router", place.source, "shared_share", hidden, 1)
            yield dataclasses.replace(gate, kept=True)
        yield ActivationMul(
            layer=place.layer,
            kind=place.spec.activation,
            gate="shared",
            up="shared_up",
            result="shared",
            size=size,
        )
        if self.shared_router:
            yield SigmoidScale(layer=place.layer, gate="shared_share", value="shared", size=size)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of a layer's router and of its experts.

    Attributes:
        router: the router.
        norms: the norms of one value that router and experts have each for itself; None where both
            read the same.
    """

    router: Linear
    norms: tuple[Norm, Norm] | None


def inputs_of(operations: Iterable[Op]) -> Inputs | None:
    """Return what router and experts of a layer read; None where there are no experts."""
    listed = tuple(operations)
    results = {op.source for op in listed if isinstance(op, Route)}
    sources = {op.source for op in listed if isinstance(op, ExpertLinear) and not op.apart}
    if not results:
        return None
    (router,) = (op for op in listed if isinstance(op, Linear) and op.result in results)
    (source,) = sources
    if router.source == source:
        return Inputs(router, None)
    by_result = {op.result: op for op in listed if isinstance(op, Norm)}
    return Inputs(router, (by_result[router.source], by_result[source]))
