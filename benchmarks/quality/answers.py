"""Answers of converted models beside those of the original: do the card's words fit?

    python benchmarks/quality/answers.py ORIGINAL ARTEFACT... --tasks alpaca_seed_tasks.jsonl \
        --count 100 --text wikitext2.valid.raw

ORIGINAL is an artefact of the same model at 16 bits. TASKS holds one JSON object a line with
`instruction` and `instances` of `input` and `output`, as Self-Instruct's seed tasks. Every model
answers the same tasks greedily, and the original reads what it answered. One row for each model:

- KL of the original from it on TEXT, and the verdict of the quality card on what was found;
- the share of answers that are the original's word for word, and after how many tokens the others
  first differ (median);
- what the original thinks of the answers: nats for each token, less what its own answers have. An
  answer that is worded differently but as good costs little;
- what the model thinks of the answers that people wrote, less what the original does;
- the share of answers that repeat themselves until they are stopped.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
from chat_answers import first_turn, read_tasks
from rich.progress import track

import edgetok
from edgetok.converter.card.verdict import judge
from edgetok.engine.result import Result
from edgetok.evaluation.perplexity import Ids, documents, evaluate, windows
from edgetok.model import Model
from edgetok.runtime.backend import Backend
from edgetok.text.template import ChatTemplate
from edgetok.text.tokenizer import read_config

AT_ONCE = 8  # answers that are written together


def short_tasks(path: Path, count: int, skip: int) -> list[tuple[str, str]]:
    """Read tasks, question and answer, that are short enough for a small model."""
    firsts = (task[0] for task in read_tasks(path))
    tasks = [
        (asked, answer) for asked, answer in firsts if len(asked) <= 800 and len(answer) <= 600
    ]
    return tasks[skip : skip + count]


def write(path: Path, prompts: list[list[int]], tokens: int) -> list[Result]:
    """Answer all prompts greedily."""
    answers = []
    with edgetok.load(path, device="cpu") as model:
        for i in track(range(0, len(prompts), AT_ONCE), description=f"{path.name} answers"):
            answers += model.generate_batch(
                prompts[i : i + AT_ONCE], temperature=0.0, max_tokens=tokens, stop_loops=True
            )
    return answers


def nats(model: Model, prompts: list[list[int]], answers: list[list[int]], what: str) -> float:
    """Compute -log p for each token of given answers, in nats, all answers together."""
    total, count = 0.0, 0
    for before, answer in zip(track(prompts, description=what), answers, strict=True):
        score = model.score(answer, prompt=before)
        total, count = total - score.logprob, count + score.scored
    return total / count


@dataclass(frozen=True)
class Original:
    """The original as what others are compared with."""

    backend: Backend

    def logits(self, ids: Ids) -> npt.NDArray[np.float32]:
        """Logits [T, V] of tokens [T]."""
        cache = self.backend.new_cache(len(ids))
        return self.backend.forward(cache, ids, all_logits=True).copy()


def judged(original: Model, model: Model, text: str, tokens: int) -> tuple[float, str]:
    """Return the KL on a text in windows of 512 tokens, and the card's verdict on it."""
    assert model.tokenizer is not None
    cut = windows(documents(text[: 8 * tokens], model.tokenizer), 512, 256, tokens)
    found = evaluate(model.backend, cut, Original(original.backend))
    assert found.kl is not None
    assert found.top1_agreement is not None
    assert found.reference_perplexity is not None
    ratio = found.perplexity / found.reference_perplexity
    return found.kl, judge(found.kl, ratio, found.top1_agreement).grade


def first_difference(left: tuple[int, ...], right: tuple[int, ...]) -> int | None:
    """Return the place of the first token that differs; None where the answers are equal."""
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return None if len(left) == len(right) else min(len(left), len(right))


def main() -> None:
    """Answer, compare, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("original", type=Path)
    parser.add_argument("artefacts", type=Path, nargs="+")
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--skip", type=int, default=0, help="tasks at the beginning")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--text", type=Path, required=True, help="for KL and verdict")
    parser.add_argument("--text-tokens", type=int, default=2048)
    given = parser.parse_args()
    text = given.text.read_text(encoding="utf-8")
    tasks = short_tasks(given.tasks, given.count, given.skip)
    with edgetok.load(given.original, device="cpu") as model:
        tokenizer = model.tokenizer
        assert tokenizer is not None
        template = ChatTemplate.from_folder(model.path, read_config(model.path))
        plain = "Question: {}\nAnswer:"
        prompts = [first_turn(asked, template, tokenizer, plain) for asked, _ in tasks]
        people = [tokenizer.encode(answer, special=False) for _, answer in tasks]
        of_people = nats(model, prompts, people, "people's answers")
    own = write(given.original, prompts, given.tokens)
    with edgetok.load(given.original, device="cpu") as model:
        of_own = nats(model, prompts, [list(a.tokens) for a in own], "the original's answers")
    rows = []
    for path in given.artefacts:
        answers = write(path, prompts, given.tokens)
        with (
            edgetok.load(given.original, device="cpu") as original,
            edgetok.load(path, device="cpu") as model,
        ):
            kl, verdict = judged(original, model, text, given.text_tokens)
            its_people = nats(model, prompts, people, f"{path.name} reads people's")
            read = nats(original, prompts, [list(a.tokens) for a in answers], "its answers")
        places = [first_difference(a.tokens, b.tokens) for a, b in zip(own, answers, strict=True)]
        others = [place for place in places if place is not None]
        rows.append(
            f"| {path.name} | {kl:.4f} | {verdict} "
            f"| {100 * (1 - len(others) / len(places)):.0f} % | {median(others or [0]):.0f} "
            f"| {read - of_own:+.3f} | {its_people - of_people:+.3f} "
            f"| {100 * np.mean([a.finish == 'loop' for a in answers]):.0f} % |"
        )
    looped = 100 * np.mean([a.finish == "loop" for a in own])
    print(f"{len(tasks)} tasks; the original's own answers repeat themselves: {looped:.0f} %\n")
    print("| artefact | KL | verdict | same | others differ after | read by the original "
          "| reads people's | loops |")  # fmt: skip
    print("|---|--:|---|--:|--:|--:|--:|--:|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
