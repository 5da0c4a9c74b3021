"""Values told in a long text that a model writes itself, in a small cache, and asked for at last.

    python benchmarks/quality/own_text.py ARTEFACT TEXT [--slots 512] [--policies recall window ...]
        [--tokens 4000] [--texts 4] [--half 1]

The model goes on from a paragraph of one half of TEXT, sampled at temperature 1 with a full cache;
nine sentences of `planted.py` are told in what it writes, evenly spread. Then each cache reads that
text token by token, as if it wrote it itself, and every sentence is asked for from the state at the
end. Prints, in Markdown, the KL divergence from the full cache a token in nats (the mean difference
of log p, as the text is a sample of the full cache's), and answers as `policies.py` does.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from planted import Planting, half_of, planted_sentences
from policies import FULL, Runs, percent

import edgetok
from edgetok.cache.policies.policy import POLICIES
from edgetok.errors import EdgetokError
from edgetok.evaluation.perplexity import log_softmax
from edgetok.model import Model

_EACH = 3  # sentences of each task
Answer = tuple[float, int, int]  # log p, tokens right, tokens


def write(model: Model, paragraph: str, told: Planting, tokens: int, seed: int) -> list[int]:
    """A text of about `tokens` tokens by the model, in which each sentence is told."""
    backend, tokenizer = model.backend, model.tokenizer
    rng = np.random.default_rng(seed)
    cache = backend.new_cache(tokens + 64 * len(told.planted) + 512)
    ids = tokenizer.encode(paragraph)
    logits = backend.forward(cache, np.array(ids, np.int32))
    for one in told.planted:
        new = tokenizer.encode(f"\n{one.told}\n", special=False)
        ids += new
        logits = backend.forward(cache, np.array(new, np.int32))
        for _ in range(tokens // len(told.planted) - len(new)):
            chances = np.exp(log_softmax(logits.reshape(1, -1))[0].astype(np.float64))
            chances[sorted(backend.spec.eos_tokens)] = 0.0  # the text goes on
            ids.append(int(rng.choice(len(chances), p=chances / chances.sum())))
            logits = backend.forward(cache, np.array(ids[-1:], np.int32))
    return ids


def read(
    model: Model, runs: Runs, policy: str, slots: int, ids: list[int], told: Planting
) -> tuple[list[float], list[Answer]]:
    """Return -log p of each token, and the answers to every question at the end."""
    cache = runs.cache(policy, slots, len(ids) + 64)
    losses = []
    for token, following in itertools.pairwise(ids):
        logits = model.backend.forward(cache, np.array([token], np.int32))
        losses.append(-float(log_softmax(logits.reshape(1, -1))[0][following]))
    model.backend.forward(cache, np.array(ids[-1:], np.int32))
    state, answers = cache.fork(), []
    for one in told.planted:
        cache.adopt(state)
        answers.append(runs.answer(cache, f"\n{one.ask}", one.answer))
    return losses, answers


def measure(model: Model, text: str, args: argparse.Namespace) -> Iterator[str]:
    """Write all texts, then read them with each cache; yield lines of a table."""
    paragraphs = [line.strip() for line in text.splitlines() if len(line) > 200]
    rng = random.Random(args.half)
    told = [Planting("", planted_sentences(rng, args.half, _EACH)) for _ in range(args.texts)]
    runs = Runs(model.backend, model.tokenizer, [])
    texts = []
    for seed, one in enumerate(told):
        texts.append(write(model, rng.choice(paragraphs), one, args.tokens, seed))
        print(f"... {model.tokenizer.decode(texts[-1][-40:])!r}", file=sys.stderr)
    yield "| cache | slots | KL | log p | tokens | answers |"
    yield "|---|---:|---:|---:|---:|---:|"
    full = 0.0
    for policy in (FULL, *args.policies):
        losses: list[float] = []
        answers: list[Answer] = []
        for ids, one in zip(texts, told, strict=True):
            of_tokens, of_questions = read(model, runs, policy, args.slots, ids, one)
            losses += of_tokens
            answers += of_questions
        mean = float(np.mean(losses))
        full = mean if policy == FULL else full
        logs, right, tokens = np.array(answers).T
        cells = [policy, "" if policy == FULL else f"{args.slots:,}", f"{mean - full:.4f}"]
        cells += [f"{logs.mean():.2f}", percent(right.sum() / tokens.sum())]
        yield "| " + " | ".join([*cells, percent(float(np.mean(right == tokens)))]) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artefact", type=Path)
    parser.add_argument("text", type=Path, help="UTF-8, a paragraph a line, such as wikitext-2")
    parser.add_argument("--slots", type=int, default=512)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--tokens", type=int, default=4000, help="of each text")
    parser.add_argument("--texts", type=int, default=4)
    parser.add_argument("--half", type=int, default=1, choices=(0, 1), help="of the text and names")
    parser.add_argument("--kv-bits", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    try:
        text = half_of(args.text.read_text(encoding="utf-8"), args.half)
        with edgetok.load(
            args.artefact, device="cpu", threads=args.threads, kv_bits=args.kv_bits
        ) as model:
            for line in measure(model, text, args):
                print(line, flush=True)
    except (EdgetokError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
