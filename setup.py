"""The dependencies, and the types of an editable installation. All else is in pyproject.toml.

Dependencies are fewer where compiled kernels lie in the package. `make wheel` puts kernels into
`kernels_cpu/compiled`; an installation from sources compiles its own, with what the extra `compile`
names.
"""

import base64
import hashlib
import json
import shutil
import tomllib
import zipfile
from pathlib import Path

from setuptools import setup
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
LINKS = ROOT / ".typed"
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


class EditableWheel(editable_wheel):
    """An editable installation whose types are seen.

    Python finds the packages by a mapping of folders, which type checkers do not follow. They look
    for a package of stubs as well (PEP 561), so there is one, of links to the sources, that Python
    itself never imports.
    """

    def run(self) -> None:
        """Build the wheel, and add the path of the links where the system allows them."""
        super().run()
        if self.mode == "strict":  # which is made of links already
            return
        try:
            link_types()
        except OSError:
            return
        (wheel,) = Path(self.dist_dir).glob("edgetok-*.whl")
        add_file(wheel, "edgetok_types.pth", f"{LINKS}\n".encode())


def link_types() -> None:
    """Link every module and package of edgetok from one folder; see pyproject.toml for where."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    beside = {name.partition(".")[2]: path for name, path in tools["package-dir"].items()}
    inside = ROOT / beside.pop("")
    shutil.rmtree(LINKS, ignore_errors=True)
    stubs = LINKS / "edgetok-stubs"
    stubs.mkdir(parents=True)
    for path in (*inside.iterdir(), *(ROOT / path for path in beside.values())):
        if path.name != "__pycache__":
            (stubs / path.name).symlink_to(path)
    (stubs / "__init__.pyi").symlink_to(inside / "__init__.py")  # mypy wants this name


def add_file(wheel: Path, name: str, content: bytes) -> None:
    """Add a file to a wheel and to the list of its files."""
    with zipfile.ZipFile(wheel) as old:
        files = {entry: old.read(entry) for entry in old.namelist()}
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    record = next(entry for entry in files if entry.endswith(".dist-info/RECORD"))
    files[record] += f"{name},sha256={digest},{len(content)}\n".encode()
    with zipfile.ZipFile(wheel, "w") as new:
        for entry, data in {name: content, **files}.items():
            new.writestr(entry, data)


setup(
    install_requires=[*DEPENDENCIES, *for_kernels()],
    cmdclass={"editable_wheel": EditableWheel},
)
