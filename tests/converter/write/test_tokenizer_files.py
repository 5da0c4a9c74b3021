"""One tokenizer.json of several files, against transformers."""

# ruff: noqa: E501 - a case is one line

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers.pre_tokenizers import ByteLevel

from edgetok.converter.write.special_tokens import NAMES
from edgetok.converter.write.tokenizer_files import CLASS_OF, CLASSES, read_tokenizer
from edgetok.errors import CheckpointError, UserError
from edgetok.text.tokenizer import Tokenizer

VOCAB = 400
SPECIAL = ("<pad>", "<s>", "</s>", "<|im_end|>", "<tool>", "<unk>", "<bos>", "<eos>")
TEXTS = ("a b", "<s>a", "x <|im_end|> y", "<|new|>z", "<tool> <pad>", "a</s> b <|endoftext|>", "")


def token(text: str, **flags: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": text, **plain, "special": True, **flags}


def added(text: str, **flags: bool) -> dict[str, Any]:
    return {"__type": "AddedToken", **token(text, **flags)}


def tokenizer_json(special: tuple[str, ...] = SPECIAL, bos: bool = False) -> dict[str, Any]:
    letters = sorted(ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate([*special, *letters])}
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    post = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }  # fmt: skip
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
        "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False, "vocab": vocab, "merges": [],
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": i, **token(t)} for i, t in enumerate(special)],
        "pre_tokenizer": level, "post_processor": post if bos else None, "decoder": level,
        "model": model,
    }  # fmt: skip


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
NAMED = {**FAST, "bos_token": "<s>", "eos_token": "</s>"}
DECODER = {str(i): token(t) for i, t in enumerate(SPECIAL)}
NEXT = str(len(SPECIAL) + 256)
CASES: dict[str, dict[str, Any]] = {
    "nothing but names": {"tokenizer_config": NAMED},
    "no settings": {"config": {"model_type": "llama"}},
    "class of the model": {"tokenizer_config": {}, "config": {"model_type": "gemma2"}},
    "class in config.json": {"config": {"model_type": "llama", "tokenizer_class": "PreTrainedTokenizerFast"}},
    "added_tokens_decoder": {"tokenizer_config": {**NAMED, "added_tokens_decoder": {**DECODER, NEXT: token("<|new|>")}}},
    "added and normal": {"tokenizer_config": {**NAMED, "added_tokens_decoder": {**DECODER, NEXT: token("<|new|>", special=False)}}},
    "other flags": {"tokenizer_config": {**NAMED, "added_tokens_decoder": {**DECODER, "3": token("<|im_end|>", rstrip=True, lstrip=True)}}},
    "additional": {"tokenizer_config": {**NAMED, "additional_special_tokens": ["<|new|>", "<tool>"]}},
    "added_tokens.json": {"tokenizer_config": NAMED, "added_tokens": {"<|new|>": int(NEXT)}},
    "map": {"tokenizer_config": FAST, "special_tokens_map": {"bos_token": "<s>", "eos_token": token("<|im_end|>")}},
    "map goes first": {"tokenizer_config": NAMED, "special_tokens_map": {"eos_token": "<|im_end|>"}},
    "map is not read": {"tokenizer_config": {**NAMED, "added_tokens_decoder": DECODER}, "special_tokens_map": {"eos_token": "<|im_end|>"}},
    "map with more": {"tokenizer_config": {**NAMED, "additional_special_tokens": ["<tool>"]}, "special_tokens_map": {"additional_special_tokens": ["<|new|>", token("<|x|>", rstrip=True)]}},
    "named and new": {"tokenizer_config": {**NAMED, "pad_token": "<|new|>", "mask_token": "<|mask|>"}},
    "named and null": {"tokenizer_config": {**NAMED, "bos_token": None, "pad_token": None}},
    "one text, two names": {"tokenizer_config": {**FAST, "added_tokens_decoder": DECODER, "bos_token": "<|new|>", "eos_token": added("<|new|>", single_word=True)}},
    "one text, flags first": {"tokenizer_config": {**FAST, "added_tokens_decoder": DECODER, "bos_token": added("<|new|>", single_word=True), "eos_token": "<|new|>"}},
    "flags of a letter": {"tokenizer_config": {**NAMED, "added_tokens_decoder": DECODER, "unk_token": added("y", lstrip=True)}},
    "flags beside the decoder": {"tokenizer_config": {**NAMED, "added_tokens_decoder": DECODER, "pad_token": added("<tool>", lstrip=True)}},
    "flags beside tokenizer.json": {"tokenizer_config": {**NAMED, "added_tokens_decoder": {}, "pad_token": added("<tool>", lstrip=True, rstrip=True)}},
    "flags without decoder": {"tokenizer_config": {**NAMED, "pad_token": added("<tool>", lstrip=True, rstrip=True)}},
    "flags of more": {"tokenizer_config": {**NAMED, "added_tokens_decoder": DECODER, "additional_special_tokens": [added("<tool>", lstrip=True, rstrip=True)]}},
    "flags of extra": {"tokenizer_config": {**NAMED, "extra_special_tokens": {"image_token": added("<|new|>", rstrip=True)}}},
    "extra": {"tokenizer_config": {**NAMED, "extra_special_tokens": {"image_token": "<|new|>"}}},
    "llama": {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer"}},
    "llama without": {"tokenizer_config": {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False}, "bos": True},
    "llama with both": {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer", "add_eos_token": True}, "bos": True},
    "llama other bos": {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer", "bos_token": "<bos>"}, "bos": True},
    "gemma": {"tokenizer_config": {"tokenizer_class": "GemmaTokenizer"}},
    "fast keeps its own": {"tokenizer_config": {**NAMED, "add_bos_token": False}, "bos": True},
    "gpt2": {"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}},
    "gpt2 with a space": {"tokenizer_config": {**NAMED, "tokenizer_class": "GPT2Tokenizer", "unk_token": "<unk>", "add_prefix_space": True}},
    "neox": {"tokenizer_config": {**NAMED, "tokenizer_class": "GPTNeoXTokenizer", "unk_token": "<unk>", "add_eos_token": True}, "bos": True},
    "qwen2": {"tokenizer_config": {**NAMED, "tokenizer_class": "Qwen2Tokenizer", "unk_token": "<unk>", "pad_token": "<pad>"}},
    "only transformers knows it": {"tokenizer_config": {**NAMED, "tokenizer_class": "CohereTokenizer"}},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_as_transformers(case: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    files = dict(CASES[case])
    write(tmp_path, tokenizer=tokenizer_json(bos=files.pop("bos", False)), **files)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    found = read_tokenizer(tmp_path, VOCAB)
    write(tmp_path, tokenizer_config=found.settings)
    (tmp_path / "tokenizer.json").write_bytes(found.data)
    ours = Tokenizer.from_folder(tmp_path, VOCAB)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids, text
        assert (
            ours.encode(text, special=False) == theirs(text, add_special_tokens=False)["input_ids"]
        )
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    for name in NAMES:
        right = getattr(theirs, name)
        if right not in (None, "<|endoftext|>"):
            assert found.settings.get(name) == right, name
    assert (ours.bos_token, ours.eos_token) == (theirs.bos_token_id, theirs.eos_token_id)


def test_classes_are_those_of_transformers() -> None:
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    for name, kind in CLASSES.items():
        made = getattr(transformers, name + "Fast").__init__
        defaults = {n: p.default for n, p in inspect.signature(made).parameters.items()}
        assert {n: defaults[n] for n in NAMES if defaults.get(n)} == kind.names
        assert (defaults.get("add_bos_token") if kind.bos is not None else None) == kind.bos
        assert (kind.bos is not None) == hasattr(
            getattr(transformers, name + "Fast"), "update_post_processor"
        )
    for model, name in CLASS_OF.items():
        theirs = [n for n in TOKENIZER_MAPPING_NAMES[model] if n]
        assert name in {
            n.removesuffix("Fast").replace("TokenizerFast", "Tokenizer") for n in theirs
        }


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "class": ({"tokenizer_config": {"tokenizer_class": ["LlamaTokenizer"]}}, "tokenizer_class is"),
    "class in config": ({"config": {"tokenizer_class": {}, "model_type": "llama"}}, "tokenizer_class is"),
    "name": ({"tokenizer_config": {**FAST, "bos_token": 5}}, "bos_token is 5"),
    "name's content": ({"tokenizer_config": {**FAST, "eos_token": {"content": ["x"]}}}, "eos_token is"),
    "name in the map": ({"special_tokens_map": {"bos_token": [1]}, "tokenizer_config": FAST}, "bos_token is"),
    "surrogate": ({"tokenizer_config": {**FAST, "bos_token": "\ud800"}}, "not valid JSON"),
    "additional": ({"tokenizer_config": {**FAST, "additional_special_tokens": "<x>"}}, "expected a list"),
    "additional's items": ({"tokenizer_config": {**FAST, "additional_special_tokens": [[]]}}, "additional_special_tokens is"),
    "decoder": ({"tokenizer_config": {**FAST, "added_tokens_decoder": [1]}}, "added_tokens_decoder is a list"),
    "decoder's id": ({"tokenizer_config": {**FAST, "added_tokens_decoder": {"x": token("<x>")}}}, "added_tokens_decoder holds 'x'"),
    "decoder's content": ({"tokenizer_config": {**FAST, "added_tokens_decoder": {"1": {"content": 7}}}}, "expected content"),
    "decoder's flag": ({"tokenizer_config": {**FAST, "added_tokens_decoder": {"1": token("<s>", rstrip=5)}}}, "flags"),  # type: ignore[arg-type]
    "decoder elsewhere": ({"tokenizer_config": {**FAST, "added_tokens_decoder": {"300": token("<x>")}}}, "has id 300, but would get 264"),
    "added": ({"tokenizer_config": FAST, "added_tokens": {"<x>": "1"}}, "added_tokens.json"),
    "added, long": ({"tokenizer_config": FAST, "added_tokens": {"a" * 5000: 264}}, "added_tokens.json holds a token of 5,000"),
    "decoder, long": ({"tokenizer_config": {**FAST, "added_tokens_decoder": {"264": token("a" * 5000)}}}, "expected at most 4,096"),
    "name, long": ({"tokenizer_config": {**FAST, "bos_token": "a" * 5000}}, "bos_token holds a token of 5,000"),
    "flag": ({"tokenizer_config": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": "yes"}}, "add_bos_token is 'yes'"),
    "no bos": ({"tokenizer_config": {"tokenizer_class": "LlamaTokenizer", "bos_token": None}}, "there is no bos_token"),
    "split": ({"tokenizer_config": {**FAST, "split_special_tokens": True}}, "split_special_tokens"),
    "unknown class": ({"tokenizer_config": {"tokenizer_class": "NoSuchTokenizer"}}, "transformers cannot read"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_odd_values_are_refused(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files, message = REFUSED[case]
    write(tmp_path, tokenizer=tokenizer_json(), **files)
    with pytest.raises(UserError, match=message) as caught:
        read_tokenizer(tmp_path, VOCAB)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("where", ["vocab", "added_tokens"])
def test_an_id_far_beyond_the_vocabulary_takes_no_memory(where: str, tmp_path: Path) -> None:
    made = json.loads(json.dumps(tokenizer_json()))
    if where == "vocab":
        made["model"]["vocab"]["far"] = 1 << 31
    else:
        made["added_tokens"].append({**made["added_tokens"][0], "id": 1 << 31, "content": "far"})
    write(tmp_path, tokenizer=made, tokenizer_config=FAST)
    with pytest.raises(
        CheckpointError, match=r"token 'far' has id 2147483648, but the model knows"
    ):
        read_tokenizer(tmp_path, VOCAB)


def test_a_checkpoint_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        read_tokenizer(tmp_path, VOCAB)


def test_a_token_before_every_text_needs_an_embedding(tmp_path: Path) -> None:
    write(
        tmp_path,
        tokenizer=tokenizer_json(),
        tokenizer_config={"tokenizer_class": "LlamaTokenizer", "bos_token": "<|beyond|>"},
    )
    with pytest.raises(CheckpointError, match="stands around every text"):
        read_tokenizer(tmp_path, len(SPECIAL) + 256)


def test_spaces_taken_out_of_answers_are_noted(tmp_path: Path) -> None:
    settings = {**NAMED, "clean_up_tokenization_spaces": True}
    write(tmp_path, tokenizer=tokenizer_json(), tokenizer_config=settings)
    (note,) = read_tokenizer(tmp_path, VOCAB).notes
    assert "clean_up_tokenization_spaces" in note
