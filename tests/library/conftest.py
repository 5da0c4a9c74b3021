"""The command line in processes of its own, beside a stand-in of the hub.

They run without torch and transformers: no download and no conversion at 8 bits needs them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.library.hub_server import Hub, Repository
from tests.tiny import tiny_checkpoint

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("hub") / "tiny")


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[Hub]:
    with Hub({"owner/tiny": Repository(checkpoint)}) as hub:
        yield hub


@pytest.fixture
def edgetok(hub: Hub, tmp_path: Path) -> Run:
    """Run the command line with a model folder and a hub cache of its own."""
    without = tmp_path / "without"
    without.mkdir()
    lines = ["import sys", *(f"sys.modules[{m!r}] = None" for m in ("torch", "transformers"))]
    (without / "sitecustomize.py").write_text("\n".join(lines))

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "EDGETOK_MODELS": str(tmp_path / "models"),
            "PYTHONPATH": str(without),
            **variables,
        }
        return subprocess.run(
            [sys.executable, "-m", "edgetok.cli", *words],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run
