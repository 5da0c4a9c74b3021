"""A short campaign over every reader, with another seed each day; `make fuzz` runs long ones."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from tests.fuzz import readers
from tests.fuzz.campaign import run_batch
from tests.fuzz.readers import Reader

TODAY = datetime.date.today().toordinal()


@pytest.mark.parametrize("name", readers.all_readers())
def test_no_reader_fails(name: str, tmp_path: Path) -> None:
    outcome = run_batch(name, TODAY, 400, tmp_path, seconds=1)
    assert outcome.inputs > 0
    assert not outcome.faults


def test_faults_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a reader that divides by what it reads."""
    faulty = Reader([b"\1"], lambda data, rng: bytes([rng.randrange(3)]), lambda d, _: 1 / d[0])
    monkeypatch.setattr("tests.fuzz.campaign.all_readers", lambda: {"faulty": lambda _: faulty})
    outcome = run_batch("faulty", 0, 100, tmp_path)
    assert outcome.inputs == 100
    assert "ZeroDivisionError at test_campaign.py" in outcome.faults[0]
    assert 0 < outcome.accepted < 100
    assert (tmp_path / f"faulty-{outcome.faults[0].partition(':')[0]}").read_bytes() == b"\0"
