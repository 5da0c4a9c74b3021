"""Settings from the environment; the one place that reads environment variables.

| variable | meaning |
|---|---|
| `EDGETOK_THREADS` | number of threads; default: one per physical performance core |
| `EDGETOK_CACHE_DIR` | folder for compiled kernels; default: the user's cache folder |
| `EDGETOK_KERNELS` | folder that `edgetok compile` wrote, to be used instead of compiling |
| `EDGETOK_MODELS` | folder for converted models; default: `models` in the user's data folder |
| `EDGETOK_PYTHON` | Python that compiles kernels; default: the running one |
| `EDGETOK_API_KEY` | key that clients of `edgetok serve` must send; default: none is asked for |
| `EDGETOK_HISTORY` | file for the chat's typed lines; empty: no history is kept |
| `NO_COLOR` | any value: no colours, and answers as plain text |
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
    """Settings from the environment; None for a variable that is not set.

    Attributes:
        threads: number of threads.
        cache_dir: folder for compiled kernels.
        kernels_dir: folder of shipped kernels.
        models_dir: folder for converted models.
        python: Python that compiles kernels.
        history: file for typed lines; `Path()` keeps none.
        api_key: that clients of the server must send.
        no_color: whether output shall have no colours.
        dumb_terminal: whether the terminal moves no cursor.
    """

    threads: int | None = None
    cache_dir: Path
    kernels_dir: Path | None = None
    models_dir: Path | None = None
    python: Path | None = None
    history: Path | None = None
    api_key: str | None = None
    no_color: bool = False
    dumb_terminal: bool = False


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings.

    Args:
        environment: variables; None: those of the process.

    Raises:
        OptionError: a variable has an invalid value.
    """
    result = os.environ if environment is None else environment
    threads = None
    if text := result.get("EDGETOK_THREADS"):
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1024:
            raise OptionError(
                f"EDGETOK_THREADS is {text!r}, expected a whole number from 1 to 1024"
            )
        threads = int(text)
    python = result.get("EDGETOK_PYTHON")
    history = result.get("EDGETOK_HISTORY")
    kernels = result.get("EDGETOK_KERNELS")
    models = result.get("EDGETOK_MODELS")
    return Settings(
        threads=threads,
        cache_dir=_cache_dir(result),
        kernels_dir=Path(kernels).expanduser() if kernels else None,
        models_dir=Path(models).expanduser() if models else None,
        python=Path(python).expanduser() if python else None,
        history=None if history is None else Path(history),
        api_key=result.get("EDGETOK_API_KEY") or None,
        no_color=bool(result.get("NO_COLOR")),
        dumb_terminal=result.get("TERM") == "dumb",
    )


def _cache_dir(result: Mapping[str, str]) -> Path:
    """Return the folder that the environment names, else `edgetok` in the user's cache folder."""
    if named := result.get("EDGETOK_CACHE_DIR"):
        return Path(named).expanduser()
    if sys.platform == "win32" and (local := result.get("LOCALAPPDATA")):
        return Path(local) / "edgetok"
    if base := result.get("XDG_CACHE_HOME"):
        return Path(base) / "edgetok"
    home = Path.home()
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "edgetok"
