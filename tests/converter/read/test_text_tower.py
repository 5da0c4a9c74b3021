"""Multimodal checkpoints are read as their text model alone."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from edgetok.converter.calibrate.original_model import Original
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.converter.read.source import open_source, resolve_source
from edgetok.errors import CheckpointError, UnsupportedError
from edgetok.models import read_family
from edgetok.models.config.wrapped import text_config
from edgetok.models.registry import FAMILIES, families
from edgetok.runtime.cpu.backend import CpuBackend
from tests.reference_decoder import canonical_weights, forward
from tests.tiny import FAMILIES as FAMILIES_HERE
from tests.tiny import model_type, tiny_checkpoint
from tests.wrapped import WRAPPED, as_saved_before, wrapped_checkpoint, wrapped_logits

TOKENS = np.random.default_rng(7).integers(12, 105, 40)


def assert_equals_the_wrapper(name: str, folder: Path) -> None:
    checkpoint = open_source(resolve_source(str(folder)))
    family = read_family(checkpoint.config, checkpoint.generation_config)
    weights = CanonicalWeights(checkpoint, family)
    assert family.spec.family == model_type(WRAPPED[name].family)
    found = forward(family.spec, canonical_weights(family, checkpoint), TOKENS)
    expected = wrapped_logits(name, folder, TOKENS)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)
    (note,) = checkpoint.notes
    assert note.startswith("the text model alone: ")
    assert note.endswith(" MB) left out")
    Original(weights)  # transformers builds the text model of this config


@pytest.mark.parametrize("name", WRAPPED)
def test_equals_the_wrapper(name: str, tmp_path: Path) -> None:
    assert_equals_the_wrapper(name, wrapped_checkpoint(name, tmp_path))


def test_gemma_3n_under_its_published_names(tmp_path: Path) -> None:
    """Its wrapper's modules need timm, so the text model alone is what it has to equal."""
    if "gemma3n_text" not in FAMILIES_HERE:
        pytest.skip("needs transformers 5, whose layers share keys and values without a cache")
    alone, folder = tiny_checkpoint("gemma3n_text", tmp_path / "alone"), tmp_path / "wrapped"
    folder.mkdir()
    tensors = load_file(alone / "model.safetensors")
    wrapped = {name.replace("model.", "model.language_model.", 1): x for name, x in tensors.items()}
    wrapped["model.embed_vision.embedding_projection.weight"] = torch.ones(72, 8)
    save_file(wrapped, folder / "model.safetensors", {"format": "pt"})
    text = json.loads((alone / "config.json").read_text())
    outer = {
        "model_type": "gemma3n",
        "architectures": ["Gemma3nForConditionalGeneration"],
        "text_config": text,
        "vision_config": {"model_type": "gemma3n_vision"},
        "audio_config": {"model_type": "gemma3n_audio"},
        "vision_soft_tokens_per_image": 256,
        "audio_soft_tokens_per_image": 188,
        "image_token_id": 9,
        "audio_token_id": 11,
        "boi_token_id": 5,
        "eoi_token_id": 6,
        "boa_token_id": 7,
        "eoa_token_id": 8,
    }
    (folder / "config.json").write_text(json.dumps(outer))
    found = []
    for source in (alone, folder):
        checkpoint = open_source(resolve_source(str(source)))
        family = read_family(checkpoint.config, checkpoint.generation_config)
        CanonicalWeights(checkpoint, family)
        found.append(forward(family.spec, canonical_weights(family, checkpoint), TOKENS))
    np.testing.assert_array_equal(found[0], found[1])
    assert checkpoint.notes[0].startswith("the text model alone: embed_vision")


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_settings_beside_those_of_the_other_parts(name: str, tmp_path: Path) -> None:
    folder = wrapped_checkpoint(name, tmp_path)
    as_saved_before(folder)
    assert_equals_the_wrapper(name, folder)


@pytest.mark.parametrize("family", families())
def test_defaults_are_those_of_transformers(family: str) -> None:
    """And with them alone, a text_config describes a decoder."""
    if family not in CONFIG_MAPPING:
        pytest.skip(f"needs a transformers that has {family}")
    own = importlib.import_module(f"{FAMILIES}.{family}").DEFAULTS
    theirs = json.loads(json.dumps(CONFIG_MAPPING[family]().to_dict()))
    assert own == {key: theirs[key] for key in own}
    if family == "olmo3" and "rope_theta" in theirs:
        theirs["rope_theta"] = 5e5  # the default of transformers 5, which is that of its models
    read = text_config({"model_type": "llava", "text_config": {"model_type": family}})
    assert read is not None
    theirs["pad_token_id"] = None
    if family == "granitemoehybrid":  # a config that says nothing has no attention
        for config in (read, theirs):
            with pytest.raises(UnsupportedError, match="no layer is attention"):
                read_family(config)
            config["layer_types"] = ["attention"] * theirs["num_hidden_layers"]
    for key in ("bos_token_id", "eos_token_id"):  # arcee's lie beyond its default vocabulary
        if isinstance(theirs.get(key), int) and theirs[key] >= theirs["vocab_size"]:
            theirs[key] = None
    assert read_family(read).spec == read_family(theirs).spec


def test_what_the_wrapper_says_for_its_text() -> None:
    inner = {"model_type": "gemma3_text", "num_hidden_layers": 2}
    outer = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "torch_dtype": "bfloat16",
        "vision_config": {"hidden_size": 8},
    }
    read = text_config({**outer, "text_config": inner})
    assert read is not None
    spec = read_family(read).spec
    assert (spec.eos_tokens, spec.num_layers) == ((1, 106), 2)
    assert spec.embed_scale == 48.0  # sqrt(2304), a bfloat16 number
    read = text_config({**outer, "text_config": {**inner, "eos_token_id": 5}})
    assert read is not None
    assert read_family(read).spec.eos_tokens == (5,)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"text_config": {"model_type": "llama4_text"}}, "'llama4_text' is not a family"),
        ({"model_type": "paligemma", "text_config": {"model_type": "gemma"}},
         "'paligemma' wraps a text model in a way"),
        ({"text_config": {}}, "text_config: model_type is missing"),
        ({"text_config": {"model_type": 3}}, "text_config: model_type is 3"),
        ({"text_config": [1]}, "text_config is a list"),
        ({"text_config": {"model_type": "llama"}, "cross_attention_layers": [1]},
         "cross_attention_layers"),
        ({"text_config": {"model_type": "llama"}, "is_encoder_decoder": True},
         "is_encoder_decoder"),
        ({"text_config": {"model_type": "qwen2_vl_text", "rope_scaling": 3}}, "rope_scaling is 3"),
    ],
)  # fmt: skip
def test_what_is_not_understood(config: dict[str, object], message: str) -> None:
    with pytest.raises((CheckpointError, UnsupportedError), match=message):
        text_config({"model_type": "llava", **config})


@pytest.mark.parametrize("odd", [["llama"], {"a": 1}, 3, True])
def test_a_model_type_of_another_kind(odd: object) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: model_type is .*, expected a string"):
        text_config({"model_type": odd})


def test_plain_checkpoints_stay_as_they_are() -> None:
    assert text_config({"model_type": "llama", "text_config": {"model_type": "qwen2"}}) is None
    assert text_config({"model_type": "gpt_neox"}) is None
    assert text_config({}) is None


def test_which_tensors_are_the_text_models(tmp_path: Path) -> None:
    folder = wrapped_checkpoint("llava", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    family = read_family(text_config(config) or {})
    checkpoint = open_source(folder)
    assert set(checkpoint.names) == {source.name for source in family.tensors.values()}
    assert "vision_tower (" in checkpoint.notes[0]
    assert "multi_modal_projector (" in checkpoint.notes[0]


def test_an_artefact_of_a_multimodal_checkpoint(tmp_path: Path) -> None:
    folder = wrapped_checkpoint("qwen2_5_vl", tmp_path / "model")
    artefact = tmp_path / "artefact"
    report = convert(str(folder), artefact, ConvertOptions(bits=16, reference_tokens=0))
    assert any("visual (" in note for note in report.notes)
    config = json.loads((artefact / "config.json").read_text())
    assert (config["model_type"], "vision_config" in config) == ("qwen2", False)
    backend = CpuBackend(artefact, compute="float32", kv_bits=32)
    found = backend.forward(backend.new_cache(40), TOKENS.astype(np.int32), all_logits=True)
    np.testing.assert_allclose(
        found, wrapped_logits("qwen2_5_vl", folder, TOKENS), rtol=1e-4, atol=2e-4
    )
    backend.close()
