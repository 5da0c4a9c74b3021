import dataclasses

import numpy as np
import pytest
import torch

from edgetok.converter.calibrate.original_model import Original
from edgetok.converter.quantise import awq
from edgetok.converter.quantise import round_to_nearest as rtn
from edgetok.converter.quantise.awq import candidate_scales, quantise_clipped, search_scales
from edgetok.converter.quantise.awq_fold import apply_scales, fold_block
from edgetok.converter.write.data_file import TensorFormat
from edgetok.formats.layout import linear_shapes
from tests.converter.calibrate.test_blocks import STAGES, open_weights
from tests.tiny import VOCAB_SIZE, tiny_checkpoint


def layer(seed=0, tokens=300, inputs=70):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(0, 0.05, (n, inputs)).astype(np.float32) for n in (24, 16)]
    x = (rng.normal(0, 1, (tokens, inputs)) * rng.lognormal(0, 1.5, inputs)).astype(np.float32)
    return [torch.from_numpy(w) for w in weights], torch.from_numpy(x)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_chosen_alpha_is_the_best_of_all(bits):
    weights, x = layer()
    magnitude = x.abs().mean(0)
    choice = search_scales(weights, x, magnitude, [awq.rounder(bits, 32, False)] * 2)

    def loss(alpha):
        s = np.abs(x.numpy().astype(np.float64)).mean(0) ** alpha
        s = (s / np.sqrt(s.max() * s.min())).astype(np.float32)
        total = 0.0
        for weight in weights:
            w = weight.numpy()
            rounded = rtn.quantise(w * s, bits, 32).dequantise().astype(np.float64) / s
            total += np.square(x.numpy().astype(np.float64) @ (rounded - w).T).sum()
        return total / len(x)

    losses = [loss(alpha) for alpha in awq.ALPHAS]
    # Scales that differ in the last bit may round one weight otherwise.
    assert choice.loss == pytest.approx(min(losses), rel=2e-3)
    assert loss(choice.alpha) == pytest.approx(min(losses), rel=2e-3)
    assert choice.identity_loss == pytest.approx(losses[0], rel=1e-4)
    assert choice.alpha > 0
    assert choice.loss < 0.9 * choice.identity_loss


def test_identity_is_kept_where_scales_do_not_help():
    weights, x = layer()
    choice = search_scales(weights, x, x.abs().mean(0), [lambda w: w.clone()] * 2)
    assert choice.alpha == 0
    assert torch.all(choice.scales == 1)


def test_scales_of_inputs_never_activated():
    magnitude = torch.tensor([0.0, 1.0, 4.0])
    scales = candidate_scales(magnitude, 0.5)
    assert scales[0] == scales[1]
    assert torch.isfinite(scales).all()
    assert torch.all(candidate_scales(torch.zeros(3), 0.5) == 1)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_clipping_against_brute_force(bits, symmetric):
    """For each row and group: the span whose rounding errs least on all tokens, by trying all."""
    (weight, _), x = layer()
    products = awq.GroupProducts(70, 32)
    for part in x.split(77):
        products.add(part)
    result = quantise_clipped(weight, products.total(), bits, 32, symmetric=symmetric)
    assert result.codes.shape == (24, 70)
    assert result.scales.shape == (24, 3)
    assert (result.zeros is None) == symmetric
    dequantised = result.dequantise().astype(np.float64)
    w, inputs = weight.numpy(), x.numpy().astype(np.float64)
    top = 2**bits - 1
    for row in range(24):
        for first in range(0, 70, 32):
            group = w[row, first : first + 32].astype(np.float64)
            here = inputs[:, first : first + 32]
            losses = []
            for span in 1 - 0.05 * np.arange(11):
                low, high = span * min(group.min(), 0), span * max(group.max(), 0)
                if symmetric:
                    scale, zero = float(np.float16(2 * max(-low, high) / top)), (top + 1) / 2
                else:
                    scale = float(np.float16((high - low) / top))
                    zero = np.clip(np.round(-low / scale), 0, top)
                rounded = (np.clip(np.round(group / scale) + zero, 0, top) - zero) * scale
                losses.append(np.square(here @ (rounded - group)).sum())
            mine = np.square(here @ (dequantised[row, first : first + 32] - group)).sum()
            assert mine <= min(losses) * 1.001


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3", "olmo2"])
def test_folding_changes_nothing_but_rounding(family, tmp_path):
    """In float64 a block with random scales folded in computes what it did before."""
    tiny_checkpoint(family, tmp_path)
    weights = open_weights(tmp_path)
    spec = weights.family.spec
    original = Original(weights)
    hidden = original.embed(np.random.default_rng(0).integers(0, VOCAB_SIZE, (2, 12))).double()
    generator = torch.Generator().manual_seed(0)
    args, named = original.calls.recorded[1]
    # The recorded mask and rotary embeddings are float32; sums with them are float64.
    exact = {
        key: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point()
        else tuple(t.double() for t in value) if key.startswith("position_embeddings")
        else value
        for key, value in named.items()
    }  # fmt: skip
    calls = dataclasses.replace(original.calls, recorded=[(args, exact)] * 2)
    with original.block(1) as block:
        block._layer.double()
        before = block(hidden, calls)
        for stage in STAGES:
            if stage[0] in ("q_proj", "gate_proj") and not spec.pre_norm:
                continue
            K = block.get(stage[0] + ".weight").shape[1]
            scales = torch.rand(K, generator=generator, dtype=torch.float64) * 3 + 0.1
            if stage[0] == "o_proj":
                scales = awq.share_across_queries(
                    scales, spec.num_heads, spec.num_kv_heads, spec.head_dim
                )
            apply_scales(block, stage, scales)
        after = block(hidden, calls)
    # RMSNorm of transformers casts to float32 inside.
    torch.testing.assert_close(after, before, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_fold_block_lowers_the_error_and_tells_what_it_skips(family, tmp_path):
    tiny_checkpoint(family, tmp_path)
    weights = open_weights(tmp_path)
    spec = weights.family.spec
    original = Original(weights)
    hidden = original.embed(np.random.default_rng(0).integers(0, VOCAB_SIZE, (4, 20)))
    formats = {name: TensorFormat(3, 32, zeros=True) for name in linear_shapes(spec)}
    with original.block(0) as block:
        before = block(hidden)
        notes = fold_block(block, hidden, formats)
        torch.testing.assert_close(block(hidden), before, rtol=1e-3, atol=1e-3)
    assert [note for note in notes if "no norm stands before" in note] == notes
    assert len(notes) == (2 if family == "olmo2" else 0)
