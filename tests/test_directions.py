"""Which folder may import which: the table in docs/architecture.md, enforced."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

# What each part may import of ours besides itself. "*" is everything.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "folders": {"errors"},
    "machine": set(),
    "formats": {"errors", "models"},
    "models": {"errors"},
    "kernels_cpu": {"errors", "folders"},
    "kernels_gpu": {"errors"},
    "converter": {"errors", "formats", "machine", "models", "kernels_cpu", "text"},
    "text": {"errors", "formats"},
    "cache": {"errors"},
    "runtime": {
        "errors",
        "cache",
        "config",
        "formats",
        "machine",
        "models",
        "kernels_cpu",
        "kernels_gpu",
    },
    "generation": {"errors", "prefixes", "text", "runtime"},
    "prefixes": {"errors", "folders", "formats", "runtime", "session"},
    "memory": {"errors", "runtime"},
    "session": {"errors", "formats", "runtime", "text"},
    "chat": {"errors", "text", "runtime", "generation", "memory", "session", "model"},
    "model": {
        "errors",
        "cache",
        "config",
        "formats",
        "models",
        "text",
        "runtime",
        "prefixes",
        "generation",
        "chat",
    },
    "evaluation": {
        "errors",
        "cache",
        "config",
        "formats",
        "machine",
        "models",
        "kernels_cpu",
        "text",
        "runtime",
    },
    "cli": {"*"},
    "": {"errors", "model", "chat", "generation", "text"},
}
FOLDERS = {
    "edgetok": "edgetok",
    "models": "edgetok/models",
    "converter": "edgetok/converter",
    "kernels_cpu": "edgetok/kernels_cpu",
    "kernels_gpu": "edgetok/kernels_gpu",
}
HEAVY = {"torch", "transformers", "triton"}


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, package in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            inside = path.relative_to(root / folder)
            if inside.parts[0] in ("training", "default"):
                continue
            name = ".".join([*package.split("/"), *inside.with_suffix("").parts])
            yield name.removesuffix(".__init__"), path


def imports(path: Path) -> Iterator[tuple[str, bool, bool]]:
    """Imported module, whether inside a function, whether for type checking only."""

    def visit(node: ast.AST, inside: bool, typing: bool) -> Iterator[tuple[str, bool, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, inside, typing
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: a relative import"
                for alias in child.names:
                    yield f"{child.module}.{alias.name}", inside, typing
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from visit(child, True, typing)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from visit(child, inside, True)
            else:
                yield from visit(child, inside, typing)

    return visit(ast.parse(path.read_text()), False, False)


def part(module: str) -> str:
    """errors, text, ... for edgetok.errors, edgetok.text.x, ...; "" for edgetok itself."""
    return [*module.split("."), ""][1]


def test_directions(repository: Path) -> None:
    wrong = []
    for name, path in modules(repository):
        mine = part(name)
        allowed = ALLOWED[mine] | {mine}
        for target, _, _ in imports(path):
            if target.split(".")[0] != "edgetok":
                continue
            other = part(target)
            if other not in ALLOWED:  # `from edgetok import x`
                other = ""
            if "*" not in allowed and other not in allowed:
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_heavy_packages_stay_in_the_converter(repository: Path) -> None:
    wrong = []
    for name, path in modules(repository):
        if part(name) in ("converter", "kernels_gpu"):
            continue
        for target, _, typing in imports(path):
            if target.split(".")[0] in HEAVY and not typing:
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_the_command_line_imports_the_converter_lazily(repository: Path) -> None:
    wrong = [
        f"{name} imports {target}"
        for name, path in modules(repository)
        if part(name) == "cli"
        for target, inside, typing in imports(path)
        if target.startswith("edgetok.converter") and not inside and not typing
    ]
    assert not wrong


def test_environment_is_read_in_one_place(repository: Path) -> None:
    """Setting a variable for another library, or handing all on to a process, is no reading."""
    read = re.compile(
        r"os\.environ\.(get|pop|setdefault)|getenv|in os\.environ|os\.environ\[[^]]*\](?! = )"
    )
    wrong = [
        name
        for name, path in modules(repository)
        if name != "edgetok.environment" and read.search(path.read_text())
    ]
    assert not wrong


@pytest.mark.parametrize("banned", ["models", "converter", "kernels_cpu", "kernels_gpu"])
def test_import_names(repository: Path, banned: str) -> None:
    for name, path in modules(repository):
        for target, _, _ in imports(path):
            assert target.split(".")[0] != banned, f"{name} imports {target}"
