"""Values told in a long text that a model writes itself, in a small cache, and asked for at last.

    python benchmarks/quality/own_text.py ARTEFACT TEXT [--slots 512] [--policies recall window ...]
        [--tokens 4000] [--texts 4] [--half 1]

The model goes on from a paragraph of one half of TEXT, with a full cache, sampled at temperature
0.8 from the most likely tokens that have 95 % together; nine sentences of `planted.py` are told in
what it writes, evenly spread. Then each cache reads that text token by token, as if it wrote it
itself, and every sentence is asked for from the state at the end. Prints, in Markdown, the KL
divergence from the full cache a token in nats, how often the most likely token is the same, and
answers as `policies.py` does.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from planted import Planting, planted_sentences
from policies import FULL, Runs, percent, run

from edgetok.evaluation.perplexity import log_softmax
from edgetok.model import Model

_EACH = 3  # sentences of each task
_TEMPERATURE, _TOP_P = 0.8, 0.95
Floats = npt.NDArray[np.float32]


def drawn(row: Floats, rng: np.random.Generator) -> int:
    """A token of logits [vocabulary]."""
    chances = np.exp(log_softmax(row[None] / _TEMPERATURE)[0].astype(np.float64))
    order = np.argsort(-chances)
    before = np.cumsum(chances[order]) - chances[order]
    chances[order[before >= _TOP_P]] = 0.0
    return int(rng.choice(len(chances), p=chances / chances.sum()))


def write(model: Model, paragraph: str, told: Planting, tokens: int, seed: int) -> list[int]:
    """A text of about `tokens` tokens by the model, in which each sentence is told."""
    backend, tokenizer = model.backend, model.tokenizer
    rng = np.random.default_rng(seed)
    ids = tokenizer.encode(paragraph)
    cache = backend.new_cache(len(ids) + tokens + 64 * len(told.planted))
    logits = backend.forward(cache, np.array(ids, np.int32))
    for one in told.planted:
        new = tokenizer.encode(f"\n{one.told}\n", special=False)
        ids += new
        logits = backend.forward(cache, np.array(new, np.int32))
        for _ in range(tokens // len(told.planted) - len(new)):
            row = logits.reshape(-1).copy()
            row[sorted(backend.spec.eos_tokens)] = -np.inf  # the text goes on
            ids.append(drawn(row, rng))
            logits = backend.forward(cache, np.array(ids[-1:], np.int32))
    return ids


@dataclass(slots=True)
class Found:
    """KL and agreement of every token; log p, tokens right and all tokens of every answer."""

    kl: list[float] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)
    answers: list[tuple[float, int, int]] = field(default_factory=list)


def read(
    model: Model, runs: Runs, found: dict[str, Found], slots: int, ids: list[int], told: Planting
) -> None:
    """Let all caches read a text side by side; add to what was found."""
    caches = {policy: runs.cache(policy, slots, len(ids) + 64) for policy in found}
    for token in ids:
        one, truth = np.array([token], np.int32), None
        for policy, cache in caches.items():  # the full one is the first
            row = log_softmax(model.backend.forward(cache, one).reshape(1, -1))[0]
            truth = row.copy() if truth is None else truth
            found[policy].kl.append(float(np.exp(truth) @ (truth - row)))
            found[policy].same.append(bool(row.argmax() == truth.argmax()))
    for policy, cache in caches.items():
        state = cache.fork()
        for one in told.planted:
            cache.adopt(state)
            found[policy].answers.append(runs.answer(cache, f"\n{one.ask}", one.answer))


def measure(model: Model, text: str, args: argparse.Namespace) -> Iterator[str]:
    """Write all texts, then read them with every cache; yield lines of a table."""
    paragraphs = [line.strip() for line in text.splitlines() if len(line) > 200]
    rng = random.Random(args.half)
    runs = Runs(model.backend, model.tokenizer, [])
    found = {policy: Found() for policy in (FULL, *args.policies)}
    for seed in range(args.texts):
        told = Planting("", planted_sentences(rng, args.half, _EACH))
        ids = write(model, rng.choice(paragraphs), told, args.tokens, seed)
        print(f"... {model.tokenizer.decode(ids[-40:])!r}", file=sys.stderr, flush=True)
        read(model, runs, found, args.slots, ids, told)
    yield "| cache | slots | KL | same token | log p | tokens | answers |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for policy, one in found.items():
        logs, right, tokens = np.array(one.answers).T
        cells = [policy, "" if policy == FULL else f"{args.slots:,}", f"{np.mean(one.kl):.4f}"]
        cells += [percent(float(np.mean(one.same))), f"{logs.mean():.2f}"]
        cells += [percent(right.sum() / tokens.sum()), percent(float(np.mean(right == tokens)))]
        yield "| " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slots", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=4000, help="of each text")
    parser.add_argument("--texts", type=int, default=4)
    return run(parser, measure)


if __name__ == "__main__":
    sys.exit(main())
