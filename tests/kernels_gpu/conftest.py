"""Triton's interpreter; with `-m gpu` the same tests on the card, compiled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # imported later: Triton must find its variable, set by ../conftest.py
    import torch

_HERE = Path(__file__).parent


def _on_card(config: pytest.Config) -> bool:
    return bool(config.getoption("markexpr") == "gpu")


def _has_card() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if _on_card(config) and not _has_card():
                item.add_marker(pytest.mark.skip(reason="-m gpu needs a GPU and its driver"))


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    import torch

    return torch.device("cuda" if _on_card(pytestconfig) else "cpu")
