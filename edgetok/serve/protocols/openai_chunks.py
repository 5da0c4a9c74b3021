"""The stream of chunks that OpenAI's two older protocols share: each has the same head."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from edgetok.serve.failure import Refusal
from edgetok.serve.models import Served
from edgetok.serve.protocols.openai_shared import Sampled, error_body, new_id, usage_body
from edgetok.serve.protocols.protocol import Payload, Rendering
from edgetok.serve.request import Usage


class Chunks(Rendering):
    """Begins, ends and surrounds the choices of `chat/completions` and `completions`."""

    def __init__(self, found: Sampled, kind: str, name: str) -> None:
        """Prepare the head.

        Args:
            found: the body.
            kind: beginning of the response's id, e.g. "cmpl-".
            name: its "object".
        """
        self._usage_chunk, self._memory = found.usage_chunk, found.memory
        self._head: dict[str, Any] = {
            "id": new_id(kind),
            "object": name,
            "created": int(time.time()),
            "model": found.model,
        }

    def begin(self, served: Served, usage: Usage) -> Iterable[Payload]:
        """Name the model's version. See `Rendering`."""
        self._head["system_fingerprint"] = f"fp_{served.identity[:12]}"
        return ()

    def end(self, usage: Usage) -> Iterable[Payload]:
        """Tell the usage, if it was asked for. See `Rendering`."""
        if self._usage_chunk:
            told = usage_body(usage)
            if self._memory:
                told["memory"] = {"kept": usage.kept}
            yield None, self._head | {"choices": [], "usage": told}
        yield None, "[DONE]"

    def failed(self, refusal: Refusal) -> Iterable[Payload]:
        """Tell the fault. See `Rendering`."""
        return [(None, error_body(refusal))]

    def _chunk(self, choice: dict[str, Any]) -> Payload:
        extra = {"usage": None} if self._usage_chunk else {}
        return None, self._head | {"choices": [choice]} | extra
