"""Two heads side by side, where their weights are absurd."""

import numpy as np
import pytest
import torch

from edgetok.converter.calibrate.compare import head_agreement
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.errors import CheckpointError
from edgetok.formats.checkpoint import open_checkpoint
from edgetok.models.registry import read_family


@pytest.mark.parametrize(("theirs", "ours"), [(1e4, 1.0), (1.0, 1e4), (1e4, 1e4)])
def test_a_loss_beyond_all_numbers_is_an_error(llama, theirs, ours):
    """A file of random scales gave an OverflowError."""
    checkpoint = open_checkpoint(llama)
    spec = CanonicalWeights(checkpoint, read_family(checkpoint.config)).family.spec
    head = np.random.default_rng(0).normal(0, 1, (50, 16)).astype(np.float32)
    states = torch.from_numpy(head[:20].copy())
    heads = [iter([np.float32(factor) * head]) for factor in (theirs, ours)]
    whose = "original" if theirs > 1 else "result"
    with pytest.raises(CheckpointError, match=f"the {whose} predicts text with a loss of [0-9]+ "):
        head_agreement(states, states, *heads, torch.arange(20).flip(0), spec)
