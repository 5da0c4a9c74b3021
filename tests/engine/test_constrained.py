"""Answers held by a grammar, beside others, in the engine over a model that answers by a rule."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from edgetok.errors import GrammarError
from edgetok.model import Model
from edgetok.sampling.options import SamplingOptions
from edgetok.sampling.sampler import Sampler
from tests.fake import END, fake_model

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
}


def chained(tokens: list[int]) -> int:
    return (sum((i + 1) * token for i, token in enumerate(tokens)) * 31 + 7) % 64 + 20


@pytest.fixture
def model(tmp_path: Path) -> Any:
    with fake_model(tmp_path, rule=chained, context_tokens=4000) as made:
        yield made


def test_an_answer_matches_and_ends_with_its_last_token(model: Model) -> None:
    for seed in range(5):
        result = model.generate("hello", schema=SCHEMA, temperature=5.0, seed=seed, max_tokens=300)
        if result.finish == "stop":
            jsonschema.validate(json.loads(result.text), SCHEMA)
            assert result.complete
            assert result.text.endswith("}")
            assert result.tokens[-1] != END  # nothing else could follow, so no step was spent
        else:
            assert (result.finish, result.complete) == ("length", False)


def test_choice_and_regex(model: Model) -> None:
    assert model.generate("a", grammar=["yes", "no"]).text in ("yes", "no")
    result = model.generate("a", grammar={"regex": "(ab){3}"})
    assert (result.text, result.finish, result.complete) == ("ababab", "stop", True)


def test_an_answer_cut_by_its_limit_says_so(model: Model) -> None:
    result = model.generate("a", grammar=["abcdef"], max_tokens=3)
    assert (result.text, result.finish, result.complete) == ("abc", "length", False)
    # One that is complete but could go on is both.
    result = model.generate("a", grammar={"regex": "a+"}, max_tokens=3)
    assert (result.text, result.finish, result.complete) == ("aaa", "length", True)
    assert model.generate("a", max_tokens=3).complete


def test_a_cancelled_answer_is_not_complete(model: Model) -> None:
    stream = model.stream("a", grammar=["abcdef"])
    assert next(stream) == "a"
    stream.cancel()
    assert list(stream) == []
    assert (stream.result.finish, stream.result.complete) == ("cancelled", False)


def test_others_in_the_batch_have_the_same_tokens(model: Model) -> None:
    prompts = [[40 + i, 50, 60 + i] for i in range(6)]
    alone = [model.generate(prompt, max_tokens=40).tokens for prompt in prompts]

    async def run() -> list[tuple[int, ...]]:
        plain = [model.stream(prompt, max_tokens=40) for prompt in prompts]
        held = [
            model.stream(prompt, grammar={"regex": "[a-c]{40}"}, max_tokens=40)
            for prompt in prompts
        ]

        async def read(answer: Any) -> Any:
            async for _ in answer:
                pass
            return answer.result

        results = await asyncio.gather(*map(read, plain + held))
        assert all(set(result.text) <= set("abc") for result in results[6:])
        assert all(result.complete for result in results[6:])
        return [result.tokens for result in results[:6]]

    assert asyncio.run(run()) == alone
    backend: Any = model.backend
    assert max(map(len, backend.computed)) == 12


def test_a_batch_holds_each_answer(model: Model) -> None:
    results = model.generate_batch(["a", "b", "c"], grammar={"regex": "[xyz]{5}"})
    assert [len(result.text) for result in results] == [5, 5, 5]
    assert all(set(result.text) <= set("xyz") for result in results)


def test_a_failure_ends_its_own_answer_alone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgetok.grammar.constraint import GrammarConstraint

    class Panic(BaseException):
        pass

    class Matcher:
        def __init__(self, real: Any) -> None:
            self.real, self.masks = real, 0

        def unsafe_compute_mask_ptr(self, *args: Any) -> None:
            self.masks += 1
            if self.masks == 4:
                raise Panic("index out of bounds")
            self.real.unsafe_compute_mask_ptr(*args)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    beside = model.stream([40, 50, 60], max_tokens=30)
    alone = model.generate([40, 50, 60], max_tokens=30).tokens
    init = GrammarConstraint.__init__
    monkeypatch.setattr(
        GrammarConstraint, "__init__", lambda self, m, *rest: init(self, Matcher(m), *rest)
    )
    broken = model.stream("a", grammar={"regex": "[a-c]{40}"})
    broken.start()
    beside.start()
    with pytest.raises(GrammarError, match=r"the grammar failed, .*: index out of bounds"):
        broken.run()
    assert len(broken.result.text) == 3
    assert set(broken.result.text) <= set("abc")
    assert not broken.result.complete
    assert beside.run().tokens == alone


def test_stop_texts_still_end_an_answer(model: Model) -> None:
    result = model.generate("a", grammar={"regex": "abcdef"}, stop=("cd",))
    assert (result.text, result.finish, result.complete) == ("ab", "stop", False)


def test_chats_hold_one_answer(tmp_path: Path) -> None:
    with fake_model(tmp_path) as model:
        chat = model.new_chat()
        assert chat.send("hi", grammar=["yes", "no"]).run().text in ("yes", "no")
        assert chat.send("hi").run().text == "2:HI!"
        with pytest.raises(GrammarError):
            chat.send("hi", schema={"not": {}})
        assert len(chat.messages) == 4


def test_both_options_conflict(model: Model) -> None:
    with pytest.raises(GrammarError, match="conflicts with"):
        model.generate("a", schema={}, grammar=["a"])


def test_a_mask_changes_only_what_it_does_not_allow() -> None:
    rng = np.random.default_rng(2)
    for case in range(60):
        size = int(rng.integers(2, 3000))
        allowed = rng.random(size) < (0.01, 0.5, 1.0)[case % 3]
        allowed[rng.integers(size)] = True
        mask = np.packbits(np.pad(allowed, (0, -size % 32)), bitorder="little").view(np.uint32)
        logits = rng.standard_normal(size).astype(np.float32) * 4
        changes: dict[str, Any] = [
            {"temperature": 0.0},
            {"temperature": 1.3, "top_k": 0, "top_p": 1.0},
            {"temperature": 1.0, "top_k": 5, "top_p": 0.9},
            {"temperature": 0.8, "top_k": 0, "top_p": 0.7, "min_p": 0.1, "presence_penalty": 1.0},
        ][case % 4]
        options = SamplingOptions(seed=case, **changes)
        held, free = Sampler(options, size), Sampler(options, size)
        for _ in range(5):
            token, plain = held.sample(logits, mask), free.sample(logits)
            assert allowed[token]
            if allowed[plain] and not options.presence_penalty:
                assert token == plain


def test_drawing_again_keeps_the_probabilities() -> None:
    logits = np.log(np.array([0.4, 0.1, 0.3, 0.2], np.float32))
    mask = np.array([0b1010], np.uint32)
    drawn = [
        Sampler(SamplingOptions(seed=seed, temperature=1.0, top_k=0, top_p=1.0), 4).sample(
            logits, mask
        )
        for seed in range(6000)
    ]
    assert set(drawn) == {1, 3}
    assert drawn.count(1) / 6000 == pytest.approx(1 / 3, abs=0.025)  # four standard deviations
