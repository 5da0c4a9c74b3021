"""MXFP4 experts against transformers' dequantised ones, and a group by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.converter.read.source import open_source
from edgetok.errors import CheckpointError, UnsupportedError
from edgetok.models import read_family
from edgetok.runtime.cpu.backend import CpuBackend
from tests.converter.read.quantised_writer import save_quantised
from tests.converter.test_convert import onnx_logits
from tests.tiny import VOCAB_SIZE, load_reference, tiny_checkpoint

SETTINGS: dict[str, Any] = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens", "lm_head"],
}
EXPERTS = ("gate_up_proj", "down_proj")
Tensors = dict[str, torch.Tensor]


def packed_tensors(shape: tuple[int, int, int], rng: np.random.Generator) -> list[torch.Tensor]:
    """Blocks and scales of random codes, [experts, inputs, outputs] being `shape`."""
    experts, inputs, outputs = shape
    rows = (experts, outputs, inputs // 32)
    blocks = rng.integers(0, 256, (*rows, 16), np.uint8)
    return [torch.from_numpy(x) for x in (blocks, rng.integers(121, 125, rows, np.uint8))]


@pytest.fixture
def twins(tmp_path: Path) -> tuple[Path, Path]:
    """A packed checkpoint, and the same with what transformers reads from it."""
    packed, dense = tmp_path / "packed", tmp_path / "dense"
    for folder in (packed, dense):
        tiny_checkpoint("gpt_oss", folder, hidden_size=64, intermediate_size=96)
    whole: Tensors = load_file(dense / "model.safetensors")
    parts = dict(whole)
    rng = np.random.default_rng(0)
    for name in whole:
        if name.endswith(EXPERTS):
            blocks, scales = packed_tensors(tuple(whole[name].shape), rng)
            del parts[name]
            parts |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            read = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
            whole[name] = read.contiguous()
    save_file(whole, dense / "model.safetensors", {"format": "pt"})
    save_packed(packed, parts)
    return packed, dense


def save_packed(folder: Path, parts: Tensors, **settings: Any) -> None:
    save_quantised(folder, parts, SETTINGS | settings)


def canonical(folder: Path) -> CanonicalWeights:
    checkpoint = open_source(folder)
    return CanonicalWeights(checkpoint, read_family(checkpoint.config))


def changed(folder: Path, change: Any) -> None:
    parts = load_file(folder / "model.safetensors")
    change(parts)
    save_packed(folder, parts)


def test_weights_are_what_transformers_reads(twins: tuple[Path, Path]) -> None:
    packed, dense = (canonical(folder) for folder in twins)
    for name in packed.family.tensors:
        np.testing.assert_array_equal(packed.tensor(name), dense.tensor(name), err_msg=name)
        codes = packed.codes(name) if name.endswith(".weight") else None
        assert (codes is not None) == ("experts_" in name and name.endswith(".weight"))
        if codes is not None:
            np.testing.assert_array_equal(codes.dequantise(), dense.tensor(name), err_msg=name)
    name = "layers.1.experts_up.weight"
    np.testing.assert_array_equal(packed.tensor(name, (90, 200)), dense.tensor(name)[90:200])


def test_a_group_by_hand(twins: tuple[Path, Path]) -> None:
    """Codes of e2m1 in order, the first of a byte in its low half; 2^(124 - 127) of each."""

    def change(parts: Tensors) -> None:
        place = "model.layers.0.mlp.experts.gate_up_proj"
        order = torch.tensor([16 * (2 * i + 1) + 2 * i for i in range(8)], dtype=torch.uint8)
        parts[f"{place}_blocks"][2, 7, 1] = torch.cat([order, order])
        parts[f"{place}_scales"][2, 7, 1] = 124

    changed(twins[0], change)
    row = canonical(twins[0]).tensor("layers.0.experts_up.weight")[2 * 96 + 3, 32:64]
    positive = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    expected = np.array(2 * (positive + [-x for x in positive])) / 8
    np.testing.assert_array_equal(row, expected)


def test_an_artefact_computes_what_transformers_computes(
    twins: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its matrices are read back some rows at a time, to be compared with the original's."""
    monkeypatch.setattr("edgetok.converter.write.written_weights._PIECE_WEIGHTS", 10_000)
    tokens = np.random.default_rng(1).integers(0, VOCAB_SIZE, 30)
    report = convert(str(twins[0]), tmp_path / "out", ConvertOptions(bits=16))
    assert report.method == "mxfp4 as it was"
    assert report.agreement is not None
    assert report.agreement.kl < 1e-6
    kinds = {layer.name: layer.bits for layer in report.layers}
    assert (kinds["layers.0.experts_down"], kinds["layers.0.q_proj"]) == (4, 16)
    with torch.no_grad():
        logits = load_reference(twins[1])(torch.from_numpy(tokens)[None]).logits[0].numpy()
    backend = CpuBackend(tmp_path / "out", compute="float32", kv_bits=32)
    cache = backend.new_cache(len(tokens))
    found = backend.forward(cache, tokens.astype(np.int32), all_logits=True)
    backend.close()
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4)
    found = onnx_logits(tmp_path / "out", tokens[None], exact=True)[0]
    np.testing.assert_allclose(found, logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("exponent", [103, 144, 255])
def test_a_scale_beyond_float16_is_refused(exponent: int, twins: tuple[Path, Path]) -> None:
    """But not where the group is zeros, for which any scale will do."""

    def change(zeros: bool) -> Any:
        def apply(parts: Tensors) -> None:
            place = "model.layers.2.mlp.experts.down_proj"
            parts[f"{place}_scales"][1, 5, 2] = exponent
            parts[f"{place}_blocks"][1, 5, 2] = 0x80 if zeros else 0x81

        return apply

    name = "layers.2.experts_down.weight"
    changed(twins[0], change(zeros=True))
    assert not canonical(twins[0]).tensor(name)[64 + 5, 64:96].any()
    changed(twins[0], change(zeros=False))
    with pytest.raises(UnsupportedError, match=rf"2\^{exponent - 127}, expected one from 2\^-23"):
        canonical(twins[0]).codes(name)


@pytest.mark.parametrize("exponent", [104, 143])
def test_the_outermost_scales_are_exact(exponent: int, twins: tuple[Path, Path]) -> None:
    def change(parts: Tensors) -> None:
        place = "model.layers.2.mlp.experts.down_proj"
        parts[f"{place}_scales"][1, 5, 2] = exponent
        parts[f"{place}_blocks"][1, 5, 2] = 0xF1  # 0.5 and -6

    changed(twins[0], change)
    row = canonical(twins[0]).tensor("layers.2.experts_down.weight")[64 + 5, 64:96]
    assert set(row.tolist()) == {0.5 * 2.0 ** (exponent - 127), -6 * 2.0 ** (exponent - 127)}


def test_damaged_tensors_are_named(twins: tuple[Path, Path]) -> None:
    place = "model.layers.1.mlp.experts.down_proj"
    parts = load_file(twins[0] / "model.safetensors")
    for wrong, message in (
        ({k: v for k, v in parts.items() if k != f"{place}_scales"}, "is missing"),
        (parts | {f"{place}_scales": parts[f"{place}_scales"].int()}, "dtype I32, expected U8"),
        (parts | {f"{place}_scales": parts[f"{place}_scales"][:, :3].contiguous()}, "expected"),
    ):
        save_packed(twins[0], wrong)
        with pytest.raises(CheckpointError, match=message):
            open_source(twins[0])
    save_packed(twins[0], {k: v for k, v in parts.items() if "experts" not in k})
    with pytest.raises(CheckpointError, match=r"no tensor is named \.experts\.\*_blocks"):
        open_source(twins[0])
    save_packed(twins[0], parts, block_size=16)
    with pytest.raises(UnsupportedError, match="block_size 16"):
        open_source(twins[0])
