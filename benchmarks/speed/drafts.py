"""Speed of answers with drafts beside the same answers without, task by task.

    python benchmarks/speed/drafts.py ARTEFACT --threads 1

Both models take turns; the tokens must be equal. Times are of the tokens after the first, the least
of all repeats: CPU time of all threads, and wall time in brackets. A ratio above 1 is faster with
drafts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import edgetok
from edgetok.engine.result import Result

TEXT = (
    "The town of Aldmere lies on the river Wend, twelve miles north of the coast. It was founded "
    "in 1342 by weavers who had left the city of Carrow after the great fire. Today it has about "
    "8,400 inhabitants, a market on Thursdays, and a small museum of textile machines. The bridge "
    "over the Wend was rebuilt in 1876 by the engineer Maria Hollis, whose drawings are kept in "
    "the museum."
)
CODE = """class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def get_x(self):
        return self.x

    def set_x(self, x):
        self.x = x
"""
TASKS = {
    "edit": "Repeat the following text exactly, but write 1343 instead of 1342.\n\n" + TEXT,
    "summary": "Summarise this text in two sentences, using its words.\n\n" + TEXT,
    "code": "Add y and z to this class, with getters and setters. Write all of it.\n\n" + CODE,
    "extraction": "List all names of places and persons, each with its sentence.\n\n" + TEXT,
    "explanation": "Why is the sky blue? Explain it to a child.",
    "story": "Tell me a story about a fox who learns to paint.",
}


def timed(model: edgetok.Model, prompt: str, **sampling: object) -> tuple[Result, float, float]:
    """An answer, and the CPU and wall seconds of its tokens after the first."""
    stream = model.new_chat(**sampling).send(prompt)  # type: ignore[arg-type]
    for _ in stream:
        if len(stream.times) > 0:
            break
    cpu, wall = time.process_time(), time.perf_counter()
    result = stream.run()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    models = [
        edgetok.load(args.artefact, threads=args.threads, speculate=speculate)
        for speculate in (False, True)
    ]
    print("task         temperature  tokens  drafted  accepted  ratio (wall)")
    for temperature in (0.0, 0.7):
        for task, prompt in TASKS.items():
            least = [[float("inf")] * 2 for _ in models]
            results = []
            for _ in range(args.repeats):
                for times, model in zip(least, models, strict=True):
                    result, cpu, wall = timed(
                        model, prompt, temperature=temperature, seed=5, max_tokens=args.tokens
                    )
                    times[:] = min(times[0], cpu), min(times[1], wall)
                    results.append(result)
            assert len({result.tokens for result in results}) == 1, "answers differ"
            stats = results[-1].stats
            cpu, wall = (plain / drafted for plain, drafted in zip(*least, strict=True))
            print(
                f"{task:12} {temperature:11} {stats.generated_tokens:7} {stats.drafted_tokens:8} "
                f"{stats.accepted_tokens:9}  {cpu:.2f} ({wall:.2f})",
                flush=True,
            )
    costs = models[1].engine.stepper._scheduler.costs._decode_s
    print("ms by rows:", {rows: round(1e3 * s, 2) for rows, s in sorted(costs.items())})
    for model in models:
        model.close()


if __name__ == "__main__":
    main()
