"""The table in docs/architecture.md is enforced: which folder may import which."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

KERNEL_BASE = {"kernels_cpu.elementwise", "kernels_cpu.program", "kernels_cpu.simd"}
RUNTIME_BASE = {"errors", "cache", "environment", "formats", "machine", "models", "sampling"}
CONVERTER_BASE = {
    "errors",
    "formats",
    "models",
    "converter.options",
    "converter.progress",
    "converter.durable",
    "converter.quantised",
    "converter.workers",
}
HUB = {"library.download", "library.kinds", "library.names"}
# The parts of edgetok that each part may import besides itself and those below it. A part is a file
# or folder by its dotted name; a module belongs to the longest name that it begins with. "*" means
# everything, "x" includes the parts below x, "=x" does not.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "environment": {"errors"},
    "private_folder": {"errors"},
    "machine": set(),
    "energy": set(),
    "quantities": {"errors"},
    "formats": {"errors", "models"},
    "models": {"errors"},
    "models.config": {"errors", "models"},
    "models.families": {"errors", "models"},
    "kernels_cpu.simd": {"errors"},
    "kernels_cpu.program": {"errors", "environment", "private_folder", "kernels_cpu.simd"},
    "kernels_cpu.elementwise": {"errors", "kernels_cpu.program", "kernels_cpu.simd"},
    "kernels_cpu.linear": {"errors", *KERNEL_BASE},
    "kernels_cpu.attention": {"errors", *KERNEL_BASE},
    "kernels_cpu.recurrent": {"errors", *KERNEL_BASE},
    "kernels_cpu.eviction": {"errors", "kernels_cpu.attention", *KERNEL_BASE},
    "kernels_cpu.sampling": {"errors", *KERNEL_BASE},
    "kernels_cpu.text": KERNEL_BASE,
    "kernels_cpu.cache": {
        "kernels_cpu.attention",
        "kernels_cpu.eviction",
        "kernels_cpu.text",
        *KERNEL_BASE,
    },
    "kernels_cpu.plan": {"kernels_cpu.cache", "kernels_cpu.text", *KERNEL_BASE},
    "kernels_cpu.session": {
        "kernels_cpu.cache",
        "kernels_cpu.plan",
        "kernels_cpu.text",
        *KERNEL_BASE,
    },
    "kernels_cpu.bandwidth": {"errors", *KERNEL_BASE},
    "kernels_cpu": {"errors"},
    "kernels_gpu": {"errors"},
    "converter": {"errors", "formats", "machine", "models"},
    "converter.options": {"errors"},
    "converter.progress": set(),
    "converter.durable": {"errors"},
    "converter.quantised": {"errors", "formats"},
    "converter.workers": set(),
    "converter.self_generated_text": {
        *CONVERTER_BASE,
        "converter.calibrate",
        "converter.measure_cache",
        "converter.quantise",
        "converter.read",
        "converter.write",
        "runtime",
        "sampling",
    },
    "converter.identity": {*CONVERTER_BASE, "converter.calibrate"},
    "converter.card": CONVERTER_BASE,
    "converter.measure_cache": {
        *CONVERTER_BASE,
        "converter.calibrate",
        "converter.card",
        "converter.write",
        "evaluation",
        "runtime",
    },
    "converter.read": {*CONVERTER_BASE, *HUB},
    "converter.write": {*CONVERTER_BASE, "text", "converter.card"},
    "converter.calibrate": {
        *CONVERTER_BASE,
        "kernels_cpu",
        "text",
        "converter.card",
        "converter.read",
        "converter.write",
    },
    "converter.quantise": {
        *CONVERTER_BASE,
        "converter.calibrate",
        "converter.read",
        "converter.write",
    },
    "converter.allocate": {
        *CONVERTER_BASE,
        "converter.calibrate",
        "converter.card",
        "converter.quantise",
        "converter.read",
        "converter.write",
    },
    "converter.export": {*CONVERTER_BASE, "converter.read", "converter.write"},
    "converter.foreign": {
        *CONVERTER_BASE,
        "machine",
        "converter.calibrate",
        "converter.card",
        "converter.identity",
        "converter.quantise",
        "converter.write",
    },
    "library": {"errors", "environment", "formats", "private_folder", "converter"},
    "library.names": set(),
    "library.kinds": {"errors", "formats", "models"},
    "library.arriving": {"converter.progress"},
    "library.download": {
        "errors",
        "formats",
        "converter.progress",
        "library.arriving",
        "library.kinds",
        "library.names",
    },
    "text": {"errors", "formats", "private_folder"},
    "sampling": {"errors"},
    "grammar": {"errors", "sampling", "text"},
    "cache": {"errors", "formats", "models", "private_folder"},
    "cache.policies": {"errors"},
    "runtime": RUNTIME_BASE | {"kernels_gpu", "quantities"},
    "runtime.cpu": RUNTIME_BASE | {"kernels_cpu", "=runtime"},
    "runtime.gpu": RUNTIME_BASE | {"kernels_gpu", "=runtime", "runtime.cpu"},
    "runtime.onnx": RUNTIME_BASE | {"=runtime"},
    "native": {"errors", "cache", "formats", "kernels_cpu", "models", "runtime", "text"},
    "dialect": {"errors", "grammar", "sampling", "text"},
    "engine": {"errors", "cache", "grammar", "sampling", "text", "runtime"},
    "session": {"errors", "cache", "formats", "sampling"},
    "answer": {"dialect", "engine", "sampling"},
    "chat": {
        "errors",
        "answer",
        "cache",
        "dialect",
        "engine",
        "grammar",
        "text",
        "sampling",
        "session",
    },
    "drafting": {"errors", "environment", "engine", "formats", "library", "runtime", "text"},
    "ranking": {"errors", "engine", "runtime", "text"},
    "texts": {"errors", "engine", "runtime", "sampling", "text"},
    "model": {
        "texts",
        "errors",
        "answer",
        "dialect",
        "cache",
        "environment",
        "formats",
        "library",
        "models",
        "text",
        "sampling",
        "runtime",
        "engine",
        "chat",
        "drafting",
        "ranking",
    },
    "evaluation": {
        "errors",
        "cache",
        "energy",
        "engine",
        "environment",
        "formats",
        "models",
        "kernels_cpu",
        "sampling",
        "text",
        "runtime",
    },
    "serve": {
        "errors",
        "answer",
        "cache",
        "dialect",
        "engine",
        "formats",
        "grammar",
        "model",
        "quantities",
        "drafting",
        "ranking",
        "runtime",
        "sampling",
    },
    "cli": {"*"},
    "__main__": {"cli"},
    "": {
        "errors",
        "answer",
        "model",
        "chat",
        "dialect",
        "engine",
        "grammar",
        "runtime",
        "sampling",
    },
}
FOLDERS = {
    "edgetok": "edgetok",
    "models": "edgetok/models",
    "converter": "edgetok/converter",
    "kernels_cpu": "edgetok/kernels_cpu",
    "kernels_gpu": "edgetok/kernels_gpu",
}
HEAVY = {"torch", "transformers", "triton"}
SCREEN = 24  # lines of a listing
LONG = {"edgetok", "models/families", "kernels_cpu/linear"}  # docs/architecture.md says why


def modules(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, package in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            inside = path.relative_to(root / folder)
            if inside.parts[0] == "default":
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
    """The part that a module belongs to; "" for edgetok itself."""
    name = module.removeprefix("edgetok").removeprefix(".")
    while name and name not in ALLOWED:
        name = name.rpartition(".")[0]
    return name


def test_directions(repository: Path) -> None:
    wrong = []
    for name, path in modules(repository):
        mine = part(name)
        allowed = ALLOWED[mine]
        for target, _, _ in imports(path):
            if target.split(".")[0] != "edgetok":
                continue
            other = part(target)
            inside = other == mine or (other.startswith(f"{mine}.") and mine != "")
            known = f"={other}" in allowed or any(f"{other}.".startswith(f"{a}.") for a in allowed)
            if "*" not in allowed and not inside and not known:
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_no_module_imports_itself_in_a_circle(repository: Path) -> None:
    """Imports for type checking only do not count: they do not run."""
    names = {name for name, _ in modules(repository)}
    needs: dict[str, set[str]] = {}
    for name, path in modules(repository):
        needs[name] = set()
        for target, _, typing in imports(path):
            while target not in names and "." in target:
                target = target.rpartition(".")[0]
            if target in names and target not in (name, "edgetok") and not typing:
                needs[name].add(target)
    while leaves := {name for name, targets in needs.items() if not targets & set(needs)}:
        for name in leaves:
            del needs[name]
    assert not needs, f"in a circle, or above one: {sorted(needs)}"


def test_a_folder_fits_on_a_screen(repository: Path) -> None:
    """Compiled and generated files do not count."""
    entries: dict[Path, set[str]] = {}
    for folder in (*FOLDERS, "benchmarks"):
        for path in (repository / folder).rglob("*"):
            if path.suffix in (".py", ".c", ".h") and "wrappers" not in path.parts:
                for inside in (path, *path.parents):
                    if inside == repository:
                        break
                    entries.setdefault(inside.parent, set()).add(inside.name)
    del entries[repository]
    long = {str(f.relative_to(repository)) for f, names in entries.items() if len(names) > SCREEN}
    assert long == LONG


def test_the_architecture_page_names_every_folder_and_module_of_edgetok(repository: Path) -> None:
    page = (repository / "docs/architecture.md").read_text()
    begin = page.index("## Folders and directions")
    table = page[begin : page.index("\n## ", begin + 1)]
    missing = [
        path.relative_to(repository)
        for folder in FOLDERS
        for path in sorted((repository / folder).iterdir())
        if not path.name.startswith("__")
        if (path / "__init__.py").exists() or (folder == "edgetok" and path.suffix == ".py")
        if not re.search(rf"[`/]{path.name}[`/]", table)
    ]
    assert not missing


def test_heavy_packages_stay_in_the_converter(repository: Path) -> None:
    wrong = []
    for name, path in modules(repository):
        if part(name).split(".")[0] in ("converter", "kernels_gpu"):
            continue
        for target, _, typing in imports(path):
            if target.split(".")[0] in HEAVY and not typing:
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_the_command_line_imports_the_converter_lazily(repository: Path) -> None:
    """All but its options, of which the flags are made; they import nothing but errors."""
    options = repository / "converter/options.py"
    ours = {target for target, _, _ in imports(options) if target.startswith("edgetok")}
    assert ours == {"edgetok.errors.OptionError"}
    wrong = [
        f"{name} imports {target}"
        for name, path in modules(repository)
        if part(name) == "cli"
        for target, inside, typing in imports(path)
        if target.startswith("edgetok.converter") and not inside and not typing
        if target.rpartition(".")[0] != "edgetok.converter.options"
    ]
    assert not wrong


def test_environment_is_read_in_one_place(repository: Path) -> None:
    """Setting a variable for another library, or handing all on to a process, does not count."""
    read = re.compile(
        r"os\.environ\.(get|pop|setdefault)|getenv|in os\.environ|os\.environ\[[^]]*\](?! = )"
    )
    wrong = [
        name
        for name, path in modules(repository)
        if name != "edgetok.environment" and read.search(path.read_text())
    ]
    assert not wrong


def test_a_frozen_application_never_starts_itself(repository: Path) -> None:
    """Who starts sys.executable, which is the application, asks before whether it is one."""
    starts = {
        name: path.read_text()
        for name, path in modules(repository)
        if "sys.executable" in path.read_text()
    }
    assert starts.keys() == {"edgetok.kernels_cpu.program.compiling", "edgetok.native.library"}
    assert all('getattr(sys, "frozen", False)' in text for text in starts.values())
    assert not [n for n, path in modules(repository) if "multiprocessing" in path.read_text()]


@pytest.mark.parametrize("banned", ["models", "converter", "kernels_cpu", "kernels_gpu"])
def test_import_names(repository: Path, banned: str) -> None:
    for name, path in modules(repository):
        for target, _, _ in imports(path):
            assert target.split(".")[0] != banned, f"{name} imports {target}"
