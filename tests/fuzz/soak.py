"""Use the bundled model for long, and badly: `make soak MINUTES=n`.

    python -m tests.fuzz.soak --minutes 10 [--seed 1]

One process after another loads the model and does random things: chats, answers that are aborted,
conversations that go two ways, batches, texts that share a beginning, closing the model while it
answers. Every second process is killed meanwhile; all share the folders for chats, prefixes and
kernels. Three things must hold: nothing fails, a greedy answer stays the same, and a process ends
with no more memory than it had after its first steps. The exit code is 1 where one does not.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

import edgetok
from edgetok.environment import read_settings

MODEL = Path(__file__).resolve().parents[2] / "models/default-4bit"
PROMPT = "Once upon a time there was a dog"
WORDS = ["dog", "cat", "tree", "Tom", "run", "red", "ü", "🙂", "<|im_end|>", "\n", ""]
OPTIONS = {"context": 512, "kv_budget": "2MB", "prefix_cache": "4MB"}
ROUND_S = 20.0
CHATS = 4
WARM_STEPS = 60
MOST_GROWN_BYTES = 48 << 20
KILLED = -9


class Soak:
    """Random steps with one model, which `reopen` replaces."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.model = edgetok.load(MODEL, **OPTIONS)  # type: ignore[arg-type]
        self.right = self._same()
        self.chats = [self.model.chat()]
        self.done = Counter[str]()

    def step(self) -> None:
        """Do one thing, and now and then see whether a greedy answer is still the same.

        Raises:
            AssertionError: it is not, or a conversation differs from its copy.
        """
        steps: list[Callable[[], None]] = [
            self.talk, self.abort, self.two_ways, self.batch, self.begin, self.reopen,
        ]  # fmt: skip
        (step,) = self.rng.choices(steps, [6, 4, 2, 2, 2, 1])
        step()
        self.done[step.__name__] += 1
        if self.rng.random() < 0.1:
            assert self._same() == self.right, "a greedy answer is not what it was"

    def talk(self) -> None:
        """One turn of a conversation."""
        chat = self.rng.choice(self.chats)
        chat.send(self._text(), max_tokens=self.rng.randrange(1, 20)).run()

    def abort(self) -> None:
        """Leave an answer after a few pieces: cancelled, closed or collected."""
        answer = self.rng.choice(self.chats).send(self._text())
        for _ in zip(range(self.rng.randrange(4)), answer, strict=False):
            pass
        self.rng.choice([answer.cancel, answer.close, int])()

    def two_ways(self) -> None:
        """Save a conversation; the copy says the same."""
        chat, copy = self.rng.choice(self.chats), self.model.chat()
        path = self.folder / f"{self.rng.randrange(8)}.json"
        chat.save(path)
        copy.load(path)
        assert copy.messages == chat.messages, "a saved conversation differs"
        text = self._text()
        one, other = (c.send(text, temperature=0.0, max_tokens=6).run() for c in (chat, copy))
        assert one.tokens == other.tokens, "a copy of a conversation says something else"
        self._keep(copy)

    def batch(self) -> None:
        """Several texts together."""
        prompts = [PROMPT + self._text() for _ in range(self.rng.randrange(2, 6))]
        assert len(self.model.generate_batch(prompts, max_tokens=8)) == len(prompts)

    def begin(self) -> None:
        """Begin a conversation."""
        self._keep(self.model.chat(system=PROMPT if self.rng.random() < 0.5 else None))

    def reopen(self) -> None:
        """Close the model while it answers, and load it again."""
        answer = self.rng.choice(self.chats).send(self._text())
        with suppress(edgetok.EdgetokError):
            next(answer, None)
            self.model.close()
            for _ in answer:
                pass
        self.model = edgetok.load(MODEL, **OPTIONS)  # type: ignore[arg-type]
        self.chats = [self.model.chat()]

    def _keep(self, chat: edgetok.Chat) -> None:
        self.chats.append(chat)
        if len(self.chats) > CHATS:
            self.chats.pop(self.rng.randrange(CHATS))

    def _text(self) -> str:
        return " ".join(["", *self.rng.choices(WORDS, k=self.rng.randrange(1, 40))])

    def _same(self) -> tuple[int, ...]:
        return self.model.generate(PROMPT, temperature=0.0, max_tokens=12).tokens


def _rss_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def run_round(folder: Path, seed: int, seconds: float) -> dict[str, int]:
    """Soak in this process; return the counts of steps, and bytes by which it has grown."""
    soak, until, warm = Soak(folder, seed), time.monotonic() + seconds, 0
    print("begun", flush=True)
    while time.monotonic() < until or sum(soak.done.values()) < WARM_STEPS + 1:
        soak.step()
        if sum(soak.done.values()) == WARM_STEPS:
            warm = _rss_bytes()
    soak.model.close()
    return {**soak.done, "grown_bytes": _rss_bytes() - warm}


def soak(minutes: float, seed: int, folder: Path, round_s: float = ROUND_S) -> list[str]:
    """Run rounds, two at least, and print what was done; return the faults."""
    faults: list[str] = []
    done, grown = Counter[str](), [0]
    cache = folder / "cache"
    cache.mkdir(mode=0o700)
    for path in read_settings().cache_dir.glob("*.o"):  # compiled before; the rest is of its own
        shutil.copy(path, cache)
    until, rounds, rng = time.monotonic() + 60 * minutes, 0, random.Random(seed)
    while rounds < 2 or time.monotonic() < until:
        words = ["--round", str(folder), "--seed", str(seed + rounds), "--seconds", str(round_s)]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.soak", *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"EDGETOK_CACHE_DIR": str(cache)},
        )  # fmt: skip
        assert process.stdout is not None
        kill = rounds % 2 == 0
        if process.stdout.readline() and kill:
            time.sleep(rng.random() * round_s)
            process.kill()
        out, err = process.communicate()
        rounds += 1
        if process.returncode == 0:
            counts = json.loads(out.splitlines()[-1])
            grown.append(counts.pop("grown_bytes"))
            done.update(counts)
        elif kill and process.returncode == KILLED:
            done["kills"] += 1
        else:
            last = (err.strip().splitlines() or [""])[-1]
            faults.append(f"seed {seed + rounds - 1} ended with {process.returncode}: {last:.200}")
    if max(grown) > MOST_GROWN_BYTES:
        faults.append(f"a process grew by {max(grown) / 1e6:.0f} MB")
    print(f"{rounds} processes, grown by at most {max(grown) / 1e6:.1f} MB")
    print("| step | times |\n|---|--:|")
    for name, times in sorted(done.items()):
        print(f"| {name.replace('_', ' ')} | {times:,} |")
    return faults


def main() -> None:
    """Parse the command line and soak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--round", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=ROUND_S, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.round:
        print(json.dumps(run_round(given.round, given.seed, given.seconds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        faults = soak(given.minutes, given.seed, Path(folder))
    print(*faults, sep="\n", file=sys.stderr)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
