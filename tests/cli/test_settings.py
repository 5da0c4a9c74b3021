"""Options and commands that people mistype are understood, or the near name is given."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from edgetok.cli.commands.generate import command
from edgetok.cli.settings import NAMES, find, parse_assignment
from edgetok.errors import CheckpointError, OptionError


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


def test_a_misspelt_folder_is_not_a_name_of_the_hub() -> None:
    """Nothing is looked up in the network for a path that begins with "./"."""
    done = CliRunner().invoke(command, ["./nosuch/model", "--prompt", "x"])
    assert isinstance(done.exception, CheckpointError)
    assert "nosuch/model: no such model or folder" in str(done.exception)
