"""Read the quantities that users type: sizes in bytes and numbers of tokens."""

from __future__ import annotations

import re

from edgetok.errors import OptionError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}


def parse_bytes(text: str) -> int:
    """Return the number of bytes in "64MB", "1.5 GiB" or "4000000".

    Raises:
        OptionError: the text is not a size, or the size is 0.
    """
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([KMG]I?)?B?", text.strip().upper())
    value = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if value < 1:
        raise OptionError(f"invalid size {text!r:.40}; use e.g. 64MB or 1GiB")
    return value


def parse_tokens(text: str) -> int:
    """Return the number of tokens in "4096" or "8k" (8 x 1,024).

    Raises:
        OptionError: the text is not a number of tokens, or the number is 0.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,8})(k?)", text.strip().lower())
    if not match:
        raise OptionError(f"invalid number of tokens {text!r:.40}; use e.g. 4096 or 8k")
    return int(match[1]) * (1024 if match[2] else 1)
