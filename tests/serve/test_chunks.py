"""The stream of chunks of `chat/completions` and `completions`, without a server."""

from __future__ import annotations

from typing import Any

import pytest

from edgetok.serve.protocols.chat_completions import ChatCompletions
from edgetok.serve.protocols.completions import Completions
from edgetok.serve.protocols.protocol import Protocol
from edgetok.serve.request import Usage

BODIES: tuple[tuple[Protocol, dict[str, Any]], ...] = (
    (ChatCompletions(), {"messages": [{"role": "user", "content": "Hello"}]}),
    (Completions(), {"prompt": "Hello"}),
)


@pytest.mark.parametrize(("protocol", "body"), BODIES)
def test_the_last_chunk_tells_what_was_asked_for(protocol: Protocol, body: dict[str, Any]) -> None:
    usage = Usage(kept=(1.0, 0.5))
    told = []
    for options in ({}, {"include_usage": True}, {"include_usage": True, "include_memory": True}):
        given = {"model": "tiny", "stream": True, "stream_options": options, **body}
        *chunks, (_, done) = protocol.parse(given).rendering.end(usage)
        assert done == "[DONE]"
        told.append([chunk["usage"].get("memory") for _, chunk in chunks])
    assert told == [[], [None], [{"kept": (1.0, 0.5)}]]
