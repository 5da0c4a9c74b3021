"""The parts of a layer: a mixer, which looks at other tokens, and a feed-forward network.

A kind is a frozen dataclass of its numbers with a method that says its operations. Those of this
folder are found by their file's name; others register themselves with `register`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from edgetok.errors import ArtefactError
from edgetok.models.checks import shown
from edgetok.models.ops import AddScaled, Linear, Norm, Op

if TYPE_CHECKING:
    from edgetok.models.spec import DecoderSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The place of a part in a layer: its input, and how its result joins the residual stream.

    Attributes:
        spec: the decoder.
        layer: the layer's index, under which caches know it.
        prefix: prefix of the names of its weights, as `layers.3.`.
        source: the value that it reads: the residual stream `x`, or `h`, its norm.
        after: the name of the norm of its result, where the decoder has such norms.
    """

    spec: DecoderSpec
    layer: int
    prefix: str
    source: str
    after: str

    def prefix_of(self, layer: int) -> str:
        """Return the prefix of the names of another layer's weights."""
        first = int(self.prefix.split(".")[1]) - self.layer
        return f"layers.{first + layer}."

    def linear(
        self, module: str, source: str, result: str, inputs: int, outputs: int, bias: bool = False
    ) -> Linear:
        """result = module(source)."""
        return Linear(
            layer=self.layer,
            weight=self.prefix + module,
            source=source,
            result=result,
            inputs=inputs,
            outputs=outputs,
            bias=bias,
        )

    def residual(self, module: str, source: str, inputs: int, bias: bool = False) -> Iterator[Op]:
        """x += residual_scale * after(module(source))."""
        spec = self.spec
        last = self.linear(module, source, "h", inputs, spec.hidden_size, bias)
        if not spec.post_norm:
            yield dataclasses.replace(last, result="x", scale=spec.residual_scale, add=True)
            return
        yield last
        yield from self.add("h")

    def add(self, source: str) -> Iterator[Op]:
        """x += residual_scale * after(source)."""
        spec = self.spec
        if spec.post_norm:
            yield Norm(
                layer=self.layer,
                weight=self.prefix + self.after,
                source=source,
                result=source,
                size=spec.hidden_size,
                eps=spec.norm_eps,
            )
        yield AddScaled(
            layer=self.layer,
            value="x",
            source=source,
            size=spec.hidden_size,
            scale=spec.residual_scale,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPart:
    """A mixer or a feed-forward network.

    Attributes:
        role: which of both.
        kind: the name in the spec's JSON; in this folder also the file's.
        RARE: fields that nearly no model has: left out of the JSON where they are false.
    """

    role: ClassVar[str]
    kind: ClassVar[str]
    RARE: ClassVar[frozenset[str]] = frozenset()

    def check(self, where: str, spec: DecoderSpec) -> None:
        """Refuse numbers that do not go with the decoder.

        Raises:
            ArtefactError: it begins with `where`.
        """

    def before(self, place: Place) -> Iterator[Op]:
        """Return operations on the residual stream before the norm that the part reads."""
        del place
        return iter(())

    def operations(self, place: Place) -> Iterator[Op]:
        """Return the operations from `place.source` to the residual stream `x`.

        Values may have any names; `place.source` may not be written, unless it is `h`.
        """
        raise NotImplementedError

    def fields(self) -> dict[str, Any]:
        """Return the part as JSON has it."""
        own = dataclasses.asdict(self)
        kept = {name: value for name, value in own.items() if value or name not in self.RARE}
        return {"kind": self.kind, **kept}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixer(LayerPart):
    """The part of a layer in which tokens see each other.

    Attributes:
        STATEFUL: whether it keeps a state instead of every token's keys and values.
    """

    role: ClassVar[str] = "mixer"
    STATEFUL: ClassVar[bool] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward(LayerPart):
    """The part of a layer that computes each token by itself."""

    role: ClassVar[str] = "ffn"


_Part = TypeVar("_Part", bound=type[LayerPart])
_KINDS: dict[tuple[str, str], type[LayerPart]] = {}


def register(part: _Part) -> _Part:
    """Let specs have this kind of part; a decorator.

    Raises:
        ValueError: another class has the name.
    """
    known = _KINDS.setdefault((part.role, part.kind), part)
    if known is not part:
        raise ValueError(f"two classes are the {part.role} {part.kind!r}")
    return part


def read_part(role: str, fields: object) -> LayerPart:
    """Read what `LayerPart.fields` wrote.

    Raises:
        ArtefactError: the kind is unknown, or a field is missing, unknown or out of range.
    """
    if not isinstance(fields, Mapping) or not isinstance(fields.get("kind"), str):
        raise ArtefactError(f"spec: layer: {role} is {shown(fields)}, expected an object with kind")
    rest = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items() if k != "kind"}
    kind = fields["kind"]
    # Only names that are files of this folder are ever imported.
    if (role, kind) not in _KINDS and kind in _files():
        importlib.import_module(f"edgetok.models.layers.{kind}")
    if (role, kind) not in _KINDS:
        known = ", ".join(sorted(k for r, k in _KINDS if r == role))
        raise ArtefactError(f"spec: layer: {role} {kind!a:.80} is unknown, expected one of {known}")
    return _KINDS[role, kind](**rest)


def _files() -> set[str]:
    result = pkgutil.iter_modules([str(Path(__file__).parent)])
    return {m.name for m in result if m.name != "kind"}
