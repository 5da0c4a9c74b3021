"""The dependencies, which are fewer where compiled kernels lie in the package.

All else is in pyproject.toml. `make wheel` puts kernels into `kernels_cpu/compiled`; an
installation from sources compiles its own, with what the extra `compile` names.
"""

import json
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
DEPENDENCIES = [
    "click>=8.1",
    "filelock>=3.16",
    "jinja2>=3.1.6",
    "numpy>=2.0",
    "prompt_toolkit>=3.0.48",
    "platformdirs>=4.0",
    "psutil>=6.0",
    "rich>=13.7",
    "tokenizers>=0.21",
]


def for_kernels() -> list[str]:
    """Return nothing if libraries have all kernels, llvmlite to load objects, or the compiler."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    compiler: list[str] = project["optional-dependencies"]["compile"]
    try:
        manifest = json.loads((ROOT / "kernels_cpu/compiled/kernels.json").read_text())
    except FileNotFoundError:
        return compiler
    if not manifest["complete"]:
        return compiler
    if all("library" in target for target in manifest["targets"].values()):
        return []
    return [name for name in compiler if name.startswith("llvmlite")]


setup(install_requires=[*DEPENDENCIES, *for_kernels()])
