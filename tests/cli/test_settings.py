"""Options and commands that people mistype are understood, or the near name is given."""

from __future__ import annotations

import pytest

from edgetok.cli.settings import NAMES, find, parse_assignment
from edgetok.errors import OptionError


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("tmp", "temperature"),
        ("temprature", "temperature"),
        ("tpo_p", "top_p"),
        ("maxt", "max_tokens"),
        ("sed", "seed"),
    ],
)
def test_near_names_of_options(typed: str, meant: str) -> None:
    with pytest.raises(OptionError, match=f"unknown option {typed}; did you mean {meant}\\?"):
        parse_assignment(f"{typed} 0.5")


def test_a_name_that_is_near_nothing_lists_all() -> None:
    with pytest.raises(OptionError, match=f"use one of {', '.join(NAMES)}"):
        find("xyzzy", NAMES, "option")
