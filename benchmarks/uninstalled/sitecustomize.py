"""Lets a Python that has edgetok's dependencies run this checkout without installing it.

    PYTHONPATH=benchmarks/uninstalled python3 benchmarks/speed/gpu.py

Python imports a module of this name as it starts, and so do the processes that it starts. It finds
the packages that lie beside `edgetok` under the names that an installation gives them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent.parent
BESIDE = ("models", "converter", "kernels_cpu", "kernels_gpu")


class Checkout(MetaPathFinder):
    """Finds `edgetok` and its four folders."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the place of a package of edgetok, and None for other packages."""
        place = name.removeprefix("edgetok.")
        if name != "edgetok" and (place == name or place not in BESIDE):
            return None
        folder = ROOT / place
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


sys.meta_path.insert(0, Checkout())
