"""The estimate of a model's memory beside what a process really takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import edgetok

MEASURE = """
import json, sys, psutil, edgetok
path, options = sys.argv[1], json.loads(sys.argv[2])
estimate = edgetok.Model.estimate(path, **options)
with edgetok.load(path, **options) as model:
    chat = model.new_chat(max_tokens=4, temperature=0.0)
    while chat.used_tokens < model.context_tokens - 300:
        chat.send("word and " * 100).run()
    print(json.dumps({
        "estimated": estimate.total_bytes, "resident": psutil.Process().memory_info().rss,
        "cache": chat.cache_bytes, "estimated_cache": estimate.cache_bytes,
        "buffers": model.backend.buffer_bytes, "estimated_buffers": estimate.workspace_bytes,
        "weights": estimate.weights_bytes,
    }))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is counted as Linux does")
@pytest.mark.parametrize(
    "options", [{}, {"kv_policy": "none", "context": "1k"}, {"kv_budget": "1MB", "kv_bits": 4}]
)
def test_against_a_process(default_artefact: Path, options: dict[str, Any]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(default_artefact), json.dumps(options)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(run.stdout)
    assert found["estimated_cache"] == found["cache"]
    # buffers grow with the length of the cache: scratch of attention
    assert found["buffers"] - 2e6 < found["estimated_buffers"] <= found["buffers"]
    assert found["weights"] < found["resident"]
    assert abs(found["estimated"] / found["resident"] - 1) < 0.2


def test_what_cannot_be_estimated(default_artefact: Path, tmp_path: Path) -> None:
    with pytest.raises(edgetok.UnsupportedError, match="onnxruntime"):
        edgetok.Model.estimate(default_artefact, device="onnxruntime")
    with pytest.raises(edgetok.ArtefactError):
        edgetok.Model.estimate(tmp_path)
    with pytest.raises(edgetok.OptionError, match="did you mean context"):
        edgetok.Model.estimate(default_artefact, contxt=5)  # type: ignore[call-arg]
    with pytest.raises(edgetok.OptionError, match="invalid number of tokens"):
        edgetok.Model.estimate(default_artefact, context="many")


def test_repr_and_growth(default_artefact: Path) -> None:
    small = edgetok.Model.estimate(default_artefact, context="512")
    large = edgetok.Model.estimate(default_artefact, context="2k")
    assert small.cache_bytes < large.cache_bytes
    assert small.weights_bytes == large.weights_bytes
    assert repr(large).startswith("<Estimate on cpu: ")
    assert repr(large).endswith(f"= {large.total_bytes / 1e6:,.1f} MB>")


def test_the_bytes_of_a_cache_before_there_is_one(default_artefact: Path, tmp_path: Path) -> None:
    """The server promises an answer as much as its cache takes."""
    from edgetok.cache.limits import CacheLimits
    from tests.fake import fake_model

    with edgetok.load(default_artefact, threads=2, kv_bits=4) as model:
        backend = model.backend
        for tokens in (1, 100, 256, 1000):
            assert backend.cache_bytes(tokens) == backend.new_cache(tokens).nbytes
        for limits in (CacheLimits(), CacheLimits(budget_bytes=1_000_000)):
            made = backend.new_bounded_cache(512, limits)
            assert backend.cache_bytes(512, limits) == made.nbytes
        with pytest.raises(edgetok.OptionError, match="expected a whole number"):
            backend.cache_bytes(0)
    fake = fake_model(tmp_path / "fake").backend
    assert fake.cache_bytes(100) == fake.new_cache(100).nbytes
