"""libedgetok for this machine, built once, and artefacts written for it."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from edgetok.formats.artefact import open_artefact
from edgetok.formats.layout import DATA_FILE, TensorFormat
from edgetok.kernels_cpu.program.loader import MODULES
from edgetok.native.binding import Library, NativeModel
from edgetok.native.export import UNUSED
from edgetok.native.library import build_library, this_machine
from edgetok.native.plan import PLAN_FILE, Section, model_plan
from edgetok.runtime.cpu.backend import CpuBackend, plan_options
from edgetok.runtime.cpu.plan import make_plan
from tests.rtn_artefact import random_tensors, uniform_formats, write_artefact
from tests.runtime.conftest import tiny  # noqa: F401  (a fixture)

EOS = (2,)


@pytest.fixture(scope="session")
def library_files(kernel_cache: Path, tmp_path_factory) -> list[Path]:
    """The static and the shared library, with the kernels of every model."""
    machine = this_machine()
    if machine is None or not machine.shared:
        pytest.skip("libedgetok is built for other machines")
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("needs a C compiler, cc")
    out = tmp_path_factory.mktemp("library")
    modules = [module for module in MODULES if module not in UNUSED]
    return build_library(machine, modules, out, kernel_cache)


@pytest.fixture(scope="session")
def library(library_files: list[Path]) -> Library:
    """The shared library, loaded."""
    return Library(library_files[1])


def write_export(
    artefact: Path,
    out: Path,
    *,
    kv_bits: int = 8,
    block_tokens: int = 16,
    extra: dict[Section, bytes] | None = None,
) -> Path:
    """`model.plan` and the weights of an artefact, without its texts."""
    out.mkdir(exist_ok=True)
    with open_artefact(artefact) as opened:
        plan = make_plan(opened.spec, opened, plan_options(kv_bits, "int8", block_tokens))
        (out / PLAN_FILE).write_bytes(model_plan(plan, opened, EOS, extra or {}))
    if not (out / DATA_FILE).exists():
        (out / DATA_FILE).symlink_to((artefact / DATA_FILE).resolve())
    return out


Both = Callable[..., tuple[NativeModel, CpuBackend]]


@pytest.fixture
def both(
    library: Library,
    kernel_cache: Path,
    tmp_path: Path,
) -> Iterator[Both]:
    """Opens one artefact in C and in Python, with the same options."""
    with ExitStack() as stack:

        def both(
            artefact: Path, kv_bits: int = 8, threads: int = 1, block_tokens: int = 16, extra=None
        ) -> tuple[NativeModel, CpuBackend]:
            out = write_export(
                artefact, tmp_path / f"native-{artefact.name}-{kv_bits}", kv_bits=kv_bits,
                block_tokens=block_tokens, extra=extra,
            )  # fmt: skip
            model = stack.enter_context(library.open(out, threads, verify=True))
            backend = CpuBackend(
                artefact, threads=threads, isa=model.info.isa.decode(), kv_bits=kv_bits,
                cache_dir=kernel_cache, block_tokens=block_tokens,
            )  # fmt: skip
            stack.callback(backend.close)
            return model, backend

        yield both


@pytest.fixture
def trained(tiny, tmp_path: Path) -> Callable[[str, int], Path]:  # noqa: F811
    """Artefacts of tiny families that were trained for so many tokens."""

    def make(family: str, context_tokens: int) -> Path:
        spec = replace(tiny(family, 16).spec, context_tokens=context_tokens)
        folder = tmp_path / family
        formats = uniform_formats(spec, TensorFormat(16, 32))
        write_artefact(folder, spec, random_tensors(spec), formats)
        return folder

    return make


@pytest.fixture
def wine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What runs programs for Windows, in an environment of their own, and can be compiled for."""
    names = ("wine64", "wine", "/usr/lib/wine/wine64")  # Debian's package has no link to it
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None or importlib.util.find_spec("ziglang") is None:
        pytest.skip("needs wine64, and ziglang: the extra [native]")
    monkeypatch.setenv("WINEDEBUG", "-all")
    monkeypatch.setenv("WINEPREFIX", str(tmp_path / "prefix"))
    return found
