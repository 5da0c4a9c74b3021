"""The engine over a model that answers by a rule: cancelling, closing, errors, leaks."""

from __future__ import annotations

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

from edgetok.engine.scheduler import Scheduler
from edgetok.errors import BusyError, EdgetokError, ShapeError
from edgetok.model import Model
from tests.engine.ruled import PROMPTS, alone, chained, engine_threads
from tests.fake import FakeBackend, fake_model


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
