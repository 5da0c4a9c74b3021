"""Measure the speed of many chats together, and their waits while a prompt is read."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

from edgetok.engine.cached_tokens import CachedTokens
from edgetok.engine.engine import Engine
from edgetok.engine.generation import Generation
from edgetok.engine.sequence import Sequence as Answer
from edgetok.errors import OptionError
from edgetok.sampling.options import SamplingOptions

_POLL_S = 0.002
_ROWS = 1  # of the smallest chunk: each may give every chat a token
_LONGEST_PROMPT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSpeed:
    """Many chats at one depth.

    Attributes:
        chats: number of chats.
        depth: tokens in each chat's cache.
        threads: number of threads; None if unknown.
        total_tokens_per_s: of all chats together, median of the repeats.
        single_tokens_per_s: of one chat alone, median of the repeats.
        speedup: total by single.
        prompt_tokens: of the prompt that is read while the chats go on.
        max_wait_s: seconds that a token should take at most meanwhile, as the engine was told.
        wait_p95_ms: between two tokens of a chat meanwhile, 95th percentile.
        wait_max_ms: the longest.
        prompt_s: seconds until the prompt's first token.
        python_ms_per_step: median time between one step of all chats and the next, outside the
            backend.
    """

    chats: int
    depth: int
    threads: int | None
    total_tokens_per_s: float
    single_tokens_per_s: float
    speedup: float
    prompt_tokens: int
    max_wait_s: float
    wait_p95_ms: float
    wait_max_ms: float
    prompt_s: float
    python_ms_per_step: float

    def values(self) -> dict[str, float | int | None]:
        """Return the attributes by name."""
        return asdict(self)


def measure_chats(
    engine: Engine,
    options: SamplingOptions,
    *,
    chats: int,
    depth: int,
    decode_tokens: int,
    prompt_tokens: int | None,
    repeats: int,
) -> ChatSpeed:
    """Let chats of random tokens go on together, alone, and while a prompt is read.

    One chat is read; where caches can be saved, the others are copies in memory of their own, so
    that steps read as much memory as for different chats.

    Args:
        engine: of a model that nobody else uses meanwhile.
        options: how tokens are chosen.
        chats: how many, at least 1.
        depth: tokens in each chat's cache before the timed steps, at least 1.
        decode_tokens: timed tokens of each chat.
        prompt_tokens: of the prompt; None for 4096, or what the context holds.
        repeats: of the timed steps.

    Raises:
        OptionError: the context does not hold so much.
    """
    limit = engine.context_tokens
    prompt = min(_LONGEST_PROMPT, limit - 1) if prompt_tokens is None else prompt_tokens
    answer = decode_tokens + 2
    if min(chats, depth, decode_tokens, prompt, repeats) < 1:
        raise OptionError("chats, depth, decode and prompt tokens, repeats: expected at least 1")
    if max(depth + answer, prompt + 1) > limit:
        raise OptionError(
            f"{max(depth + answer, prompt + 1):,} tokens are to be measured, the context holds "
            f"{limit:,}; give a smaller --depth or --prompt-tokens"
        )
    talk = min(answer + prompt // _ROWS, limit - depth)
    rng = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        made: list[int] = rng.integers(0, engine.tokenizer.vocab_size, count).tolist()
        return made

    prompts = [tokens(depth)] * chats
    contexts = [CachedTokens(engine.backend, depth + talk) for _ in range(chats)]

    def begin(which: Sequence[int], length: int, priority: int) -> list[Generation]:
        chosen = options.with_changes({"max_tokens": length, "stop": ()})
        return [
            Generation(
                engine.stepper,
                Answer(
                    contexts[i], engine.tokenizer, prompts[i], chosen, frozenset(),
                    priority=priority,
                ),
            )
            for i in which
        ]  # fmt: skip

    single, total, python = [], [], []
    for repeat in range(repeats + 1):
        (alone,) = begin([0], decode_tokens + 1, 0)
        alone.run()
        if repeat == 0 and contexts[0].cache.capabilities.saves:
            contexts[0].cut(depth - 1)
            state = contexts[0].cache.save()
            for context in contexts[1:]:
                context.restore(contexts[0].tokens, state)
        # In the background, so that all are read before any goes on.
        together = begin(range(chats), decode_tokens + 1, 1)
        engine.stepper.gaps_s.clear()
        for one in together:
            one.start()
        for one in together:
            one.run()
        first = max(one.times[0] for one in together)
        last = max(one.times[-1] for one in together)
        if repeat:  # the first time reads the prompts and warms caches and clocks
            single.append(_rate(alone))
            total.append(chats * decode_tokens / (last - first))
            python.append(1e3 * statistics.median(engine.stepper.gaps_s or (0.0,)))
    waits, prompt_s = _waits(engine, begin(range(chats), talk, 0), tokens(prompt), options)
    return ChatSpeed(
        chats=chats,
        depth=depth,
        threads=engine.backend.capabilities.threads,
        total_tokens_per_s=statistics.median(total),
        single_tokens_per_s=statistics.median(single),
        speedup=statistics.median(total) / statistics.median(single),
        prompt_tokens=prompt,
        max_wait_s=engine.scheduler.wait_s,
        wait_p95_ms=1e3 * float(np.percentile(waits, 95)),
        wait_max_ms=1e3 * max(waits),
        prompt_s=prompt_s,
        python_ms_per_step=statistics.median(python),
    )


def _rate(one: Generation) -> float:
    return (len(one.times) - 1) / (one.times[-1] - one.times[0])


def _waits(
    engine: Engine, chats: Sequence[Generation], prompt: list[int], options: SamplingOptions
) -> tuple[list[float], float]:
    """Seconds between tokens of chats while a prompt is read, and until it is read."""
    for one in chats:
        one.start()
    while not all(len(one.times) > 1 for one in chats):
        time.sleep(_POLL_S)
    begin = engine.stepper.now()
    with engine.text(prompt, options.with_changes({"max_tokens": 1})) as reader:
        reader.run()
        end = reader.times[0]
    while not all(one.over or one.times[-1] > end for one in chats):
        time.sleep(_POLL_S)
    for one in chats:
        one.close()
    waits = [
        after - before
        for one in chats
        for before, after in pairwise(one.times)
        if after > begin and before < end
    ]
    if not waits:
        raise OptionError(
            "the chats were over before the prompt was read; give a smaller --prompt-tokens or a "
            "larger --context"
        )
    return waits, end - begin
