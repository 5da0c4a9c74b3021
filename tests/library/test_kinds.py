"""A folder or repository is named for what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetok.errors import CheckpointError, UserError
from edgetok.library.kinds import Contents, kind_of, local_source, one_gguf
from edgetok.library.names import HUB_ID, SHORT_NAMES, HubName, hub_id, near_names

CAUSAL = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
CASES: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "adapter": (["adapter_config.json", "adapter_model.safetensors"], {}, "LoRA adapter"),
    "diffusion": (["model_index.json"], {}, "diffusion pipeline"),
    "sentence embedding": (
        ["config.json", "modules.json", "model.safetensors"],
        {"architectures": ["BertModel"]},
        "embedding model",
    ),
    "encoder": (
        ["config.json", "model.safetensors"],
        {"architectures": ["XLMRobertaModel"]},
        "embedding model or an encoder",
    ),
    "mlx": (
        ["config.json", "model.safetensors"],
        {**CAUSAL, "quantization": {"group_size": 64, "bits": 4}},
        "packed for MLX",
    ),
    "vision": (
        ["config.json", "model.safetensors"],
        {"architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {}},
        "vision model",
    ),
    "vision and text": (
        ["config.json", "model.safetensors"],
        {"architectures": ["CLIPModel"], "model_type": "clip", "text_config_dict": None},
        "vision and text model",
    ),
    "vision and text, wrapped": (
        ["config.json", "modules.json", "model.safetensors"],
        {"architectures": ["SiglipModel"], "vision_config": {}, "text_config": {}},
        "vision and text model",
    ),
    "speech": (
        ["config.json", "model.safetensors"],
        {"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper"},
        "audio model",
    ),
    "translation": (
        ["config.json", "model.safetensors"],
        {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
        "encoder-decoder",
    ),
    "classifier": (
        ["config.json", "model.safetensors"],
        {"architectures": ["LlamaForSequenceClassification"]},
        "not a model that writes text",
    ),
    "pickles": (["config.json", "pytorch_model.bin"], CAUSAL, r"pickles \(pytorch_model.bin\)"),
    "no config": (["model.safetensors"], {}, "no config.json"),
    "onnx": (["config.json", "onnx/model.onnx"], CAUSAL, "ONNX export"),
    "nothing": (["README.md"], {}, "found README.md"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_run_is_named(case: str) -> None:
    files, config, expected = CASES[case]
    with pytest.raises(UserError, match=expected):
        kind_of(Contents("owner/name", files, config))


@pytest.mark.parametrize("case", [c for c in CASES if c not in ("nothing", "onnx")])
def test_a_folder_is_named_alike(case: str, tmp_path: Path) -> None:
    files, config, expected = CASES[case]
    for name in files:
        (tmp_path / name).write_text(json.dumps(config) if name == "config.json" else "x")
    with pytest.raises(UserError, match=expected):
        local_source(tmp_path)


def test_an_interrupted_download_says_what_is_missing(tmp_path: Path) -> None:
    """The index is there, and none or some of the files that it names."""
    (tmp_path / "config.json").write_text(json.dumps(CAUSAL))
    shards = [f"model-0000{i}-of-00005.safetensors" for i in range(1, 6)]
    index = {"weight_map": {f"t{i}": shard for i, shard in enumerate(shards)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"5 of 5 files .* missing: {shards[0]}, .*hf down"):
        local_source(tmp_path)
    for shard in shards[:4]:
        (tmp_path / shard).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=f"1 of 5 files .* missing: {shards[4]}; finish"):
        local_source(tmp_path)


@pytest.mark.parametrize("name", ["model.gguf", "model.bin", "config.json"])
def test_pointers_of_git_lfs_are_named(tmp_path: Path, name: str) -> None:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234\n"
    (tmp_path / name).write_text(text)
    path = tmp_path if name == "config.json" else tmp_path / name
    with pytest.raises(CheckpointError, match="Git LFS left out; run `git lfs pull`"):
        local_source(path)


def test_what_can_run() -> None:
    files = ["config.json", "model.safetensors", "tokenizer.json", "pytorch_model.bin"]
    assert kind_of(Contents("n", files, CAUSAL)) == "checkpoint"
    assert kind_of(Contents("n", ["a.gguf"], {})) == "gguf"
    assert kind_of(Contents("n", ["manifest.json", "model.onnx", "model.onnx.data"], {})) == (
        "artefact"
    )
    assert kind_of(Contents("n", files, CAUSAL, ["mlx-lm-compatible"])) == "checkpoint"
    with pytest.raises(UserError, match="MLX"):
        kind_of(Contents("n", files, CAUSAL, ["mlx"]))


def test_the_text_model_of_a_multimodal_one_can_run() -> None:
    files = ["config.json", "model.safetensors"]
    config = {"model_type": "gemma3", "vision_config": {}}
    config["architectures"] = ["Gemma3ForConditionalGeneration"]
    known = {**config, "text_config": {"model_type": "gemma3_text"}}
    assert kind_of(Contents("n", files, known)) == "checkpoint"
    with pytest.raises(UserError, match="'llama4_text' is not a family"):
        kind_of(Contents("n", files, {**config, "text_config": {"model_type": "llama4_text"}}))


def test_gguf_repositories() -> None:
    assert one_gguf(Contents("o/n", ["a.Q4_0.gguf", "mmproj-a.gguf"], {})) == "a.Q4_0.gguf"
    files = ["a.Q2_K.gguf", "a.Q4_K_M.gguf", "a.Q8_0.gguf"]
    with pytest.raises(CheckpointError, match=r"such as o/n/a\.Q4_K_M\.gguf; there are a\.Q2_K"):
        one_gguf(Contents("o/n", files, {}))


def test_files_that_are_no_models(tmp_path: Path) -> None:
    for name, expected in (("a.bin", "pickle"), ("a.safetensors", "folder"), ("a", "not a GGUF")):
        (tmp_path / name).write_bytes(b"xxxx")
        with pytest.raises(CheckpointError, match=expected):
            local_source(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smollm2@main", HubName("HuggingFaceTB/SmolLM2-135M-Instruct", None, "main")),
        ("o/n", HubName("o/n")),
        ("o/n@refs/pr/1", HubName("o/n", None, "refs/pr/1")),
        ("o/n/a.GGUF@v1", HubName("o/n", "a.GGUF", "v1")),
        ("o/n/sub/a.gguf", HubName("o/n", "sub/a.gguf")),
        ("o/n@", None),
        ("o", None),
        ("o/n/a.bin", None),
        ("o/n/../a.gguf", None),
        ("o/n//a.gguf", None),
        ("/n/a.gguf", None),
    ],
)
def test_what_a_name_means(name: str, expected: HubName | None) -> None:
    assert HubName.parse(name) == expected


def test_short_names() -> None:
    assert all(HUB_ID.fullmatch(name) for name in SHORT_NAMES.values())
    assert hub_id("SmolLM2") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert hub_id("owner/name") is None
    assert near_names("smolm2")[0] == "smollm2"
    assert near_names("gemma-3")[0] == "gemma3"
    assert near_names("Qwen/Qwen3-0.6")[0] == "Qwen/Qwen3-0.6B"
    assert near_names("mine-4", ["mine-4b"])[0] == "mine-4b"
    assert near_names("zzzzzzzz") == []
