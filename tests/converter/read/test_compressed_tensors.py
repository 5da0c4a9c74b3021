"""What the compressed-tensors library writes, against what it reads from that itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.read.source import open_source
from edgetok.errors import CheckpointError, UnsupportedError
from tests.tiny import tiny_checkpoint

pytest.importorskip("compressed_tensors")
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
)
from compressed_tensors.quantization.utils import calculate_qparams

GROUPS = {"strategy": "group", "group_size": 32}
CHANNEL = {"strategy": "channel"}
FLOAT = {"num_bits": 8, "type": "float"}
INT8 = {"num_bits": 8}
INT4 = {"num_bits": 4}
SIZES = {"hidden_size": 96, "intermediate_size": 128, "head_dim": 32}


def compressed(
    family: str, folder: Path, form: str, arguments: dict[str, Any], **sizes: int
) -> dict[str, np.ndarray]:
    """Write a checkpoint with scales of bfloat16; return its matrices with scales as float32."""
    tiny_checkpoint(family, folder, **SIZES | sizes)
    arguments = {"symmetric": True} | arguments
    args = QuantizationArgs(**arguments)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
    library = BaseCompressor.get_value_from_registry(form)
    written, truth = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            written[name] = weight
            continue
        weight = weight.bfloat16()
        shape = {"group": (len(weight), -1, 32), "channel": (len(weight), 1, -1), "tensor": (1, -1)}
        parts = weight.reshape(shape[arguments["strategy"]])
        scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), args)
        state = {"weight": weight, "weight_scale": scale.bfloat16(), "weight_zero_point": zero}
        result = library.compress(state, scheme)
        module = name.removesuffix("weight")
        written |= {module + part: value.contiguous() for part, value in result.items()}
        wide = result | {"weight_scale": result["weight_scale"].float()}
        truth[name] = library.decompress(wide, scheme)["weight"].float().numpy()
    save_file(written, folder / "model.safetensors", {"format": "pt"})
    settings = QuantizationConfig(
        config_groups={"group_0": scheme}, format=form, quantization_status="compressed"
    )
    saved = json.loads(settings.model_dump_json()) | {"quant_method": "compressed-tensors"}
    change(folder, **saved)
    return truth


def change(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = config.get("quantization_config", {}) | settings
    (folder / "config.json").write_text(json.dumps(config))


def edit(folder: Path, **tensors: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("form", "arguments", "bits"),
    [
        ("pack-quantized", INT4 | GROUPS, 4),
        ("pack-quantized", INT4 | GROUPS | {"symmetric": False}, 4),
        ("pack-quantized", INT4 | CHANNEL | {"symmetric": False}, 4),
        ("pack-quantized", INT8 | CHANNEL, 8),
        ("int-quantized", INT8 | CHANNEL, 8),
        ("int-quantized", INT8 | CHANNEL | {"symmetric": False}, 8),
        ("int-quantized", INT8 | {"strategy": "tensor"}, 8),
        ("int-quantized", INT8 | GROUPS | {"symmetric": False}, 8),
    ],
)
def test_integers_are_kept(form: str, arguments: dict[str, Any], bits: int, tmp_path: Path) -> None:
    truth = compressed("llama", tmp_path / "model", form, arguments)
    source = open_source(tmp_path / "model")
    for name, expected in truth.items():
        np.testing.assert_array_equal(source.tensor(name), expected)
        np.testing.assert_array_equal(source.tensor(name, (5, 9)), expected[5:9])
    options = ConvertOptions(bits=16, reference_tokens=0)
    report = convert(str(tmp_path / "model"), tmp_path / "out", options)
    assert report.method == "compressed-tensors as it was"
    kept = [layer for layer in report.layers if layer.name.startswith("layers.")]
    assert {(layer.bits, layer.weight_error) for layer in kept} == {(bits, 0.0)}


def test_experts_in_files_of_their_own(tmp_path: Path) -> None:
    truth = compressed(
        "qwen3_moe", tmp_path / "model", "pack-quantized", INT4 | GROUPS, moe_intermediate_size=64
    )
    source = open_source(tmp_path / "model")
    assert any(".experts.5." in name for name in truth)
    for name, expected in truth.items():
        np.testing.assert_array_equal(source.tensor(name), expected)
    options = ConvertOptions(bits=16, reference_tokens=0)
    report = convert(str(tmp_path / "model"), tmp_path / "out", options)
    assert {layer.weight_error for layer in report.layers if layer.bits == 4} == {0.0}


@pytest.mark.parametrize("strategy", [CHANNEL, {"strategy": "tensor"}])
def test_floats_are_what_the_library_reads(strategy: dict[str, Any], tmp_path: Path) -> None:
    """They are quantised as asked."""
    truth = compressed("llama", tmp_path / "model", "float-quantized", FLOAT | strategy)
    source = open_source(tmp_path / "model")
    for name, expected in truth.items():
        np.testing.assert_array_equal(source.tensor(name), expected)
        np.testing.assert_array_equal(source.tensor(name, (5, 9)), expected[5:9])
    options = ConvertOptions(bits=8, method="rtn", reference_tokens=0)
    report = convert(str(tmp_path / "model"), tmp_path / "out", options)
    assert report.method == "rtn"
    assert any("21 matrices are 8-bit floats" in note for note in report.notes)


def test_formats_of_a_mixture(tmp_path: Path) -> None:
    truth = compressed("llama", tmp_path / "model", "pack-quantized", INT4 | GROUPS)
    change(tmp_path / "model", format="mixed-precision")
    source = open_source(tmp_path / "model")
    for name, expected in truth.items():
        np.testing.assert_array_equal(source.tensor(name), expected)
    for other in ("float-quantized", "nvfp4-pack-quantized", None):
        groups = {"a": {"format": "pack-quantized"}, "b": {"format": other}}
        change(tmp_path / "model", config_groups=groups)
        with pytest.raises(UnsupportedError, match=f"format {other!r}"):
            open_source(tmp_path / "model")


def test_damaged_integers(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    arguments = INT8 | CHANNEL | {"symmetric": False}
    truth = compressed("llama", folder, "int-quantized", arguments)
    name = min(truth)
    for part, value, message in (
        ("_scale", torch.ones(3, 1), "scales are"),
        ("_scale", torch.ones(3), "expected 2 axes"),
        ("_zero_point", torch.zeros(len(truth[name]), 1, dtype=torch.int32), "expected I8"),
        ("_zero_point", torch.zeros(2, 1, dtype=torch.int8), "zero points are"),
    ):
        whole = load_file(folder / "model.safetensors")[name + part]
        edit(folder, **{name + part: value})
        with pytest.raises(CheckpointError, match=message):
            open_source(folder).tensor(name)
        edit(folder, **{name + part: whole})
    np.testing.assert_array_equal(open_source(folder).tensor(name), truth[name])
