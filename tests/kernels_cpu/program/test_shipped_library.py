"""Kernels linked into a library: loaded without llvmlite, else named; the bits are the objects'."""

from __future__ import annotations

import ctypes
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetok.errors import EdgetokError, MissingExtraError, OptionError
from edgetok.kernels_cpu.bandwidth.measure import read_bandwidth
from edgetok.kernels_cpu.program import loader, shipped
from edgetok.kernels_cpu.program.library import Library
from edgetok.kernels_cpu.program.shipping import compile_for, write_folder
from edgetok.kernels_cpu.simd import isa
from edgetok.kernels_cpu.simd.target import Target

MODULES = ("bandwidth.kernels", "program.interpreter", "sampling.sample")
KERNELS = ("read_all", "run_program", "sample", "team_close", "team_lead", "team_work")
ISA = isa.choose()
TARGET = Target.here(ISA)
Load = Callable[..., loader.Kernels]


@pytest.fixture(scope="module")
def linked(kernel_cache: Path) -> tuple[dict[str, bytes], bytes]:
    """Objects, and the library that they make."""
    from edgetok.native.kernel_library import KernelLinker

    try:
        linker = KernelLinker(TARGET)
    except (MissingExtraError, OptionError) as error:
        pytest.skip(str(error))
    objects = compile_for([TARGET], MODULES, kernel_cache)[TARGET]
    return objects, linker.link(objects)


@pytest.fixture
def folder(
    tmp_path: Path, linked: tuple[dict[str, bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> Path:
    objects, library = linked
    monkeypatch.setattr(shipped, "INSIDE", tmp_path / "inside")
    write_folder(tmp_path / "kernels", {TARGET: objects}, {TARGET: library})
    return tmp_path / "kernels"


@pytest.fixture
def load(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads the folder's kernels where neither numba nor llvmlite are installed."""
    for name in ("numba", "llvmlite"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delenv("EDGETOK_PYTHON", raising=False)

    def call(modules: tuple[str, ...] = MODULES, place: Path = folder) -> loader.Kernels:
        return loader.load(ISA, tmp_path / "cache", modules=modules, kernels_dir=place)

    return call


def library_of(folder: Path) -> Path:
    return folder / shipped.library_file(TARGET)


def replace_library(folder: Path, content: bytes) -> None:
    """Change the library as if it had been written so: the manifest has its hash."""
    library_of(folder).write_bytes(content)
    path = folder / shipped.MANIFEST
    manifest = json.loads(path.read_text())
    entry = manifest["targets"][TARGET.name]["library"]
    entry["sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(manifest))


def test_the_folder_holds_one_file_for_a_target(
    folder: Path, linked: tuple[dict[str, bytes], bytes]
) -> None:
    assert {path.name for path in folder.iterdir()} == {shipped.MANIFEST, library_of(folder).name}
    manifest = json.loads((folder / shipped.MANIFEST).read_text())
    entry = manifest["targets"][TARGET.name]
    assert entry["objects"].keys() == set(MODULES)
    assert entry["library"] == {
        "sha256": hashlib.sha256(library_of(folder).read_bytes()).hexdigest(),
        "bytes": len(linked[1]),
    }
    assert manifest["complete"] is False


def test_it_shows_kernels_alone_and_wants_no_other_library(folder: Path) -> None:
    """Read by the system's own tool: what it defines, wants and links with."""
    if sys.platform != "linux" or shutil.which("readelf") is None:
        pytest.skip("needs Linux and readelf")
    command = ["readelf", "-dW", "--dyn-syms", library_of(folder)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in said.splitlines() if line.strip()[:1].isdigit()]
    shown = {row[7] for row in rows if len(row) > 7 and row[4] == "GLOBAL" and row[6] != "UND"}
    wanted = {row[7].partition("@")[0] for row in rows if len(row) > 7 and row[6] == "UND"}
    assert shown == {f"edgetok_{ISA.name}_{name}" for name in KERNELS}
    assert wanted <= {"syscall", "sched_yield", "memset", "memcpy", "memmove"}
    assert "NEEDED" not in said
    assert "TEXTREL" not in said


def test_nothing_is_compiled_and_llvm_is_not_asked(load: Load, tmp_path: Path) -> None:
    kernels = load()
    assert kernels.notes == ()
    assert read_bandwidth(kernels, 2, megabytes=1) > 0  # two threads wait for each other
    assert not (tmp_path / "cache").exists()
    with pytest.raises(EdgetokError, match="no compiled kernel is called 'nothing'"):
        kernels.address("nothing")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be loaded: "),
        (b"\x7fELF" + bytes(200), "cannot be loaded: "),
        (None, "its file is missing"),
    ],
    ids=["empty", "damaged", "missing"],
)
def test_what_cannot_be_loaded_is_named(
    load: Load, folder: Path, content: bytes | None, reason: str
) -> None:
    if content is None:
        library_of(folder).unlink()
    else:
        replace_library(folder, content)
    with pytest.raises(MissingExtraError) as caught:
        load()
    message = str(caught.value)
    assert reason in message
    assert "the compiler, numba, is not installed: pip install 'edgetok[compile]'" in message
    assert "\n" not in message


def test_a_changed_library_is_not_loaded(load: Load, folder: Path) -> None:
    code = bytearray(library_of(folder).read_bytes())
    code[len(code) // 2] ^= 1
    library_of(folder).write_bytes(code)
    with pytest.raises(MissingExtraError, match="damaged, its sha256 differs"):
        load()


def test_others_may_not_write_it(load: Load, folder: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("permissions are not looked at")
    library_of(folder).chmod(0o646)
    with pytest.raises(MissingExtraError, match="others own or may write the file"):
        load()


def test_modules_that_it_lacks_are_named(load: Load) -> None:
    with pytest.raises(MissingExtraError, match=rf"program\.rows: not there for {TARGET.name}"):
        load((*MODULES, "program.rows"))


def test_kernels_of_other_sources_are_not_taken(load: Load, folder: Path) -> None:
    path = folder / shipped.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["targets"][TARGET.name]["objects"][MODULES[0]]["key"] = "0" * 32
    path.write_text(json.dumps(manifest))
    with pytest.raises(MissingExtraError, match=f"{MODULES[0]}: made from other sources"):
        load()
    assert load(MODULES[1:]).notes == ()


def test_objects_without_llvmlite(
    load: Load, linked: tuple[dict[str, bytes], bytes], tmp_path: Path
) -> None:
    write_folder(tmp_path / "objects", {TARGET: linked[0]})
    with pytest.raises(MissingExtraError, match=r"llvmlite .*pip install 'edgetok\[compile\]'"):
        load(MODULES, tmp_path / "objects")


def test_a_library_and_objects_together(
    load: Load, folder: Path, monkeypatch: pytest.MonkeyPatch, kernel_cache: Path
) -> None:
    """Kernels that the library lacks are compiled; both are used side by side."""
    monkeypatch.undo()
    monkeypatch.setattr(shipped, "INSIDE", folder / "none")
    kernels = loader.load(ISA, kernel_cache, modules=("program.rows", *MODULES), kernels_dir=folder)
    assert len(kernels.notes) == 1
    assert kernels.address("gather_rows")
    assert kernels.address("sample")


def test_addresses_are_those_of_the_library(folder: Path) -> None:
    library, name = Library(library_of(folder)), f"edgetok_{ISA.name}_sample"
    own = ctypes.CDLL(str(library_of(folder)))
    assert library.get_function_address(name) == ctypes.cast(own[name], ctypes.c_void_p).value
    assert library.get_function_address("edgetok_wait") == 0
