"""A byte-level tokenizer whose markers are special tokens, or plain text."""

from __future__ import annotations

from functools import cache

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from edgetok.dialect.families import FORMATS, THINKING
from edgetok.text.tokenizer import Tokenizer

MARKERS = sorted(
    {
        "[TOOL_CALLS]",
        "[ARGS]",
        "<|tool_call|>",
        "<|/tool_call|>",
        "<tool_call>",
        "</tool_call>",
        "<tool_calls>",
        "</tool_calls>",
        "<|python_tag|>",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
        *[one.begin for one in THINKING],
        *[one.end for one in THINKING],
    }
)
assert {one.trigger for one in FORMATS} - {""} <= set(MARKERS)


@cache
def byte_tokenizer(special: bool) -> Tokenizer:
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = tokenizers.Tokenizer(models.BPE(vocab, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<end>"])
    if special:
        core.add_special_tokens(MARKERS)
    size = core.get_vocab_size(with_added_tokens=True)
    return Tokenizer(core, {"eos_token": "<end>"}, size, "made by a test")


@pytest.fixture(params=[True, False], ids=["special", "text"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return byte_tokenizer(request.param)
