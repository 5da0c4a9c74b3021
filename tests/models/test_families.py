"""Each family file against transformers, on tiny random checkpoints and on real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgetok.formats.checkpoint import open_checkpoint
from edgetok.models import read_family, tensor_shapes
from tests.reference_decoder import canonical_weights, forward
from tests.tiny import FAMILIES, load_reference, tiny_checkpoint

TOKENS = np.random.default_rng(7).integers(4, 105, 40)


def assert_equals_transformers(folder: Path, tokens: np.ndarray = TOKENS) -> None:
    checkpoint = open_checkpoint(folder)
    family = read_family(checkpoint.config, checkpoint.generation_config)
    assert tuple(family.tensors) == tuple(tensor_shapes(family.spec))
    assert family.unclaimed(checkpoint.names) == ()
    weights = canonical_weights(family, checkpoint)
    assert {n: w.shape for n, w in weights.items()} == tensor_shapes(family.spec)
    found = forward(family.spec, weights, tokens)
    with torch.no_grad():
        expected = load_reference(folder)(torch.from_numpy(tokens)[None]).logits[0].numpy()
    # float32 against float64: a few hundred roundings of 6e-8, on logits of up to about 20.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers(family: str, tmp_path: Path) -> None:
    assert_equals_transformers(tiny_checkpoint(family, tmp_path, shards=2))
