"""Artefacts of tiny models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgetok.formats.checkpoint import open_checkpoint
from edgetok.formats.layout import TensorFormat
from edgetok.models import DecoderSpec, read_family
from tests.reference_decoder import canonical_weights
from tests.rtn_artefact import uniform_formats, write_artefact
from tests.tiny import tiny_checkpoint


@dataclass(frozen=True)
class Tiny:
    """A tiny model: its checkpoint, its artefact, and the weights that the artefact stands for."""

    checkpoint: Path
    artefact: Path
    spec: DecoderSpec
    weights: dict[str, np.ndarray]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Tiny]:
    """Makes (once) the artefact of a family at so many bits."""
    root = tmp_path_factory.mktemp("tiny")
    made: dict[tuple[str, int], Tiny] = {}

    def make(family: str, bits: int) -> Tiny:
        if (family, bits) not in made:
            folder = root / family
            if not folder.exists():
                tiny_checkpoint(family, folder)
            checkpoint = open_checkpoint(folder)
            read = read_family(checkpoint.config, checkpoint.generation_config)
            artefact = root / f"{family}-{bits}"
            formats = uniform_formats(read.spec, TensorFormat(bits, 32))
            weights = write_artefact(
                artefact, read.spec, canonical_weights(read, checkpoint), formats
            )
            made[family, bits] = Tiny(folder, artefact, read.spec, weights)
        return made[family, bits]

    return make
