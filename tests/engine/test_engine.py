"""The engine over a model that answers by a rule: sharing, cancelling, closing, errors, leaks."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetok.engine.mailbox import AHEAD_TOKENS
from edgetok.engine.scheduler import Scheduler
from edgetok.errors import BusyError, ContextError, EdgetokError, ShapeError
from edgetok.model import Model
from tests.fake import FakeBackend, fake_model


def chained(tokens: list[int]) -> int:
    """The next token depends on all before, so that a mixed-up cache shows; each is a letter."""
    return (sum((i + 1) * token for i, token in enumerate(tokens)) * 31 + 7) % 64 + 20


def alone(prompt: list[int], count: int) -> tuple[int, ...]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(chained(tokens))
    return tuple(tokens[len(prompt) :])


@pytest.fixture
def model(tmp_path: Path) -> Any:
    with fake_model(tmp_path, rule=chained, context_tokens=4000) as made:
        yield made


PROMPTS = [[40 + i, 50, 60 + i] * (1 + 7 * i) for i in range(8)]


def steps(model: Model) -> list[list[int]]:
    backend: Any = model.backend
    return backend.computed


def engine_threads() -> int:
    return sum(thread.name == "edgetok-engine" for thread in threading.enumerate())


# Sharing


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


# Ending


def test_with(model: Model) -> None:
    with model.stream([50]) as stream:
        next(stream)
    assert stream.ended
    assert list(stream) == []


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("company", [False, True], ids=["alone", "company"])
def test_cancel_from_another_thread(tmp_path: Path, phase: str, company: bool) -> None:
    with fake_model(tmp_path, rule=chained, step_s=0.005, context_tokens=4000) as model:
        other = threading.Thread(target=lambda: model.generate([70], max_tokens=60))
        if company:
            other.start()
        stream = model.stream([50] * (1500 if phase == "prefill" else 1))
        timer = threading.Timer(0.1, stream.cancel)
        timer.start()
        result = stream.run()
        timer.join()
        assert result.finish == "cancelled"
        if phase == "prefill":
            assert result.tokens == ()
            assert 0 < stream._sequence.context.cache.length_tokens < 1500
        else:
            assert result.tokens == alone([50], len(result.tokens)) != ()
        if company:
            other.join(30)
        context = stream._sequence.context
        assert context.tokens == list(context.cache.tokens)  # type: ignore[attr-defined]


@pytest.mark.parametrize("company", [False, True], ids=["alone", "company"])
def test_close_from_other_threads_at_any_time(tmp_path: Path, company: bool) -> None:
    rng = np.random.default_rng(5)
    with fake_model(tmp_path, rule=chained, step_s=0.0005, context_tokens=4000) as model:
        stop = threading.Event()
        errors: list[BaseException] = []
        finished: list[int] = []

        def talk() -> None:
            while not stop.is_set():
                assert model.generate([70, 71], max_tokens=8).tokens == alone([70, 71], 8)

        other = threading.Thread(target=talk)
        if company:
            other.start()
        for i in range(60):
            stream = model.engine.answer(
                model.engine.conversation(),
                [50 + i] * int(rng.integers(1, 60)),
                model.sampling,
                lambda result, i=i: finished.append(i),
            )

            def read(stream: Any = stream) -> None:
                try:
                    for _ in stream:
                        pass
                except BaseException as error:
                    errors.append(error)

            reader = threading.Thread(target=read)
            closers = [threading.Timer(float(rng.random()) * 0.02, stream.close) for _ in range(3)]
            for thread in (reader, *closers):
                thread.start()
            for thread in (*closers, reader):
                thread.join(20)
                assert not thread.is_alive()
            assert stream.ended
            stream.settle()
        stop.set()
        if company:
            other.join(20)
        assert errors == []
        assert finished == list(range(60))
        assert not model.engine.stepper._live


def test_close_in_a_signal_handler(tmp_path: Path) -> None:
    """The handler interrupts whatever the main thread does: a step, taking and giving the turn."""
    with fake_model(tmp_path, rule=chained, context_tokens=4000) as model:
        streams: list[Any] = []
        before = signal.signal(signal.SIGALRM, lambda *_: streams[-1].close())
        try:
            for i in range(200):
                streams.append(model.stream([50], max_tokens=3000))
                signal.setitimer(signal.ITIMER_REAL, 0.0002 + 0.00001 * i)
                for _ in streams[-1]:
                    pass
                signal.setitimer(signal.ITIMER_REAL, 0)
                assert streams[-1].ended
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert sum(stream.result.finish == "cancelled" for stream in streams) > 50
        assert not model.engine.stepper._live
        assert model.generate([1], max_tokens=3).tokens == alone([1], 3)


def test_an_interrupt_at_any_time_leaves_a_usable_engine(tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def interrupt(*_: Any) -> None:
        raise Stop

    with fake_model(tmp_path, rule=chained, context_tokens=4000) as model:
        before = signal.signal(signal.SIGALRM, interrupt)
        stopped = 0
        gc.disable()  # an interrupt in a finaliser of something else would be swallowed there
        try:
            for i in range(300):
                context = model.engine.conversation()
                options = model.sampling.with_changes({"max_tokens": 100})
                stream = model.engine.answer(context, [50], options)
                try:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 0.0001 + 0.00001 * i)
                        stream.run()
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except Stop:
                    stopped += 1
                stream.settle()
                cache: Any = context.cache
                assert context.tokens == cache.tokens
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            gc.enable()
        assert stopped > 100
        assert not model.engine.stepper._live
        assert model.generate([1], max_tokens=3).tokens == alone([1], 3)


def test_abandoned_answers_let_go_of_their_caches(model: Model) -> None:
    streams = [model.stream([50 + i]) for i in range(5)]
    for stream in streams:
        next(stream)
    refs = [weakref.ref(stream._sequence.context.cache) for stream in streams]
    del stream, streams
    gc.collect()
    assert [ref() for ref in refs] == [None] * 5
    assert not model.engine.stepper._live


def test_no_thread_stays(tmp_path: Path) -> None:
    before = threading.active_count()
    for i in range(5):
        model = fake_model(tmp_path / str(i), rule=chained)
        model.generate_batch([[1], [2]], max_tokens=3)
        assert engine_threads() == 1
        if i % 2:
            model.close()
        else:
            gone = weakref.ref(model.engine.stepper)
            del model  # nobody closed it
            gc.collect()
            assert gone() is None
        deadline = time.monotonic() + 60
        while engine_threads() and time.monotonic() < deadline:
            time.sleep(0.001)
        assert threading.active_count() == before


def test_a_closed_model_ends_its_answers(tmp_path: Path) -> None:
    model = fake_model(tmp_path, rule=chained, step_s=0.005)
    pulled, waiting = model.stream([50]), model.stream([51])
    next(pulled)
    found: list[BaseException] = []

    def read() -> None:
        try:
            for _ in waiting:
                pass
        except EdgetokError as error:
            found.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.05)
    model.close()
    model.close()
    thread.join(10)
    assert not thread.is_alive()
    assert "closed" in str(found[0])
    with pytest.raises(EdgetokError, match="closed"):
        list(pulled)
    with pytest.raises(EdgetokError, match="closed"):
        model.generate([1])
    with pytest.raises(EdgetokError, match="closed"):
        model.generate_batch([[1], [2]])
    assert engine_threads() == 0


def test_silent_at_the_interpreters_exit(tmp_path: Path) -> None:
    code = (
        "import sys, threading; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from tests.fake import fake_model\n"
        "model = fake_model(Path(sys.argv[1]), rule=lambda t: 40, step_s=0.01)\n"
        "kept = [model.stream([50], max_tokens=900) for _ in range(4)]\n"
        "for one in kept: next(one)\n"
        "def work():\n"
        "    for _ in kept[0]: pass\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "next(kept[1])\n"
    )
    repository = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m"), str(repository)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork(model: Model) -> None:
    model.generate_batch([[1], [2]], max_tokens=3)
    child = os.fork()
    if child == 0:
        same = model.generate_batch([[1], [2]], max_tokens=3)
        os._exit(0 if [r.tokens for r in same] == [alone([1], 3), alone([2], 3)] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert model.generate([1], max_tokens=3).tokens == alone([1], 3)


# Errors


class Failing(FakeBackend):
    """Raises in every step that holds the token 99 as the first of a row."""

    error: Exception = RuntimeError("the machine is on fire")

    def step(self, parts: Any) -> Any:
        if any(99 in part.tokens for part in parts):
            raise self.error
        return super().step(parts)


def test_an_error_in_a_step_fails_its_sequences_alone(tmp_path: Path) -> None:
    backend = Failing(chained, context_tokens=4000)
    with fake_model(tmp_path, engine=backend) as model:
        good = model.stream(PROMPTS[1], max_tokens=30)
        next(good)
        model.generate([50], max_tokens=10)  # then it is as far ahead as it may be, and rests
        with pytest.raises(RuntimeError, match="on fire"):
            model.generate([99])
        with pytest.raises(RuntimeError, match="on fire"):
            model.generate_batch([[50], [99]])
        assert good.run().tokens == alone(PROMPTS[1], 30)
        assert not model.engine.stepper._live


def test_an_error_of_a_shared_step_reaches_each_reader(tmp_path: Path) -> None:
    backend = FakeBackend(chained, step_s=0.002)
    with fake_model(tmp_path, engine=backend) as model:
        step: Any = backend.step

        def failing(parts: Any) -> Any:
            if len(parts) == 3:
                raise RuntimeError("three are too many")
            return step(parts)

        backend.step = failing  # type: ignore[method-assign]
        found: list[Any] = []

        def read(i: int) -> None:
            try:
                model.generate([60 + i], max_tokens=200)
            except RuntimeError as error:
                found.append(error)

        threads = [threading.Thread(target=read, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert [str(error) for error in found] == ["three are too many"] * 3
        assert len({id(error) for error in found}) == 3


def test_a_refused_step_fails_the_guilty_one_alone(tmp_path: Path) -> None:
    backend = FakeBackend(chained, context_tokens=4000)
    with fake_model(tmp_path, engine=backend) as model:
        step: Any = backend.step

        def refusing(parts: Any) -> Any:
            if any(part.cache.length_tokens == 12 and part.cache.tokens[0] == 98 for part in parts):
                raise ShapeError("not this one")
            return step(parts)

        backend.step = refusing  # type: ignore[method-assign]
        good, bad = model.stream([50], max_tokens=30), model.stream([98], max_tokens=30)
        good.start()
        bad.start()
        assert good.run().tokens == alone([50], 30)
        with pytest.raises(ShapeError, match="not this one"):
            list(bad)


def test_too_many_are_refused(model: Model) -> None:
    stepper = model.engine.stepper
    stepper._scheduler = Scheduler(16, most_running=1, most_waiting=1)
    a, b, c = (model.stream([50 + i], max_tokens=3) for i in range(3))
    next(a)
    b.start()
    with pytest.raises(BusyError):
        next(c)
    assert c.ended
    assert a.run().tokens == alone([50], 3)
    assert b.run().tokens == alone([51], 3)
    assert model.generate([52], max_tokens=3).tokens == alone([52], 3)
