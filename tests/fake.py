"""A model without weights: it answers by a rule, so that everything above a backend can be tested.

The rule sees the tokens that the cache really holds. So an answer is right only if template,
tokenizer and cache reuse are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from edgetok.cache.protocol import KVCache
from edgetok.model import Model
from edgetok.runtime.backend import Capabilities, Part
from edgetok.runtime.base import BaseBackend, checked_parts

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VOCAB_SIZE = 258
END = 257


def write_tokenizer(folder: Path, template: str | None = CHATML) -> None:
    """A byte-level tokenizer with ChatML's two special tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = tokenizers.Tokenizer(models.BPE(vocab, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    core.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"eos_token": "<|im_end|>"}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


class FakeCache(KVCache):
    def __init__(self, capacity_tokens: int, window: int | None, block_tokens: int) -> None:
        self._capacity, self._block = capacity_tokens, block_tokens
        self.tokens: list[int] = []
        self._window = window

    @property
    def capacity_tokens(self) -> int:
        return self._capacity

    @property
    def block_tokens(self) -> int:
        return self._block

    @property
    def nbytes(self) -> int:
        return self._capacity

    @property
    def length_tokens(self) -> int:
        return len(self.tokens)

    def truncate(self, length_tokens: int) -> bool:
        if self._window is not None and len(self.tokens) - length_tokens > self._window:
            return False
        del self.tokens[length_tokens:]
        return True

    def clear(self) -> None:
        self.tokens.clear()


class FakeBackend(BaseBackend):
    """`rule(tokens)` gives the next token."""

    name = "fake"
    spec = None
    vocab_size = VOCAB_SIZE
    capabilities = Capabilities(together=True, step_rows=16, evicts=False, samples=False)

    def __init__(
        self,
        rule: Callable[[list[int]], int],
        *,
        context_tokens: int = 1000,
        step_s: float = 0.0,
        window: int | None = None,
    ) -> None:
        self.rule = rule
        self.context_tokens = context_tokens
        self.step_s = step_s
        self.window = window
        self.computed: list[list[int]] = []  # rows of each part of each step
        self.closed = False

    def new_cache(self, capacity_tokens: int) -> FakeCache:
        return FakeCache(capacity_tokens, self.window, self.capabilities.step_rows)

    def step(self, parts: Sequence[Part]) -> list[np.ndarray]:
        result = []
        checked = checked_parts(parts, self.vocab_size, self.capabilities.step_rows)
        self.computed.append([int(part.tokens.size) for part in checked])
        time.sleep(self.step_s)
        for part in checked:
            rows = np.zeros((part.logits, self.vocab_size), np.float32)
            for i, token in enumerate(part.tokens.tolist(), start=part.logits - part.tokens.size):
                cache: Any = part.cache
                cache.tokens.append(token)
                if i >= 0:
                    rows[i, self.rule(cache.tokens)] = 20.0
            result.append(rows)
        return result

    def close(self) -> None:
        self.closed = True


def echo(core: tokenizers.Tokenizer) -> Callable[[list[int]], int]:
    """The rule of a chat model that says which turn it is and repeats the user, shouting."""

    def rule(tokens: list[int]) -> int:
        text = core.decode(tokens, skip_special_tokens=False)
        head, marker, _ = text.rpartition("<|im_start|>assistant\n")
        if not marker:
            return ord("x") - ord("!")  # places in the byte alphabet
        users = head.split("<|im_start|>user\n")[1:]
        system = head.split("<|im_start|>system\n")[1:]
        said = users[-1].split("<|im_end|>")[0] if users else ""
        brief = system[0].split("<|im_end|>")[0] + ":" if system else ""
        target = f"{brief}{len(users)}:{said.upper()}!"
        ids = core.encode(target).ids
        done = len(tokens) - len(core.encode(head + marker).ids)
        return ids[done] if done < len(ids) else END

    return rule


def fake_model(
    folder: Path,
    *,
    rule: Callable[[list[int]], int] | None = None,
    template: str | None = CHATML,
    context: int | None = None,
    engine: Any = None,
    **backend: Any,
) -> Model:
    """A model over `FakeBackend`, or over another engine, with greedy sampling."""
    write_tokenizer(folder, template)
    core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    artefact: Any = SimpleNamespace(
        folder=folder, identity="ab" * 32, close=lambda: None, digest=lambda name: None
    )
    engine = engine or FakeBackend(rule or echo(core), **backend)
    model = Model(artefact, engine, context_tokens=context)
    model.sampling = model.sampling.with_changes({"temperature": 0.0})
    return model
