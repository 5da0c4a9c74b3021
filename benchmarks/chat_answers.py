"""Answers to tasks, as token windows of which only the answer is predicted.

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
    for line in path.read_text(encoding="utf-8").splitlines():
        task = json.loads(line)
        for instance in task["instances"]:
            question = f"{task['instruction']}\n\n{instance['input']}".strip()
            if template is None:
                prompt = tokenizer.encode(question + "\n\n")
            else:
                text = template.render([{"role": "user", "content": question}])
                prompt = tokenizer.encode(text, special=False)
            answer = tokenizer.encode(instance["output"], special=False)
            ids = np.array([*prompt, *answer], np.int32)
            if len(answer) < _LEAST_ANSWER or len(ids) > window_tokens:
                continue
            count = min(left, len(answer))
            yield Window(ids[: len(prompt) + count], len(prompt) - 1)
            left -= count
            if not left:
                return
