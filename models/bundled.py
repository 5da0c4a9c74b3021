"""The bundled model: the artefact that the package contains.

`models/default-4bit` is `models/default` as `edgetok convert --method gptq` writes it. Commands use
it where no model was named, so that a first answer needs no converter.
`tests/models/test_bundled.py` converts `models/default` again and compares.
"""

from __future__ import annotations

from pathlib import Path

NAME = "default-4bit"


def bundled_model() -> Path:
    """Return the folder of the bundled artefact."""
    return Path(__file__).parent / NAME
