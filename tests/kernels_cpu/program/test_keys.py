"""Keys of compiled kernels cover all that the machine code depends on, with and without sources."""

from __future__ import annotations

import ast
import compileall
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgetok.kernels_cpu.program import keys
from edgetok.kernels_cpu.program.keys import cache_key, source_key
from edgetok.kernels_cpu.program.loader import MODULES
from edgetok.kernels_cpu.simd.isa import ISAS, choose
from edgetok.kernels_cpu.simd.target import Target

TARGET = Target.here(choose())
OTHER = Target(ISAS["portable"], "wasm")
QUANTISE, EMBED, NORM = "linear.quantise_activations", "linear.embed", "elementwise.norm"


@pytest.mark.parametrize("module", MODULES)
def test_key_covers_every_source_that_python_loads(module):
    """The truth is Python's own list of what an import of the module has loaded."""
    program = (
        "import sys; from edgetok.kernels_cpu.simd.target import Target, select;"
        "select(Target.parse(sys.argv[1]));"
        "import importlib; importlib.import_module('edgetok.kernels_cpu.' + sys.argv[2]);"
        "print(*[m for m in sys.modules if m.startswith('edgetok.kernels_cpu.')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, TARGET.name, module],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = {name.removeprefix("edgetok.kernels_cpu.") for name in done.stdout.split()}
    assert module in loaded
    assert loaded <= keys._sources(module)


def test_imports_are_those_of_the_parser():
    def parsed(source):
        names = []
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names += [f"{node.module}.{alias.name}" for alias in node.names]
        ours = [n.removeprefix(keys._PACKAGE) for n in names if n.startswith(keys._PACKAGE)]
        return {name for full in ours for name in keys._with_packages(full)}

    sources = [path.read_bytes() for path in keys.ROOT.rglob("*.py")]
    assert len(sources) > 40
    for source in sources:
        assert set(keys._imported(source)) == parsed(source)


@pytest.mark.parametrize("key", [cache_key, source_key])
def test_key_covers_what_a_module_imports(key, monkeypatch):
    def found():
        key.cache_clear()
        return {m: key(TARGET, m) for m in (QUANTISE, EMBED, NORM)}

    before = found()
    assert before == found()
    assert key(OTHER, EMBED) != before[EMBED]
    source = keys._source
    for changed, affected in (
        ("simd.emit", {QUANTISE, EMBED, NORM}),
        ("simd", {QUANTISE, EMBED, NORM}),  # a package's own file is run, too
        ("program.build", {QUANTISE, EMBED, NORM}),
        ("simd.target", {QUANTISE, EMBED, NORM}),
        ("simd.isa", {QUANTISE, EMBED, NORM}),
        ("linear.layout", {QUANTISE, EMBED}),
        (QUANTISE, {QUANTISE}),
        ("reference", set()),
    ):
        monkeypatch.setattr(
            keys, "_source", lambda name, c=changed: source(name) + b" " * (name == c)
        )
        after = found()
        assert {m for m in before if before[m] != after[m]} == affected, changed
    monkeypatch.undo()
    key.cache_clear()


def test_only_the_cache_depends_on_the_compiler(monkeypatch):
    def found():
        for key in (cache_key, source_key, keys._versions):
            key.cache_clear()
        return cache_key(TARGET, EMBED), source_key(TARGET, EMBED)

    before = found()
    monkeypatch.setattr(keys, "_version", lambda package: "0.0")
    after = found()
    assert after[0] != before[0]
    assert after[1] == before[1]
    monkeypatch.undo()
    found()


ASK = """
import json, sys
sys.path.insert(0, sys.argv[1])
import edgetok
assert edgetok.__file__.startswith(sys.argv[1]), edgetok.__file__
from edgetok.kernels_cpu.program import keys
from edgetok.kernels_cpu.simd.target import Target
target = Target.parse(sys.argv[2])
modules = sys.argv[3:]
print(json.dumps({
    "sources": keys.has_sources(),
    "code": keys.code_key(target),
    "cache": [keys.cache_key(target, m) for m in modules],
    "source": [keys.source_key(target, m) for m in modules],
}))
"""


def asked(place):
    """Keys of an installation in a folder or zip file, from a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(place), TARGET.name, QUANTISE, EMBED],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def installed(repository, tmp_path_factory):
    """The kernels as an installation has them, in a folder."""
    place = tmp_path_factory.mktemp("installed")
    (place / "edgetok").mkdir()
    for name in ("__init__", "environment", "errors", "private_folder"):
        shutil.copy(repository / f"edgetok/{name}.py", place / "edgetok")
    ignored = shutil.ignore_patterns("__pycache__", "compiled")
    shutil.copytree(repository / "kernels_cpu", place / "edgetok/kernels_cpu", ignore=ignored)
    return place


def test_a_zip_file_has_the_keys_of_its_sources(installed, tmp_path):
    archive = tmp_path / "edgetok.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in installed.rglob("*.py"):
            file.write(path, path.relative_to(installed))
    here = asked(installed)
    assert here["sources"]
    assert here["cache"] == [cache_key(TARGET, module) for module in (QUANTISE, EMBED)]
    assert asked(archive) == here


def without_sources(installed: Path, place: Path) -> Path:
    """The same with .pyc files alone."""
    shutil.copytree(installed, place)
    compileall.compile_dir(place, legacy=True, quiet=2)
    for path in place.rglob("*.py"):
        path.unlink()
    return place


def test_bytecode_alone_has_keys_that_follow_the_code(installed, tmp_path):
    here = asked(installed)
    plain = asked(without_sources(installed, tmp_path / "plain"))
    assert not plain["sources"]
    assert plain["code"] == here["code"]  # wherever the files lie
    assert set(plain["cache"] + plain["source"]).isdisjoint(here["cache"] + here["source"])
    changed = tmp_path / "source"
    shutil.copytree(installed, changed)
    layout = changed / "edgetok/kernels_cpu/linear/layout.py"
    layout.write_text(layout.read_text() + "\nOTHER = 12345\n")
    other = asked(without_sources(changed, tmp_path / "changed"))
    assert other["code"] != plain["code"]
    assert other["cache"] != plain["cache"]
    assert asked(tmp_path / "plain") == plain  # in another process
