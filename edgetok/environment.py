"""What the environment says. The one place that reads environment variables.

| variable | meaning |
|---|---|
| `EDGETOK_THREADS` | threads that compute; absent: one per physical core |
| `EDGETOK_CACHE_DIR` | where compiled kernels are kept; absent: in the user's cache folder |
| `EDGETOK_HISTORY` | file of the chat's typed lines; empty: none is kept |
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgetok.errors import OptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The environment's settings; None where it is silent.

    Attributes:
        threads: how many threads compute.
        cache_dir: where compiled kernels are kept.
        history: where typed lines are kept; `Path()` keeps none.
    """

    threads: int | None = None
    cache_dir: Path
    history: Path | None = None


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings.

    Args:
        environment: instead of the process's own.

    Raises:
        OptionError: a variable's value has no meaning.
    """
    found = os.environ if environment is None else environment
    threads = None
    if text := found.get("EDGETOK_THREADS"):
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1024:
            raise OptionError(
                f"EDGETOK_THREADS is {text!r}, expected a whole number from 1 to 1024"
            )
        threads = int(text)
    history = found.get("EDGETOK_HISTORY")
    return Settings(
        threads=threads,
        cache_dir=_cache_dir(found),
        history=None if history is None else Path(history),
    )


def _cache_dir(found: Mapping[str, str]) -> Path:
    """`edgetok` in the user's cache folder, unless the environment names another place."""
    if named := found.get("EDGETOK_CACHE_DIR"):
        return Path(named).expanduser()
    if sys.platform == "win32" and (local := found.get("LOCALAPPDATA")):
        return Path(local) / "edgetok"
    if base := found.get("XDG_CACHE_HOME"):
        return Path(base) / "edgetok"
    home = Path.home()
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "edgetok"
