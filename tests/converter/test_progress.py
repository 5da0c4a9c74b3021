"""Stages as the command line gets them."""

from __future__ import annotations

from typing import Any

from edgetok.converter.progress import Compiling, Silent


class Stages(Silent):
    """Keeps the stages: name, units in all, units done."""

    def __init__(self) -> None:
        self.seen: list[list[Any]] = []

    def begin(self, what: str, total: int, done: int = 0) -> None:
        self.seen.append([what, total, done])

    def advance(self, units: int = 1) -> None:
        assert units >= 0
        self.seen[-1][2] += units


def test_compiling_is_a_stage_that_never_does_more_than_all() -> None:
    stages = Stages()
    tell = Compiling(stages)
    for done, total in ((0, 100), (50, 100), (50, 200), (150, 200)):  # more work turns up
        tell(done, total)
    assert stages.seen == [["Compiling kernels", 100, 75]]
    tell(200, 200)
    tell(0, 30)
    tell(30, 30)
    assert stages.seen == [["Compiling kernels", 100, 100], ["Compiling kernels", 30, 30]]
