"""Parts that OpenAI's protocols share: fields, errors, usage."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any, cast, get_args

from edgetok.dialect.request import Effort
from edgetok.dialect.tool import Tool
from edgetok.dialect.tool import tools_of as read_tools
from edgetok.engine.result import FinishReason
from edgetok.errors import GrammarError, OptionError
from edgetok.grammar.definition import Grammar
from edgetok.serve.failure import Refusal
from edgetok.serve.protocols.protocol import Fields, refuse, sampling_of
from edgetok.serve.request import BACKGROUND, Rated, Usage

# Fields that change nothing here, and whose absence from the answer nobody would notice.
HARMLESS = {
    "metadata",
    "modalities",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "store",
    "user",
    "verbosity",
}
MOST_LOGPROBS = 20  # most likely tokens at each place, as OpenAI's
FINISH: dict[FinishReason, str] = {
    "stop": "stop",
    "loop": "stop",
    "length": "length",
    "context": "length",
    "time": "length",
}


class StreamOptions(Fields):
    """Options of a stream."""

    include_usage: bool | None = None
    include_memory: bool | None = None  # edgetok's own: which parts of the conversation are held


class Named(Fields):
    """An object that names a function."""

    name: str


class ToolChoice(Fields):
    """A choice of one function: its name stands beside the type in the newer protocol."""

    type: str
    name: str | None = None
    function: Named | None = None


class Sampled(Fields):
    """Fields of sampling, and those that every endpoint has."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    logit_bias: dict[str, float] | None = None
    service_tier: str | None = None
    priority: int | None = None

    def sampling(
        self, max_tokens: int | None, logprobs: int | None, limit: str = "max_tokens"
    ) -> dict[str, Any]:
        """Return the options that were given, under edgetok's names.

        Args:
            max_tokens: most tokens of the answer; -1 or None for what the context holds.
            logprobs: how many most likely tokens are told with each; None for no log-probabilities.
            limit: the field that `max_tokens` is from.

        Raises:
            Refusal: one of them is not supported, or out of range.
        """
        if self.logit_bias:
            raise refuse("logit_bias", "biases are not supported; leave it out")
        names = (
            "temperature top_p top_k min_p repetition_penalty presence_penalty frequency_penalty"
        )
        found = {name: getattr(self, name) for name in names.split()}
        found["logprobs"] = checked_logprobs(logprobs, "logprobs")
        # -1 is how some clients say that there is no limit.
        found["max_tokens"] = None if max_tokens == -1 else max_tokens
        found["seed"] = None if self.seed is None else self.seed % (1 << 64)
        if self.stop:
            found["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        return sampling_of(found, {"max_tokens": limit})

    @property
    def importance(self) -> int:
        """Return the priority of the internal request: 0 for one that somebody waits for."""
        waits = self.service_tier != "flex" and (self.priority or 0) <= 0
        return 0 if waits else BACKGROUND

    @property
    def ignored(self) -> list[str]:
        """Return the fields that nobody here knows."""
        return sorted(set(self.model_extra or ()) - HARMLESS)

    @property
    def usage_chunk(self) -> bool:
        """Return whether a stream ends with a chunk that has the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def memory(self) -> bool:
        """Return whether the usage says what the cache holds."""
        return self.stream_options is not None and bool(self.stream_options.include_memory)


def error_body(refusal: Refusal) -> dict[str, Any]:
    """Return a refusal in OpenAI's shape."""
    if refusal.status == 401:
        kind = "authentication_error"
    elif refusal.status == 404:
        kind = "not_found_error"
    else:
        kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    return {
        "error": {
            "message": refusal.message,
            "type": kind,
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def checked_logprobs(count: int | None, param: str) -> int | None:
    """Return how many most likely tokens are told with each; None for no log-probabilities.

    Raises:
        Refusal: too many, or fewer than none.
    """
    if count is not None and not 0 <= count <= MOST_LOGPROBS:
        raise Refusal(
            400,
            f"{param}: {count:,} most likely tokens, expected 0 to {MOST_LOGPROBS}",
            param=param,
            code="invalid_value",
        )
    return count


def rated_body(rated: Sequence[Rated]) -> list[dict[str, Any]]:
    """Return tokens with their log-probabilities in the newer endpoints' shape."""
    return [
        _rated(one.data, one.logprob) | {"top_logprobs": [_rated(*other) for other in one.top]}
        for one in rated
    ]


def _rated(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": shown(data), "logprob": logprob, "bytes": list(data)}


def shown(data: bytes) -> str:
    """Return a token's text; parts of characters are spelled as bytes, as OpenAI does it."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def usage_body(usage: Usage) -> dict[str, Any]:
    """Return the cost in OpenAI's shape, and what a bounded cache has lost if it has."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.generated_tokens,
        "total_tokens": usage.prompt_tokens + usage.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        **usage.losses,
    }


def grammar_of(given: dict[str, Any] | None, param: str) -> Grammar | None:
    """Return the grammar that a response format asks for.

    Args:
        given: {"type": "text" | "json_object" | "json_schema", ...}; a schema stands under
            "json_schema", or beside the type in the newer protocol.
        param: the field's name.

    Raises:
        Refusal: the format is unknown, or the schema cannot be held.
    """
    kind = "text" if given is None else given.get("type", "text")
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return Grammar.json_object()
    if kind != "json_schema":
        raise refuse(
            param, f"{kind!r:.100} is unknown, expected 'text', 'json_object' or 'json_schema'"
        )
    holder = given.get("json_schema", given)
    schema = holder.get("schema") if isinstance(holder, dict) else None
    if schema is None:
        raise refuse(param, "has no schema; give it as json_schema.schema")
    try:
        return Grammar.json_schema(schema)
    except GrammarError as error:
        raise Refusal(400, f"{param}: {error}", param=param, code="invalid_schema") from error


def tools_of(given: list[dict[str, Any]] | None) -> tuple[Tool, ...]:
    """Return the tools of a request.

    Raises:
        Refusal: one of them is not a function, or its name or parameters are invalid.
    """
    try:
        return read_tools(given)
    except OptionError as error:
        raise Refusal(400, f"tools: {error}", param="tools", code="invalid_value") from error


def arguments_of(given: str | dict[str, Any], name: str | None, param: str) -> dict[str, Any]:
    """Return the arguments of an earlier call as values; nothing below parses them again.

    Raises:
        Refusal: they are not JSON, or no object.
    """
    found: object = given
    if isinstance(given, str):
        try:
            found = json.loads(given or "{}")
        except (ValueError, RecursionError) as error:
            raise Refusal(
                400,
                f"{param}: the arguments of {name!r:.80} are not JSON: {error}",
                param=param,
                code="invalid_value",
            ) from error
    if not isinstance(found, dict):
        raise Refusal(
            400,
            f"{param}: the arguments of {name!r:.80} are {given!r:.80}, expected a JSON object",
            param=param,
            code="invalid_value",
        )
    return found


def choice_of(given: str | ToolChoice | None) -> str:
    """Return the tool choice as the engine's library knows it.

    Raises:
        Refusal: it is no choice that is known.
    """
    if given is None:
        return "auto"
    if isinstance(given, str):
        return given
    name = given.name or (given.function.name if given.function else None)
    if given.type != "function" or name is None:
        raise refuse("tool_choice", "expected 'auto', 'none', 'required' or a function's name")
    return named(name)


def named(tool: str) -> str:
    """Return the choice of one tool.

    Raises:
        Refusal: its name would be read as another choice.
    """
    if tool in ("auto", "none", "required"):
        raise refuse("tool_choice", f"a tool called {tool!r} cannot be chosen by name; rename it")
    return tool


def effort_of(given: str | None, param: str) -> Effort | None:
    """Return the effort of reasoning.

    Raises:
        Refusal: the word is unknown.
    """
    if given is None:
        return None
    word = {"xhigh": "high", "max": "high"}.get(given, given)
    for known in get_args(Effort):
        if word == known:
            return cast(Effort, known)
    raise refuse(param, f"{given!r:.40} is unknown, expected one of {', '.join(get_args(Effort))}")


def new_id(kind: str) -> str:
    """Return a name that nothing else has, e.g. of the kind "chatcmpl-" or "msg_"."""
    return kind + secrets.token_hex(12)
