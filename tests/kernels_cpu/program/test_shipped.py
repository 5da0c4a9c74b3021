"""Shipped kernels: taken where they fit, else named and compiled; never from others' hands."""

from __future__ import annotations

import hashlib
import json
import os
import sys

import pytest

from edgetok.errors import MissingExtraError, OptionError, OutputError
from edgetok.kernels_cpu.bandwidth.measure import read_bandwidth
from edgetok.kernels_cpu.program import compiling, keys, loader, shipped
from edgetok.kernels_cpu.program.loader import MODULES as ALL
from edgetok.kernels_cpu.program.shipping import compile_for, targets_of, write_folder
from edgetok.kernels_cpu.simd import isa
from edgetok.kernels_cpu.simd.target import Target

MODULES = ("bandwidth.kernels", "program.interpreter")
ISA = isa.choose()
TARGET = Target.here(ISA)
posix = pytest.mark.skipif(os.name != "posix", reason="asks for POSIX permissions")


@pytest.fixture(autouse=True)
def no_kernels_inside(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "INSIDE", tmp_path / "inside")


@pytest.fixture
def folder(tmp_path, kernel_cache):
    write_folder(tmp_path / "kernels", compile_for([TARGET], MODULES, kernel_cache))
    return tmp_path / "kernels"


@pytest.fixture
def compiled(monkeypatch, kernel_cache):
    """Modules that a load has compiled; they come from the tests' cache."""
    asked = []

    def compile_missing(target, missing, folder, progress):
        asked.extend(missing)
        for module, path in missing.items():
            path.write_bytes(loader.object_path(target, module, kernel_cache).read_bytes())

    monkeypatch.setattr(loader, "compile_missing", compile_missing)
    return asked


def load(folder, tmp_path, modules=MODULES):
    return loader.load(ISA, tmp_path / "cache", modules=modules, kernels_dir=folder)


def edit(folder, change):
    path = folder / shipped.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def entry(manifest):
    return manifest["targets"][TARGET.name]["objects"][MODULES[0]]


def test_the_manifest_says_what_lies_there(folder):
    manifest = json.loads((folder / shipped.MANIFEST).read_text())
    assert manifest["made_with"].keys() == {"edgetok", "numba", "llvmlite", "python"}
    objects = manifest["targets"][TARGET.name]["objects"]
    assert objects.keys() == set(MODULES)
    for module, one in objects.items():
        content = (folder / f"{module}-{TARGET.name}.o").read_bytes()
        assert content[:4] == b"\x7fELF" or sys.platform != "linux"
        assert one["sha256"] == hashlib.sha256(content).hexdigest()
        assert one["bytes"] == len(content)
        assert one["key"] == keys.source_key(TARGET, module)


def test_nothing_is_compiled_nor_cached(folder, tmp_path, compiled):
    kernels = load(folder, tmp_path)
    assert (compiled, kernels.notes) == ([], ())
    assert not (tmp_path / "cache").exists()
    assert read_bandwidth(kernels, 1, megabytes=1) > 0


def test_the_folder_inside_the_package_comes_second(folder, tmp_path, compiled, kernel_cache):
    both = compile_for([TARGET], (*MODULES, "program.rows"), kernel_cache)
    write_folder(tmp_path / "inside", both)
    assert load(None, tmp_path).notes == ()
    (tmp_path / f"inside/{MODULES[0]}-{TARGET.name}.o").write_bytes(b"")
    assert load(folder, tmp_path).notes == ()
    kernels = load(folder, tmp_path, (*MODULES, "program.rows"))
    (note,) = kernels.notes  # the user named a folder that lacks it
    assert f"(program.rows: not there for {TARGET.name})" in note
    assert compiled == []
    (note,) = load(None, tmp_path).notes
    assert "damaged, its sha256 differs" in note
    assert compiled == [MODULES[0]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: entry(m).update(key="0" * 32), "made from other sources, by another version"),
        (lambda m: entry(m).update(sha256="0" * 64), "damaged, its sha256 differs"),
        (lambda m: m["targets"][TARGET.name]["objects"].pop(MODULES[0]), "not there for"),
    ],
    ids=["other-sources", "wrong-hash", "missing"],
)
def test_one_that_does_not_fit_is_named_and_compiled(folder, tmp_path, compiled, change, reason):
    edit(folder, change)
    (note,) = load(folder, tmp_path).notes
    assert note.startswith(f"{folder}: ")
    assert f"{MODULES[0]}: {reason}" in note
    assert "\n" not in note
    assert compiled == [MODULES[0]]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "kernels.json is damaged"),
        ("[]", "kernels.json is damaged"),
        ("[" * 100_000, "kernels.json is damaged"),
        ('{"format": 1, "targets": {"%s": {"objects": [1], "code_key": ""}}}', "is damaged"),
        ('{"format": 1, "targets": {"%s": {"objects": {"a": 1}, "code_key": ""}}}', "is damaged"),
        ('{"format": 2}', "has format 2, expected 1"),
    ],
)
def test_a_damaged_manifest_is_named(folder, tmp_path, compiled, content, reason):
    (folder / shipped.MANIFEST).write_text(content.replace("%s", TARGET.name))
    (note,) = load(folder, tmp_path).notes
    assert reason in note
    assert sorted(compiled) == sorted(MODULES)


def test_objects_of_another_target_do_not_fit(folder, tmp_path, compiled):
    edit(folder, lambda m: m.update(targets={"aarch64-linux-neon": m["targets"].pop(TARGET.name)}))
    (note,) = load(folder, tmp_path).notes
    assert f"not there for {TARGET.name}" in note
    assert sorted(compiled) == sorted(MODULES)


def test_a_missing_file_is_named(folder, tmp_path, compiled):
    (folder / f"{MODULES[0]}-{TARGET.name}.o").unlink()
    (note,) = load(folder, tmp_path).notes
    assert f"({MODULES[0]}: its file is missing)" in note
    assert compiled == [MODULES[0]]


def test_without_a_compiler_it_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.delenv("EDGETOK_PYTHON", raising=False)
    load(folder, tmp_path)  # all is there
    edit(folder, lambda m: entry(m).update(key="0" * 32))
    with pytest.raises(MissingExtraError, match=r"made from other .*; kernels have to be compiled"):
        load(folder, tmp_path)
    monkeypatch.setattr(sys, "frozen", False)
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(
        MissingExtraError, match=r"numba, is not installed: pip install 'edgetok\[compile\]'"
    ):
        load(folder, tmp_path)


def test_a_folder_without_kernels_is_refused(tmp_path):
    for name in ("nowhere", ""):
        with pytest.raises(OptionError, match=r"no kernels\.json there"):
            load(tmp_path / name, tmp_path)


@posix
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_others_may_not_write_the_folder(folder, tmp_path, mode):
    folder.chmod(mode)
    with pytest.raises(OptionError, match="others own or may write this directory"):
        load(folder, tmp_path)


@posix
def test_others_may_not_own_the_folder(folder, tmp_path, monkeypatch):
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    if owner == 0:
        load(folder, tmp_path)  # root's is as good as one's own
        os.chown(folder, 12345, -1)
    with pytest.raises(OptionError, match="others own or may write this directory"):
        load(folder, tmp_path)


@posix
@pytest.mark.parametrize("name", ["object", "manifest"])
def test_others_may_not_write_a_file(folder, tmp_path, compiled, name):
    object_name = f"{MODULES[0]}-{TARGET.name}.o"
    (folder / (shipped.MANIFEST if name == "manifest" else object_name)).chmod(0o646)
    (note,) = load(folder, tmp_path).notes
    assert "others own or may write the file" in note
    assert MODULES[0] in compiled


@posix
def test_a_pipe_is_not_read(folder, tmp_path, compiled):
    path = folder / f"{MODULES[0]}-{TARGET.name}.o"
    path.unlink()
    os.mkfifo(path)
    (note,) = load(folder, tmp_path).notes
    assert "not a file" in note
    assert compiled == [MODULES[0]]


@posix
def test_inside_the_package_it_may_be_as_open_as_the_package(
    folder, tmp_path, monkeypatch, compiled
):
    """pip follows the umask: with 002 the group may write all of the package."""
    folder.rename(tmp_path / "inside")
    for path in ((tmp_path / "inside"), *(tmp_path / "inside").iterdir()):
        path.chmod(path.stat().st_mode | 0o020)
    package = tmp_path / "package"
    package.mkdir()
    monkeypatch.setattr(keys, "ROOT", package)
    package.chmod(0o755)
    (note,) = load(None, tmp_path).notes
    assert "others own or may write it" in note
    package.chmod(0o775)
    compiled.clear()
    monkeypatch.setattr(keys, "source_key", lambda target, module: entry_key[module])
    objects = json.loads((tmp_path / "inside/kernels.json").read_text())
    entry_key = {m: one["key"] for m, one in objects["targets"][TARGET.name]["objects"].items()}
    assert load(None, tmp_path).notes == ()
    (tmp_path / "inside").chmod(0o777)
    (note,) = load(None, tmp_path).notes
    assert "others own or may write it" in note


def test_without_sources_the_bytecode_decides(folder, tmp_path, monkeypatch, compiled):
    monkeypatch.setattr(keys, "has_sources", lambda: False)
    assert load(folder, tmp_path).notes == ()
    monkeypatch.setattr(keys, "code_key", lambda target: "0" * 32)
    assert "made from other sources" in load(folder, tmp_path).notes[0]
    folder.rename(tmp_path / "inside")  # what came with the package is of the package
    assert load(None, tmp_path).notes == ()


def test_writing_needs_an_empty_folder(folder):
    with pytest.raises(OutputError, match="is not empty; choose another --out"):
        write_folder(folder, {})
    with pytest.raises(OutputError, match="is not empty; choose another --out"):
        write_folder(folder / shipped.MANIFEST, {})
    with pytest.raises(OutputError, match="cannot be written"):
        write_folder(folder / shipped.MANIFEST / "below", {})


@posix
def test_what_is_written_can_be_loaded_whatever_the_umask(tmp_path, kernel_cache):
    before = os.umask(0)
    try:
        write_folder(tmp_path / "open", compile_for([TARGET], MODULES, kernel_cache))
    finally:
        os.umask(before)
    assert load(tmp_path / "open", tmp_path).notes == ()


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("x86_64-linux-avx2", "x86_64-linux-avx2"),
        (
            "x86_64-linux",
            "x86_64-linux-avx512 x86_64-linux-avxvnni x86_64-linux-avx2 x86_64-linux-portable",
        ),
        ("aarch64-macos", "aarch64-macos-i8mm aarch64-macos-neon aarch64-macos-portable"),
        ("wasm32-wasm", "wasm32-wasm-portable"),
    ],
)
def test_names_of_targets(name, targets):
    assert " ".join(target.name for target in targets_of(name)) == targets


@pytest.mark.parametrize("name", ["x86_64", "x86_64-beos", "riscv-linux", "x86_64-linux-neon", ""])
def test_unknown_targets(name):
    with pytest.raises(OptionError):
        targets_of(name)


def test_progress_counts_all_targets(tmp_path, monkeypatch):
    """Two targets, of which the second is half in the cache: one sum of work, never less."""
    targets, told = targets_of("x86_64-linux")[1:3], []

    def compile_missing(target, missing, folder, progress):
        of = compiling.planned_work(list(missing))
        for done in (0, of // 2, of):
            progress(done, of)
        for path in missing.values():
            compiling_write(path)

    def compiling_write(path):
        path.write_bytes(hashlib.sha256(b"code").digest() + b"code")

    monkeypatch.setattr(loader, "compile_missing", compile_missing)
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    for module in ALL[:20]:
        compiling_write(loader.object_path(targets[1], module, cache))
    made = compile_for(targets, ALL, cache, lambda *p: told.append(p))
    assert [len(codes) for codes in made.values()] == [len(ALL)] * 2
    work = compiling.planned_work(ALL), compiling.planned_work(ALL[20:])
    assert told[0] == (0, sum(work))
    assert told[-1] == (sum(work), sum(work))
    assert (work[0], sum(work)) in told
    assert told == sorted(told)
