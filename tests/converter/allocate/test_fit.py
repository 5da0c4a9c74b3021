"""Bits per tensor: the measured sensitivities, their sharing out, and conversions to a target."""

import collections
import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from edgetok.converter.allocate.knapsack import Allocator
from edgetok.converter.allocate.search import next_goal
from edgetok.converter.allocate.sensitivity import Sensitivity, measure
from edgetok.converter.allocate.sensitivity_of_ends import (
    change_loss,
    drawn_gradient,
    head_log_sums,
)
from edgetok.converter.calibrate.compare import head_agreement
from edgetok.converter.calibrate.original_model import Original
from edgetok.converter.convert import ConvertOptions, Target, convert
from edgetok.converter.quantise import round_to_nearest as rtn
from edgetok.converter.read.canonical_weights import CanonicalWeights, survey
from edgetok.converter.write.written_weights import WrittenWeights
from edgetok.errors import OptionError
from edgetok.formats.artefact import open_artefact
from edgetok.formats.checkpoint import open_checkpoint
from edgetok.formats.layout import TensorFormat, linear_shapes, plan
from edgetok.model import Model
from edgetok.models.registry import read_family
from edgetok.runtime.cpu.backend import CpuBackend
from tests.converter.calibrate.test_blocks import STAGES
from tests.converter.test_convert import SMALL, Spy, digest, onnx_logits, reference_with
from tests.tiny import VOCAB_SIZE, load_reference, tiny_checkpoint


def opened(source):
    checkpoint = open_checkpoint(source)
    family = read_family(checkpoint.config, checkpoint.generation_config)
    return CanonicalWeights(checkpoint, family)


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2"])
def test_gradients_are_those_of_the_whole_model(family, tmp_path):
    """Back through the blocks one by one, and autograd through transformers' model at once."""
    source = tiny_checkpoint(family, tmp_path / "source")
    weights = opened(source)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB_SIZE, (3, 20))
    original = Original(weights)
    states = [original.embed(tokens)]
    layers = weights.family.spec.num_layers
    for index in range(layers):
        with original.block(index) as block:
            states.append(block(states[-1]))
    wanted = torch.from_numpy(rng.normal(0, 1, states[-1].shape).astype(np.float32))
    pieces = collections.defaultdict(list)  # the block hands over some windows at a time
    gradient = wanted
    for index in reversed(range(layers)):
        with original.block(index) as block:
            gradient = block.backward(
                states[index],
                gradient,
                lambda name, x, g, i=index: pieces[i, name].append((x.clone(), g.clone())),
            )
    seen = {key: tuple(map(torch.cat, zip(*of, strict=True))) for key, of in pieces.items()}
    model = load_reference(source)
    kept = {}

    def keep(name):
        def hook(module, given, output):
            output.retain_grad()
            kept[name] = (given[0].detach(), output)

        return hook

    down = model.model.layers[0].mlp.down_proj
    down.register_forward_hook(keep("down"))
    attention = model.model.layers[1].self_attn
    fused = family == "phi3"
    (attention.qkv_proj if fused else attention.k_proj).register_forward_hook(keep("k"))
    last = {}
    model.model.layers[-1].register_forward_hook(
        lambda module, given, output: last.update(
            x=output if torch.is_tensor(output) else output[0]
        )
    )
    embedded = states[0].clone().requires_grad_()
    scale = weights.family.spec.embed_scale
    model(inputs_embeds=embedded / (scale if family == "gemma2" else 1.0))
    (last["x"] * wanted).sum().backward()
    torch.testing.assert_close(gradient, embedded.grad, rtol=1e-3, atol=1e-4)
    spec = weights.family.spec
    for name, key in (("down", (0, "down_proj")), ("k", (1, "k_proj"))):
        x, output = kept[name]
        expected = output.grad.flatten(0, 1)
        if name == "k" and fused:
            first = spec.num_heads * spec.head_dim
            expected = expected[:, first : first + spec.num_kv_heads * spec.head_dim]
        torch.testing.assert_close(seen[key][0], x.flatten(0, 1), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(seen[key][1], expected, rtol=1e-3, atol=1e-4)


def test_drawn_gradient(llama, monkeypatch):
    """Each row is the gradient of log p of one token, drawn as often as p has it."""
    spec = opened(llama).family.spec
    spec = type(spec)(**{f: getattr(spec, f) for f in spec.__slots__} | {
        "vocab_size": 5, "logit_softcap": 3.0, "logit_scale": 0.7})  # fmt: skip
    rng = np.random.default_rng(1)
    head = rng.normal(0, 1, (5, 8)).astype(np.float32)
    state = rng.normal(0, 1, 8).astype(np.float32)
    n = 4000
    states = torch.from_numpy(np.tile(state, (n, 1)))
    pieces = lambda: iter([head[:2], head[2:]])  # noqa: E731
    result = drawn_gradient(states, pieces, spec, head_log_sums(states, pieces, spec))
    x = torch.from_numpy(state).double().requires_grad_()
    logits = 3 * torch.tanh(torch.from_numpy(head).double() @ x * 0.7 / 3)
    logp = logits.log_softmax(0)
    each = torch.stack([torch.autograd.grad(v, x, retain_graph=True)[0] for v in logp])
    distance = (result[:, None].double() - each[None]).norm(dim=2)
    assert float(distance.min(1).values.max()) < 1e-5
    counts = torch.bincount(distance.argmin(1), minlength=5) / n
    torch.testing.assert_close(counts.double(), logp.exp().detach(), rtol=0, atol=0.03)


@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_loss_of_a_few_changed_rows_of_a_head(llama, softcap):
    """It is the KL of whole distributions, of the head before and after."""
    spec = dataclasses.replace(opened(llama).family.spec, logit_softcap=softcap, logit_scale=0.7)
    rng = np.random.default_rng(4)
    head = rng.normal(0, 1, (500, 16)).astype(np.float32)
    states = torch.from_numpy(rng.normal(0, 1, (600, 16)).astype(np.float32))
    rows = np.sort(rng.choice(500, 40, replace=False))
    changed = head.copy()
    changed[rows] += rng.normal(0, 0.1, (40, 16)).astype(np.float32)
    targets = torch.zeros(len(states), dtype=torch.int64)
    expected = head_agreement(states, states, iter([head]), iter([changed]), targets, spec).kl
    sums = head_log_sums(states, lambda: iter([head[:100], head[100:]]), spec)
    exact, moved = torch.from_numpy(head[rows]), torch.from_numpy(changed[rows])
    for threads in (1, 2):
        result = change_loss(states, exact, moved, sums, spec, threads)
        assert result == pytest.approx(expected, rel=1e-6)


def test_expected_loss_is_what_is_lost(llama, tmp_path):
    """One tensor at a time rounded in transformers' model, and its KL measured."""
    weights = opened(llama)
    rng = np.random.default_rng(2)
    windows = rng.integers(0, VOCAB_SIZE, (32, 24))
    options = ConvertOptions(method="rtn")
    greatest = survey(weights, Spy(), 1)
    result = measure(weights, options, greatest, windows, tmp_path, Spy(), 1)
    assert list(tmp_path.iterdir()) == []
    tokens = torch.from_numpy(windows)

    def logs(model):
        with torch.no_grad():
            return model(tokens).logits.double().log_softmax(-1)

    exact = logs(load_reference(llama))
    names = ["layers.0.q_proj", "layers.0.v_proj", "layers.1.o_proj", "layers.1.gate_proj",
             "layers.2.up_proj", "layers.2.down_proj", "lm_head", "embed_tokens"]  # fmt: skip
    predicted, measured = [], []
    for name in names:
        model = load_reference(llama)
        parameter = dict(model.named_parameters())[weights.family.tensors[name + ".weight"].name]
        rounded = rtn.quantise(parameter.detach().numpy(), 4, 32).dequantise()
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(rounded))
        predicted.append(result.kl[name][TensorFormat(4, 32, zeros=True)])
        measured.append(float((exact.exp() * (exact - logs(model))).sum(-1).mean()))
    ratio = np.array(predicted) / np.array(measured)
    assert (ratio > 0.5).all(), dict(zip(names, ratio, strict=True))
    assert (ratio < 2.0).all(), dict(zip(names, ratio, strict=True))
    # and all at once, at 4 and 8 bits, where losses are small enough to add up
    for total, kl in result.probes[2:]:
        assert 0.5 < total / kl < 2.0
    assert Sensitivity.from_json(result.to_json()) == result


def made_up(spec, seed, zeros=True):
    """Losses that fall about fourfold with each bit, of tensors that differ a hundredfold."""
    rng = np.random.default_rng(seed)
    kl = {}
    for name in linear_shapes(spec):
        weight = 10 ** rng.uniform(-2, 0)
        kl[name] = {
            TensorFormat(bits, group, zeros=zeros): weight
            * 4.0**-bits
            * (group / 32) ** 0.3
            * rng.uniform(0.8, 1.25)
            for bits in ((2, 4, 8) if name in ("lm_head", "embed_tokens") else (2, 3, 4))
            for group in (32, 128)
        }
    return Sensitivity(kl, ((1e-3, 1e-3), (1.0, 1.0)))


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory):
    source = tiny_checkpoint("qwen3", tmp_path_factory.mktemp("one"), num_hidden_layers=1)
    return opened(source).family.spec


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sharing_out_is_as_good_as_trying_everything(one_layer, seed):
    sensitivity = made_up(one_layer, seed)
    allocator = Allocator(one_layer, sensitivity, {})
    shapes = linear_shapes(one_layer)
    stages = [[f"layers.0.{n}" for n in stage] for stage in STAGES] + [["lm_head"]]
    every = {(0, 0.0)}
    for names in stages:
        ways = {
            group: [[w for w in sensitivity.kl[n] if w.group_size == group] for n in names]
            for group in (32, 128)
        }
        choices = {
            (
                sum(stored(shapes[n], w) for n, w in zip(names, combination, strict=True)),
                math.fsum(sensitivity.kl[n][w] for n, w in zip(names, combination, strict=True)),
            )
            for group in ways
            for combination in itertools.product(*ways[group])
        }
        every = pareto({(a + c, b + d) for a, b in every for c, d in choices})
    norms = plan(one_layer, dict.fromkeys(shapes, TensorFormat(32))).weight_bytes - sum(
        4 * shape.N * shape.K for shape in shapes.values()
    )
    sizes = sorted(nbytes for nbytes, _ in every)
    for budget in np.linspace(sizes[0], sizes[-1], 9).astype(int):
        result = allocator.within_bytes(int(budget) + norms, padded=False)
        assert result.nbytes <= budget + norms
        best = min(loss for nbytes, loss in every if nbytes <= budget)
        assert best <= result.loss * (1 + 1e-9)
        assert result.loss <= 1.1 * best
        assert plan(one_layer, result.formats).weight_bytes == result.nbytes
        for stage in stages:
            assert len({result.formats[name].group_size for name in stage}) == 1


def stored(shape, way):
    bits, group = way.bits, way.group_size
    groups = -(-shape.K // group)
    zeros = groups if bits == 3 else -(-groups * bits // 8)
    return shape.N * (groups * group * bits // 8 + 2 * groups + zeros)


def pareto(points):
    kept, least = set(), math.inf
    for nbytes, loss in sorted(points):
        if loss < least:
            kept.add((nbytes, loss))
            least = loss
    return kept


def test_bounds_of_sharing_out(one_layer):
    sensitivity = made_up(one_layer, 3, zeros=False)
    allocator = Allocator(one_layer, sensitivity, {})
    smallest = allocator.within_loss(math.inf)
    assert {form.bits for form in smallest.formats.values()} == {2}
    assert not any(form.zeros for form in smallest.formats.values())
    assert allocator.within_bytes(smallest.nbytes, padded=False) == smallest
    assert allocator.within_bytes(smallest.file_bytes).file_bytes == smallest.file_bytes
    for nbytes, padded in ((smallest.nbytes, False), (smallest.file_bytes, True)):
        with pytest.raises(OptionError, match="at the fewest bits"):
            allocator.within_bytes(nbytes - 1, padded=padded)
    largest = allocator.within_bytes(1 << 40)
    assert largest == allocator.within_loss(0.0)
    assert {form.group_size for form in largest.formats.values()} == {32}
    for limit in (1.3 * largest.loss, 4 * largest.loss, 20 * largest.loss):
        result = allocator.within_loss(limit)
        assert allocator.expected_kl(result.loss) <= limit
        # nothing of its size or less is better by much
        assert allocator.within_bytes(result.nbytes, padded=False).loss > 0.8 * result.loss
    fit = allocator.report("a wish", result)
    sizes = [point.nbytes for point in fit.curve]
    assert sizes == sorted(sizes)
    assert all(a.kl >= b.kl for a, b in itertools.pairwise(fit.curve))
    for point in fit.uniform:
        same = allocator.within_bytes(point.nbytes, padded=False)
        assert allocator.expected_kl(same.loss) <= point.kl


@pytest.mark.parametrize("loosen", [False, True])
@pytest.mark.parametrize(("factor", "power"), [(1.0, 1.0), (3.0, 1.0), (0.2, 1.0), (1.5, 0.6)])
def test_goals_lead_to_the_limit(loosen, factor, power):
    limit, rounds, goal = 0.05, [], 0.05
    while goal is not None:
        rounds.append((goal, factor * goal**power))
        goal = next_goal(rounds, limit, loosen=loosen)
        assert len(rounds) < 15
    goal, kl = rounds[-1]
    assert kl <= limit
    assert kl >= max(k for g, k in rounds if k <= limit)
    if loosen:
        assert kl > 0.8 * limit


def test_goals_that_nothing_reaches_fall():
    rounds = [(0.05, 1.0)]
    for _ in range(5):
        rounds.append((next_goal(rounds, 0.05, loosen=True), 1.0))
    goals = [goal for goal, _ in rounds]
    assert goals == sorted(goals, reverse=True)
    assert goals[-1] < 0.05 / 1000


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "either --fit SIZE or --max-kl"),
        ({"nbytes": 1, "most_kl": 1.0}, "either --fit SIZE or --max-kl"),
        ({"most_kl": 0.0}, "--max-kl is 0"),
        ({"most_kl": math.nan}, "--max-kl is nan"),
        ({"most_kl": 1.0, "context_tokens": 5}, "--context needs --fit SIZE"),
    ],
)
def test_targets_out_of_range(fields, says):
    with pytest.raises(OptionError, match=says):
        Target(**fields)


OPTIONS = ConvertOptions(method="gptq", **SMALL)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A model converted to the middle of what its sizes can be."""
    source = tiny_checkpoint("gemma2", tmp_path_factory.mktemp("gemma2"))
    out = tmp_path_factory.mktemp("fitted") / "out"
    report = convert(str(source), out, OPTIONS, None, Target(nbytes=120_000, padded=False))
    return source, out, report


def test_a_mixed_artefact_is_what_it_says(fitted):
    """onnxruntime and transformers agree on a model of several widths and group sizes."""
    source, out, report = fitted
    assert report.weight_bytes <= 120_000
    assert report.weight_bytes > 110_000
    assert len({layer.stored for layer in report.layers}) > 2
    assert report.fit.chosen.nbytes == report.weight_bytes
    with open_artefact(out) as artefact:
        formats, spec = artefact.formats, artefact.spec
        assert {layer.name: layer.bits for layer in report.layers} == {
            name: form.bits for name, form in formats.items()
        }
    written = WrittenWeights(out, spec, formats, plan(spec, formats))
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, 24))
    with torch.no_grad():
        expected = reference_with(source, written, spec)(torch.from_numpy(tokens)).logits.numpy()
    result = onnx_logits(out, tokens, exact=True)
    np.testing.assert_allclose(result, expected, atol=2e-4 * np.abs(expected).max())
    card = (out / "report.html").read_text()
    assert "Size against loss" in card
    assert report.fit.wanted in card


def test_tables_and_planes_are_chosen_and_run(data: Path, tmp_path):
    """And onnxruntime computes with them what transformers computes with the written weights."""
    source, out = data / "models" / "stories260k", tmp_path / "out"
    options = ConvertOptions(method="gptq", **SMALL)
    convert(str(source), out, options, None, Target(nbytes=190_000, padded=False))
    with open_artefact(out) as artefact:
        formats, spec = artefact.formats, artefact.spec
    assert any(form.table for form in formats.values())
    assert {5, 6} <= {form.bits for form in formats.values()}
    with Model.load(out, threads=1) as model:  # the CPU backend takes them, too
        assert model.backend.forward(model.backend.new_cache(8), np.arange(4, dtype=np.int32)).size
    written = WrittenWeights(out, spec, formats, plan(spec, formats))
    tokens = np.random.default_rng(0).integers(0, spec.vocab_size, (1, 24))
    with torch.no_grad():
        expected = reference_with(source, written, spec)(torch.from_numpy(tokens)).logits.numpy()
    result = onnx_logits(out, tokens, exact=True)
    np.testing.assert_allclose(result, expected, atol=2e-4 * np.abs(expected).max())
    options = dataclasses.replace(options, portable=True)
    convert(str(source), out, options, None, Target(nbytes=190_000, padded=False))
    with open_artefact(out) as artefact:
        assert not any(form.grouped for form in artefact.formats.values())


def test_interrupted_fit_gives_the_same_bytes(fitted, tmp_path):
    source, whole, _ = fitted
    target = Target(nbytes=120_000, padded=False)
    with pytest.raises(KeyboardInterrupt):
        convert(str(source), tmp_path / "out", OPTIONS, Spy(2), target)
    spy = Spy()
    assert convert(str(source), tmp_path / "out", OPTIONS, spy, target).resumed
    assert "Measuring sensitivity" not in [stage[0] for stage in spy.stages]
    assert digest(tmp_path / "out") == digest(whole)


def test_a_loss_is_kept(llama, tmp_path):
    target = Target(most_kl=0.02)
    whole = tmp_path / "whole"
    spy = Spy()
    report = convert(str(llama), whole, OPTIONS, spy, target)
    assert 0.01 < report.agreement.kl <= 0.02
    rounds = [stage[0] for stage in spy.stages].count("Quantising with gptq")
    # Stopped in the last round, it goes on there.
    out = tmp_path / "out"
    layers = 2 + len([stage for stage in spy.stages if stage[0].startswith("layers")])
    with pytest.raises(KeyboardInterrupt):
        convert(str(llama), out, OPTIONS, Spy((rounds - 1) * 5 + layers), target)
    assert convert(str(llama), out, OPTIONS, None, target).resumed
    assert digest(out) == digest(whole)
    with pytest.raises(OptionError, match="at the most bits the loss is"):
        convert(str(llama), tmp_path / "none", OPTIONS, None, Target(most_kl=1e-9))


@pytest.mark.parametrize("padded", [False, True])
def test_a_size_too_small_is_refused_before_anything_is_written(llama, tmp_path, padded):
    """The least that is told of is also the least that can be had."""
    source, out = str(llama), tmp_path / "out"
    with pytest.raises(OptionError, match="at the fewest bits") as refused:
        convert(source, out, OPTIONS, None, Target(nbytes=1000, padded=padded))
    assert list(tmp_path.glob("out*")) == []
    needed = round(float(str(refused.value).rpartition("need ")[2].split()[0]) * 1e6)
    report = convert(source, out, OPTIONS, None, Target(nbytes=needed + 5000, padded=padded))
    assert report.weight_bytes <= needed + 5000


def test_room_for_a_cache(llama, tmp_path):
    """Weights and cache of the runtime are then within --fit."""
    from edgetok.cli.commands.convert import _cache_bytes

    # A cache of 100 tokens takes a page of 256.
    target = Target(nbytes=560_000, context_tokens=100, cache_bytes=_cache_bytes)
    convert(str(llama), tmp_path / "out", OPTIONS, None, target)
    backend = CpuBackend(tmp_path / "out", threads=1)
    cache = backend.new_cache(100)
    backend.close()
    data = (tmp_path / "out" / "model.onnx.data").stat().st_size
    assert 510_000 < data + cache.nbytes <= 560_000
    with pytest.raises(OptionError, match="give a larger --fit"):
        convert(str(llama), tmp_path / "out", OPTIONS, None, Target(nbytes=10_000))


@pytest.mark.parametrize(("name", "bits"), [("stories260k", 3), ("babyllama-105", 2)])
def test_better_than_uniform_at_equal_bytes(data: Path, tmp_path, name, bits):
    options = ConvertOptions(
        bits=bits, method="gptq", calibration_windows=16, window_tokens=64,
        reference_tokens=1024, calibration=data / "text" / "calibration.tiny.txt",
    )  # fmt: skip
    source = str(data / "models" / name)
    uniform = convert(source, tmp_path / "a", options)
    target = Target(nbytes=uniform.weight_bytes, padded=False)
    mixed = convert(source, tmp_path / "b", options, None, target)
    assert mixed.weight_bytes <= uniform.weight_bytes
    assert mixed.agreement.kl < 0.8 * uniform.agreement.kl


def test_ends_count_half_where_tune_mends_them(llama, tmp_path):
    weights = opened(llama)
    windows = np.random.default_rng(3).integers(0, VOCAB_SIZE, (8, 24))
    greatest = survey(weights, Spy(), 1)
    with_tune, without = (
        measure(weights, options, greatest, windows, tmp_path, Spy(), 1).kl
        for options in (
            ConvertOptions(method="auto"),
            ConvertOptions(method="auto", without=("tune",)),
        )
    )
    for name, costs in without.items():
        share = 0.5 if name in ("lm_head", "embed_tokens") else 1.0
        expected = {way: share * cost for way, cost in costs.items()}
        assert with_tune[name] == pytest.approx(expected, rel=1e-6)
