"""Choosing on the device against the sampler of the CPU."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs the extra edgetok[gpu]")

import torch

from edgetok.errors import ShapeError
from edgetok.kernels_gpu.sampling import BLOCK, MOST, SamplingBuffers, sample
from edgetok.sampling.options import SamplingOptions
from edgetok.sampling.sampler import candidates


def choose(buffers, options, share):
    names = ("top_k", "temperature", "top_p", "min_p")
    buffers.choose(**{name: getattr(options, name) for name in names}, share=share)


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(top_k=40, top_p=0.9, temperature=0.8),
        SamplingOptions(top_k=64, top_p=1.0, temperature=2.0),
        SamplingOptions(top_k=5, top_p=1.0, min_p=0.3, temperature=1.3),
        SamplingOptions(top_k=30, top_p=0.1, temperature=1.0),
    ],
    ids=["usual", "wide", "min-p", "narrow"],
)
def test_draws_as_the_cpu_does(device, options):
    rng = np.random.default_rng(1)
    size = BLOCK + 1000  # two blocks, one of them ragged
    buffers = SamplingBuffers(size, device)
    for share in rng.random(3):
        logits = (rng.standard_normal(size) * 3).astype(np.float32)
        choose(buffers, options, share)
        sample(torch.from_numpy(logits).to(device), buffers)
        ids, probabilities = candidates(logits, options)
        rising = np.cumsum(probabilities)
        assert buffers.token.item() == ids[np.searchsorted(rising, share * rising[-1], "right")]


def test_the_most_likely_and_the_first_of_equals(device):
    size = 3 * BLOCK
    buffers = SamplingBuffers(size, device)
    choose(buffers, SamplingOptions(temperature=0.0), 0.7)
    logits = torch.randn(size, device=device)
    sample(logits, buffers)
    assert buffers.token.item() == int(logits.argmax())
    logits[[BLOCK + 7, 2 * BLOCK, 9000]] = 50.0
    sample(logits, buffers)
    assert buffers.token.item() == BLOCK + 7
    logits[:] = -5.0  # more equals than a block leaves
    sample(logits, buffers)
    assert buffers.token.item() == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers(device, bad):
    buffers = SamplingBuffers(100, device)
    logits = torch.randn(100, device=device)
    logits[70] = bad
    sample(logits, buffers)
    assert buffers.token.item() == -1


def test_equals_do_not_crowd_out_what_is_above_them(device):
    """A grammar forbids most tokens, so few are finite, or nearly all are equal."""
    buffers = SamplingBuffers(300, device)
    choose(buffers, SamplingOptions(top_k=MOST, top_p=1.0, temperature=0.1), 0.5)
    for rest in (-float("inf"), -40.0):
        logits = torch.full((300,), rest, device=device)
        logits[299] = 3.0
        sample(logits, buffers)
        assert buffers.token.item() == 299


def test_refused(device):
    with pytest.raises(ShapeError, match="5000 logits"):
        sample(torch.zeros(5000, device=device), SamplingBuffers(100, device))
