"""All tests here run Triton kernels: interpreted, or with `-m gpu` compiled, on the GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # imported later: Triton must find its variable, set by ../conftest.py
    import torch

_HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device(on_card: bool) -> torch.device:
    import torch

    return torch.device("cuda" if on_card else "cpu")
