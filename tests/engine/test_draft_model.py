"""A second model that drafts: the same answers, and how it is chosen, counted and refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgetok
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.drafting import load_draft_model
from edgetok.engine import draft_model as module
from edgetok.engine.costs import Costs
from edgetok.engine.draft_model import DraftModel
from edgetok.errors import OptionError, UnsupportedError
from edgetok.formats.artefact import open_artefact
from edgetok.runtime.options import RunOptions
from edgetok.sampling.options import SamplingOptions
from edgetok.sampling.sampler import Sampler
from tests.engine.test_drafts import PROMPTS, held, same
from tests.fake import fake_model
from tests.tiny import tiny_checkpoint

# Nothing in it repeats, so the other kind of draft finds nothing.
STORIES = ["Lily was sad because", "Once upon a time a boy", "The cat sat on the"]


@pytest.fixture(scope="module")
def coarse(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model at 2 bits: it is often wrong."""
    out = tmp_path_factory.mktemp("coarse") / "artefact"
    options = ConvertOptions(bits=2, method="rtn", reference_tokens=0)
    convert(str(repository / "models/default"), out, options)
    return out


@pytest.fixture(scope="module")
def models(default_artefact: Path, coarse: Path) -> Iterator[list[edgetok.Model]]:
    """Drafted by itself, drafted by a coarse one, and plain."""
    made = [
        edgetok.load(default_artefact, threads=1, context=512, **options)
        for options in ({"draft": default_artefact}, {"draft": coarse}, {"speculate": False})
    ]
    yield made
    for model in made:
        model.close()


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of the other model take a second whatever their rows, those of the draft model none."""
    monkeypatch.setattr(Costs, "is_fresh", lambda self, rows: True)
    monkeypatch.setattr(Costs, "decode_s", lambda self, rows: 1.0 + 1e-6 * rows)
    monkeypatch.setattr(DraftModel, "read_s", lambda self, tokens: 0.0)
    monkeypatch.setattr(DraftModel, "draft_s", 0.0)


def drafts_of(model: edgetok.Model) -> list[tuple[int, int]]:
    """Have the draft model's drafts noted: tokens, and how many of them were right."""
    noted: list[tuple[int, int]] = []
    draft_model = model.engine.draft_model
    assert draft_model is not None
    learn = type(draft_model).learn

    def note(drafted: int, right: int, *, trial: bool = False) -> None:
        noted.append((drafted, right))
        learn(draft_model, drafted, right, trial=trial)

    draft_model.learn = note  # type: ignore[method-assign]
    return noted


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_texts(models: Any, always: None, temperature: float) -> None:
    """Tokens are those of plain decoding; a model that drafts for itself is always right."""
    noted = [drafts_of(model) for model in models[:2]]
    for seed in range(9):
        changes: dict[str, Any] = {
            "temperature": temperature,
            "seed": seed,
            "max_tokens": 1 + 13 * (seed % 5),
        }
        if seed % 3 == 1:
            changes |= {"repetition_penalty": 1.05, "frequency_penalty": 0.2}
        if seed % 4 == 2:
            changes["stop"] = ("red", "two", ".")
        prompt = (STORIES + PROMPTS)[seed % 7]
        own, coarse, plain = (model.generate(prompt, **changes) for model in models)
        same(own, plain)
        same(coarse, plain)
    tokens = [sum(drafted for drafted, _ in drafts) for drafts in noted]
    # What follows an answer's last token is drafted, too, and nobody asks whether it is right.
    wrong = [sum(1 for drafted, right in drafts if right < drafted) for drafts in noted]
    assert min(tokens) > 60
    assert wrong[0] <= 9
    assert wrong[1] > 9


def test_the_whole_of_an_answer(models: Any, always: None) -> None:
    """By itself, without an end in the middle: not one token of a draft is wrong."""
    model = models[0]
    noted = drafts_of(model)
    eos, model.engine.eos_tokens = model.engine.eos_tokens, frozenset()
    try:
        for temperature in (0.0, 1.0):
            found = model.generate(STORIES[0], temperature=temperature, seed=4, max_tokens=60)
            assert found.stats.accepted_tokens == found.stats.drafted_tokens > 40
    finally:
        model.engine.eos_tokens = eos
    assert len(noted) > 4
    assert all(drafted == right for drafted, right in noted)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_conversations(
    default_artefact: Path, coarse: Path, always: None, temperature: float
) -> None:
    """From turn to turn, retried, cut and stopped; caches hold the same, too."""
    answers: list[list[Any]] = []
    for options in ({"draft": coarse}, {"speculate": False}):
        made: list[Any] = []
        with edgetok.load(default_artefact, threads=1, context=512, **options) as model:
            noted = drafts_of(model) if "draft" in options else []
            for seed in range(2):
                chat = model.new_chat(temperature=temperature, seed=seed, max_tokens=40)
                for text in ("Tell me of a dog.", "And then?", "Why?"):
                    result = chat.send(text).run()
                    made.append((result.tokens, result.finish, held(chat._context)))
                result = chat.retry(stop=("l",)).run()
                made.append((result.tokens, result.finish, held(chat._context)))
                stream = chat.send("And a cat?")
                for _ in range(5):
                    next(stream, None)
                stream.close()
                chat._settle()
                chat.retry()
                made.append(chat.send("And now?").run().tokens)
            assert bool(noted) == ("draft" in options)
        answers.append(made)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_of_a_grammar(models: Any, always: None, temperature: float) -> None:
    """The draft model draws under the same masks."""
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"what_was_said": {"type": "string", "maxLength": 60}},
        "required": ["what_was_said"],
    }
    noted = [drafts_of(model) for model in models[:2]]
    for seed in range(3):
        changes = {"schema": schema, "temperature": temperature, "seed": seed, "max_tokens": 80}
        own, coarse, plain = (model.generate(STORIES[seed], **changes) for model in models)
        same(own, plain)
        same(coarse, plain)
    assert all(sum(drafted for drafted, _ in drafts) > 20 for drafts in noted)
    assert sum(right < drafted for drafted, right in noted[0]) <= 3


def test_in_company(models: Any, always: None) -> None:
    own, coarse, plain = models
    changes: dict[str, Any] = {"seed": 3, "max_tokens": 30}
    expected = plain.generate_batch(STORIES * 3, **changes)
    for model in (own, coarse):
        for one, other in zip(model.generate_batch(STORIES * 3, **changes), expected, strict=True):
            same(one, other)


def test_a_long_prompt_is_read_in_parts(
    default_artefact: Path, coarse: Path, always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than so many tokens a step, because others wait for it; then it drafts."""
    monkeypatch.setattr(module, "_READ_TOKENS", 16)
    with edgetok.load(default_artefact, threads=1, context=512, draft=coarse) as model:
        read: list[int] = []
        draft_model: Any = model.engine.draft_model
        forward = draft_model.forward
        draft_model.forward = lambda context, tokens: (
            read.append(len(tokens)),
            forward(context, tokens),
        )[1]
        prompt = model.tokenize("One day a dog and a cat went out to see the big sea. " * 12)
        model.engine.eos_tokens = frozenset()
        draft_model._idle = 0  # no trial, which a long prompt would wait for
        noted = drafts_of(model)
        model.generate(prompt, temperature=0.0, max_tokens=40)
    assert max(read) == 16
    assert read.count(16) >= len(prompt) // 16
    assert noted


# Whether it pays


def test_it_rests_where_it_does_not_pay(
    default_artefact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A draft model as slow as the other: trials become rare. A free one goes on."""
    monkeypatch.setattr(Costs, "is_fresh", lambda self, rows: True)
    monkeypatch.setattr(Costs, "decode_s", lambda self, rows: 1.0 + 0.01 * rows)
    steps = []
    for seconds in (1.0, 0.0):
        monkeypatch.setattr(DraftModel, "draft_s", seconds)
        monkeypatch.setattr(DraftModel, "read_s", lambda self, tokens, seconds=seconds: seconds)
        with edgetok.load(
            default_artefact, threads=1, context=1024, draft=default_artefact
        ) as model:
            model.engine.eos_tokens = frozenset()
            noted = drafts_of(model)
            model.generate(STORIES[1], temperature=1.0, seed=2, max_tokens=900)
            steps.append(len(noted))
    slow, free = steps
    assert 1 <= slow <= 5
    assert free > 50


def test_what_was_seen_decides(default_artefact: Path) -> None:
    with edgetok.load(default_artefact, threads=1, draft=default_artefact) as model:
        draft_model = model.engine.draft_model
        assert draft_model is not None
        assert draft_model.trial_due()
        draft_model.begin_trial()
        assert not draft_model.trial_due()
        before = draft_model.chance
        draft_model.learn(4, 4)
        assert draft_model.chance > before
        for _ in range(100):
            draft_model.learn(5, 0)
        assert draft_model.chance < 0.1
        for _ in range(50):
            draft_model.learn(5, 5)
        assert draft_model.chance > 0.9


# Counted and refused


def test_memory_is_counted(default_artefact: Path, coarse: Path) -> None:
    plain = edgetok.Model.estimate(default_artefact, context=512)
    both = edgetok.Model.estimate(default_artefact, context=512, draft=coarse)
    with open_artefact(coarse) as artefact:
        weights = artefact.weight_bytes
    assert plain.draft_bytes == 0
    assert both.draft_bytes > weights
    assert both.total_bytes == plain.total_bytes + both.draft_bytes
    assert "draft model" in repr(both)
    with edgetok.load(default_artefact, threads=1, context=512, draft=coarse) as model:
        engine: Any = model.engine
        assert engine.cache_bytes(256) == (
            engine.backend.cache_bytes(256) + engine.draft_model.backend.cache_bytes(256)
        )
        assert engine.draft_model.nbytes > weights


def test_another_vocabulary_is_refused(default_artefact: Path, tmp_path: Path) -> None:
    """With one line that names a token, and nothing stays open."""
    tiny_checkpoint("llama", tmp_path / "checkpoint")
    other = tmp_path / "other"
    convert(
        str(tmp_path / "checkpoint"),
        other,
        ConvertOptions(bits=16, method="rtn", reference_tokens=0),
    )
    with pytest.raises(OptionError, match="the draft model other has another vocabulary") as raised:
        edgetok.load(default_artefact, draft=other)
    assert "use a smaller model of the same family" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_backend_that_does_not_verify_drafts(default_artefact: Path, tmp_path: Path) -> None:
    model = fake_model(tmp_path / "fake")
    with pytest.raises(UnsupportedError, match="--draft needs the CPU backend"):
        load_draft_model(
            default_artefact, RunOptions(), model.backend, model.tokenizer, model.context_tokens
        )


def test_options_that_conflict(default_artefact: Path) -> None:
    with pytest.raises(OptionError, match="--draft conflicts with --no-speculate"):
        edgetok.load(default_artefact, draft=default_artefact, speculate=False)


def test_a_fork_of_a_sampler_draws_the_same_and_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, 50)).astype(np.float32)
    options = SamplingOptions(
        temperature=1.0, seed=7, top_k=0, frequency_penalty=0.5, repetition_penalty=1.1
    )
    sampler, alone = (Sampler(options, 50, [1, 2, 3]) for _ in range(2))
    for place in range(30):
        fork = sampler.fork()
        ahead = [fork.sample(logits[place + i]) for i in range(5)]
        expected = alone.fork()
        assert ahead == [expected.sample(logits[place + i]) for i in range(5)]
        assert sampler.sample(logits[place]) == alone.sample(logits[place]) == ahead[0]
