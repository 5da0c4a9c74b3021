"""A short soak: two processes, the first of them killed; `make soak` runs long ones."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgetok
from tests.fuzz import soak
from tests.fuzz.soak import Soak


@pytest.mark.slow
def test_two_rounds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert soak.soak(0, 1, tmp_path, round_s=1) == []
    said = capfd.readouterr().out
    assert "2 processes" in said
    assert "| kills | 1 |" in said


def test_a_changed_answer_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Soak(tmp_path, 0)
    with run.model:
        run.right = (1, 2, 3)
        monkeypatch.setattr(run.rng, "random", lambda: 0.0)
        with pytest.raises(AssertionError, match="a greedy answer is not what it was"):
            run.step()
    with pytest.raises(edgetok.EdgetokError):
        run.model.generate("x")
