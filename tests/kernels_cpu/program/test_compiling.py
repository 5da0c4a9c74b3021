"""Progress of compiling: how much is left, on any machine and to every process that waits."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from pathlib import Path

import pytest

from edgetok.cli.terminal.compiling import Compiling
from edgetok.kernels_cpu.program import compiling
from edgetok.kernels_cpu.program.costs import START_COST, Meter, cost, cost_of, in_order, span
from edgetok.kernels_cpu.simd import isa
from edgetok.kernels_cpu.simd.target import Target

# Of the bundled model.
CHAT = [
    "program.interpreter", "program.rows", "linear.quantise_activations", "elementwise.norm",
    "elementwise.activation", "elementwise.angles", "elementwise.rope", "attention.keep_queries",
    "attention.kv_append", "attention.hadamard", "attention.int8", "attention.merge", "linear.q4",
    "linear.q8", "linear.embed", "sampling.sample", "eviction.choose", "eviction.renumber",
    "eviction.int8",
]  # fmt: skip


STEP_S = 0.05


@pytest.mark.parametrize("unit_s", [0.03, 0.1, 0.4])
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_the_time_left_is_right_after_a_quarter(
    unit_s: float, processes: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On machines that are slower and faster, alone on them or with `share` of each core."""
    now, told = 0.0, list[tuple[float, float]]()
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", out)
    show = Compiling(lambda: now)
    left = in_order(CHAT, processes)
    meter, waiting, total = Meter(), list(left), span(left, processes)
    cpu_s, until, running = dict[int, float](), dict[int, float](), dict[int, str]()
    show(0, total)
    while left:
        for process in range(processes):
            if process in running and cpu_s[process] >= until[process]:
                meter.end(process, cpu_s[process])
                del left[running.pop(process)]
            if process not in running and waiting:
                running[process] = module = waiting.pop(0)
                cpu_s.setdefault(process, 0.0)
                meter.begin(process, module, left[module], cpu_s[process])
                until[process] = cpu_s[process] + unit_s * left[module]
        show(total - span(left | meter.left(cpu_s), processes), total)
        line = re.search(r"about (\d+) s left$", out.getvalue())
        if line:
            told.append((now, float(line[1])))
        now += STEP_S
        for process in running:
            cpu_s[process] += STEP_S * share
    later = [(at, seconds) for at, seconds in told if now / 4 < at < now - 4]
    assert len(later) > 5 or now < 12
    # A second more or less is what is shown.
    assert [
        (at, seconds) for at, seconds in later if abs(at + seconds - now) > 0.25 * (now - at) + 1.5
    ] == []


def test_large_modules_come_first_after_small_ones_that_show_the_pace() -> None:
    order = list(in_order(CHAT, 2))
    assert sorted(order) == sorted(CHAT)
    assert order[2:4] == ["linear.q8", "linear.q4"]
    assert cost_of(order[:2]) < cost_of(CHAT) / 6
    assert in_order(["linear.q4"], 1) == {"linear.q4": cost("linear.q4") + START_COST}


def test_a_process_that_waits_is_told_how_much_the_other_has_left(tmp_path: Path) -> None:
    """The other one compiles modules that this one does not need, too."""
    target, module = Target.here(isa.choose()), "bandwidth.kernels"
    work, told = cost(module), list[tuple[int, int]]()
    arguments = (target, {module: tmp_path / "it.o"}, tmp_path, lambda *p: told.append(p))
    waits = threading.Thread(target=compiling.compile_missing, args=arguments)

    def told_is(wanted: tuple[int, int]) -> None:
        until = time.monotonic() + 60
        while told[-1:] != [wanted]:
            assert time.monotonic() < until, told
            time.sleep(0.01)

    with compiling._exclusive(tmp_path / compiling.LOCK_FILE, lambda: None):
        compiling._write_left(tmp_path, {"linear.q4": 50})
        waits.start()
        told_is((0, 50 + work))
        (tmp_path / compiling.LEFT_FILE).write_text("damaged")
        compiling._write_left(tmp_path, {"linear.q4": 10})
        told_is((40, 50 + work))
    waits.join()
    assert told[0] == (0, work + START_COST)
    assert told[-1] == (50 + work, 50 + work)
    assert told == sorted(told)
    assert told.count(told[-1]) == 1
    assert compiling.read_object(tmp_path / "it.o")
