"""Checkpoints that are quantised already: integers are kept, whatever packed them."""

# ruff: noqa: E501 - a case is one line

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from edgetok.converter.convert import ConvertOptions, Target, convert
from edgetok.converter.export.checkpoint import export
from edgetok.converter.read.packed_checkpoint import PackedCheckpoint
from edgetok.converter.write.pack_codes import unpack_linear
from edgetok.errors import CheckpointError, UnsupportedError, UserError
from edgetok.formats.artefact import open_artefact
from edgetok.formats.checkpoint import open_checkpoint
from tests.converter.test_convert import onnx_logits
from tests.tiny import VOCAB_SIZE, load_reference, tiny_checkpoint

OPTIONS = ConvertOptions(method="rtn", reference_tokens=0)
SIZES = {"hidden_size": 96, "intermediate_size": 128, "head_dim": 32}


def kept(artefact, name):
    """Codes less zero points, and scales."""
    with open_artefact(artefact) as opened:
        form, shape = opened.formats[name], opened.shapes[name]
        suffixes = [".qweight", ".scales"] + [".qweight_high"] * (form.bits == 3)
        suffixes += [".zeros"] * form.zeros
        parts = {suffix: opened.tensor(name + suffix).copy() for suffix in suffixes}
    found = unpack_linear(parts, form, shape.K)
    return found.levels().astype(int), found.scales


@pytest.mark.parametrize("form", ["gptq", "compressed-tensors"])
@pytest.mark.parametrize(
    ("family", "bits"), [("llama", 4), ("qwen3", 3), ("gemma2", 8), ("llama", 2)]
)
def test_there_and_back(tmp_path, family, bits, form):
    source = tiny_checkpoint(family, tmp_path / "source", **SIZES)
    options = ConvertOptions(bits=bits, method="rtn", reference_tokens=0)
    convert(str(source), tmp_path / "a", options)
    export(tmp_path / "a", tmp_path / "b", form)
    report = convert(str(tmp_path / "b"), tmp_path / "c", OPTIONS)
    assert report.method == f"{form} as it was"
    export(tmp_path / "c", tmp_path / "d", form)  # and once more
    for layer in report.layers:
        if layer.name.startswith("layers."):
            assert layer.weight_error == 0
            for ours, theirs in zip(
                kept(tmp_path / "c", layer.name), kept(tmp_path / "a", layer.name), strict=True
            ):
                np.testing.assert_array_equal(ours, theirs)


def awq_words(codes):
    """[K, N] codes as AutoAWQ's gemm stores them."""
    K, N = codes.shape
    words = np.zeros((K, N // 8), np.uint32)
    for i, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        words |= codes[:, column::8].astype(np.uint32) << np.uint32(4 * i)
    return words.view(np.int32)


def awq_checkpoint(source, folder):
    """Linear layers of `source` in groups of 32 and 4 bits; the weights that they stand for."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    rng = np.random.default_rng(0)
    exact = {}
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        N, K = tensors.pop(name).shape
        q = rng.integers(0, 16, (K, N), dtype=np.uint8)
        z = rng.integers(0, 16, (K // 32, N), dtype=np.uint8)
        s = rng.uniform(0.005, 0.02, (K // 32, N)).astype(np.float16)
        module = name.removesuffix(".weight")
        tensors |= {
            module + ".qweight": awq_words(q),
            module + ".qzeros": awq_words(z),
            module + ".scales": s,
        }
        wide = np.repeat(s.astype(np.float32), 32, 0)
        exact[name] = (wide * (q.astype(np.float32) - np.repeat(z, 32, 0))).T
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 32, "zero_point": True
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return exact


def test_awq_against_transformers(tmp_path):
    """onnxruntime runs the artefact as transformers does the weights that the words stand for."""
    source = tiny_checkpoint("llama", tmp_path / "source", **SIZES)
    exact = awq_checkpoint(source, tmp_path / "awq")
    options = ConvertOptions(bits=8, method="gptq", head_bits=16, reference_tokens=0)
    report = convert(str(tmp_path / "awq"), tmp_path / "out", options)
    assert report.method == "awq as it was"
    assert report.bits == 4
    model = load_reference(source)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in exact:
                parameter.copy_(torch.from_numpy(exact[name]))
        tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, 16))
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    result = onnx_logits(tmp_path / "out", tokens, exact=True)
    np.testing.assert_allclose(result, expected, atol=2e-4 * np.abs(expected).max())


def edited(tmp_path, edit=None, **settings):
    source = tiny_checkpoint("llama", tmp_path / "source", **SIZES)
    awq_checkpoint(source, tmp_path / "awq")
    path = tmp_path / "awq" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= settings
    path.write_text(json.dumps(config))
    if edit:
        tensors = load_file(tmp_path / "awq" / "model.safetensors")
        edit(tensors)
        save_file(tensors, tmp_path / "awq" / "model.safetensors", {"format": "pt"})
    return str(tmp_path / "awq")


Q0 = "model.layers.0.self_attn.q_proj."


@pytest.mark.parametrize(
    ("settings", "edit", "error", "says"),
    [
        ({"quant_method": "bitsandbytes"}, None, UnsupportedError, "expected one of gptq, awq"),
        ({"version": "gemv"}, None, UnsupportedError, "expected gemm"),
        ({"bits": 3}, None, UnsupportedError, "expected gemm with 4"),
        ({}, lambda t: t.pop(Q0 + "scales"), CheckpointError, "scales' is missing"),
        ({}, lambda t: t.update({Q0 + "qzeros": t[Q0 + "qzeros"][:1]}), CheckpointError, "qzeros"),
        ({}, lambda t: t[Q0 + "scales"].fill(np.nan), CheckpointError, "holds nan"),
        ({"quant_method": "gptq"}, None, CheckpointError, "g_idx is missing"),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            None,
            CheckpointError,
            "no tensor is named .weight_packed",
        ),
    ],
)
def test_what_is_refused(tmp_path, settings, edit, error, says):
    source = edited(tmp_path, edit, **settings)
    with pytest.raises(error, match=says):
        convert(source, tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["awq", "gptq", "compressed-tensors"])
def test_parts_of_any_shape_are_an_error_or_harmless(tmp_path, form):
    if form == "awq":
        folder = Path(edited(tmp_path))
    else:
        source = tiny_checkpoint("llama", tmp_path / "source", **SIZES)
        convert(str(source), tmp_path / "a", ConvertOptions(method="rtn", reference_tokens=0))
        folder = tmp_path / "b"
        export(tmp_path / "a", folder, form)
    stem = "model.layers.1.mlp.down_proj."
    tensors = load_file(folder / "model.safetensors")
    parts = [name for name in tensors if name.startswith(stem) and not name.endswith("bias")]
    odd = {
        "scalar": lambda t: t.ravel()[:1].reshape(()),
        "flat": np.ravel,
        "deep": lambda t: t[None, None],
        "empty": lambda t: t[:0],
        "longer": lambda t: np.concatenate([t, t]),
        "floats": lambda t: t.astype(np.float32),
        "integers": lambda t: t.astype(np.int64),
        "largest": lambda t: np.full_like(t, -1),
    }
    refused = 0
    for name, change in itertools.product(parts, odd):
        changed = np.ascontiguousarray(odd[change](tensors[name]))
        save_file({**tensors, name: changed}, folder / "model.safetensors", {"format": "pt"})
        try:
            result = PackedCheckpoint(open_checkpoint(folder)).tensor(stem + "weight")
        except UserError:
            refused += 1
        else:
            assert np.isfinite(result).all()
    assert refused > 5 * len(parts)


def test_bits_cannot_be_chosen_again(tmp_path):
    with pytest.raises(UnsupportedError, match="not quantised yet"):
        convert(edited(tmp_path), tmp_path / "out", OPTIONS, None, Target(nbytes=1 << 20))


def variant(tmp_path, form, settings=None, change=None):
    """An exported checkpoint with other settings or tensors, and what its weights were."""
    source = tiny_checkpoint("llama", tmp_path / "source", **SIZES)
    options = ConvertOptions(method="rtn", reference_tokens=0, symmetric=True)
    convert(str(source), tmp_path / "a", options)
    folder = tmp_path / "b"
    export(tmp_path / "a", folder, form)
    right = PackedCheckpoint(open_checkpoint(folder)).tensor(Q0 + "weight")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= settings or {}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        tensors[name] = value if change is None else change(name, value)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder, right


def zeros_of(stored):
    """Every zero point stored as one number of 4 bits."""
    word = np.uint32(stored * 0x11111111).view(np.int32)
    return lambda name, value: np.full_like(value, word) if name.endswith("qzeros") else value


@pytest.mark.parametrize(
    ("stored", "form", "sym", "right"),
    [
        (7, "gptq", True, 8),
        (8, "gptq", True, 8),  # some writers leave out the subtraction; sym says what is meant
        (8, "gptq_v2", True, 8),
        (7, "gptq_v2", True, None),
        (9, "gptq", True, None),
        (8, "gptq", False, 9),
        (8, "gptq_v2", False, 8),
        (15, "gptq_v2", False, 15),
        (15, "gptq", False, None),
    ],
)
def test_gptq_zero_points(tmp_path, stored, form, sym, right):
    settings = {"checkpoint_format": form, "sym": sym}
    folder, weights = variant(tmp_path, "gptq", settings, zeros_of(stored))
    checkpoint = PackedCheckpoint(open_checkpoint(folder))
    if right is None:
        with pytest.raises(UnsupportedError, match=r"zero point"):
            checkpoint.tensor(Q0 + "weight")
        return
    found = checkpoint.codes(Q0 + "weight")
    zeros = 8 if found.zeros is None else found.zeros
    assert (zeros == np.full_like(found.scales, right, np.uint8)).all()
    if right == 8:
        np.testing.assert_array_equal(checkpoint.tensor(Q0 + "weight"), weights)


@pytest.mark.parametrize(
    ("form", "settings", "says"),
    [
        ("gptq", {"quant_method": ["gptq"]}, "quant_method"),
        ("gptq", {"quant_method": {}}, "quant_method"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ("gptq", {"checkpoint_format": ["gptq"]}, "checkpoint_format"),
        ("gptq", {"pack_dtype": "int64"}, "'int64'"),
        ("gptq", {"rotation": "hadamard"}, "rotation 'hadamard'"),
        ("compressed-tensors", {"transform_config": {"config_groups": {"v": {}}}}, "transform_config"),
        ("compressed-tensors", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
        ("compressed-tensors", {"format": ["pack-quantized"]}, "format"),
        ("compressed-tensors", {"something_new": 1}, "something_new 1, which may change"),
    ],
)  # fmt: skip
def test_settings_that_change_what_integers_mean(tmp_path, form, settings, says):
    folder, _ = variant(tmp_path, form, settings)
    with pytest.raises(UnsupportedError, match=says):
        convert(str(folder), tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("factor", "exact"), [(2.0**-4, True), (2.0**-17, False)])
def test_scales_below_float16(tmp_path, factor, exact):
    def small(name, value):
        return value.astype(np.float32) * np.float32(factor) if "scale" in name else value

    folder, right = variant(tmp_path, "compressed-tensors", None, small)
    checkpoint = PackedCheckpoint(open_checkpoint(folder))
    if exact:
        np.testing.assert_allclose(
            checkpoint.tensor(Q0 + "weight"), right * np.float32(factor), rtol=2e-3
        )
    else:
        with pytest.raises(UnsupportedError, match="too small for float16"):
            checkpoint.tensor(Q0 + "weight")
