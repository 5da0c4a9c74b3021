"""All cache policies at equal slots on one real model: running text, recall, beyond trained length.

    python benchmarks/quality/policies.py ARTEFACT TEXT [--slots 512 1024] [--policies NAME ...]
        [--tokens 8191] [--beyond 16383] [--contexts 8] [--half 1] [--kv-bits 8]

- Running text: perplexity of the first `--tokens` tokens of one half of TEXT.
- Beyond: perplexity of the tokens from there to `--beyond` in the largest cache, beside windows of
  8,192 tokens (or the trained length, if less) that are read afresh.
- Recall: codes, facts and settings planted in the same half (`planted.py`), three of each in a
  context of `--context-tokens`; every question is asked from the same state after the context.
  Right answers and tokens are those that the model finds most likely, each after the right ones
  before it; log p is that of the whole right answer, in nats.

The full cache gets the same tasks. Policies are chosen on `--half 0` and reported on half 1. Prints
tables in Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from planted import TASKS, Planting, half_of, plantings

import edgetok
from edgetok.cache.limits import CacheLimits
from edgetok.cache.policies.policy import POLICIES
from edgetok.cache.protocol import KVCache
from edgetok.errors import EdgetokError
from edgetok.evaluation.perplexity import log_softmax, running_losses
from edgetok.kernels_cpu.attention.launch import KV_BITS
from edgetok.model import Model
from edgetok.runtime.backend import Backend
from edgetok.text.tokenizer import Tokenizer

_WINDOW_TOKENS = 8192
FULL = "full"


@dataclass(slots=True)
class Recall:
    """Answers of one cache: (log p, tokens right, tokens) of each question, by task."""

    asked: dict[str, list[tuple[float, int, int]]] = field(default_factory=dict)

    @property
    def all(self) -> npt.NDArray[np.float64]:
        """[questions, 3]."""
        return np.array([one for task in TASKS for one in self.asked[task]])

    def answers(self, task: str) -> float:
        """Share of right answers."""
        return float(np.mean([right == tokens for _, right, tokens in self.asked[task]]))


class Runs:
    """Every measurement of one model."""

    def __init__(self, backend: Backend, tokenizer: Tokenizer, cases: list[Planting]) -> None:
        """Tokenize the cases."""
        self._backend, self._tokenizer = backend, tokenizer
        self._cases = [(tokenizer.encode(case.text), case.planted) for case in cases]

    def cache(self, policy: str, slots: int, tokens: int) -> KVCache:
        """A cache with a policy, or a full one for so many tokens."""
        if policy == FULL:
            return self._backend.new_cache(tokens)
        return self._backend.new_bounded_cache(slots, CacheLimits(policy=policy))

    def losses(
        self, policy: str, slots: int, ids: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.float64]:
        """-log p of every token but the first; the full cache begins afresh when it is full."""
        window = min(_WINDOW_TOKENS, self._backend.context_tokens, len(ids))
        cache = self.cache(policy, slots, window)
        return np.concatenate(list(running_losses(self._backend, cache, ids)))

    def recall(self, policy: str, slots: int) -> Recall:
        """Read each context, then ask from the same state."""
        found = Recall()
        for context, planted in self._cases:
            cache = self.cache(policy, slots, len(context) + 64)
            self._backend.forward(cache, np.array(context, np.int32))
            state = cache.fork()
            for one in planted:
                cache.adopt(state)
                found.asked.setdefault(one.task, []).append(
                    self.answer(cache, f"\n{one.ask}", one.answer)
                )
        return found

    def answer(self, cache: KVCache, ask: str, answer: str) -> tuple[float, int, int]:
        """Of the right answer log p, how many tokens are the most likely ones, and all of them."""
        asked = self._tokenizer.encode(ask, special=False)
        ids = self._tokenizer.encode(ask + answer, special=False)
        if ids[: len(asked)] != asked:
            raise ValueError(f"{ask + answer!r}: the answer does not begin with a token of its own")
        logits = self._backend.forward(cache, np.array(ids[:-1], np.int32), all_logits=True)
        rows = log_softmax(logits[len(asked) - 1 :])
        total, right, tokens = 0.0, 0, 0
        for row, token in zip(rows, ids[len(asked) :], strict=True):
            if self._tokenizer.decode([token]).strip():  # a space of its own says nothing
                total += float(row[token])
                right += int(row.argmax()) == token
                tokens += 1
        return total, right, tokens


def measure(model: Model, part: str, args: argparse.Namespace) -> Iterator[str]:
    """Measure everything; yield lines of tables."""
    backend, tokenizer = model.backend, model.tokenizer

    def count(text: str) -> int:
        return len(tokenizer.encode(text, special=False))

    cases = plantings(part, args.half, args.context_tokens, 3, count)
    runs = Runs(backend, tokenizer, list(itertools.islice(cases, args.contexts)))
    longest = max(args.tokens, args.beyond)
    ids = np.array(tokenizer.encode(part[: 8 * longest])[: longest + 1], np.int32)
    yield (
        "| cache | slots | perplexity | beyond | log p | tokens | answers | "
        + " | ".join(TASKS)
        + " |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|" + "---:|" * len(TASKS)
    full = np.zeros(0)
    for slots in args.slots:
        for policy in (*([] if len(full) else [FULL]), *args.policies):
            begun = time.perf_counter()
            last = policy == FULL or slots == max(args.slots)
            losses = np.zeros(0)
            if args.tokens:
                losses = runs.losses(policy, slots, ids[: 1 + (longest if last else args.tokens)])
            if policy == FULL:
                full = losses
            cells = [policy, "" if policy == FULL else f"{slots:,}"]
            cells += _perplexities(losses, full, args.tokens)
            if args.contexts:
                recall = runs.recall(policy, slots)
                logs, right, tokens = recall.all.T
                cells += [f"{logs.mean():.2f}", percent(right.sum() / tokens.sum())]
                cells += [percent(np.mean(right == tokens))]
                cells += [percent(recall.answers(task)) for task in TASKS]
            yield "| " + " | ".join(cells) + " |"
            print(f"{policy}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)


def _perplexities(
    losses: npt.NDArray[np.float64], full: npt.NDArray[np.float64], tokens: int
) -> list[str]:
    """Perplexity of the first tokens and of the rest, and how much more than in the full cache."""
    cells = []
    for first, last in ((0, tokens), (tokens, len(full))):
        if last <= first or len(losses) < last:
            cells.append("")
            continue
        mean = float(losses[first:last].mean())
        more = math.expm1(mean - float(full[first:last].mean()))
        cells.append(f"{math.exp(mean):.2f}" + ("" if losses is full else f" ({more:+.1%})"))
    return cells


def percent(share: float) -> str:
    """A share in whole per cent."""
    return f"{100 * share:.0f} %"


Measure = Callable[[Model, str, argparse.Namespace], Iterator[str]]


def run(parser: argparse.ArgumentParser, measure: Measure) -> int:
    """Add the arguments that say on what to measure, parse all, print lines; an exit code."""
    parser.add_argument("artefact", type=Path)
    parser.add_argument("text", type=Path, help="UTF-8, a paragraph a line, such as wikitext-2")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--half", type=int, default=1, choices=(0, 1), help="of the text and names")
    parser.add_argument("--kv-bits", type=int, default=8, choices=KV_BITS)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    try:
        text = args.text.read_text(encoding="utf-8")
        with edgetok.load(
            args.artefact, device="cpu", threads=args.threads, kv_bits=args.kv_bits
        ) as model:
            for line in measure(model, half_of(text, args.half), args):
                print(line, flush=True)
    except (EdgetokError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slots", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--tokens", type=int, default=8191, help="of running text; 0 leaves it out")
    parser.add_argument("--beyond", type=int, default=0, help="tokens in the largest cache")
    parser.add_argument("--contexts", type=int, default=8, help="for recall; 0 leaves it out")
    parser.add_argument("--context-tokens", type=int, default=1580)
    return run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
