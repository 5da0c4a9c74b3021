"""`edgetok eval --recall` over a model that finds numbers in what it was told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tokenizers

from edgetok.cli.commands.recall import measure_recall
from edgetok.errors import ContextError, OptionError
from tests.fake import END, fake_model, write_tokenizer


def number_finder(folder: Path) -> object:
    """The rule of a model that answers with the last number of five digits that it saw."""
    write_tokenizer(folder)
    core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def rule(tokens: list[int]) -> int:
        text = core.decode(tokens, skip_special_tokens=False)
        head, _, answer = text.rpartition("<|im_start|>assistant\n")
        number = re.findall(r"\d{5}", head)[-1]
        return core.encode(number).ids[len(answer)] if len(answer) < 5 else END

    return rule


def test_pass_keys_are_found_and_scored(tmp_path: Path) -> None:
    rule = number_finder(tmp_path)
    model = fake_model(tmp_path, rule=rule, context_tokens=3000)  # type: ignore[arg-type]
    assert measure_recall(model, 3, (64, 128), ("pass_key",)) == {
        "pass_key": {"64": 1.0, "128": 1.0}
    }


def test_wrong_answers_score_nothing(tmp_path: Path) -> None:
    model = fake_model(tmp_path, context_tokens=3000)
    assert measure_recall(model, 2, (32,), ("facts",)) == {"facts": {"32": 0.0}}


def test_what_does_not_fit_is_left_out(tmp_path: Path) -> None:
    model = fake_model(tmp_path, context_tokens=900)
    assert measure_recall(model, 1, (32, 5000), ("facts",)).keys() == {"facts"}
    with pytest.raises(ContextError, match="no case fits"):
        measure_recall(model, 1, (5000,), ("facts",))
    with pytest.raises(OptionError):
        measure_recall(model, 0)
