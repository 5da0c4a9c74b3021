"""Choosing on the device against the sampler of the CPU and a Philox written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs the extra edgetok[gpu]")

import torch

from edgetok.errors import ShapeError
from edgetok.kernels_gpu.sampling import BLOCK, MOST, SamplingBuffers, sample
from edgetok.text.sampling import SamplingOptions, candidates


def philox(seed, counter):
    """Ten rounds of Philox 4x32 on (counter, 0, 0, 0), its first word as a number in [0, 1)."""
    c = [counter, 0, 0, 0]
    k = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    word = c[0] - (c[0] >> 31 << 32)
    return (-word - 1 if word < 0 else word) * 4.6566127342e-10


def set_options(buffers, options, seed, counter):
    buffers.top_k.fill_(options.top_k)
    buffers.shape.copy_(torch.tensor([options.temperature, options.top_p, options.min_p]))
    buffers.stream.copy_(torch.tensor([seed, counter]))


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
    for counter in range(3):
        logits = (rng.standard_normal(size) * 3).astype(np.float32)
        seed = int(rng.integers(1 << 60))
        set_options(buffers, options, seed, counter)
        sample(torch.from_numpy(logits).to(device), buffers)
        ids, probabilities = candidates(logits, options)
        rising = np.cumsum(probabilities)
        place = np.searchsorted(rising, philox(seed, counter) * rising[-1], side="right")
        assert buffers.token.item() == ids[place]


def test_the_most_likely_and_the_first_of_equals(device):
    size = 3 * BLOCK
    buffers = SamplingBuffers(size, device)
    set_options(buffers, SamplingOptions(top_k=1, temperature=1.0), 0, -1)
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
    """As where a grammar forbids most tokens: few are finite, or nearly all are equal."""
    buffers = SamplingBuffers(300, device)
    set_options(buffers, SamplingOptions(top_k=MOST, top_p=1.0, temperature=0.1), 5, 0)
    for rest in (-float("inf"), -40.0):
        logits = torch.full((300,), rest, device=device)
        logits[299] = 3.0
        sample(logits, buffers)
        assert buffers.token.item() == 299


def test_refused(device):
    with pytest.raises(ShapeError, match="5000 logits"):
        sample(torch.zeros(5000, device=device), SamplingBuffers(100, device))
