"""The original as a reference, however it is stored, against transformers on its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgetok.converter.calibrate.reference import TransformersReference
from tests.converter.read.test_import_gguf import CASES, expected_logits, write
from tests.tiny import VOCAB_SIZE, load_reference, tiny_checkpoint

IDS = np.random.default_rng(0).integers(0, VOCAB_SIZE, 20, np.int32)


def assert_same(result: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(result, expected, atol=1e-5 * np.ptp(expected))


@pytest.mark.parametrize("case", CASES)
def test_a_gguf_file(case: str, tmp_path: Path) -> None:
    source, path, held = write(tmp_path, case)
    (expected,) = expected_logits(source, held, IDS[None].astype(np.int64))
    assert_same(TransformersReference(str(path)).logits(IDS), expected)


def test_a_folder(tmp_path: Path) -> None:
    source = tiny_checkpoint("llama", tmp_path / "source")
    with torch.inference_mode():
        expected = load_reference(source)(torch.from_numpy(IDS.astype(np.int64)[None])).logits[0]
    assert_same(TransformersReference(str(source)).logits(IDS), np.asarray(expected))
