"""Fixtures that several folders share."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.models.real_models import MODELS, real_folder

# Triton reads its variable as it is imported, and torch or transformers, which other conftests
# import, may import it: so this comes before them, and the options are not parsed yet.
_ON_CARD = "-mgpu" in sys.argv or ("-m", "gpu") in itertools.pairwise(sys.argv)
if not _ON_CARD:
    os.environ["TRITON_INTERPRET"] = "1"

# Tiny matrices gain nothing from threads, which wait for each other where cores are busy. Read when
# NumPy and torch are imported; what computes with several threads says so itself.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# Real models stay in the user's cache folder. Kernels are kept in one of the tests' own, between
# their runs and for all programs that they start: each is compiled once, whoever needs it first.
os.environ.setdefault("EDGETOK_REAL", str(real_folder()))
_KERNEL_CACHE = os.environ.setdefault(
    "EDGETOK_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"edgetok-tests-{os.getuid()}")
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the GPU run interpreted; with -m gpu on the GPU, and visibly not without one."""
    if not _ON_CARD or _has_card():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="-m gpu needs a GPU and its driver"))


def _has_card() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def on_card() -> bool:
    """Return whether the tests marked gpu run on a GPU."""
    return _ON_CARD


@pytest.fixture(scope="session")
def kernel_cache() -> Path:
    """Where compiled kernels are kept between runs of the tests."""
    return Path(_KERNEL_CACHE)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of reference data; tests that need it are skipped without it."""
    place = os.environ.get("EDGETOK_DATA")
    if not place:
        pytest.skip("needs reference data: set EDGETOK_DATA")
    return Path(place)


@pytest.fixture(scope="session")
def real_gguf() -> Callable[[str], Path]:
    """A function from a real model's name to its file; a test is skipped where it is missing."""

    def path(name: str) -> Path:
        file = real_folder() / MODELS[name].file
        if not file.exists():
            pytest.skip(f"needs {file.name}: make real-models NAMES={name}")
        return file

    return path


@pytest.fixture(scope="session")
def real_artefact(
    real_gguf: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A function from a real model's name to its artefact at 8 bits, which no test changes."""
    from edgetok.converter.convert import ConvertOptions, convert

    made: dict[str, Path] = {}

    def artefact(name: str) -> Path:
        if name not in made:
            source, out = real_gguf(name), tmp_path_factory.mktemp(name) / "artefact"
            convert(str(source), out, ConvertOptions(bits=8, method="rtn", reference_tokens=0))
            made[name] = out
        return made[name]

    return artefact


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def default_artefact(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, rounded to 4 bits."""
    from edgetok.converter.convert import ConvertOptions, convert

    out = tmp_path_factory.mktemp("default") / "artefact"
    options = ConvertOptions(bits=4, method="rtn", reference_tokens=0)
    convert(str(repository / "models/default"), out, options)
    return out
