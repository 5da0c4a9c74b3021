"""The scheduler's rules, with sequences that are numbers and a clock that is a sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from edgetok.engine.costs import Costs
from edgetok.engine.drafts import Draft, best_length
from edgetok.engine.scheduler import Scheduler
from edgetok.errors import BusyError, OptionError
from edgetok.model import Model
from edgetok.runtime.options import RunOptions
from tests.fake import fake_model

BLOCK = 256


@dataclass(eq=False)
class Fake:
    """A sequence: a prompt of so many rows, then one row a step."""

    prompt: int = 0
    priority: int = 0
    most_rows: int = BLOCK
    chance: float = 0.0  # that a token of a draft is right; 0 where it has no draft
    times: list[float] = field(default_factory=list)

    @property
    def reading(self) -> bool:
        return self.prompt > 0

    @property
    def rows(self) -> int:
        return self.prompt or 1

    def propose(self, most: int, tokens: float, cost: Callable[[int], float]) -> Draft:
        chances = [self.chance] * min(most, 15) if self.chance else []
        return Draft(*best_length(chances, tokens, cost))


class Machine:
    """Makes the steps that a scheduler chooses, each at its price."""

    def __init__(self, scheduler: Scheduler[Fake], row_s: float = 0.004, fixed_s: float = 0.01):
        self.scheduler, self.row_s, self.fixed_s = scheduler, row_s, fixed_s
        self.now, self.plans = 0.0, []
        self.rng = np.random.default_rng(0)

    def step(self, wanted: list[Fake], noise: float = 0.0) -> bool:
        plan = self.scheduler.next(wanted)
        if plan is None:
            return False
        self.plans.append(plan)
        seconds = self.fixed_s + self.row_s * plan.rows
        seconds *= 1 + noise * float(self.rng.random())
        self.now += seconds
        self.scheduler.done(plan, seconds)
        for i, (work, rows) in enumerate(plan.shares):
            if plan.chunk and i == len(plan.shares) - 1:
                assert plan.chunk == rows
                assert 0 < rows <= min(work.prompt, work.most_rows)
                work.prompt -= rows
            else:
                assert not work.reading
            if not work.reading:
                work.times.append(self.now)
        return True


def machine(*works: Fake, **options) -> Machine:
    scheduler: Scheduler[Fake] = Scheduler(BLOCK, **options)
    for work in works:
        scheduler.add(work)
    return Machine(scheduler)


def test_all_that_write_share_a_step():
    works = [Fake() for _ in range(8)]
    made = machine(*works)
    for _ in range(5):
        assert made.step(works)
    assert all(len(plan.shares) == 8 and not plan.chunk for plan in made.plans)


def test_a_prompt_alone_is_read_in_the_largest_chunks():
    work = Fake(1000)
    made = machine(work)
    while work.reading:
        made.step([work])
    assert [plan.rows for plan in made.plans] == [256, 256, 256, 232]


def test_the_cache_limits_a_chunk():
    work = Fake(40, most_rows=16)
    made = machine(work)
    while work.reading:
        made.step([work])
    assert [plan.rows for plan in made.plans] == [16, 16, 8]


@pytest.mark.parametrize("row_s", [0.0005, 0.002, 0.004])
def test_others_wait_for_a_token_at_most_150_ms_while_a_prompt_is_read(row_s):
    writing, prompt = [Fake() for _ in range(7)], Fake(4096)
    made = machine(*writing, prompt)
    made.row_s = row_s
    for _ in range(20):  # before the prompt comes
        made.step(writing, noise=0.2)
    before = len(made.plans)
    while prompt.reading:
        made.step([*writing, prompt], noise=0.2)
    shared = made.plans[before:]
    assert all(len(plan.shares) == 8 and plan.rows == 7 + plan.chunk for plan in shared)
    assert all(plan.rows % 4 == 0 for plan in shared[:-1])
    # Three times the step without the chunk are enough, and 50 ms are short.
    alone_s = made.fixed_s + 7 * row_s
    enough_s = min(0.150, max(3 * alone_s, 0.050))
    for work in writing:
        waits = np.diff(work.times[20:])
        assert np.percentile(waits, 95) < min(0.150, 1.2 * enough_s)
    # It does not crawl either: of what decoding leaves of that, half goes into the prompt, up to a
    # tile of rows.
    chunks = [plan.chunk for plan in shared]
    assert (np.median(chunks) + 3) * row_s > 0.5 * (enough_s - alone_s)


def test_before_the_cost_of_answers_alone_is_known_a_step_may_take_all_of_the_wait():
    writing, prompt = Fake(), Fake(4096)
    made = machine(writing, prompt)
    made.row_s = 0.0005
    while prompt.reading:
        made.step([writing, prompt])
    assert 0.7 * 0.75 * 0.150 < np.median(np.diff(writing.times)) < 0.150


def test_where_decoding_takes_all_of_the_wait_a_prompt_is_read_in_the_smallest_chunks():
    writing, prompt = [Fake() for _ in range(7)], Fake(100)
    made = machine(*writing, prompt)
    made.row_s = 0.02
    while prompt.reading:
        made.step([*writing, prompt])
    assert {plan.chunk for plan in made.plans[1:-1]} == {5}  # to the end of a tile


def test_writers_of_more_rows_than_a_step_has_leave_room_for_a_prompt():
    writing, prompt = [Fake() for _ in range(BLOCK + 40)], Fake(32)
    made = machine(*writing, prompt, most_running=BLOCK + 50)
    while prompt.reading:
        made.step([*writing, prompt])
    assert {(len(plan.shares), plan.chunk) for plan in made.plans} == {(BLOCK - 3, 4)}
    assert min(len(work.times) for work in writing) >= len(made.plans) // 2


def test_answers_in_the_background_wait_for_prompts_and_others_do_not():
    background, prompt = Fake(priority=1), Fake(600)
    made = machine(background, prompt)
    while prompt.reading:
        made.step([background, prompt])
    assert [(plan.rows, plan.chunk) for plan in made.plans] == [(256, 256), (256, 256), (88, 88)]


def test_a_chunk_takes_no_longer_than_it_may_so_that_it_can_be_given_up():
    machine = Machine(Scheduler(BLOCK), row_s=0.02)
    machine.scheduler.chunk_s = 0.4
    work = Fake(prompt=1000)
    machine.scheduler.add(work)
    times = [machine.now]
    while work.reading:
        machine.step([work], noise=0.2)
        times.append(machine.now)
    assert machine.plans[0].rows == 64
    assert max(np.diff(times)[2:]) < 0.6
    assert sum(plan.rows for plan in machine.plans) == 1000
    quick = Machine(Scheduler(BLOCK), row_s=0.0001, fixed_s=0.0)
    quick.scheduler.chunk_s = 0.4
    work = Fake(prompt=1000)
    quick.scheduler.add(work)
    while work.reading:
        quick.step([work])
    assert [plan.rows for plan in quick.plans] == [64, 256, 256, 256, 168]


def test_prompts_are_read_in_turn():
    long, short = Fake(4096), Fake(600)
    made = machine(long, short)
    made.step([long])
    for _ in range(4):
        made.step([long, short])
    assert [plan.shares[0][0] for plan in made.plans] == [long, short, long, short, long]
    assert short.prompt == 600 - 512


def test_what_somebody_waits_for_goes_before_what_runs_in_the_background():
    background, interactive = Fake(600, priority=1), Fake(600)
    made = machine(background, interactive)
    made.step([background])
    while interactive.reading:
        made.step([background, interactive])
    assert [plan.shares[0][0] for plan in made.plans[1:]] == [interactive] * 3
    assert background.prompt == 600 - 256


def test_who_is_not_wanted_is_not_computed():
    works = [Fake(), Fake(), Fake(9)]
    made = machine(*works)
    made.step(works[:1])
    assert made.plans[0].shares == ((works[0], 1),)
    assert not made.step([])


def test_more_rows_than_a_step_takes_go_in_turn():
    works = [Fake() for _ in range(BLOCK + 100)]
    made = machine(*works)
    for _ in range(4):
        made.step(works)
    counts = [len(work.times) for work in works]
    assert (min(counts), max(counts)) == (2, 4)


def test_only_so_many_run_and_so_many_wait():
    works = [Fake(16) for _ in range(5)]
    made = machine(*works[:4], most_running=2, most_waiting=2)
    with pytest.raises(BusyError, match="try again later"):
        made.scheduler.add(works[4])
    for _ in range(9):
        made.step(works)
    assert [work.reading for work in works] == [False, False, True, True, True]
    made.scheduler.remove(works[0])
    made.scheduler.add(works[4])
    for _ in range(3):
        made.step(works[1:])
    assert [work.reading for work in works] == [False, False, False, True, True]


def test_drafts_where_they_pay():
    """A step of one row takes 14 ms, each further one 4: a chance of 0.95 pays, one of 0.2 not."""
    for chance, drafts in ((0.95, True), (0.2, False)):
        made = machine(Fake(chance=chance))
        for _ in range(40):
            made.step(list(made.scheduler._served))
        rows = [plan.rows for plan in made.plans]
        assert rows[0] == 1  # nothing is drafted before the cost of a step without is known
        assert (max(rows[1:]) > 4) == drafts
        assert (1 < rows[-1] <= 16) == drafts


def test_the_cost_of_a_step_without_drafts_stays_known():
    made = machine(Fake(chance=0.95))
    for _ in range(200):
        made.step(list(made.scheduler._served))
    plain = [i for i, plan in enumerate(made.plans) if plan.rows == 1]
    assert 3 <= len(plain) <= 6
    assert max(plain[1:]) > 150


def test_drafts_of_several_share_the_rows_of_a_step():
    """And of many none is drafted where rows cost what they give."""
    works = [Fake(chance=0.99) for _ in range(40)]
    made = machine(*works, most_running=40)
    made.row_s = 0.0001
    for _ in range(5):
        made.step(works)
    assert 100 < made.plans[-1].rows <= BLOCK
    assert all(1 <= rows <= 16 for _, rows in made.plans[-1].shares)
    made = machine(*works, most_running=40)
    made.row_s, made.fixed_s = 0.01, 0.0
    for _ in range(30):
        made.step(works)
    assert made.plans[-1].rows == 40


def test_an_estimate_is_not_spoilt_by_one_slow_step_and_is_forgotten_in_time():
    costs = Costs()
    for rows in (1, 4):
        costs.decoded(rows, 0.01 * rows)
    costs.decoded(4, 1.0)
    assert costs.decode_s(4) < 0.06
    assert costs.decode_s(2) == pytest.approx((2 * 0.01 + costs.decode_s(4)) / 3)
    for _ in range(400):
        costs.decoded(1, 0.01)
    assert costs.decode_s(4) == pytest.approx(0.01 * 1.6)
    assert costs.is_fresh(1)
    assert not costs.is_fresh(4)


def test_costs_follow_what_is_measured():
    costs = Costs()
    assert costs.decode_s(8) == 0.0
    assert costs.rows_within(1.0) is None
    costs.decoded(1, 0.02)
    assert costs.decode_s(1) == 0.02
    assert 0.02 <= costs.decode_s(8) <= 8 * 0.02
    for _ in range(30):
        costs.decoded(8, 0.05)
        costs.read(32, 0.064)
    assert costs.decode_s(8) == pytest.approx(0.05)
    assert costs.rows_within(0.1) == pytest.approx(50, abs=1)
    assert costs.rows_within(-1.0) == 0


@pytest.mark.parametrize("max_wait", [0, -1.0, float("inf"), float("nan"), "soon", True])
def test_the_longest_wait_is_a_positive_number(max_wait):
    with pytest.raises(OptionError, match=r"max_wait is .*, expected a finite number above 0"):
        RunOptions(max_wait=max_wait)


def test_the_longest_wait_reaches_the_scheduler_and_decides_the_chunks(tmp_path):
    with fake_model(tmp_path) as model:
        artefact, backend = model.artefact, model.backend
    rows = {}
    for wait in (0.06, 0.1):
        with Model(artefact, backend, max_wait=wait) as model:
            writing, prompt = Fake(), Fake(2000)
            made = Machine(model.engine.scheduler)
            for work in (writing, prompt):
                made.scheduler.add(work)
            while prompt.reading:
                made.step([writing, prompt])
            rows[wait] = made.plans[-2].rows
            assert 0.4 * wait < np.diff(writing.times)[-2] < wait
    assert rows == {0.06: 8, 0.1: 16}
