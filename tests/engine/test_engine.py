"""The engine over a model that answers by a rule: sequences share steps, readers do not wait."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from edgetok.engine.mailbox import AHEAD_TOKENS
from edgetok.errors import ContextError
from edgetok.model import Model
from tests.engine.ruled import PROMPTS, alone, chained, steps
from tests.fake import fake_model


def test_a_batch_shares_steps_and_gives_what_each_gives_alone(model: Model) -> None:
    results = model.generate_batch(PROMPTS, max_tokens=20)
    assert [result.tokens for result in results] == [alone(prompt, 20) for prompt in PROMPTS]
    assert [result.finish for result in results] == ["length"] * 8
    assert max(len(step) for step in steps(model)) == 8
    prompts = sum(-(-len(prompt) // 16) for prompt in PROMPTS)
    assert len(steps(model)) == prompts + 19  # prompts first, then all together
    assert all(max(step) == 1 or len(step) == 1 for step in steps(model))  # nobody waits for tokens


def test_a_long_batch_keeps_few_caches(model: Model) -> None:
    made: list[Any] = []
    backend: Any = model.backend
    new_cache = backend.new_cache
    backend.new_cache = lambda tokens: made.append(weakref.ref(c := new_cache(tokens))) or c
    most = 0
    step = backend.step

    def counting(parts: Any) -> Any:
        nonlocal most
        most = max(most, sum(ref() is not None for ref in made))
        return step(parts)

    backend.step = counting
    prompts = [[30 + i % 100, 40] for i in range(60)]
    results = model.generate_batch(prompts, max_tokens=1 + 5)
    assert [result.tokens for result in results] == [alone(prompt, 6) for prompt in prompts]
    assert max(len(step) for step in steps(model)) <= 16
    assert len(made) == 60


def test_a_prompt_that_does_not_fit_fails_its_batch(model: Model) -> None:
    with pytest.raises(ContextError):
        model.generate_batch([[1], [1] * 5000], max_tokens=5)
    assert model.generate([1], max_tokens=3).tokens == alone([1], 3)


@pytest.mark.parametrize("run", [True, False], ids=["run", "pull"])
def test_many_threads_give_what_each_gives_alone(model: Model, run: bool) -> None:
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        stream = model.stream(PROMPTS[i % 8], max_tokens=15)
        if not run:
            for _ in stream:
                pass
        found[i] = stream.run().tokens

    threads = [threading.Thread(target=work, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {i: alone(PROMPTS[i % 8], 15) for i in range(32)}
    assert max(len(step) for step in steps(model)) > 4


def test_two_that_are_pulled_in_turn(model: Model) -> None:
    a, b = model.stream(PROMPTS[1], max_tokens=12), model.stream(PROMPTS[2], max_tokens=12)
    for _ in range(12):
        next(a)
        next(b)
    assert (a.run().tokens, b.run().tokens) == (alone(PROMPTS[1], 12), alone(PROMPTS[2], 12))


# Reading


def test_a_single_reader_computes_nothing_ahead_and_needs_no_thread(model: Model) -> None:
    before = threading.active_count()
    stream = model.stream(PROMPTS[3], max_tokens=20)
    assert steps(model) == []
    next(stream)
    count = len(steps(model))
    time.sleep(0.05)
    assert len(steps(model)) == count
    for i in range(1, 6):
        next(stream)
        assert len(steps(model)) == count + i
    assert threading.active_count() == before
    stream.close()


def test_a_reader_who_stops_reading_is_computed_a_few_tokens_ahead(model: Model) -> None:
    idle = model.stream(PROMPTS[1], max_tokens=500)
    first = next(idle)
    model.generate_batch([PROMPTS[2], PROMPTS[3]], max_tokens=100)
    assert len(idle._sequence.tokens) == 1 + AHEAD_TOKENS
    assert idle.result.tokens == alone(PROMPTS[1], 1)
    rest = first + "".join(idle)
    assert idle.result.tokens == alone(PROMPTS[1], 500)
    assert idle.result.text == rest


def test_what_was_computed_ahead_is_not_part_of_a_closed_answer(model: Model) -> None:
    idle = model.stream(PROMPTS[1], max_tokens=500)
    first = next(idle)
    model.generate_batch([PROMPTS[2], PROMPTS[3]], max_tokens=20)
    idle.close()
    assert (idle.result.text, idle.result.tokens) == (first, alone(PROMPTS[1], 1))


# asyncio


def test_async_streams_share_steps(model: Model) -> None:
    async def one(prompt: list[int]) -> tuple[int, ...]:
        stream = model.stream(prompt, max_tokens=80)
        pieces = [piece async for piece in stream]
        assert "".join(pieces) == stream.result.text
        return stream.result.tokens

    async def all_of_them() -> list[tuple[int, ...]]:
        return await asyncio.gather(*(one(prompt) for prompt in PROMPTS))

    assert asyncio.run(all_of_them()) == [alone(prompt, 80) for prompt in PROMPTS]
    assert max(len(step) for step in steps(model)) == 8


def test_an_async_reader_does_not_block_its_loop(tmp_path: Path) -> None:
    with fake_model(tmp_path, rule=chained, step_s=0.02) as model:

        async def main() -> int:
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await asyncio.sleep(0.001)
                    ticks += 1

            ticking = asyncio.ensure_future(tick())
            async with model.stream([50], max_tokens=10) as stream:
                async for _ in stream:
                    pass
            ticking.cancel()
            return ticks

        assert asyncio.run(main()) > 40


def test_a_cancelled_task_closes_its_answer(model: Model) -> None:
    async def main() -> Any:
        stream = model.stream([50], max_tokens=3000)

        async def read() -> None:
            async for _ in stream:
                await asyncio.sleep(0)

        task = asyncio.ensure_future(read())
        while not stream.result.tokens:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stream.settle()
        return stream.result

    result = asyncio.run(main())
    assert result.finish == "cancelled"
    assert result.tokens == alone([50], len(result.tokens))
    assert not model.engine.stepper._live


def test_async_leaves_early(model: Model) -> None:
    async def main() -> list[str]:
        pieces = []
        async with model.stream([50]) as stream:
            async for piece in stream:
                pieces.append(piece)
                if len(pieces) == 3:
                    break
        assert stream.ended
        stream.settle()
        return pieces

    assert len(asyncio.run(main())) == 3
    assert not model.engine.stepper._live
