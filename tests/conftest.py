"""Fixtures that several folders share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Triton reads the variable as it is imported, which torch may do: before anything else is."""
    if config.getoption("markexpr") != "gpu":
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of reference data; tests that need it are skipped without it."""
    place = os.environ.get("EDGETOK_DATA")
    if not place:
        pytest.skip("needs reference data: set EDGETOK_DATA")
    return Path(place)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def default_artefact(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that ships, rounded to 4 bits."""
    from edgetok.converter.convert import ConvertOptions, convert

    out = tmp_path_factory.mktemp("default") / "artefact"
    options = ConvertOptions(bits=4, method="rtn", reference_tokens=0)
    convert(str(repository / "models/default"), out, options)
    return out
