"""A pace is held by resting: counted in rests and their lengths on a clock that tests move."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from edgetok.engine.mailbox import Letter, Mailbox
from edgetok.engine.pace import Pace
from edgetok.errors import OptionError
from edgetok.model import Model
from edgetok.runtime.options import RunOptions
from tests.engine.ruled import alone, chained
from tests.fake import FakeBackend, fake_model

PROMPT = [40, 50, 60]


class Clock:
    """Moved by steps and by rests."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now_s, self.step_s = 100.0, step_s
        self.rests: list[float] = []

    def __call__(self) -> float:
        return self.now_s


class Backend(FakeBackend):
    clock: Clock

    def step(self, parts: Any) -> Any:
        self.clock.now_s += self.clock.step_s
        return super().step(parts)


@pytest.fixture
def paced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes a model with a pace, a clock, and steps that take a time."""
    made: list[Model] = []

    def make(pace: float, step_s: float = 0.0) -> tuple[Model, Clock]:
        clock = Clock(step_s)
        backend = Backend(chained, context_tokens=4000)
        backend.clock = clock
        model = fake_model(tmp_path, engine=backend)
        stepper = model.engine.stepper
        stepper._clock, stepper._pace = clock, Pace(pace)

        def wait(self: Mailbox, seconds: float) -> Letter | None:
            clock.rests.append(seconds)
            clock.now_s += seconds
            return self.poll()

        monkeypatch.setattr(Mailbox, "wait", wait)
        made.append(model)
        return model, clock

    yield make
    for model in made:
        model.close()


def answer(model: Model, tokens: int) -> Any:
    sampling = model.sampling.with_changes({"max_tokens": tokens, "stop_loops": False})
    return model.engine.text(PROMPT, sampling)


def test_one_rest_between_two_tokens(paced: Any) -> None:
    model, clock = paced(10.0, step_s=0.03)
    result = answer(model, 20).run()
    assert result.tokens == alone(PROMPT, 20)
    # The prompt's step makes the first token; then 19 steps, each of which is waited for once.
    assert len(clock.rests) == 19
    assert result.stats.tokens_per_s == pytest.approx(10.0)
    assert clock.rests == pytest.approx([0.07] * 19)


def test_a_slow_machine_does_not_rest(paced: Any) -> None:
    model, clock = paced(10.0, step_s=0.2)
    assert answer(model, 10).run().tokens == alone(PROMPT, 10)
    assert clock.rests == []


def test_the_end_of_the_time_cuts_a_rest(paced: Any) -> None:
    model, clock = paced(0.25)
    changes = {"max_tokens": 20, "stop_loops": False, "max_seconds": 1.0}
    result = model.engine.text(PROMPT, model.sampling.with_changes(changes)).run()
    assert result.finish == "time"
    assert clock.rests == [1.0]
    assert result.tokens == alone(PROMPT, 2)


def test_drafts_rest_for_all_their_tokens() -> None:
    pace = Pace(4.0)
    pace.made(3, 10.0)
    assert pace.rest_s(10.0) == pytest.approx(0.75)
    pace.made(2, 10.75)
    assert pace.rest_s(10.75) == pytest.approx(0.5)


def test_late_wakeups_do_not_add_up_and_a_pause_makes_no_burst() -> None:
    pace, now = Pace(10.0), 0.0
    for _ in range(100):
        now += pace.rest_s(now) + 0.01  # each wake-up is late
        pace.made(1, now)
    assert now == pytest.approx(100 * 0.1, rel=0.02)
    now += 60
    begun = []
    for _ in range(5):
        now += pace.rest_s(now)
        begun.append(now)
        pace.made(1, now)
    assert begun == pytest.approx([begun[0] + 0.1 * i for i in range(5)])


def test_a_prompt_is_read_while_an_answer_rests(paced: Any) -> None:
    model, clock = paced(1.0)
    stepper = model.engine.stepper
    first, second = answer(model, 5), answer(model, 5)
    next(first), next(first)
    first._mailbox.waiting = True
    assert stepper.pull(first._sequence) == pytest.approx(1.0)
    second._submit()
    second._mailbox.waiting = True
    computed = len(model.backend.computed)  # type: ignore[attr-defined]
    assert stepper.work() == 0  # the engine's own thread: the prompt of the second
    assert len(second._sequence.tokens) == 1
    assert len(first._sequence.tokens) == 2
    second._mailbox.waiting = True
    rest = stepper.work()
    assert rest == pytest.approx(2.0)  # for the tokens of both
    assert len(model.backend.computed) == computed + 1  # type: ignore[attr-defined]
    clock.now_s += rest
    assert stepper.work() == 0
    assert len(first._sequence.tokens) == 3
    first.close()
    second.close()
    assert stepper.work() is None


def test_a_prompt_that_may_not_begin_yet_does_not_end_the_rest(paced: Any) -> None:
    """There are as many answers as may run: the engine's thread wakes when their step is due."""
    model, clock = paced(1.0)
    stepper, model.engine.scheduler._most_running = model.engine.stepper, 1
    first, second = answer(model, 5), answer(model, 5)
    next(first), next(first)
    second._submit()
    first._mailbox.waiting = second._mailbox.waiting = True
    rest = stepper.work()
    assert rest == pytest.approx(1.0)
    assert second._sequence.tokens == []
    clock.now_s += rest
    assert stepper.work() == 0
    assert len(first._sequence.tokens) == 3
    first.close()
    assert stepper.work() == 0
    assert len(second._sequence.tokens) == 1
    second.close()


def test_cancelling_ends_a_rest_at_once(tmp_path: Path) -> None:
    """With the real clock: the rest would take a thousand seconds."""
    with fake_model(tmp_path, rule=chained, context_tokens=4000) as model:
        model.engine.stepper._pace = Pace(0.001)
        stream, read = answer(model, 5), threading.Event()

        def work() -> None:
            for _ in stream:
                read.set()

        reader = threading.Thread(target=work, daemon=True)
        reader.start()
        assert read.wait(60)
        stream.cancel()
        reader.join(60)
        assert not reader.is_alive()
        assert stream.result.finish == "cancelled"
        # The engine's own thread rests and ends as well.
        streams = [answer(model, 5) for _ in range(2)]
        for one in streams:
            one.start()
        for one in streams:
            next(one)
    assert all(one.over for one in streams)


@pytest.mark.parametrize("pace", [0, -1.0, 1e-300, float("inf"), float("nan"), "fast", True])
def test_a_pace_is_a_positive_number(pace: Any) -> None:
    with pytest.raises(OptionError, match="expected a finite number of at least"):
        RunOptions(pace=pace)


def test_the_option_reaches_the_engine(tmp_path: Path) -> None:
    with fake_model(tmp_path) as model:
        assert model.engine.stepper._pace is None
    artefact, backend = model.artefact, model.backend
    with Model(artefact, backend, pace=2.0) as paced:
        assert paced.engine.stepper._pace is not None
        paced.engine.stepper._pace.made(1, 5.0)
        assert paced.engine.stepper._pace.rest_s(5.0) == 0.5
