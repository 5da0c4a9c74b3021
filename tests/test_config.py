"""Settings from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetok.environment import read_settings
from edgetok.errors import OptionError


def test_silence() -> None:
    result = read_settings({})
    assert result.threads is None
    assert result.history is None
    assert result.cache_dir.name == "edgetok"


def test_values() -> None:
    result = read_settings(
        {"EDGETOK_THREADS": "3", "EDGETOK_CACHE_DIR": "/x", "EDGETOK_HISTORY": "/h"}
    )
    assert (result.threads, result.cache_dir, result.history) == (3, Path("/x"), Path("/h"))
    assert read_settings({"XDG_CACHE_HOME": "/c"}).cache_dir == Path("/c/edgetok")
    assert read_settings({"EDGETOK_HISTORY": ""}).history == Path()


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "²", "99999"])
def test_threads_that_are_none(text: str) -> None:
    with pytest.raises(OptionError, match="EDGETOK_THREADS"):
        read_settings({"EDGETOK_THREADS": text})
