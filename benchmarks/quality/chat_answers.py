"""Tasks with answers by people, as prompts and as windows of which only the answer is predicted.

A task is a line of JSON as in Stanford Alpaca's seed tasks: `instruction`, and `instances` with
`input` and `output`. The question is written in the model's chat template, and without one as plain
text with an empty line behind it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgetok.evaluation.perplexity import Window
from edgetok.text.template import ChatTemplate
from edgetok.text.tokenizer import Tokenizer

_LEAST_ANSWER = 8  # tokens; shorter ones are mostly labels


def read_tasks(path: Path) -> Iterator[list[tuple[str, str]]]:
    """Yield the instances of each task: question and answer."""
    for line in path.read_text(encoding="utf-8").splitlines():
        task = json.loads(line)
        yield [
            (f"{task['instruction']}\n\n{instance['input']}".strip(), instance["output"])
            for instance in task["instances"]
        ]


def first_turn(
    question: str, template: ChatTemplate | None, tokenizer: Tokenizer, plain: str
) -> list[int]:
    """Return the tokens of a question as a chat's first turn.

    Args:
        question: the text.
        template: None for a model without one.
        tokenizer: the model's.
        plain: how the question is written without a template, with {} in its place.
    """
    if template is None:
        return tokenizer.encode(plain.format(question))
    return tokenizer.encode(template.render([{"role": "user", "content": question}]), special=False)


def chat_windows(
    path: Path, folder: Path, tokenizer: Tokenizer, window_tokens: int, max_tokens: int
) -> Iterator[Window]:
    """Yield one window for each task that fits, until `max_tokens` predictions are reached.

    Args:
        path: the tasks.
        folder: the model's, with `tokenizer_config.json`.
        tokenizer: the model's.
        window_tokens: most tokens of question and answer together.
        max_tokens: most predictions in all.
    """
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = ChatTemplate.from_folder(folder, config)
    left = max_tokens
    for task in read_tasks(path):
        for question, written in task:
            prompt = first_turn(question, template, tokenizer, "{}\n\n")
            answer = tokenizer.encode(written, special=False)
            ids = np.array([*prompt, *answer], np.int32)
            if len(answer) < _LEAST_ANSWER or len(ids) > window_tokens:
                continue
            count = min(left, len(answer))
            yield Window(ids[: len(prompt) + count], len(prompt) - 1)
            left -= count
            if not left:
                return
