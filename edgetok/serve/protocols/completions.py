"""`/v1/completions`: continue texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from edgetok.dialect.tool import TextPiece
from edgetok.serve.failure import Refusal
from edgetok.serve.models import Served
from edgetok.serve.protocols.openai_chunks import Chunks
from edgetok.serve.protocols.openai_shared import FINISH, Sampled, error_body, shown, usage_body
from edgetok.serve.protocols.protocol import Call, Payload, Protocol, refuse, validated
from edgetok.serve.request import Ended, Event, Rated, Request, Usage, Whole, prompts_of

_DEFAULT_TOKENS = 16  # as OpenAI's


class _Body(Sampled):
    prompt: str | list[str] | list[int] | list[list[int]] = ""
    echo: bool | None = None
    suffix: str | None = None
    logprobs: int | None = None
    best_of: int | None = None


class Completions(Protocol):
    """Continues texts without a template."""

    def parse(self, body: dict[str, Any]) -> Call:
        """Read a body. See `Protocol`."""
        found = validated(_Body, body)
        if found.suffix:
            raise refuse("suffix", "filling in before a suffix is not supported; leave it out")
        if found.logprobs is not None and found.echo:
            raise refuse("echo", "the prompt's log-probabilities are not told; leave it out")
        if found.best_of not in (None, 1, found.n):
            raise refuse("best_of", "not supported; use n")
        limit = _DEFAULT_TOKENS if found.max_tokens is None else found.max_tokens
        request = Request(
            model=found.model,
            prompts=prompts_of(found.prompt, "prompt"),
            sampling=found.sampling(limit, found.logprobs),
            answers=1 if found.n is None else found.n,
            priority=found.importance,
            echo=bool(found.echo),
        )
        rendering = _Completion(found)
        return Call(request, bool(found.stream), rendering, found.ignored)

    def error(self, refusal: Refusal) -> dict[str, Any]:
        """Return the body of a refusal."""
        return error_body(refusal)


class _Completion(Chunks):
    def __init__(self, found: _Body) -> None:
        super().__init__(found, "cmpl-", "text_completion")
        self._rates = found.logprobs is not None
        self._offsets: dict[int, int] = {}

    def event(self, event: Event) -> Iterable[Payload]:
        if isinstance(event, Ended):
            return [self._chunk(_choice(event.place, "", FINISH.get(event.reason), None))]
        text = event.piece.text if isinstance(event.piece, TextPiece) else ""
        choice = _choice(event.place, text, None, self._logprobs(event.place, event.rated))
        return [self._chunk(choice)]

    def body(self, served: Served, answers: Sequence[Whole], usage: Usage) -> dict[str, Any]:
        self.begin(served, usage)
        choices = [
            _choice(i, one.text, FINISH.get(one.reason), self._logprobs(i, one.rated))
            for i, one in enumerate(answers)
        ]
        return self._head | {"choices": choices, "usage": usage_body(usage)}

    def _logprobs(self, place: int, rated: Sequence[Rated]) -> dict[str, Any] | None:
        if not self._rates:
            return None
        texts = [shown(one.data) for one in rated]
        offsets = []
        for text in texts:
            offsets.append(self._offsets.get(place, 0))
            self._offsets[place] = offsets[-1] + len(text)
        return {
            "tokens": texts,
            "token_logprobs": [one.logprob for one in rated],
            "top_logprobs": [{shown(data): logprob for data, logprob in one.top} for one in rated],
            "text_offset": offsets,
        }


def _choice(
    index: int, text: str, finish: str | None, logprobs: dict[str, Any] | None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
