"""The API that an app uses: messages, tools, tokens with log-probabilities, scores, limits."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgetok
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.model import Model
from tests.fake import fake_model
from tests.tiny import load_reference, tiny_checkpoint

TOOLS_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    "{% if shout is defined %}{{ shout }}{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
HELLO = [{"role": "user", "content": "hello"}]
TEXT = "the small dog sat on the mat 🙂 and ran"


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return fake_model(tmp_path / "m")


# Messages and tools


def test_chat_answers_messages_and_keeps_nothing(model: Model) -> None:
    talk = [{"role": "system", "content": "sys"}, *HELLO]
    first = model.chat(talk)
    assert (first.text, first.finish) == ("sys:1:HELLO!", "stop")
    assert model.chat(talk).tokens == first.tokens
    longer = [*talk, {"role": "assistant", "content": first.text}, {"role": "user", "content": "b"}]
    assert model.chat(longer).text == "sys:2:B!"
    stream = model.stream_chat(longer, max_tokens=5)
    assert "".join(stream) == "sys:2"
    assert stream.result.finish == "length"


def test_a_chat_object_says_the_same(model: Model) -> None:
    chat = model.new_chat(system="sys")
    assert chat.send("hello").run().tokens == model.chat(chat.messages[:2]).tokens


def test_tools_and_variables_reach_the_template(tmp_path: Path) -> None:
    seen: list[str] = []

    def rule(tokens: list[int]) -> int:
        seen.append(decode(tokens))
        return 257

    model = fake_model(tmp_path / "m", rule=rule, template=TOOLS_TEMPLATE)
    decode: Any = lambda tokens: model.tokenizer.decode(tokens, special=True)  # noqa: E731
    model.chat(HELLO, tools=[TOOL], chat_template_kwargs={"shout": "AH"})
    assert '"name": "clock"' in seen[-1]
    assert seen[-1].endswith("<|im_start|>assistant\nAH")
    model.chat(HELLO)
    assert "clock" not in seen[-1]
    model.chat(HELLO, tools=[])
    assert "clock" not in seen[-1]


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else "x"


def test_without_messages_it_is_a_new_conversation(model: Model) -> None:
    chat = model.chat(system="sys", max_tokens=5)
    assert isinstance(chat, edgetok.Chat)
    assert chat.send("hello").run().text == "sys:1:HELLO!"[:5]
    assert [message["content"] for message in chat.messages] == ["sys", "hello", "sys:1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"messages": "hello"}, "messages is a str, expected a list"),
        ({"messages": HELLO[0]}, "messages is a dict, expected a list"),
        ({"messages": None, "tools": []}, "messages is None"),
        ({"progress": print}, "messages is None"),
        ({"max_token": 9}, "did you mean max_tokens"),
        ({"messages": []}, "messages is empty"),
        ({"messages": ["hello"]}, r"messages\[0\] is a str, expected an object"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\] has the role None"),
        ({"messages": [{"role": "user", "content": b"x"}]}, r"messages\[0\].content is a bytes"),
        ({"messages": [{"role": "user", "content": 3}]}, "content is an int"),
        ({"messages": [{"role": "user", "content": {1, 2}}]}, "content is a set"),
        ({"messages": [{"role": "user", 1: "x"}]}, "key 1 is an int"),
        ({"messages": [{"role": "user", "content": nested(40)}]}, "nested more than 32 deep"),
        ({"messages": HELLO, "tools": TOOL}, "tools is a dict"),
        ({"messages": HELLO, "tools": [print]}, r"tools\[0\] is a builtin"),
        ({"messages": HELLO, "chat_template_kwargs": {"messages": []}}, "must not hold 'messages'"),
        ({"messages": HELLO, "chat_template_kwargs": 3}, "is an int"),
        ({"messages": HELLO, "max_tokens": "9"}, "max_tokens is '9'"),
        ({"messages": HELLO, "max_token": 9}, "did you mean max_tokens"),
    ],
)
def test_wrong_arguments_of_chat(model: Model, arguments: Any, message: str) -> None:
    with pytest.raises(edgetok.OptionError, match=message):
        model.chat(**arguments)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (b"hello", "the prompt is a bytes"),
        (bytearray(b"hello"), "the prompt is a bytearray"),
        (1.5, "the prompt is a float"),
        (7, "the prompt is an int"),
        (None, "the prompt is None"),
        ({"a": 1}, "the prompt is a dict"),
        ([1.5], r"prompt\[0\] is a float"),
        ([1, True], r"prompt\[1\] is a bool"),
        (["a"], r"prompt\[0\] is a str"),
        (np.array([[1, 2]]), r"prompt\[0\] is a ndarray"),
        (np.array([1.0]), r"prompt\[0\] is a float64"),
        ([-1], "token -1 in the prompt"),
        ([258], "token 258 in the prompt, expected 0 to 257"),
        ([1 << 80], "in the prompt"),
    ],
)
def test_prompts_of_another_kind(model: Model, prompt: Any, message: str) -> None:
    for ask in (model.generate, model.stream, model.score, lambda p: model.generate_batch([p])):
        with pytest.raises(edgetok.OptionError, match=message):
            ask(prompt)


def test_arrays_and_other_iterables_of_ids_are_prompts(model: Model) -> None:
    ids = model.tokenize("abc")
    same = {
        model.generate(given, max_tokens=3).tokens
        for given in ("abc", ids, tuple(ids), np.array(ids), iter(ids))
    }
    assert len(same) == 1


def test_other_arguments_of_another_kind(model: Model, tmp_path: Path) -> None:
    calls: list[Any] = [
        lambda: edgetok.load(3.5),  # type: ignore[arg-type]
        lambda: edgetok.load(tmp_path, thread=2),  # type: ignore[call-arg]
        lambda: edgetok.load(tmp_path, kv_budget=1.5),  # type: ignore[arg-type]
        lambda: model.tokenize(b"x"),  # type: ignore[arg-type]
        lambda: model.tokenize(3),  # type: ignore[arg-type]
        lambda: model.new_chat(system=3),  # type: ignore[arg-type]
        lambda: model.new_chat().send(b"x"),  # type: ignore[arg-type]
        lambda: model.new_chat().send(None),  # type: ignore[arg-type]
        lambda: model.generate_batch("abc"),
        lambda: model.generate_batch(3),  # type: ignore[arg-type]
        lambda: model.generate("x", stop=3),  # type: ignore[arg-type]
        lambda: model.generate("x", seed=1.0),  # type: ignore[arg-type]
        lambda: model.generate("x", logprobs=True),
        lambda: model.generate("x", logprobs=1001),
        lambda: model.generate("x", max_seconds=-1.0),
        lambda: model.score("abc", logprobs="1"),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(edgetok.OptionError):
            call()


# Tokens


def test_tokens_come_one_by_one_with_the_text_that_they_add(model: Model) -> None:
    stream = model.stream_chat([{"role": "user", "content": "a🙂b"}], logprobs=2)
    tokens = list(stream.tokens())
    result = stream.result
    assert tuple(token.id for token in tokens) == result.tokens
    assert "".join(token.text for token in tokens) == result.text == "1:A🙂B!"
    # four bytes of an emoji are four tokens: its text comes with the last
    place = [token.text for token in tokens].index("🙂")
    assert [token.text for token in tokens[place - 3 : place]] == ["", "", ""]
    assert (tokens[-1].id, tokens[-1].text) == (257, "")
    assert result.logprobs == tuple(tokens)
    for token in tokens:
        # the fake's logits: 20 for the chosen token, 0 for all others
        expected = 20 - math.log(math.exp(20) + 257)
        assert token.logprob == pytest.approx(expected, abs=1e-9)
        assert [i for i, _ in token.top_logprobs] == [token.id, 0 if token.id else 1]
        assert token.top_logprobs[1][1] == pytest.approx(expected - 20, abs=1e-9)


def test_tokens_without_logprobs_and_in_asyncio(model: Model) -> None:
    async def read() -> list[edgetok.Token]:
        async with model.stream_chat(HELLO) as stream:
            return [token async for token in stream.tokens()]

    tokens = asyncio.run(read())
    assert tokens == list(model.stream_chat(HELLO).tokens())
    assert {token.logprob for token in tokens} == {None}
    assert model.chat(HELLO).logprobs is None


def test_pieces_and_tokens_of_one_answer(model: Model) -> None:
    stream = model.stream_chat(HELLO)
    first = next(stream)
    rest = list(stream.tokens())
    assert first + "".join(token.text for token in rest) == "1:HELLO!"
    assert len(rest) == len(stream.result.tokens) - 1


def test_a_stop_text_is_in_no_token(model: Model) -> None:
    stream = model.stream_chat([{"role": "user", "content": "abcd"}], stop=("CD",))
    assert "".join(token.text for token in stream.tokens()) == "1:AB"
    assert stream.result.finish == "stop"


def test_logprobs_do_not_depend_on_sampling(model: Model) -> None:
    plain = model.chat(HELLO, logprobs=1).logprobs
    changed = model.chat(
        HELLO, logprobs=1, temperature=0.01, top_k=1, seed=1, presence_penalty=0.1
    ).logprobs
    assert plain == changed


# Progress, limits, what is left


def test_progress_of_reading_the_prompt(model: Model) -> None:
    told: list[tuple[int, int]] = []
    prompt = "x" * 100
    model.generate(prompt, max_tokens=1, progress=lambda done, total: told.append((done, total)))
    assert told == [
        (0, 100),
        (16, 100),
        (32, 100),
        (48, 100),
        (64, 100),
        (80, 100),
        (96, 100),
        (100, 100),
    ]
    told.clear()
    model.chat(HELLO, progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]

    def fail(done: int, total: int) -> None:
        raise ZeroDivisionError(f"{done} of {total}")

    with pytest.raises(ZeroDivisionError, match="0 of 100"):
        model.generate(prompt, progress=fail)
    assert model.generate(prompt, max_tokens=1).tokens  # the engine goes on


def test_progress_may_cancel(model: Model) -> None:
    stream = model.stream("x" * 100, progress=lambda done, total: stream.cancel())
    assert (stream.run().finish, stream.result.tokens) == ("cancelled", ())


def test_a_time_limit_ends_reading_and_writing(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "m", rule=lambda tokens: 65, step_s=0.02)
    result = model.generate("x", max_seconds=0.2)
    assert result.finish == "time"
    assert 1 < len(result.tokens) < 40
    assert len(result.text) == len(result.tokens)
    result = model.generate("x" * 900, max_seconds=0.1)  # 57 steps
    assert (result.finish, result.tokens) == ("time", ())
    assert model.generate("x", max_seconds=60, max_tokens=3).finish == "length"


def test_tokens_left(model: Model) -> None:
    result = model.generate("x" * 100, max_tokens=7)
    assert result.tokens_left == 1000 - 107
    assert model.generate("x" * 998).tokens_left == 0


# Against transformers


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def exact(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A tiny model at 16 bits with float32 arithmetic, and transformers' own."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = tiny_checkpoint(request.param, folder / "hf")
    out = folder / "artefact"
    convert(str(checkpoint), out, ConvertOptions(bits=16, method="rtn", reference_tokens=0))
    with edgetok.load(out, compute="float32", kv_bits=32, threads=1) as model:
        yield model, load_reference(checkpoint)


def theirs(reference: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        logits = reference(torch.tensor([ids])).logits[0].double()
    return torch.log_softmax(logits, -1).numpy()


def test_score_equals_transformers(exact: Any) -> None:
    model, reference = exact
    ids = model.tokenize(TEXT)
    expected = theirs(reference, ids)
    score = model.score(TEXT, logprobs=3)
    assert [token.id for token in score.tokens] == ids
    assert "".join(token.text for token in score.tokens) == TEXT
    assert score.tokens[0].logprob is None
    assert score.scored == len(ids) - 1
    for place, token in enumerate(score.tokens[1:], start=1):
        row = expected[place - 1]
        assert token.logprob == pytest.approx(row[token.id], abs=2e-4)
        values = [value for _, value in token.top_logprobs]
        np.testing.assert_allclose(values, np.sort(row)[::-1][:3], atol=2e-4)
    total = sum(expected[i - 1, ids[i]] for i in range(1, len(ids)))
    assert score.logprob == pytest.approx(total, abs=2e-4 * len(ids))
    assert score.perplexity == pytest.approx(math.exp(-total / (len(ids) - 1)), rel=1e-3)


def test_score_after_a_prompt(exact: Any) -> None:
    model, reference = exact
    prompt = "the small dog sat"
    whole, ids = model.score(TEXT), model.tokenize(TEXT)
    after = model.score(TEXT[len(prompt) :], prompt=prompt)
    count = after.scored
    assert count == len(after.tokens) < len(ids)
    assert [token.id for token in after.tokens] == ids[-count:]
    for token, same in zip(after.tokens, whole.tokens[-count:], strict=True):
        assert token.logprob == pytest.approx(same.logprob, abs=1e-5)
    assert model.score(ids[5:], prompt=ids[:5]).logprob == pytest.approx(
        sum(theirs(reference, ids)[i - 1, ids[i]] for i in range(5, len(ids))), abs=2e-3
    )


def test_logprobs_of_an_answer_equal_transformers(exact: Any) -> None:
    model, reference = exact
    for changes in ({"temperature": 0.0}, {"temperature": 1.5, "seed": 3, "top_k": 0}):
        result = model.generate("the small", max_tokens=12, logprobs=4, **changes)
        ids = [*model.tokenize("the small"), *result.tokens]
        expected = theirs(reference, ids)
        first = len(ids) - len(result.tokens)
        for place, token in enumerate(result.logprobs, start=first):
            assert token.logprob == pytest.approx(expected[place - 1, token.id], abs=2e-4)
            assert len(token.top_logprobs) == 4
            for other, value in token.top_logprobs:
                assert value == pytest.approx(expected[place - 1, other], abs=2e-4)


def test_what_cannot_be_scored(exact: Any) -> None:
    model, _ = exact
    with pytest.raises(edgetok.OptionError, match="no token to score"):
        model.score("")
    with pytest.raises(edgetok.OptionError, match="no token to score"):
        model.score([5])
    assert model.score([5], prompt=[4]).scored == 1
    with pytest.raises(edgetok.ContextError, match="the context holds 64"):
        model.score(list(range(4, 104)))


# What is printed


def test_reprs(model: Model) -> None:
    assert repr(model) == "<edgetok.Model 'm' on fake, 1000 tokens>"
    chat = model.new_chat()
    assert repr(chat) == "<edgetok.Chat of 0 messages, 0 of 1000 tokens>"
    answer = chat.send("hello")
    assert repr(answer) == "<edgetok.Generation of 0 tokens, not ended>"
    answer.run()
    assert repr(answer) == "<edgetok.Generation of 9 tokens, stop>"
    assert repr(answer.result) == "Result(text='1:HELLO!', tokens=9, finish='stop')"
    assert "2 messages" in repr(chat)
    assert len(repr(model.chat([{"role": "user", "content": "x" * 300}]))) < 150
    assert repr(model.score("abc")).startswith("Score(logprob=-")
    model.close()
    assert repr(model) == "<edgetok.Model 'm' on fake, closed>"
