"""The engine over edgetok's own kernels: in company each sequence writes what it writes alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgetok
from edgetok.cache.prefix_cache import PrefixCache
from edgetok.evaluation.chats import measure_chats

PROMPTS = [
    "Once upon a time",
    "The dog said:",
    "A cat " * 40,
    "Tom had 3 dogs. One day",
    "x",
    "Two birds sat on a tree and " * 15,
    "1, 2, 3,",
    "Lily was sad because",
]


@pytest.fixture(scope="module")
def model(default_artefact: Path) -> Iterator[edgetok.Model]:
    with edgetok.load(default_artefact, threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def alone(model: edgetok.Model) -> dict[tuple[int, bool], tuple[int, ...]]:
    return {
        (i, greedy): model.generate(prompt, **options(i, greedy)).tokens
        for i, prompt in enumerate(PROMPTS)
        for greedy in (True, False)
    }


def options(i: int, greedy: bool) -> Any:
    return {"max_tokens": 24, "temperature": 0.0} if greedy else {"max_tokens": 24, "seed": i}


def test_a_batch(model: edgetok.Model, alone: Any) -> None:
    found = model.generate_batch(PROMPTS, **options(0, True))
    assert [result.tokens for result in found] == [alone[i, True] for i in range(8)]


def test_a_long_conversation_serves_a_short_prompt_that_begins_alike(
    model: edgetok.Model, tmp_path: Path
) -> None:
    """Though it does not fit into the short one's cache; from memory, and from a file."""
    said = (model.tokenize("Tom had a dog. The dog had a ball. ") * 60)[:600]
    short = [*said[:300], *model.tokenize("A cat")]
    expected = model.generate(short, **options(0, True)).tokens
    try:
        for first in (True, False):
            model.engine.prefixes = PrefixCache(
                model.artefact.identity, 1 << 26, tmp_path / "prefixes", model.backend.new_cache
            )
            if first:
                model.generate(said, **options(0, True))
            for _ in range(2):
                found = model.generate(short, **options(0, True))
                assert found.tokens == expected
                assert found.stats.cached_tokens >= 300
            model.engine.prefixes.close()
    finally:
        model.engine.prefixes = None


def test_32_threads(model: edgetok.Model, alone: Any) -> None:
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        stream = model.stream(PROMPTS[i % 8], **options(i % 8, i < 16))
        pieces = list(stream)
        assert "".join(pieces) == stream.result.text
        found[i] = stream.result.tokens

    threads = [threading.Thread(target=work, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert found == {i: alone[i % 8, i < 16] for i in range(32)}


def test_asyncio(model: edgetok.Model, alone: Any) -> None:
    async def one(i: int) -> tuple[int, ...]:
        async with model.stream(PROMPTS[i], **options(i, True)) as stream:
            async for _ in stream:
                pass
        return stream.result.tokens

    async def all_of_them() -> list[tuple[int, ...]]:
        return await asyncio.gather(*(one(i) for i in range(8)))

    assert asyncio.run(all_of_them()) == [alone[i, True] for i in range(8)]


def test_conversations_that_evict_go_on_beside_each_other(default_artefact: Path) -> None:
    """Caches of 128 slots, chats of more than 200 tokens: the same answers as one by one."""

    def talk(chat: edgetok.Chat, i: int) -> list[str]:
        said = [f"My name is Tom {i}. " * 3, "Tell me a story.", "And then?", "Why?"]
        return [chat.send(text, max_tokens=40).run().text for text in said]

    with edgetok.load(default_artefact, threads=2, context=128) as model:
        model.sampling = model.sampling.with_changes({"temperature": 0.0})
        expected = [talk(model.new_chat(), i) for i in range(4)]
        found: dict[int, list[str]] = {}

        def work(i: int) -> None:
            chat = model.new_chat()
            found[i] = talk(chat, i)
            memory = chat.memory
            assert memory is not None
            assert memory.seen > 128

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
    # A prompt's chunks are smaller beside others, which may evict at other moments; the first
    # answers come before anything was evicted.
    assert [found[i][0] for i in range(4)] == [texts[0] for texts in expected]
    assert all(len(texts) == 4 for texts in found.values())


def test_closed_in_the_middle_of_a_prompt(model: edgetok.Model) -> None:
    chat = model.new_chat(temperature=0.0, max_tokens=12)
    answer = chat.send("dog " * 1200)
    reader = threading.Thread(target=answer.run)
    reader.start()
    while not answer._sequence.context.tokens:
        pass
    answer.close()
    chat.undo()
    assert 0 < chat.used_tokens < 1200
    text = chat.send("Hello!").run().text
    reader.join(60)
    assert not reader.is_alive()
    assert text == model.new_chat(temperature=0.0, max_tokens=12).send("Hello!").run().text


def test_the_benchmark_of_chats(model: edgetok.Model) -> None:
    found = measure_chats(
        model.engine,
        model.sampling.with_changes({"seed": 0}),
        chats=3,
        depth=20,
        decode_tokens=8,
        prompt_tokens=600,
        repeats=1,
    )
    assert (found.chats, found.depth, found.threads, found.prompt_tokens) == (3, 20, 2, 600)
    assert found.speedup == pytest.approx(found.total_tokens_per_s / found.single_tokens_per_s)
    assert 0 < found.wait_p95_ms <= found.wait_max_ms < 1e3 * found.prompt_s
    assert found.python_ms_per_step > 0
    assert np.isfinite(list(found.values().values())).all()
    with pytest.raises(edgetok.OptionError, match="the context holds 2,048"):
        measure_chats(
            model.engine,
            model.sampling,
            chats=1,
            depth=2045,
            decode_tokens=8,
            prompt_tokens=1,
            repeats=1,
        )
