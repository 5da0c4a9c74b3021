"""Random schemas on a real model: every answer that ends is valid, and reasoning is untouched.

    python benchmarks/quality/structured_output.py ARTEFACT --schemas 1000 --state campaign.json
    python benchmarks/quality/structured_output.py ARTEFACT --cost

Each schema is asked for with reasoning on and off and with tools on and off. The jsonschema package
validates answers and arguments of calls, formats included. Reasoning has to be, token by token,
that of the same prompt without a schema. Answers that a limit cut are counted apart: they say so.
What was counted so far is in the state file, and the same command goes on from there.
`--cost` measures the time of the grammar and of the masked choice as a share of a step.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import Counter, deque
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
from random_schemas import random_schema
from rich.progress import track

import edgetok
from edgetok.answer import ChatAnswer, begin_answer
from edgetok.cache.prefix_cache import PrefixCache
from edgetok.dialect.request import ChatRequest, Speaker
from edgetok.dialect.tool import Tool
from edgetok.errors import GrammarError
from edgetok.grammar.definition import Grammar
from edgetok.model import Model
from edgetok.sampling.constraint import Constraint, Mask
from edgetok.sampling.options import SamplingOptions
from edgetok.text.template import ChatTemplate

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}{# </think> #}"
)
REASONING_TOKENS = 24
TOGETHER = 48
SAVED = 16  # answers between two writings of the state
PROMPTS_BYTES = 128 << 20  # a schema's prompts are those of all its ways, and of the free answers


def campaign(
    model: Model, count: int, seed: int, most_tokens: int, seconds: float, state: Path | None
) -> Counter[str]:
    """Ask for each schema in each way, several at a time, until the time is over."""
    speaker = Speaker(ChatTemplate(TEMPLATE), model.tokenizer)
    asked = {"model": model.artefact.identity, "seed": seed, "most_tokens": most_tokens}
    told, first = begun(state, asked)
    kept = PrefixCache(model.artefact.identity, PROMPTS_BYTES, make=model.backend.new_cache)
    model.engine.prefixes = kept
    end = time.monotonic() + seconds
    jobs = [(number, way) for number in range(count) for way in range(4)]
    running: deque[Any] = deque()  # as one ends the next begins: steps with many rows cost less
    for done in track(range(first, len(jobs)), "asking"):
        while len(running) < TOGETHER and done + len(running) < len(jobs):
            number, way = jobs[done + len(running)]
            running.append(ask(model, speaker, random.Random(f"{seed} {number}"), way, most_tokens))
        take(running.popleft(), told)
        told["schemas"] = (done + 1) // 4
        over = time.monotonic() > end
        if state is not None and (over or (done + 1) % SAVED == 0 or done + 1 == len(jobs)):
            part = state.with_name(state.name + ".part")
            made_of = {"asked": asked, "jobs": done + 1, "told": told}
            part.write_text(json.dumps(made_of, indent=1, ensure_ascii=False))
            part.replace(state)  # whole or not at all
        if over:
            break
    return told


def take(asked: Any, told: Counter[str]) -> None:
    """Wait for what `ask` has begun, and count what comes of it."""
    told["asked"] += 1
    if isinstance(asked, GrammarError):
        told["refused"] += 1
        told[f"refused: {str(asked)[:80]}"] += 1
        return
    schemas, held, *free = asked
    judge(schemas, held, told)
    if free:
        compare(held, free[0], told)


def begun(state: Path | None, asked: dict[str, Any]) -> tuple[Counter[str], int]:
    """Return what an earlier run has counted, and with how many jobs."""
    if state is None or not state.exists():
        return Counter(), 0
    found = json.loads(state.read_text())
    if found["asked"] != asked:
        raise SystemExit(f"{state}: of another campaign, {found['asked']}; remove it, or name one")
    return Counter(found["told"]), found["jobs"]


def ask(
    model: Model,
    speaker: Speaker,
    rng: random.Random,
    way: int,
    most_tokens: int,
) -> Any:
    """Begin an answer, and with reasoning one without schema and tools to compare it with."""
    thinking, tools = bool(way & 1), bool(way & 2)
    schema, other = random_schema(rng), random_schema(rng, 2)
    request = ChatRequest(
        messages=[{"role": "user", "content": f"Write an example of: {json.dumps(schema)[:300]}"}],
        grammar=Grammar.json_schema(schema),
        reasoning_tokens=REASONING_TOKENS,
        variables={"enable_thinking": thinking},
    )
    if tools:
        listed = (Tool(name="keep", parameters=other), Tool(name="now"))
        choice = rng.choice(["auto", "required", "keep"])
        request = replace(request, tools=listed, tool_choice=choice)
    changes: dict[str, Any] = {"temperature": rng.choice([0.0, 0.8, 1.5]), "top_k": 0}
    options = SamplingOptions(seed=rng.randint(0, 1 << 30), max_tokens=most_tokens, **changes)
    try:
        held = begin_answer(model.engine, speaker, request, options, priority=1)
    except GrammarError as error:
        return error
    made = [{"": schema, "keep": other, "now": Tool(name="now").parameters}, held]
    if thinking:
        # Tools change the prompt, so the free answer sees them and need not call them.
        free = replace(request, grammar=None, tool_choice="auto")
        if tools:
            prompt = speaker.prompt(request)
            plain = replace(free, tools=(), messages=[{"role": "user", "content": ""}])
            made.append(_free(model, speaker, prompt, plain, options))
        else:
            made.append(begin_answer(model.engine, speaker, free, short(options), priority=1))
    for answer in made[1:]:
        answer.start()
    return made


def short(options: SamplingOptions) -> SamplingOptions:
    """Options of an answer of which nothing but the reasoning is looked at."""
    return options.with_changes({"max_tokens": REASONING_TOKENS + 12})


def _free(
    model: Model, speaker: Speaker, prompt: str, request: ChatRequest, options: SamplingOptions
) -> ChatAnswer:
    """An answer to a given prompt that only the budget of its reasoning restricts."""
    from edgetok.answer import answer_in

    tokens = model.tokenizer.encode(prompt, special=False)
    context = model.engine.room(tokens, options)
    given = (prompt, tokens)
    return answer_in(model.engine, speaker, context, given, request, short(options), priority=1)


def judge(schemas: dict[str, Any], answer: ChatAnswer, told: Counter[str]) -> None:
    """Validate an answer that has ended."""
    try:
        result = answer.run()
    except GrammarError as error:
        told["failed"] += 1
        told[f"failed: {str(error)[:120]}"] += 1
        return
    told["tokens"] += len(result.tokens)
    if not result.complete:
        told[f"cut ({result.finish})"] += 1
        return
    told["finished"] += 1
    found = [(call.name, call.arguments) for call in result.tool_calls] or [("", result.text)]
    told["calls"] += len(result.tool_calls)
    for name, text in found:
        schema = schemas[name]
        try:
            validate(schema, json.loads(text))
        except (ValueError, jsonschema.ValidationError) as error:
            word = "valid for the standards, not for Python" if _to_the_letter(schema, text) else ""
            told[word or "INVALID"] += 1
            print(f"{word or 'INVALID'} {name!r}: {json.dumps(schema)}\n{text}", flush=True)
            print(str(error)[:300], flush=True)


def validate(schema: dict[str, Any], value: object) -> None:
    """Raise jsonschema.ValidationError unless a value matches, formats included."""
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)


def _to_the_letter(schema: dict[str, Any], text: str) -> bool:
    """Return whether an answer matches where Python has limits that the standards have not.

    JSON's numbers have any precision: 40.0000000000000003 is above 40, but not as a float. RFC 3339
    has the year 0000, a leap year as 0004 is; Python's dates begin with the year 1.
    """
    plain = re.sub(r'"0000(-\d\d-\d\d["T])', r'"0004\1', text)
    try:
        exact = json.loads(json.dumps(schema), parse_float=Decimal)
        validate(exact, json.loads(plain, parse_float=Decimal))
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def compare(held: ChatAnswer, free: ChatAnswer, told: Counter[str]) -> None:
    """Reasoning is that of the same prompt without a schema.

    But for two things that a schema cannot allow: an answer that ends before its reasoning does,
    and bytes that are no character. The reasoning is the same up to there.
    """
    result = free.run()
    alone, with_schema = result.reasoning, held.result.reasoning
    told["reasoning compared"] += 1
    if alone == with_schema:
        return
    ended = result.finish == "stop" and not result.text and not result.tool_calls
    broken = alone.find("\ufffd")
    if ended and with_schema.startswith(alone):
        told["reasoning the same, where without a schema the answer ended in it"] += 1
    elif broken >= 0 and with_schema.startswith(alone[:broken]):
        told["reasoning the same up to bytes that are no character"] += 1
    else:
        told["REASONING CHANGED"] += 1
        print(f"REASONING CHANGED ({result.finish})\n{alone!r}\n{with_schema!r}", flush=True)


class Timed:
    """A constraint that adds up what it takes."""

    def __init__(self, inner: Constraint) -> None:
        """Begin at 0."""
        self._inner, self.seconds = inner, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def mask(self) -> Mask | None:
        """Time it."""
        began = time.perf_counter()
        mask = self._inner.mask()
        self.seconds += time.perf_counter() - began
        return mask

    def accept(self, token: int) -> None:
        """Time it."""
        began = time.perf_counter()
        self._inner.accept(token)
        self.seconds += time.perf_counter() - began

    @property
    def complete(self) -> bool:
        """Time it."""
        began = time.perf_counter()
        complete = self._inner.complete
        self.seconds += time.perf_counter() - began
        return complete

    @property
    def ended(self) -> bool:
        """Time it."""
        began = time.perf_counter()
        ended = self._inner.ended
        self.seconds += time.perf_counter() - began
        return ended


def cost(model: Model, runs: int) -> None:
    """Print the grammar's share of a step and the choice's time with and without a mask."""
    options = SamplingOptions(temperature=0.8, top_k=40, seed=1, max_tokens=120)
    prompt = model.tokenize("A list of people as JSON:\n")
    person = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "age", "tags"],
    }
    schema = Grammar.json_schema({"type": "array", "items": person, "minItems": 9})
    model.engine.constraint(schema)
    shares = []
    for _ in range(runs):
        timed = Timed(model.engine.constraint(schema))
        result = model.engine.text(prompt, options, constraint=timed).run()
        shares.append(timed.seconds / len(result.tokens) / (result.stats.decode_s / 119))
    print(
        f"grammar: {np.median(shares):.2%} of a step (from {min(shares):.2%} to {max(shares):.2%})"
    )
    chooser = model.backend.chooser(options)
    logits = model.backend.forward(model.backend.new_cache(64), np.array(prompt, np.int32))
    mask = model.engine.constraint(Grammar.json_schema({"type": "string"})).mask()
    step = result.stats.decode_s / 119
    if chooser is not None:
        for name, given in (("without", None), ("with", mask)):
            began = time.perf_counter()
            for i in range(300):
                chooser.choose(logits, 1, i, None, given)
            taken = (time.perf_counter() - began) / 300
            print(f"choice {name} a mask: {taken * 1e6:.0f} us, {taken / step:.2%} of a step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artefact")
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=250)
    parser.add_argument("--seconds", type=float, default=1e9, help="end after this time")
    parser.add_argument("--state", type=Path, help="file with what was counted so far")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cost", action="store_true")
    arguments = parser.parse_args()
    with edgetok.load(arguments.artefact, threads=arguments.threads) as model:
        if arguments.cost:
            cost(model, 3)
            return
        told = campaign(
            model,
            arguments.schemas,
            arguments.seed,
            arguments.max_tokens,
            arguments.seconds,
            arguments.state,
        )
    for name, number in sorted(told.items()):
        print(f"{name}: {number:,}")
    raise SystemExit(bool(told["INVALID"] or told["REASONING CHANGED"] or told["failed"]))


if __name__ == "__main__":
    main()
