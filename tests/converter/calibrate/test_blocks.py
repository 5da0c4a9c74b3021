import threading

import numpy as np
import pytest
import torch

from edgetok.converter.calibrate import calls
from edgetok.converter.calibrate import original_model as blocks
from edgetok.converter.calibrate.original_model import Original
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.formats.checkpoint import open_checkpoint
from edgetok.models.operations import expert_counts
from edgetok.models.registry import read_family
from tests.tiny import FAMILIES, NOT_CALIBRATED, VOCAB_SIZE, load_reference, tiny_checkpoint

STAGES = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


def open_weights(folder):
    checkpoint = open_checkpoint(folder)
    return CanonicalWeights(
        checkpoint, read_family(checkpoint.config, checkpoint.generation_config)
    )


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in NOT_CALIBRATED])
def test_hidden_states_are_those_of_the_whole_model(family, tmp_path, monkeypatch):
    """40 tokens are beyond every window (8) and the longrope's trained length (16)."""
    monkeypatch.setattr(calls, "_BATCH_TOKENS", 80)  # more than one batch
    tiny_checkpoint(family, tmp_path)
    weights = open_weights(tmp_path)
    tokens = np.random.default_rng(1).integers(0, VOCAB_SIZE, (5, 40))
    with torch.no_grad():
        reference = load_reference(tmp_path)(
            torch.from_numpy(tokens), output_hidden_states=True, use_cache=False
        ).hidden_states
    original = Original(weights)
    hidden = original.embed(tokens)
    torch.testing.assert_close(hidden, reference[0], rtol=0, atol=0)
    for index in range(weights.family.spec.num_layers):
        with original.block(index) as block:
            hidden = block(hidden)
        if index + 1 < weights.family.spec.num_layers:
            torch.testing.assert_close(hidden, reference[index + 1], rtol=1e-4, atol=1e-4)
    hidden = original.final_norm(hidden, torch.from_numpy(weights.tensor("final_norm.weight")))
    torch.testing.assert_close(hidden, reference[-1], rtol=1e-4, atol=1e-4)


DENSE = {
    "qwen3_next": {"mlp_only_layers": [0, 1, 2]},
    "granitemoehybrid": {"num_local_experts": 0},
}
LAYERS = [
    ("phi3", 1),
    ("gemma3_text", 1),
    ("qwen3_next", 0),
    ("qwen3_next", 1),
    ("granitemoehybrid", 0),
    ("granitemoehybrid", 1),
    ("mixtral", 1),
    ("gpt_oss", 1),
    ("lfm2_moe", 2),
]


@pytest.mark.parametrize(("family", "layer"), LAYERS)
def test_canonical_tensors_of_a_block(family, layer, tmp_path):
    """Fused projections are rows of one parameter; norms may be stored less one.

    Experts are parameters of their own, or all one, by output or by input.
    """
    if family not in FAMILIES:
        pytest.skip(f"the installed transformers does not know {family}")
    tiny_checkpoint(family, tmp_path, **DENSE.get(family, {}))
    weights = open_weights(tmp_path)
    original = Original(weights)
    original.embed(np.zeros((1, 4), np.int64))
    with original.block(layer) as block:
        for name in block.names:
            stored = torch.from_numpy(weights.tensor(f"layers.{layer}.{name}"))
            torch.testing.assert_close(block.get(name), stored, rtol=0, atol=0)
            block.set(name, stored * 2)
            torch.testing.assert_close(block.get(name), stored * 2, rtol=1e-6, atol=1e-6)
    matrices = [p for p in original._layers[layer].parameters() if p.numel() > 2000]
    assert {p.device.type for p in matrices} == {"meta"}


@pytest.mark.parametrize(
    "family", ["llama", "phi3", "gemma3_text", "qwen3_next", "granitemoehybrid"]
)
def test_with_weights_is_a_block_that_has_them(family, tmp_path):
    """And leaves the block as it was; gradients reach them."""
    tiny_checkpoint(family, tmp_path, **DENSE.get(family, {}))
    original = Original(open_weights(tmp_path))
    hidden = original.embed(np.random.default_rng(0).integers(0, VOCAB_SIZE, (3, 10)))
    with original.block(1) as block:
        before = block(hidden)
        torch.testing.assert_close(block.with_weights({}, hidden), before)
        # Norms behind them would undo a factor.
        others = {name: block.get(name + ".weight").flip(0) for name in ("v_proj", "down_proj")}
        others["v_proj"].requires_grad_()
        result = block.with_weights(others, hidden)
        (gradient,) = torch.autograd.grad(result.square().sum(), others["v_proj"])
        assert float(gradient.abs().max()) > 0
        torch.testing.assert_close(block(hidden), before)
        for name, weight in others.items():
            block.set(name + ".weight", weight.detach())
        torch.testing.assert_close(result.detach(), block(hidden))
        assert float((result.detach() - before).abs().max()) > 1e-3


def test_observed_inputs(tmp_path):
    tiny_checkpoint("phi3", tmp_path)
    weights = open_weights(tmp_path)
    original = Original(weights)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (3, 10))
    hidden = original.embed(tokens)
    seen = {}
    with original.block(0) as block:
        assert block.stages == STAGES
        block.observe(hidden, [s[0] for s in STAGES], lambda n, x: seen.setdefault(n, []).append(x))
    spec = weights.family.spec
    widths = {"q_proj": 72, "o_proj": spec.num_heads * spec.head_dim, "gate_proj": 72}
    for name, width in {**widths, "down_proj": spec.intermediate_size}.items():
        assert torch.cat(seen[name]).shape == (30, width)
    x = hidden.double()
    normed = x / (x.square().mean(-1, keepdim=True) + spec.norm_eps).sqrt()
    normed *= torch.from_numpy(weights.tensor("layers.0.input_norm.weight"))
    torch.testing.assert_close(
        torch.cat(seen["q_proj"]), normed.flatten(0, 1).float(), rtol=1e-5, atol=1e-5
    )


def test_bfloat16_products_round_and_no_more(tmp_path, monkeypatch):
    tiny_checkpoint("gemma3_text", tmp_path)
    weights = open_weights(tmp_path)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (2, 24))
    monkeypatch.setattr(blocks, "multiplies_bfloat16", lambda: True)
    outputs, inputs = [], []
    for short in (False, True):
        original = Original(weights, short=short)
        hidden = original.embed(tokens)
        with original.block(0) as block:
            seen: list[torch.Tensor] = []
            block.observe(hidden, ["down_proj"], lambda _, x, to=seen: to.append(x))
            inputs.append(torch.cat(seen))
            outputs.append(block(hidden))
    for exact, rounded in (outputs, inputs):
        assert exact.dtype == rounded.dtype == torch.float32
        error = (exact - rounded).norm() / exact.norm()
        assert 0 < error < 2**-6  # bfloat16 has 8 bits; a few roundings follow each other


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in NOT_CALIBRATED])
def test_a_block_that_waits_computes_what_one_that_begins_again_does(family, tmp_path, monkeypatch):
    """Weights change before each group of layers; some batches run while others wait."""
    monkeypatch.setattr(calls, "_BATCH_TOKENS", 24)
    tiny_checkpoint(family, tmp_path)
    weights = open_weights(tmp_path)
    original = Original(weights)
    hidden = original.embed(np.random.default_rng(3).integers(0, VOCAB_SIZE, (5, 12)))
    for index in range(weights.family.spec.num_layers):
        with original.block(index) as block:
            if expert_counts(block.operations):
                hidden = block(hidden)
                continue
            with block.paused(hidden, [stage[0] for stage in block.stages]) as paused:
                for stage in block.stages:
                    seen: list[torch.Tensor] = []
                    again: list[torch.Tensor] = []
                    paused.observe(stage[0], seen.append)
                    block.observe(hidden, (stage[0],), lambda _, x, to=again: to.append(x))
                    assert len(seen) == len(again) > 1
                    torch.testing.assert_close(torch.cat(seen), torch.cat(again), rtol=0, atol=0)
                    for name in stage:
                        block.set(name + ".weight", 1.25 * block.get(name + ".weight"))
                output = paused.outputs()
            hidden = block(hidden)
            torch.testing.assert_close(output, hidden, rtol=0, atol=0)


def test_a_block_that_waits_can_be_left(tmp_path):
    tiny_checkpoint("llama", tmp_path)
    original = Original(open_weights(tmp_path))
    hidden = original.embed(np.arange(8).reshape(2, 4))
    running = threading.active_count()
    with original.block(0) as block:
        with block.paused(hidden, ["q_proj", "o_proj"]) as paused:
            paused.observe("q_proj", lambda _: None)
            assert threading.active_count() > running
        assert threading.active_count() == running
        with (
            block.paused(hidden, ["o_proj", "q_proj"]) as paused,
            pytest.raises(RuntimeError, match="waits before"),
        ):
            paused.observe("o_proj", lambda _: None)
        assert threading.active_count() == running
        assert block(hidden).shape == hidden.shape
