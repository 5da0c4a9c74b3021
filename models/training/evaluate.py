"""Measure a model folder on what training never saw: recall, loss by source, samples.

    python models/training/evaluate.py models/default --out checkpoints/evaluation.json --cases 40

Recall answers are generated greedily through the chat template and scored by
`edgetok.evaluation.recall.score`. `card.py` makes the tables, the plots and the card of the result.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import corpus
import language_data
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgetok.evaluation.recall import DISTANCES, TASKS, recall_cases, score

PROMPTS = (
    "Tell me a story about a bunny.",
    "Write a short story about a dragon and a cake.",
    "Hello! How are you?",
    "What is your name?",
    "I am sad today.",
    "Count from 3 to 9.",
    "List three animals.",
    "Repeat after me: the blue boat sings",
    "Continue: Monday, Tuesday,",
    "Pick a colour.",
    "What is the opposite of big?",
    "What does a cow say?",
    "Why is the sky blue?",
)
DIALOGUE = (
    "Hi! My name is Nora.",
    "My sister is called Belira.",
    "I like apples.",
    "What is my name?",
    "And what is my sister called?",
)


class Subject:
    """The model under test, in float32 on one or more threads."""

    def __init__(self, folder: Path) -> None:
        self.tok = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.tok.encode(text, add_special_tokens=False))

    def answer(self, messages: list[dict[str, str]], limit: int = 24, sample: bool = False) -> str:
        """What the model says next."""
        ids = self.tok.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        how = {"temperature": 0.7, "top_p": 0.9} if sample else {"temperature": None, "top_p": None}
        with torch.inference_mode():
            out = self.model.generate(**ids, max_new_tokens=limit, do_sample=sample, **how)
        return self.tok.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)

    def losses(self, ids: list[int], wanted: list[bool]) -> tuple[float, int]:
        """Sum of the cross entropy over the wanted tokens, and how many they are."""
        x = torch.tensor([ids[:2048]])
        with torch.inference_mode():
            logits = self.model(x[:, :-1]).logits[0].float()
        each = torch.nn.functional.cross_entropy(logits, x[0, 1:], reduction="none")
        keep = torch.tensor(wanted[1:2048])
        return float(each[keep].sum()), int(keep.sum())


def recall_task(folder: Path, task: str, cases: int, seed: int) -> tuple[dict, list]:
    """One task: right answers and cases by distance and by wording, and what went wrong."""
    torch.set_num_threads(1)
    subject = Subject(folder)
    row: dict[str, list[int]] = {}
    misses = []
    for case in recall_cases([task], count=cases, seed=seed, count_tokens=subject.count):
        said = subject.answer([dict(m) for m in case.messages])
        right = score(said, case)
        wording = "unseen wording" if case.unseen_wording else "seen wording"
        for column in (str(case.distance), wording):
            cell = row.setdefault(column, [0, 0])
            cell[0] += right
            cell[1] += 1
        if not right:
            ask = case.messages[-1]["content"][-80:]
            misses.append([task, case.distance, ask, case.expected, said])
    return row, misses


def recall(folder: Path, cases: int, seed: int, workers: int) -> dict:
    """Accuracy by task and distance, and by task for seen and unseen wordings."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        results = [pool.submit(recall_task, folder, task, cases, seed) for task in TASKS]
        rows = [r.result() for r in results]
    return {
        "cases": cases,
        "seed": seed,
        "table": {task: row for task, (row, _) in zip(TASKS, rows, strict=True)},
        "misses": [miss for _, misses in rows for miss in misses],
    }


def validation(subject: Subject) -> dict[str, dict[str, float]]:
    """Loss and perplexity per token on the held-out side of every language source."""
    im_end = subject.tok.convert_tokens_to_ids("<|im_end|>")

    def chat(turns: list) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        wanted: list[bool] = []
        for turn in turns:
            head = subject.tok.encode(f"<|im_start|>{turn.role}\n", add_special_tokens=False)
            body = [*subject.tok.encode(turn.content, add_special_tokens=False), im_end]
            tail = subject.tok.encode("\n", add_special_tokens=False)
            ids += [*head, *body, *tail]
            said = turn.role == "assistant"
            wanted += [False] * len(head) + [said] * len(body) + [False] * len(tail)
        return ids, wanted

    def stories() -> list[tuple[list[int], list[bool]]]:
        encoded = [subject.tok.encode(corpus.END + s) for s in corpus.stories(True)]
        return [(ids, [True] * len(ids)) for ids in encoded]

    rng = random.Random(11)
    sources = {
        "TinyStories, raw": stories(),
        "stories on request": [chat(language_data.told_story(rng, True)) for _ in range(100)],
        "dialogues": [chat(language_data.chat(rng, True)) for _ in range(200)],
    }
    result = {}
    for name, rows in sources.items():
        total, tokens = 0.0, 0
        for ids, wanted in rows:
            loss, n = subject.losses(ids, wanted)
            total, tokens = total + loss, tokens + n
        loss = total / tokens
        result[name] = {"loss": loss, "perplexity": math.exp(loss), "tokens": tokens}
    return result


def samples(subject: Subject) -> list[dict]:
    """One answer for each prompt, and one conversation, with a fixed seed."""
    torch.manual_seed(0)
    out = []
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        said = subject.answer(messages, 300, sample=True)
        out.append([*messages, {"role": "assistant", "content": said}])
    messages = []
    for line in DIALOGUE:
        messages.append({"role": "user", "content": line})
        said = subject.answer(messages, 60, sample=True)
        messages.append({"role": "assistant", "content": said})
    return [*out, messages]


def main() -> None:
    """Write the measurements as JSON and print the short of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=40, help="per task and distance")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--workers", type=int, default=2, help="processes for recall")
    args = parser.parse_args()
    subject = Subject(args.folder)
    result = {
        "samples": samples(subject),
        "validation": validation(subject),
        "recall": recall(args.folder, args.cases, args.seed, args.workers),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for task, row in result["recall"]["table"].items():
        columns = [*map(str, DISTANCES), "seen wording", "unseen wording"]
        print(task, *(f"{c}: {row[c][0] / row[c][1]:.2f}" for c in columns if c in row))
    for name, row in result["validation"].items():
        print(f"{name}: loss {row['loss']:.3f}, perplexity {row['perplexity']:.2f}")


if __name__ == "__main__":
    main()
