"""Hybrids whose template opens an answer with what the history does not keep.

The next turn's prompt parts from the one before it where the answer was opened, and a recurrent
state goes back to snapshots alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgetok.cache.prefix_cache import LEAST_TOKENS
from edgetok.cache.recurrent import SNAPSHOT_GAP_TOKENS
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.dialect.request import Speaker
from edgetok.engine.costs import Costs
from edgetok.engine.draft_model import DraftModel
from edgetok.model import Model
from edgetok.sampling.options import SamplingOptions
from tests.tiny import FAMILIES, tiny_checkpoint

KEPT_OPTIONS: dict[str, Any] = {"kv_policy": "none", "context": 2048, "threads": 1}
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 30}
LOOP = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
OPENED = "{% if add_generation_prompt %}<|assistant|>OPENING{% endif %}"
OPENINGS = {"nothing": "", "empty thought": "<think>\n\n</think>\n\n", "thought": "<think>\n"}
LONG = "they ran to the sea. " * 60
QUESTIONS = [3 * "the dog sat on the mat and then ran. ", LONG, "the mat and then", LONG]
HYBRIDS = [family for family in ("qwen3_5_text", "qwen3_next", "lfm2") if family in FAMILIES]
LOST = [(family, opening) for family in HYBRIDS for opening in ("empty thought", "thought")]
KEPT = [(family, "nothing") for family in HYBRIDS]
ATTENTION = [("qwen3", opening) for opening in OPENINGS]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Make an artefact of a family and an opening, once."""
    known: dict[tuple[str, str], Path] = {}

    def make(family: str, opening: str) -> Path:
        if (family, opening) not in known:
            root = tmp_path_factory.mktemp("opened")
            folder = tiny_checkpoint(family, root / "model", max_position_embeddings=2048)
            path = folder / "tokenizer_config.json"
            settings = json.loads(path.read_text())
            settings["chat_template"] = LOOP + OPENED.replace("OPENING", OPENINGS[opening])
            path.write_text(json.dumps(settings))
            options = ConvertOptions(bits=8, method="rtn", reference_tokens=0)
            convert(str(folder), root / "artefact", options)
            known[family, opening] = root / "artefact"
        return known[family, opening]

    return make


def loaded(made: Any, which: tuple[str, str], **options: Any) -> Model:
    return Model.load(made(*which), **(KEPT_OPTIONS | options))


def rows_of(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the steps that the backend computes from now on."""
    rows: list[int] = []
    step = model.backend.step

    def counted(parts: Any) -> Any:
        rows.append(sum(len(part.tokens) for part in parts))
        return step(parts)

    monkeypatch.setattr(model.backend, "step", counted)
    return rows


def same(one: list[int], other: list[int]) -> int:
    return next((i for i in range(len(one)) if one[: i + 1] != other[: i + 1]), len(one))


def prompts(model: Model, messages: list[dict[str, str]]) -> list[list[int]]:
    """The prompts of a conversation's turns, rendered and tokenised as a whole."""
    return [
        model.tokenize(model.template.render(messages[:end]), special=False)
        for end in range(1, len(messages) + 1, 2)
    ]


@pytest.fixture(params=[*LOST, *KEPT], ids="-".join)
def hybrid(request: pytest.FixtureRequest, made: Any) -> Iterator[Model]:
    with loaded(made, request.param) as model:
        yield model


def test_a_turn_reads_what_the_history_has_not(hybrid: Model) -> None:
    chat = hybrid.new_chat(**GREEDY)
    stats = [chat.send(question).run().stats for question in QUESTIONS]
    texts = prompts(hybrid, chat.messages)
    for before, now, found in zip(texts, texts[1:], stats[1:], strict=False):
        assert found.prompt_tokens == len(now)
        assert found.cached_tokens >= same(before, now) - SNAPSHOT_GAP_TOKENS > 0
    # A short turn after a long one: at most the answer, the question and a snapshot's distance.
    assert len(texts[2]) > 300
    assert stats[2].prompt_tokens - stats[2].cached_tokens < 100


def test_logits_are_those_of_reading_everything(hybrid: Model) -> None:
    chat = hybrid.new_chat(**GREEDY, logprobs=5)
    for question in QUESTIONS:
        found = chat.send(question).run()
        prompt = prompts(hybrid, chat.messages)[-1]
        options = SamplingOptions(**GREEDY, logprobs=5)
        fresh = hybrid.engine.text(prompt, options).run()
        assert fresh.stats.cached_tokens == 0
        assert found.tokens == fresh.tokens
        assert found.logprobs == fresh.logprobs  # every bit


def test_retry_and_undo(hybrid: Model) -> None:
    chat = hybrid.new_chat(**GREEDY)
    for question in QUESTIONS:
        chat.send(question).run()
    last = chat.last
    assert last is not None
    again = chat.retry().run()
    assert again.tokens == last.tokens
    assert again.stats.cached_tokens >= again.stats.prompt_tokens - 1 - SNAPSHOT_GAP_TOKENS
    chat.undo()
    found = chat.send("and the dog").run()
    texts = prompts(hybrid, chat.messages)
    assert found.stats.cached_tokens >= same(texts[-2], texts[-1]) - SNAPSHOT_GAP_TOKENS
    assert found.tokens == hybrid.engine.text(texts[-1], SamplingOptions(**GREEDY)).run().tokens


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_undo_reads_the_new_question_alone(hybrid: Model, turns: int) -> None:
    """Though the answer before it was read again, or lost the tokens that opened it."""
    chat = hybrid.new_chat(**GREEDY | {"max_tokens": 120}, stop_loops=False)
    for question in QUESTIONS:
        chat.send(question).run()
    for _ in range(turns):
        chat.undo()
    head = hybrid.template.render(chat.messages, add_generation_prompt=False) + "<|user|>"
    found = chat.send("and the dog").run()
    before = len(hybrid.tokenize(head, special=False))
    assert found.stats.cached_tokens >= before - SNAPSHOT_GAP_TOKENS > 0


@pytest.mark.parametrize("which", LOST, ids="-".join)
def test_another_chat_shares_the_system_message(made: Any, which: tuple[str, str]) -> None:
    """From the prefix cache, up to the question and not to the end of a chunk."""
    with loaded(made, which, prefix_cache="4MB") as model:
        system = {"role": "system", "content": LONG}
        before = len(model.tokenize(f"<|system|>{LONG}<|end|><|user|>", special=False))
        model.chat([system, {"role": "user", "content": "the mat and then"}], **GREEDY)
        found = model.chat([system, {"role": "user", "content": "and the dog"}], **GREEDY)
        assert found.stats.cached_tokens >= before - SNAPSHOT_GAP_TOKENS > 300


@pytest.mark.parametrize("which", LOST, ids="-".join)
def test_answers_to_whole_conversations(made: Any, which: tuple[str, str]) -> None:
    """As a server gives them: each in a cache of its own, from the prefix cache."""
    with loaded(made, which, prefix_cache="4MB") as model:
        messages: list[dict[str, str]] = []
        for question in QUESTIONS:
            messages.append({"role": "user", "content": question})
            found = model.chat(messages, **GREEDY)
            texts = prompts(model, messages)
            if len(texts) > 2:
                # A prompt of which so few tokens were computed is not kept.
                expected = same(texts[-2], texts[-1]) - SNAPSHOT_GAP_TOKENS - LEAST_TOKENS
                assert found.stats.cached_tokens >= expected > 300
            messages.append({"role": "assistant", "content": found.text})


@pytest.mark.parametrize("which", LOST, ids="-".join)
def test_a_session_on_disk(made: Any, which: tuple[str, str], tmp_path: Path) -> None:
    bounded: dict[str, Any] = {"kv_policy": None, "context": 1024}
    with loaded(made, which, **bounded) as mine, loaded(made, which, **bounded) as other:
        chat = mine.new_chat(**GREEDY)
        for question in QUESTIONS[:2]:
            chat.send(question).run()
        chat.save(tmp_path / "talk")
        theirs = other.new_chat(**GREEDY)
        theirs.load(tmp_path / "talk")
        found, expected = theirs.send("a dog").run(), chat.send("a dog").run()
        assert found.tokens == expected.tokens
        texts = prompts(mine, chat.messages)
        assert found.stats.cached_tokens >= same(texts[1], texts[2]) - SNAPSHOT_GAP_TOKENS > 0


@pytest.mark.parametrize("which", [*KEPT, *ATTENTION], ids="-".join)
def test_others_read_as_before(
    made: Any, which: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No chunk ends earlier; a model of attention alone has nothing rendered for it either."""
    if which in ATTENTION:
        monkeypatch.setattr(Speaker, "shared_tokens", None)
        monkeypatch.setattr(Speaker, "asked_tokens", None)
    with loaded(made, which, speculate=False) as model:
        rows = rows_of(model, monkeypatch)
        prompt = model.chat([{"role": "user", "content": LONG}], **GREEDY).stats.prompt_tokens
        block = model.backend.capabilities.step_rows
        assert rows[:2] == [block, prompt - block]
        assert set(rows[2:]) == {1}


@pytest.mark.parametrize("which", LOST, ids="-".join)
def test_a_chunk_ends_where_the_answer_is_opened(
    made: Any, which: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with loaded(made, which, speculate=False) as model:
        rows = rows_of(model, monkeypatch)
        model.chat([{"role": "user", "content": LONG}], **GREEDY)
        block = model.backend.capabilities.step_rows
        said = model.tokenize(f"<|user|>{LONG}<|end|><|assistant|>", special=False)
        opened = model.tokenize(OPENINGS[which[1]], special=False)
        assert rows[:3] == [block, len(said) - block, len(opened)]


@pytest.mark.parametrize("which", [LOST[0], KEPT[0]], ids="-".join)
def test_a_long_answer_keeps_the_snapshot(
    made: Any, which: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though only three are kept, and later ones are taken while the answer is written."""
    from edgetok.cache import recurrent

    monkeypatch.setattr(recurrent, "SNAPSHOTS_BYTES", 0)
    monkeypatch.setattr(recurrent, "SNAPSHOT_TOKENS", 32)
    with loaded(made, which, speculate=False) as model:
        model.engine.eos_tokens = frozenset()
        chat = model.new_chat(temperature=0.0, max_tokens=300, stop_loops=False)
        assert chat.send(QUESTIONS[0]).run().stats.generated_tokens == 300
        stats = chat.retry().run().stats
        opened = len(model.tokenize(OPENINGS[which[1]], special=False))
        assert stats.prompt_tokens - stats.cached_tokens <= 1 + opened + SNAPSHOT_GAP_TOKENS
        if which in KEPT:  # the next turn's tokens may be others: the answer is not what one types
            return
        chat.send("the").run()
        first, second = prompts(model, chat.messages)
        assert chat.last is not None
        assert chat.last.stats.cached_tokens >= same(first, second) - SNAPSHOT_GAP_TOKENS > 0


@pytest.mark.parametrize("target", [("qwen3", "thought"), LOST[0]], ids="-".join)
def test_a_hybrid_that_drafts_reads_a_turn_once(
    made: Any, target: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether drafts hold or not, and though the next turn parts where the answer was opened."""
    monkeypatch.setattr(Costs, "is_fresh", lambda self, rows: True)
    monkeypatch.setattr(Costs, "decode_s", lambda self, rows: 1.0 + 1e-6 * rows)
    monkeypatch.setattr(DraftModel, "read_s", lambda self, tokens: 0.0)
    monkeypatch.setattr(DraftModel, "draft_s", 0.0)
    with loaded(made, target, draft=made(LOST[0][0], target[1])) as model:
        drafter = model.engine.draft_model
        assert drafter is not None
        read: list[int] = []
        forward = drafter.backend.forward

        def counted(cache: Any, tokens: Any, **options: Any) -> Any:
            read.append(len(tokens))
            return forward(cache, tokens, **options)

        monkeypatch.setattr(drafter.backend, "forward", counted)
        chat = model.new_chat(**GREEDY)
        expected, lengths = 0, [0]
        for question in QUESTIONS:
            stats = chat.send(question).run().stats
            texts = prompts(model, chat.messages)
            new = len(texts[-1]) - (same(texts[-2], texts[-1]) if len(texts) > 1 else 0)
            # Each step reads its pending token and those that were drafted before the last one.
            steps = stats.generated_tokens
            expected = new + SNAPSHOT_GAP_TOKENS + steps * (2 + drafter_spare(drafter))
            lengths.append(sum(read))
            assert lengths[-1] - lengths[-2] <= expected
        assert stats.drafted_tokens > 0


def drafter_spare(drafter: DraftModel) -> int:
    return drafter.backend.new_cache(256).spare_tokens
