import pytest

from edgetok.cli.terminal.time_left import TimeLeft


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def stages(costs, pace, *, plan=None, seconds=lambda what: 1.0):
    """Run stages of ten units; (real, estimated) seconds left after each unit."""
    clock = Clock()
    left = TimeLeft(clock)
    left.plan(costs if plan is None else plan)
    times = [(what, seconds(what) * pace * cost / 10) for what, cost in costs.items()]
    total = sum(10 * time for _, time in times)
    found = []
    for what, time in times:
        left.begin(what, 10)
        for _ in range(10):
            clock.now += time
            left.advance()
            found.append((total - clock.now, left.seconds()))
    return found


@pytest.mark.parametrize("pace", [0.01, 1, 40])
def test_costs_in_any_unit_on_any_machine(pace):
    for real, estimated in stages({"a": 3, "b": 50, "c": 7}, pace):
        assert estimated == pytest.approx(real, abs=1e-6 * pace)


def test_a_stage_that_takes_another_time_than_planned_is_told_by_its_own_pace():
    found = stages({"a": 5, "b": 50, "c": 1}, 1, seconds=lambda what: 2 if what == "b" else 1)
    for i, (real, estimated) in enumerate(found):
        if i >= 12:  # the second unit of b
            assert estimated == pytest.approx(real, rel=0.25, abs=2)


def test_stages_that_are_not_planned_and_such_as_do_not_come():
    found = stages({"compiling": 40, "b": 50}, 1, plan={"skipped": 30, "b": 50})
    assert all(estimated is None for _, estimated in found[:10])
    for real, estimated in found[10:]:
        assert estimated == pytest.approx(real, abs=1e-6)


def test_a_stage_that_was_begun_earlier_costs_its_rest():
    clock = Clock()
    left = TimeLeft(clock)
    left.plan({"a": 10, "b": 10})
    left.begin("a", 10, done=8)
    clock.now = 2
    left.advance()
    assert left.seconds() == pytest.approx(2 + 20)
    left.advance()
    left.begin("b", 0)
    assert left.seconds() is not None


def test_without_a_plan_the_stage_alone_is_told():
    clock = Clock()
    left = TimeLeft(clock)
    left.begin("a", 4)
    assert left.seconds() is None
    clock.now = 1
    left.advance()
    assert left.seconds() == pytest.approx(3)
