"""A real model from the package index: converted once, talks, is refused where it cannot chat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.library.conftest import Run

pytestmark = pytest.mark.real


def test_smollm2_answers(edgetok: Run, real_gguf: Callable[[str], Path]) -> None:
    question = ("-p", "Name the capital city of France.", "--temperature", "0")
    for once in ("converting", ""):
        answer = edgetok("chat", str(real_gguf("smollm2")), *question)
        assert answer.returncode == 0, answer.stderr
        assert "Paris" in answer.stdout
        assert once in answer.stderr
    assert "converting" not in answer.stderr


def test_a_base_model_is_refused_before_it_is_converted(
    edgetok: Run, real_gguf: Callable[[str], Path]
) -> None:
    refused = edgetok("chat", str(real_gguf("gemma3")), "-p", "hi")
    assert refused.returncode == 2
    assert "has no chat template" in refused.stderr
    assert "converting" not in refused.stderr
