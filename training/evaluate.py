"""Measure a model folder on what training never saw: recall, loss by source, samples.

    python training/evaluate.py models/default --out checkpoints/evaluation.json \
        --cases 50 --seeds 101 202

Recall and samples come from edgetok's own runtime, which is many times faster than `transformers`
here: on a 16-bit conversion with float32 arithmetic and cache, or as a user runs it on the
artefact that `--artefact` names. Answers are greedy and scored by `edgetok.evaluation.recall`.
`card/html.py` makes the tables, the plots and the card of the result.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
from pathlib import Path

import corpus
import language_data
import story_data
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgetok.converter.convert import ConvertOptions, convert
from edgetok.evaluation.recall import DISTANCES, TASKS, recall_cases, score
from edgetok.model import Model

PROMPTS = (
    "Hello!", "Hi, how are you?", "What is your name?", "Who are you?", "What can you do?",
    "Who made you?", "What is my name?", "What is my sister called?", "I am sad today.",
    "Count from 3 to 9.", "List three animals.", "Repeat after me: the blue boat sings",
    "Pick a colour.", "Continue: Monday, Tuesday,", "What is the opposite of big?",
    "What is 3 + 4?", "What does a cow say?", "Is fire hot?", "Why is the sky blue?",
    "Write a Python program.", "Tell me a story about a bunny.",
    "Write a short story about a dragon and a cake.", "Tell me a story about a volcano.",
    "Tell me a story about a cow named Berta and a lamp.", "Write a story with the word lantern.",
    "Tell me a story.", "Write a long story about a brave mouse.", "Write a poem about the sea.",
    "Do you like dogs?", "Goodbye!",
)  # fmt: skip
DIALOGUE = (
    "Hi! My name is Nora.",
    "What is your name?",
    "My sister is called Belira.",
    "Tell me a short story about a cat.",
    "What was the cat called?",
    "What is my name?",
    "And what is my sister called?",
    "What is my brother's name?",
    "Thank you, goodbye!",
)


class Reader:
    """The model in `transformers`, for losses."""

    def __init__(self, folder: Path) -> None:
        self.tok = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def losses(self, ids: list[int], wanted: list[bool]) -> tuple[float, int]:
        """Sum of the cross entropy over the wanted tokens, and how many they are."""
        x = torch.tensor([ids[:2048]])
        with torch.inference_mode():
            logits = self.model(x[:, :-1]).logits[0].float()
        each = torch.nn.functional.cross_entropy(logits, x[0, 1:], reduction="none")
        keep = torch.tensor(wanted[1:2048])
        return float(each[keep].sum()), int(keep.sum())


def recall(model: Model, cases: int, seeds: list[int]) -> dict:
    """Right answers and cases by task and distance and by wording, and what went wrong.

    Returns: the table of all seeds together and of each, `{task: {column: [right, asked]}}`.
    """
    table: dict[str, dict[str, list[int]]] = {}
    by_seed: dict[str, dict[str, list[int]]] = {}
    misses = []

    def count(text: str) -> int:
        return len(model.tokenize(text, special=False))

    for seed in seeds:
        for case in recall_cases(TASKS, count=cases, seed=seed, count_tokens=count):
            prompt = model.tokenize(model.template.render(case.messages), special=False)
            said = model.generate(prompt, temperature=0.0, max_tokens=24).text
            right = score(said, case)
            wording = "unseen wording" if case.unseen_wording else "seen wording"
            rows = table.setdefault(case.task, {})
            totals = by_seed.setdefault(str(seed), {})
            for cell in (
                rows.setdefault(str(case.distance), [0, 0]),
                rows.setdefault(wording, [0, 0]),
                totals.setdefault(case.task, [0, 0]),
            ):
                cell[0] += right
                cell[1] += 1
            if not right:
                ask = case.messages[-1]["content"][-80:]
                misses.append([case.task, case.distance, ask, case.expected, said])
    return {
        "cases": cases * len(seeds),
        "seeds": seeds,
        "table": table,
        "by_seed": by_seed,
        "misses": misses,
    }


def validation(subject: Reader) -> dict[str, dict[str, float]]:
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
        "invented stories on request": [chat(story_data.request(rng, True)[0]) for _ in range(150)],
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


def samples(model: Model, temperature: float) -> list[list[dict[str, str]]]:
    """Return one answer for each prompt, and one conversation, with a fixed seed."""
    out = []
    for lines in (*((p,) for p in PROMPTS), DIALOGUE):
        chat = model.new_chat()
        for line in lines:
            chat.send(line, temperature=temperature, seed=1, max_tokens=300).run()
        out.append(chat.messages)
    return out


def main() -> None:
    """Write the measurements as JSON and print the short of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--artefact", type=Path, help="ask this one, as a user runs it")
    parser.add_argument("--cases", type=int, default=24, help="per task, distance and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2024])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if args.artefact is None:
            exact = Path(scratch) / "exact"
            convert(str(args.folder), exact, ConvertOptions(bits=16))
            model = Model.load(exact, compute="float32", kv_bits=32)
        else:
            model = Model.load(args.artefact)
        with model:
            result = {
                "samples": samples(model, 0.7),
                "greedy": samples(model, 0.0),
                "recall": recall(model, args.cases, args.seeds),
            }
    if args.artefact is None:
        result["validation"] = validation(Reader(args.folder))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for task, row in result["recall"]["table"].items():
        columns = [*map(str, DISTANCES), "seen wording", "unseen wording"]
        print(task, *(f"{c}: {row[c][0] / row[c][1]:.2f}" for c in columns if c in row))
    for seed, rows in result["recall"]["by_seed"].items():
        print("seed", seed, *(f"{task}: {a / b:.3f}" for task, (a, b) in rows.items()))
    for name, row in result.get("validation", {}).items():
        print(f"{name}: loss {row['loss']:.3f}, perplexity {row['perplexity']:.2f}")


if __name__ == "__main__":
    main()
