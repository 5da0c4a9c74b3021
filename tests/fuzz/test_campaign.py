"""A short campaign over every reader, with another seed each day; `make fuzz` runs long ones."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fuzz import campaign, mutate, readers
from tests.fuzz.campaign import Outcome, run_batch
from tests.fuzz.readers import Reader

TODAY = datetime.date.today().toordinal()


@pytest.mark.parametrize("name", readers.all_readers())
def test_no_reader_fails(name: str, tmp_path: Path) -> None:
    outcome = run_batch(name, TODAY, 400, tmp_path, seconds=1)
    assert outcome.inputs > 0
    assert not outcome.faults


def test_faults_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that divides by what it reads has some."""
    faulty = Reader([b"\1"], lambda data, rng: bytes([rng.randrange(3)]), lambda d, _: 1 / d[0])
    monkeypatch.setattr("tests.fuzz.campaign.all_readers", lambda: {"faulty": lambda _: faulty})
    outcome = run_batch("faulty", 0, 100, tmp_path)
    assert outcome.inputs == 100
    assert "ZeroDivisionError at test_campaign.py" in outcome.faults[0]
    assert 0 < outcome.accepted < 100
    assert (tmp_path / f"faulty-{outcome.faults[0].partition(':')[0]}").read_bytes() == b"\0"


def test_counts_go_on_and_each_batch_is_of_the_reader_that_needs_it_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    clock = iter(range(100))
    monkeypatch.setattr(campaign, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))

    def run(name: str, seed: int, out: Path, seconds: float) -> Outcome:
        asked.append((name, seed))
        inputs = {"fast": 1000, "slow": 100, "costly": 1}[name]
        return Outcome(costly=name == "costly", inputs=inputs, faults=["x"] * (seed == 1))

    monkeypatch.setattr(campaign, "_run", run)
    names, state = ["fast", "slow", "costly"], tmp_path / "counts"
    told = campaign.campaign(names, 0.2, 0, tmp_path, state)
    assert [name for name, _ in asked[:3]] == names  # each once, to see what it costs
    seeds = [seed for _, seed in asked]
    assert seeds == list(range(len(seeds)))
    goals = {name: 100_000 if one.costly else 5_000_000 for name, one in told.items()}
    before = len(asked)
    again = campaign.campaign(names, 0.05, 0, tmp_path, state)
    assert asked[before] == (min(names, key=lambda name: told[name].inputs / goals[name]), before)
    assert sum(one.inputs for one in again.values()) > sum(one.inputs for one in told.values())
    assert again["slow"].faults == ["x"]
    alone = campaign.campaign(["costly"], 0.05, 0, tmp_path, state)
    assert alone.keys() == {"costly"}
    assert json.loads(state.read_text())["told"].keys() == set(names)


def test_trees_are_new_ones() -> None:
    data = b'{"a": [1, {"b": 1e400}], "c": "\\ud800"}'
    mutate.tree_of(data)["a"].clear()
    assert mutate.tree_of(data) == {"a": [1, {"b": float("inf")}], "c": "\ud800"}
