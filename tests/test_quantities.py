"""Quantities that users type: sizes in bytes and numbers of tokens."""

from __future__ import annotations

import pytest

from edgetok.errors import OptionError
from edgetok.quantities import parse_bytes, parse_tokens


@pytest.mark.parametrize(
    ("text", "value"),
    [("64MB", 64_000_000), ("1.5 GiB", 3 << 29), ("4000", 4000), ("2k", 2000), ("7 kib", 7168)],
)
def test_sizes(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "MB", "-4MB", "0", "1e9", "4 TB", "9" * 40, "64 M B"])
def test_invalid_sizes(text):
    with pytest.raises(OptionError, match="invalid size"):
        parse_bytes(text)


@pytest.mark.parametrize(("text", "value"), [("4096", 4096), ("8k", 8192), (" 1K ", 1024)])
def test_numbers_of_tokens(text, value):
    assert parse_tokens(text) == value


@pytest.mark.parametrize("text", ["", "k", "0", "-1", "8 k", "1.5k", "8kb", "9" * 11])
def test_invalid_numbers_of_tokens(text):
    with pytest.raises(OptionError, match="invalid number of tokens"):
        parse_tokens(text)
