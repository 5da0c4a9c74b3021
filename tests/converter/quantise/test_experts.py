"""Experts are rounded with the tokens that reach them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgetok.converter.calibrate.original_model import Original
from edgetok.converter.options import ConvertOptions
from edgetok.converter.quantise import experts as subject
from edgetok.converter.quantise import round_to_nearest as rtn
from edgetok.converter.quantise.experts import Routed, output_error, round_experts, rows_of
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.formats.checkpoint import open_checkpoint
from edgetok.formats.layout import TensorFormat
from edgetok.models import read_family
from tests.tiny import FAMILIES, VOCAB_SIZE, WITH_EXPERTS, tiny_checkpoint

LAYER = 2
FORM = TensorFormat(3, 32, zeros=True)


def open_block(family, folder, **config):
    """The original, the input of block LAYER, and its tensors by name."""
    tiny_checkpoint(family, folder, **config)
    checkpoint = open_checkpoint(folder)
    weights = CanonicalWeights(checkpoint, read_family(checkpoint.config))
    original = Original(weights)
    tokens = np.random.default_rng(1).integers(0, VOCAB_SIZE, (16, 40))
    hidden = original.embed(tokens)
    for i in range(LAYER):
        with original.block(i) as block:
            hidden = block(hidden)
    return original, hidden


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "olmoe"])
def test_an_expert_sees_what_transformers_gives_it(family, tmp_path):
    """Inputs of its first and of its last matrix; transformers has them in another order."""
    original, hidden = open_block(family, tmp_path, num_hidden_layers=4)
    with original.block(3 if family == "qwen2_moe" else LAYER) as block:
        theirs = {}
        layer = block._layer
        modules = [
            (name, module)
            for name, module in layer.named_modules()
            if ".experts." in name and name.endswith(("w1", "w2", "gate_proj", "down_proj"))
        ]
        if not modules:
            pytest.skip("the installed transformers has no module for each expert")
        for name, module in modules:
            module.register_forward_pre_hook(
                lambda _, given, name=name: theirs.setdefault(name, []).append(given[0])
            )
        block(hidden)
        routed = Routed.behind(block, hidden)
        stacks = routed.stacks()
        for name, module in modules:
            module._forward_pre_hooks.clear()
            expert = int(name.split(".experts.")[1].split(".")[0])
            found, share = routed.of(expert)
            if name.endswith(("w2", "down_proj")):
                found = routed.inner(stacks, expert, found)
            expected = torch.cat(theirs[name])
            found, expected = (rows[rows[:, 0].argsort()] for rows in (found, expected))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            assert len(share) == len(found) > 0


def test_experts_with_a_norm_of_their_own(tmp_path):
    """Gemma 4's router reads another norm of the same value; transformers has all as one module."""
    if "gemma4_experts" not in FAMILIES:
        pytest.skip("the installed transformers does not know gemma4_text")
    original, hidden = open_block("gemma4_experts", tmp_path)
    with original.block(LAYER) as block:
        theirs = []
        experts = block._layer.get_submodule("experts")
        with experts.register_forward_pre_hook(lambda _, given: theirs.append(given)):
            block(hidden)
        inputs, chosen, shares = (torch.cat(values) for values in zip(*theirs, strict=True))
        routed = Routed.behind(block, hidden)
        torch.testing.assert_close(routed.inputs, inputs)
        torch.testing.assert_close(routed.chosen, chosen)
        torch.testing.assert_close(routed.shares, shares)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "lfm2_moe", "qwen3_moe"])
def test_experts_add_up_to_the_block(family, tmp_path):
    """x + the sum of share * expert(x) is the block's output, whatever the family does."""
    if family not in FAMILIES:
        pytest.skip(f"the installed transformers does not know {family}")
    original, hidden = open_block(family, tmp_path)
    with original.block(LAYER) as block:
        routed = Routed.behind(block, hidden)
        stacks = routed.stacks()
        down = block.get("experts_down.weight")
        total = torch.zeros_like(routed.inputs)
        for expert in range(routed.linear("experts_down").experts):
            rows = rows_of(routed.linear("experts_down").outputs, expert)
            tokens = (routed.chosen == expert).any(1)
            x, share = routed.of(expert)
            y = routed.inner(stacks, expert, x) @ down[rows].T
            if "experts_down.bias" in block.names:
                y += block.get("experts_down.bias")[rows]
            total[tokens] += share * y
        with_experts = block(hidden)
        block.set("experts_down.weight", torch.zeros_like(down))
        if "experts_down.bias" in block.names:
            bias = block.get("experts_down.bias")
            block.set("experts_down.bias", torch.zeros_like(bias))
        without = block(hidden)
    difference = (with_experts - without).flatten(0, 1)
    torch.testing.assert_close(total, difference, rtol=1e-3, atol=1e-4)


def test_layers_are_shown_in_any_order(tmp_path):
    """As some releases compute a shared expert before the router, and some behind it."""
    original, hidden = open_block("qwen2_moe", tmp_path)
    names = ["shared_down_proj", "router", "shared_gate_proj", "o_proj"]
    with original.block(3) as block:
        together, alone = {}, {}
        block.observe(hidden, names, lambda name, x: together.setdefault(name, []).append(x))
        for name in names:
            block.observe(hidden, [name], lambda name, x: alone.setdefault(name, []).append(x))
    assert together.keys() == set(names)
    for name in names:
        torch.testing.assert_close(torch.cat(together[name]), torch.cat(alone[name]))


@pytest.mark.parametrize("family", WITH_EXPERTS)
def test_a_gradient_reaches_the_experts(family, tmp_path):
    """Replaced matrices give what written ones give, and the slope along a direction."""
    original, hidden = open_block(family, tmp_path)
    rng = torch.Generator().manual_seed(0)
    with original.block(original.weights.family.spec.num_layers - 1) as block:
        names = [name for stage in block.stages for name in stage if name.startswith("experts_")]
        assert names == ["experts_gate", "experts_up", "experts_down"]
        weights = {name: block.get(name + ".weight").requires_grad_() for name in names}
        along = {
            name: 1e-2 * torch.randn(x.shape, generator=rng) * x.detach().square().mean().sqrt()
            for name, x in weights.items()
        }
        weight = torch.randn(hidden.shape, generator=rng)
        result = block.with_weights(weights, hidden)
        gradients = torch.autograd.grad((weight * result).sum(), list(weights.values()))
        slope = {n: float((g * along[n]).sum()) for n, g in zip(names, gradients, strict=True)}
        for name, values in weights.items():
            kept, ends = values.detach(), []
            for sign in (1, -1):
                block.set(name + ".weight", kept + sign * along[name])
                ends.append(block(hidden))
                again = block.with_weights({name: kept + sign * along[name]}, hidden)
                torch.testing.assert_close(again, ends[-1])
            block.set(name + ".weight", kept)
            found = float((weight * (ends[0] - ends[1])).sum(dtype=torch.float64)) / 2
            assert slope[name] == pytest.approx(found, rel=0.02, abs=1e-3)
            assert abs(slope[name]) > 0.01


@pytest.mark.parametrize("method", ["gptq", "awq", "auto"])
def test_calibration_errs_less_than_rounding(method, tmp_path):
    original, hidden = open_block("mixtral", tmp_path)
    # Activations of trained models vary in few directions.
    rng = torch.Generator().manual_seed(0)
    mixed = torch.randn(*hidden.shape[:2], 8, generator=rng) @ torch.randn(8, 72, generator=rng)
    hidden = mixed + 0.1 * hidden
    seen, held_out = hidden[:12], hidden[12:]
    options = ConvertOptions(bits=3, method=method, without=("tune",) if method == "auto" else ())
    with original.block(LAYER) as block:
        routed, judged = Routed.behind(block, seen), Routed.behind(block, held_out)
        for stage in (("experts_gate", "experts_up"), ("experts_down",)):
            rounded = round_experts(block, routed, dict.fromkeys(stage, FORM), options)
            assert rounded.few == ()
            for name in stage:
                weight = block.get(name + ".weight")
                plain = rtn.quantise(weight.numpy(), FORM.bits, FORM.group_size)
                errors = [
                    output_error(judged, name, weight, torch.from_numpy(layer.dequantise()))
                    for layer in (rounded.layers[name], plain)
                ]
                assert errors[0] < 0.97 * errors[1]


def test_experts_that_few_tokens_reach_are_rounded(tmp_path, monkeypatch):
    """And named; the others are what they are with enough for all."""
    original, hidden = open_block("olmoe", tmp_path)
    options = ConvertOptions(bits=3, method="gptq")
    with original.block(LAYER) as block:
        routed = Routed.behind(block, hidden)
        routed.chosen[routed.chosen == 4] = 5  # nobody gets expert 4
        count = int((routed.chosen == 1).sum())
        forms = {"experts_up": FORM}
        monkeypatch.setattr(subject, "LEAST_TOKENS", 1)
        usual = round_experts(block, routed, forms, options)
        assert usual.few == (4,)
        monkeypatch.setattr(subject, "LEAST_TOKENS", count + 1)
        fewer = round_experts(block, routed, forms, options)
        assert {1, 4} <= set(fewer.few) < set(range(7))
        weight, op = block.get("experts_up.weight").numpy(), routed.linear("experts_up")
        for expert in range(op.experts):
            rows = rows_of(op.outputs, expert)
            plain = rtn.quantise(weight[rows], FORM.bits, FORM.group_size).codes
            rounded = usual.layers["experts_up"].codes[rows], fewer.layers["experts_up"].codes[rows]
            assert np.array_equal(rounded[0], plain) == (expert == 4)
            assert np.array_equal(rounded[1], plain) == (expert in fewer.few)
