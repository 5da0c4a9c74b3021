"""Ternary checkpoints against the same with dense weights, and a byte by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.read.source import open_source
from edgetok.converter.write.written_weights import WrittenWeights
from edgetok.errors import CheckpointError, UnsupportedError
from edgetok.formats.artefact import open_artefact
from tests.converter.read.quantised_writer import save_quantised
from tests.converter.test_convert import onnx_logits
from tests.tiny import VOCAB_SIZE, load_reference, tiny_checkpoint

MICROSOFT: dict[str, Any] = {
    "quant_method": "bitnet",
    "linear_class": "autobitlinear",
    "quantization_mode": "offline",
}
SCALE = 1.2109375  # as bfloat16 has it


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Four rows, a quarter of the matrix apart, in a byte, as published files have them."""
    quarters = (codes + 1).to(torch.uint8).chunk(4)
    return sum(part << 2 * i for i, part in enumerate(quarters)).contiguous()


def twins(folder: Path, settings: dict[str, Any]) -> tuple[Path, Path]:
    """A packed checkpoint, and the same with the numbers that it means."""
    packed, dense = folder / "packed", folder / "dense"
    for place in (packed, dense):
        tiny_checkpoint("bitnet", place)
    whole = load_file(dense / "model.safetensors")
    parts = dict(whole)
    rng = np.random.default_rng(0)
    scale = torch.tensor([SCALE], dtype=torch.bfloat16)
    for name, weight in whole.items():
        if not name.endswith("_proj.weight"):
            continue
        codes = torch.from_numpy(rng.integers(-1, 2, tuple(weight.shape))).float()
        factor = float(scale) if settings["linear_class"] == "autobitlinear" else 1 / float(scale)
        whole[name] = codes * factor
        parts[name] = pack(codes)
        parts[f"{name}_scale"] = scale.clone()
    save_file(whole, dense / "model.safetensors", {"format": "pt"})
    save_quantised(packed, parts, settings)
    return packed, dense


def test_codes_are_kept(tmp_path: Path) -> None:
    packed, dense = twins(tmp_path, MICROSOFT)
    report = convert(str(packed), tmp_path / "out", ConvertOptions(bits=16, reference_tokens=0))
    assert report.method == "bitnet as it was"
    original = load_file(dense / "model.safetensors")
    with open_artefact(tmp_path / "out") as opened:
        weights = WrittenWeights(tmp_path / "out", opened.spec, opened.formats, opened.layout)
        for name, stored in (("q_proj", "self_attn.q_proj"), ("down_proj", "mlp.down_proj")):
            found = weights.tensor(f"layers.1.{name}.weight")
            np.testing.assert_array_equal(found, original[f"model.layers.1.{stored}.weight"])
            assert opened.formats[f"layers.1.{name}"].bits == 2
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, 24))
    with torch.no_grad():
        expected = load_reference(dense)(torch.from_numpy(tokens)).logits.numpy()
    result = onnx_logits(tmp_path / "out", tokens, exact=True)
    np.testing.assert_allclose(result, expected, atol=2e-5 * np.abs(expected).max())


def test_a_matrix_that_is_divided_by_its_scale(tmp_path: Path) -> None:
    packed, dense = twins(tmp_path, MICROSOFT | {"linear_class": "bitlinear"})
    name = "model.layers.0.mlp.up_proj.weight"
    found = open_source(packed).tensor(name)
    expected = load_file(dense / "model.safetensors")[name].numpy()
    np.testing.assert_allclose(found, expected, rtol=2.0**-11)


def test_a_byte_by_hand(tmp_path: Path) -> None:
    """A byte has a column of rows 0, N/4, N/2 and 3N/4, lowest bits first."""
    packed, _ = twins(tmp_path, MICROSOFT)
    tensors = load_file(packed / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name][0, 0] = 0b00_10_01_10
    save_file(tensors, packed / "model.safetensors", {"format": "pt"})
    found = open_source(packed).tensor(name)
    assert found[:: len(found) // 4, 0].tolist() == [SCALE, 0.0, SCALE, -SCALE]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"quantization_mode": "online"}, "packed weights"),
        ({"linear_class": "other"}, "expected bitlinear or autobitlinear"),
        ({"use_rms_norm": True}, "use_rms_norm"),
    ],
)
def test_settings_that_mean_something_else(
    tmp_path: Path, settings: dict[str, Any], expected: str
) -> None:
    tiny_checkpoint("bitnet", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_quantised(tmp_path, tensors, MICROSOFT | settings)
    with pytest.raises(UnsupportedError, match=expected):
        open_source(tmp_path)


def test_damaged_tensors(tmp_path: Path) -> None:
    tiny_checkpoint("bitnet", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_quantised(tmp_path, tensors, MICROSOFT)
    with pytest.raises(CheckpointError, match=r"no tensor is named \.weight_scale"):
        open_source(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    scale = {f"{name}_scale": torch.ones(1)}
    save_quantised(tmp_path, tensors | scale, MICROSOFT)
    with pytest.raises(CheckpointError, match=r"is F32 .* expected U8"):
        open_source(tmp_path)
    threes = {name: torch.full((25, 72), 255, dtype=torch.uint8)}
    save_quantised(tmp_path, tensors | scale | threes, MICROSOFT)
    with pytest.raises(CheckpointError, match="a code of 3"):
        open_source(tmp_path).tensor(name)
    small = {f"{name}_scale": torch.tensor([1.0001])}
    ones = {name: torch.full((25, 72), 0b01010101, dtype=torch.uint8)}
    save_quantised(tmp_path, tensors | small | ones, MICROSOFT)
    with pytest.raises(UnsupportedError, match=r"1\.0001, a scale that float16"):
        open_source(tmp_path).tensor(name)
