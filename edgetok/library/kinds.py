"""The kind of a folder or repository, told by its names of files and its config.json.

Only a Hugging Face checkpoint with safetensors, a GGUF file or an artefact can be run. Everything
else is named for what it is, before anything large is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from edgetok.errors import CheckpointError, UnsupportedError
from edgetok.formats import strict_json
from edgetok.formats.checkpoint import INDEX_FILE, check_shards
from edgetok.formats.gguf import is_gguf
from edgetok.formats.layout import DATA_FILE, GRAPH_FILE
from edgetok.formats.lfs import LEFT_OUT, points
from edgetok.formats.manifest import MANIFEST_FILE
from edgetok.models.config.wrapped import text_config
from edgetok.models.registry import embeds_texts

Kind = Literal["artefact", "checkpoint", "gguf"]

ARTEFACT_FILES = frozenset({MANIFEST_FILE, GRAPH_FILE, DATA_FILE})
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CAUSAL = ("ForCausalLM", "LMHeadModel")  # the second as GPT-2's
_CLIP = r"(alt|chinese_?|lxmert_?)?clip(?!seg)|siglip|align|blip(?!2|_2)|owlv"
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Contents:
    """Facts about a folder or repository before its weights are read.

    Attributes:
        name: as messages call it.
        files: names of its files, with "/" between folders.
        config: of config.json; {} where there is none.
        tags: what the hub says it is, such as "mlx"; empty for a folder.
    """

    name: str
    files: Collection[str]
    config: Mapping[str, Any]
    tags: Collection[str] = ()


def kind_of(contents: Contents) -> Kind:
    """Return what it is.

    Raises:
        UnsupportedError: it is another kind of model, which the message names.
        CheckpointError: it holds no model that can be read, or several.
    """
    name, config = contents.name, contents.config
    files = {file for file in contents.files if "/" not in file}
    ends = {PurePosixPath(file).suffix.lower() for file in files}
    if files >= ARTEFACT_FILES:
        return "artefact"
    if "adapter_config.json" in files and "config.json" not in files:
        raise UnsupportedError(
            f"{name}: a LoRA adapter, not a whole model; merge it into its base model (peft: "
            "merge_and_unload, then save_pretrained) and give that folder"
        )
    if "model_index.json" in files:
        raise UnsupportedError(
            f"{name}: a diffusion pipeline, which makes images; give a model that writes text"
        )
    if _sees_and_reads(config):
        raise UnsupportedError(
            f"{name}: a vision and text model, which compares images with texts; edgetok runs "
            "decoders of text (...ForCausalLM)"
        )
    embeds = files & {
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
    }
    if embeds and not _is_decoder(config):
        raise UnsupportedError(
            f"{name}: an embedding model that is an encoder; edgetok runs decoders "
            "(...ForCausalLM), such as Qwen3-Embedding, and EmbeddingGemma"
        )
    if "mlx" in contents.tags or _packed_by_mlx(config):
        raise UnsupportedError(
            f"{name}: weights packed for MLX; give the original model, which MLX's was made from"
        )
    if "config.json" in files:
        _check_config(name, config)
    if "config.json" in files and (".safetensors" in ends or INDEX_FILE in files):
        return "checkpoint"
    if ".gguf" in ends:
        return "gguf"
    if ends & set(_PICKLES):
        raise CheckpointError(
            f"{name}: its weights are pickles ({_some(files, _PICKLES)}); edgetok never reads "
            "pickles, because they can run code. Look for a copy with safetensors or, if you trust "
            "it, open it with transformers and write it again with save_pretrained"
        )
    if ".safetensors" in ends:
        raise CheckpointError(
            f"{name}: has weights but no config.json that describes them; put it beside them"
        )
    if ".onnx" in {PurePosixPath(file).suffix for file in contents.files}:
        raise CheckpointError(f"{name}: an ONNX export of another program; give the original model")
    found = ", ".join(sorted(files)[:_SHOWN]) or "nothing"
    raise CheckpointError(
        f"{name}: holds no model: expected config.json and *.safetensors, a *.gguf file or an "
        f"edgetok artefact, found {found}"
    )


def local_source(path: Path) -> Path:
    """Return the model folder or GGUF file that a path stands for.

    Args:
        path: an existing folder or file; of a folder with one GGUF file, that file is meant.

    Raises:
        UnsupportedError: it is something that edgetok does not run; the message names it.
        CheckpointError: it holds no model, or several.
    """
    if path.is_dir():
        files = [item.name for item in path.iterdir()]
        config = {}
        if "config.json" in files:
            config = strict_json.read_object(path / "config.json")
        contents = Contents(str(path), files, config)
        kind = kind_of(contents)
        if kind == "checkpoint":
            check_shards(path)
        if kind == "artefact":
            raise CheckpointError(f"{path}: is an artefact already, which is not converted again")
        return path / one_gguf(contents) if kind == "gguf" else path
    if points(path):
        raise CheckpointError(f"{path}: {LEFT_OUT}")
    if is_gguf(path):
        return path
    if path.suffix in _PICKLES:
        raise CheckpointError(
            f"{path}: a pickle; edgetok never reads pickles, because they can run code. If you "
            "trust it, open it with transformers and write it again with save_pretrained"
        )
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path}: weights alone; give the folder that also has config.json")
    raise CheckpointError(
        f"{path}: is not a GGUF file; for other formats, give the folder with config.json"
    )


def one_gguf(contents: Contents) -> str:
    """Return the one GGUF file of a folder or repository.

    Raises:
        CheckpointError: there are several; the message lists them.
    """
    files = sorted(f for f in contents.files if f.lower().endswith(".gguf") and "/" not in f)
    models = [file for file in files if "mmproj" not in file.lower()]
    if len(models) == 1:
        return models[0]
    names = ", ".join(models[:12]) + (", ..." if len(models) > 12 else "")
    raise CheckpointError(
        f"{contents.name}: holds {len(models)} GGUF files; give one, such as "
        f"{contents.name}/{_usual(models)}; there are {names}"
    )


def _usual(files: list[str]) -> str:
    """Return the file that most people take, where there is one."""
    for kind in ("q4_k_m", "q4_0", "q8_0"):
        for file in files:
            if kind in file.lower():
                return file
    return files[0]


def _architectures(config: Mapping[str, Any]) -> list[str]:
    listed = config.get("architectures")
    return [a for a in listed if isinstance(a, str)] if isinstance(listed, list) else []


def _sees_and_reads(config: Mapping[str, Any]) -> bool:
    """Whether it is CLIP or one of its kind: some of their configurations name no vision part."""
    names = [str(config.get("model_type", "")), *_architectures(config)]
    return any(re.match(_CLIP, name.lower()) for name in names)


def _is_decoder(config: Mapping[str, Any]) -> bool:
    causal = any(name.endswith(_CAUSAL) for name in _architectures(config))
    return causal or embeds_texts(config)


def _packed_by_mlx(config: Mapping[str, Any]) -> bool:
    packed = config.get("quantization")
    return isinstance(packed, dict) and "group_size" in packed and "quant_method" not in packed


def _check_config(name: str, config: Mapping[str, Any]) -> None:
    architectures = _architectures(config)
    if _is_decoder(config):
        return
    if text_config(config) is not None:
        return  # a multimodal one, of which the text model is run
    if "vision_config" in config or "vit_hidden_size" in config:
        raise UnsupportedError(
            f"{name}: a vision model, which reads images; edgetok runs decoders of text, give a "
            "text-only model of its family"
        )
    if "audio_config" in config or config.get("model_type") in ("whisper", "wav2vec2"):
        raise UnsupportedError(
            f"{name}: an audio model, which reads sound; edgetok runs decoders of text"
        )
    if config.get("is_encoder_decoder") is True:
        raise UnsupportedError(
            f"{name}: an encoder-decoder model; edgetok runs decoders (...ForCausalLM)"
        )
    if architectures:
        embeds = all(a.endswith(("Model", "ForMaskedLM")) for a in architectures)
        what = "an embedding model or an encoder" if embeds else "not a model that writes text"
        raise UnsupportedError(
            f"{name}: {what} ({', '.join(architectures)[:80]}); give a ...ForCausalLM"
        )


def _some(files: Collection[str], ends: tuple[str, ...]) -> str:
    found = sorted(file for file in files if file.lower().endswith(ends))
    return ", ".join(found[:2]) + (", ..." if len(found) > 2 else "")
