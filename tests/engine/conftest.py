"""The model of most tests of the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.ruled import chained
from tests.fake import fake_model


@pytest.fixture
def model(tmp_path: Path) -> Any:
    with fake_model(tmp_path, rule=chained, context_tokens=4000) as made:
        yield made
