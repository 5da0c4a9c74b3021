"""The interface of a protocol: a file each that turns its bodies into requests and events back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import pydantic

from edgetok.errors import OptionError
from edgetok.sampling.options import SamplingOptions
from edgetok.serve.failure import Refusal
from edgetok.serve.models import Served
from edgetok.serve.request import Event, Request, Usage, Whole

B = TypeVar("B", bound="Fields")
Payload = tuple[str | None, dict[str, Any] | str]  # name of a server-sent event, and its data


class Fields(pydantic.BaseModel):
    """An object in a body: known fields are of their types, unknown ones are kept by name."""

    model_config = pydantic.ConfigDict(extra="allow", strict=True)


class Part(Fields):
    """A part of a message's content."""

    type: str
    text: str | None = None


class Rendering(ABC):
    """One response in a protocol's words: as events, or as one body."""

    def begin(self, served: Served, usage: Usage) -> Iterable[Payload]:
        """Return what a stream begins with."""
        return ()

    @abstractmethod
    def event(self, event: Event) -> Iterable[Payload]:
        """Return what a stream says about an event."""

    @abstractmethod
    def end(self, usage: Usage) -> Iterable[Payload]:
        """Return what a stream ends with."""

    @abstractmethod
    def failed(self, refusal: Refusal) -> Iterable[Payload]:
        """Return what a stream ends with in place of `end`."""

    @abstractmethod
    def body(self, served: Served, answers: Sequence[Whole], usage: Usage) -> dict[str, Any]:
        """Return the body of a response that is not a stream."""


@dataclass(frozen=True, slots=True)
class Call:
    """A parsed body.

    Attributes:
        request: the internal request.
        stream: whether the response is a stream of events.
        rendering: how to word it.
        ignored: fields of the body that this server does not know.
    """

    request: Request
    stream: bool
    rendering: Rendering
    ignored: Sequence[str] = ()


class Protocol(ABC):
    """Reads bodies and words errors."""

    @abstractmethod
    def parse(self, body: dict[str, Any]) -> Call:
        """Read a body.

        Raises:
            Refusal: something in it is wrong or not supported.
        """

    @abstractmethod
    def error(self, refusal: Refusal) -> dict[str, Any]:
        """Return the body of a refusal."""


def validated(kind: type[B], body: dict[str, Any]) -> B:
    """Return a body as an object.

    Raises:
        Refusal: names the first field that is wrong.
    """
    try:
        return kind.model_validate(body)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        # Branches of a union are named by their types: clients know fields and numbers alone.
        places = [[str(part) for part in one["loc"] if _is_field(part)] for one in found]
        # Of a union's branches the one that fails furthest inside is the one that was meant.
        same = [i for i, place in enumerate(places) if place[:1] == places[0][:1]]
        meant = max(same, key=lambda i: len(places[i]))
        place = ".".join(places[meant])
        raise Refusal(
            400, f"{place or 'body'}: {found[meant]['msg']}", param=place or None,
            code="invalid_value",
        ) from error  # fmt: skip


def sampling_of(
    given: Mapping[str, Any], names: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Return the options of sampling that a client gave.

    Args:
        given: values by edgetok's names; those that are None were not given.
        names: the client's names, where they are others.

    Raises:
        Refusal: names the first field whose value is out of range.
    """
    found = {name: value for name, value in given.items() if value is not None}
    for name, value in found.items():
        try:
            SamplingOptions(**{name: value})
        except OptionError as error:
            param = names.get(name, name)
            message = str(error).replace(name, param, 1)
            raise Refusal(400, message, param=param, code="invalid_value") from error
    return found


def text_of(
    content: str | Sequence[Part], place: str, kinds: Sequence[str], *, noun: str = "part",
    code: str | None = None, skipped: Collection[str] = (),
) -> str:  # fmt: skip
    """The text of a message: parts are joined, and what is not text is refused.

    Args:
        content: a text, or its parts.
        place: where it stands in the body.
        kinds: types of parts that are text; the first one is named in a refusal.
        noun: the protocol's word for a part.
        code: code of a refusal.
        skipped: types of parts that are read elsewhere.

    Raises:
        Refusal: a part is an image, a sound or a file.
    """
    if isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(content):
        if part.type in skipped:
            continue
        if part.type not in kinds or part.text is None:
            raise Refusal(
                400,
                f"{place}.{i}: a {noun} of type {part.type!r:.100}, expected {kinds[0]!r}; this "
                "model reads text alone",
                param=f"{place}.{i}",
                code=code,
            )
        texts.append(part.text)
    return "".join(texts)


def _is_field(part: int | str) -> bool:
    if isinstance(part, int):
        return True
    return part.isidentifier() and part not in _TYPES and part.lstrip("_")[:1].islower()


_TYPES = {"str", "int", "float", "bool", "dict", "list"}


def refuse(param: str, message: str) -> Refusal:
    """Return the refusal of a field that has no meaning here."""
    return Refusal(400, f"{param}: {message}", param=param, code="unsupported_parameter")
