"""Matrices of 8-bit floats with scales of blocks, against torch's type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.read.source import open_source
from edgetok.errors import CheckpointError, UnsupportedError
from tests.converter.read.quantised_writer import save_quantised
from tests.converter.test_convert import onnx_logits
from tests.tiny import VOCAB_SIZE, load_reference, tiny_checkpoint

BLOCKS: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [64, 32]}
# Ministral 3, as it is published.
WHOLE: dict[str, Any] = {
    "quant_method": "fp8",
    "activation_scheme": "static",
    "dequantize": False,
    "modules_to_not_convert": ["lm_head"],
    "weight_block_size": None,
}
NAME = "model.layers.1.mlp.down_proj.weight"


def twins(folder: Path, settings: dict[str, Any]) -> tuple[Path, Path]:
    """A checkpoint of 8-bit floats, and the same with the numbers that they mean."""
    packed, dense = folder / "packed", folder / "dense"
    for place in (packed, dense):
        tiny_checkpoint("llama", place)
    whole = load_file(dense / "model.safetensors")
    parts = dict(whole)
    rng = np.random.default_rng(0)
    height, width = settings["weight_block_size"] or (None, None)
    for name, weight in whole.items():
        if not name.endswith("_proj.weight"):
            continue
        N, K = weight.shape
        parts[name] = (weight * 200).to(torch.float8_e4m3fn)
        grid = (-(-N // height), -(-K // width)) if height else ()
        scale = torch.from_numpy(np.asarray(rng.uniform(0.003, 0.007, grid), np.float32)).bfloat16()
        parts[f"{name}_scale_inv"] = scale
        parts[name.removesuffix("weight") + "activation_scale"] = torch.ones((), dtype=scale.dtype)
        scale = scale.float()
        if height:
            scale = scale.repeat_interleave(height, 0).repeat_interleave(width, 1)[:N, :K]
        whole[name] = (parts[name].float() * scale).contiguous()
    save_file(whole, dense / "model.safetensors", {"format": "pt"})
    save_quantised(packed, parts, settings)
    return packed, dense


@pytest.mark.parametrize("settings", [BLOCKS, WHOLE])
def test_values_are_torchs(settings: dict[str, Any], tmp_path: Path) -> None:
    packed, dense = twins(tmp_path, settings)
    found, expected = open_source(packed), open_source(dense)
    assert set(found.names) == set(expected.names)
    for name in expected.names:
        np.testing.assert_array_equal(found.tensor(name), expected.tensor(name))
    np.testing.assert_array_equal(found.tensor(NAME, (30, 70)), expected.tensor(NAME, (30, 70)))
    options = ConvertOptions(bits=16)
    report = convert(str(packed), tmp_path / "out", options)
    assert report.agreement is not None
    assert report.agreement.kl < 1e-6
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, 24))
    with torch.no_grad():
        logits = load_reference(dense)(torch.from_numpy(tokens)).logits.numpy()
    result = onnx_logits(tmp_path / "out", tokens, exact=True)
    np.testing.assert_allclose(result, logits, atol=1e-3 * np.abs(logits).max())


def test_every_byte(tmp_path: Path) -> None:
    """Two of them are not numbers, and an error."""
    packed, _ = twins(tmp_path, WHOLE)
    tensors = load_file(packed / "model.safetensors")
    raw = np.arange(72 * 100, dtype=np.uint32).astype(np.uint8).reshape(72, 100)
    raw[raw % 128 == 127] = 0
    tensors[NAME] = torch.from_numpy(raw).view(torch.float8_e4m3fn)
    tensors[f"{NAME}_scale_inv"] = torch.tensor(0.5)
    save_quantised(packed, tensors, WHOLE)
    np.testing.assert_array_equal(
        open_source(packed).tensor(NAME), tensors[NAME].float().numpy() / 2
    )
    raw[3, 4] = 127
    tensors[NAME] = torch.from_numpy(raw).view(torch.float8_e4m3fn)
    save_quantised(packed, tensors, WHOLE)
    with pytest.raises(CheckpointError, match="not a finite float32"):
        open_source(packed).tensor(NAME)


@pytest.mark.parametrize(
    ("settings", "tensors", "error", "message"),
    [
        ({"scale_fmt": "ue8m0"}, {}, UnsupportedError, "scale_fmt 'ue8m0'"),
        ({"expert_dtype": "fp4"}, {}, UnsupportedError, "expert_dtype 'fp4'"),
        ({"weight_block_size": [64]}, {}, UnsupportedError, "expected two sizes"),
        ({}, {f"{NAME}_scale_inv": torch.ones(2, 3)}, CheckpointError, r"expected \[2, 4\]"),
        ({}, {f"{NAME}_scale_inv": None}, CheckpointError, "scale_inv' is missing"),
    ],
)
def test_what_is_refused(
    settings: dict[str, Any],
    tensors: dict[str, torch.Tensor | None],
    error: type[Exception],
    message: str,
    tmp_path: Path,
) -> None:
    packed, dense = twins(tmp_path, BLOCKS)
    parts = load_file(packed / "model.safetensors") | tensors
    parts = {name: value for name, value in parts.items() if value is not None}
    save_quantised(packed, parts, BLOCKS | settings)
    with pytest.raises(error, match=message):
        open_source(packed)
    save_quantised(packed, load_file(dense / "model.safetensors"), BLOCKS)
    with pytest.raises(CheckpointError, match="no tensor has dtype F8_E4M3"):
        open_source(packed)
