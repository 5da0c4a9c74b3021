"""Run `edgetok chat FOLDER` with a fake model in its own process, for test_terminal.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from edgetok.cli.main import run
from edgetok.model import Model
from tests.fake import fake_model, write_tokenizer


def load(path: Path, **options: Any) -> Model:
    model = fake_model(Path(path), context=options.get("context"))
    backend: Any = model.backend
    backend.step_s = float(os.environ.get("EDGETOK_TEST_STEP_S", "0.01"))
    model.artefact.bits_per_weight = 4.5  # type: ignore[misc]
    model.artefact.weight_bytes = 1_000_000  # type: ignore[misc]
    return model


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    write_tokenizer(folder)
    (folder / "manifest.json").write_text("{}")  # an artefact, as far as its name is looked up
    Model.load = load  # type: ignore[method-assign, assignment]
    sys.exit(run(sys.argv[1:]))
