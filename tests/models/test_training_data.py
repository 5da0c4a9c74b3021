"""The training recipe's data, and the model folder it leads to."""

from __future__ import annotations

import importlib
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "training"
FOLDER = ROOT / "models" / "default"


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    """Import a module of the training scripts, which are not part of the package."""
    before = set(sys.modules)
    sys.path.insert(0, str(RECIPE))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    sys.path.remove(str(RECIPE))
    for name in set(sys.modules) - before:
        if str(RECIPE) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def texts(recipe: Any) -> Any:
    corpus = recipe("corpus")
    try:
        corpus.data_dir()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return corpus


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    return tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def _count(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("kind", ["facts", "quiz", "pass_key"])
@pytest.mark.parametrize("budget", [60, 200, 900])
def test_recall_conversations_are_seeded_and_answerable(
    recipe: Any, kind: str, budget: int
) -> None:
    make = getattr(recipe("recall_data"), kind)
    for seed in range(20):
        turns = make(random.Random(seed), budget, _count)
        assert turns == make(random.Random(seed), budget, _count)
        roles = [t.role for t in turns]
        assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
        for i, turn in enumerate(turns):
            if turn.mark == "lookup":
                told = " ".join(t.content for t in turns[:i])
                if missing := re.match(r"You have not told me your (.*) yet", turn.content):
                    assert f"Your {missing.group(1)} is" not in told
                    continue
                if turn.content.startswith("You have not told me"):
                    continue
                value = turn.content.rstrip(".").rsplit(" ", 1)[-1]
                assert value in told


def test_exchanges_are_seeded_and_split(recipe: Any) -> None:
    data = recipe("dialogue_data")
    seen = [data.exchange(random.Random(i)) for i in range(400)]
    assert seen == [data.exchange(random.Random(i)) for i in range(400)]
    kept = {data.exchange(random.Random(i), held_out=True)[0].lower() for i in range(400)}
    both = {ask.lower().rstrip(".!?") for ask, _ in seen} & {a.rstrip(".!?") for a in kept}
    # A wording may be on both sides with another end mark; parametric ones hardly ever are.
    assert len(both) < 0.2 * len(kept)


def test_sums_and_counts_are_right(recipe: Any) -> None:
    data = recipe("instruction_data")
    for seed in range(200):
        _, answer = data.add(random.Random(seed))
        left, _, right = answer.rstrip(".").partition(" = ")
        a, sign, b = left.split()
        assert int(right) == int(a) + (int(b) if sign == "+" else -int(b))
        ask, answer = data.compare(random.Random(seed))
        numbers = [int(n) for n in re.findall(r"\d+", ask)]
        said = int(re.findall(r"\d+", answer)[0])
        assert said == (max if "bigger" in ask else min)(numbers)
        ask, answer = data.count(random.Random(seed))
        if result := re.search(r"from (\d+) to (\d+)", ask):
            a, b = map(int, result.groups())
            assert [int(n) for n in re.findall(r"\d+", answer)] == list(range(a, b + 1))


def test_invented_stories_are_whole_and_on_their_subject(recipe: Any) -> None:
    """Nothing is left to fill in, pronouns agree, what was asked for is in the story."""
    data, words = recipe("story_data"), recipe("story_words")
    for seed in range(300):
        turns, story = data.request(random.Random(seed))
        assert turns == data.request(random.Random(seed))[0]
        text = story.text()
        assert not re.search(r"[{}|=?]\s*[{}|=]|\{|\}|  |\bNone\b", text), text
        assert text.count('"') % 2 == 0
        assert re.fullmatch(r"[A-Z\"][^\n]*(\n[A-Z\"][^\n]*)*", text), text
        assert not re.search(r"\b[Aa] [aeio]|\b[Aa]n [^aeioh\W]", text.replace("one", "")), text
        know = story.know
        for name in (know["H"], know["F"]):
            assert name in text
        asked = turns[0].content
        for noun in (*words.ANIMALS, know["H"], know["F"], know["n"]):
            if re.search(rf"\b{noun}\b", asked):
                assert re.search(rf"\b{noun}s?\b", asked + text, re.IGNORECASE)
                assert re.search(rf"\b{noun}s?\b", text, re.IGNORECASE), (asked, text)


def test_answers_about_a_story_stand_in_it(recipe: Any) -> None:
    data = recipe("story_data")
    asked = 0
    for seed in range(100):
        rng = random.Random(seed)
        _, story = data.request(rng)
        text = story.text().lower()
        for turn in data.questions(rng, story)[1::2]:
            match = re.search(
                r"was called (\w+)|named (\w+)|learned that (.*)\.|^(\w+), an? |happened (.*)\.",
                turn.content,
            )
            if match:
                asked += 1
                assert next(g for g in match.groups() if g).lower() in text
    assert asked > 50


def test_stories_keep_parts_aside(recipe: Any) -> None:
    """A held-out story has a kind of hero, a thing or a plot that no training story has."""
    data = recipe("story_data")

    def parts(held_out: bool, part: str) -> set[str]:
        stories = [data.invent(random.Random(i), held_out) for i in range(1500)]
        return {s.plot.name if part == "plot" else s.know[part] for s in stories}

    for part in ("k", "n", "plot"):
        assert parts(True, part) - parts(False, part)
    assert not {p.name for p in data.ALL_PLOTS} - parts(False, "plot") - parts(True, "plot")


def test_training_words_no_question_as_the_evaluation_does(recipe: Any) -> None:
    wordings = recipe("recall_wordings")
    patterns = importlib.import_module("edgetok.evaluation.recall_patterns").PATTERNS

    def plain(text: str) -> str:
        return " ".join(re.findall(r"[a-z']+", text.lower()))

    for name, pattern in patterns.items():
        subject = pattern.subjects[0]
        unseen = {plain(ask.format(s=subject)) for ask in pattern.unseen_ask}
        rng = random.Random(name)
        asked = {plain(wordings.question(rng, name, subject)) for _ in range(3000)}
        assert len(asked) > 100
        assert not asked & unseen


def test_training_tells_nothing_as_the_evaluation_does(recipe: Any) -> None:
    wordings = recipe("recall_wordings")
    recall = importlib.import_module("edgetok.evaluation.recall")
    patterns = importlib.import_module("edgetok.evaluation.recall_patterns").PATTERNS
    for name, pattern in patterns.items():
        rng = random.Random(name)
        seen = set()
        for i in range(600):
            fact = recall.make_fact(rng, name)
            told = wordings.retold(rng, fact, changed=i % 2 == 0, value_first=i % 3 == 0)
            assert fact.value in told.tell
            seen.add(told.tell.lower())
            subject = fact.slot.split("|")[1]
            for frame in pattern.unseen_tell:
                assert frame.format(s=subject, v=fact.value).lower() not in told.tell.lower()
        assert len(seen) > 300


def test_told_values_are_never_those_of_the_evaluation(recipe: Any) -> None:
    draw = recipe("value_data").draw
    kept = importlib.import_module("edgetok.evaluation.recall").is_held_out
    rng = random.Random(3)
    for kind in ("number", "name", "pet", "colour", "city", "job", "place"):
        known: list[str] = []
        for _ in range(300):
            value = draw(rng, kind, "sister", known[-5:])
            assert not kept(value)
            assert not kept("sister", value)
            assert (kind == "number") == value.isdigit()
            known.append(value)
        assert len(set(known)) > 100


def test_conversations_know_their_own_name_and_the_users(recipe: Any) -> None:
    data = recipe("dialogue_data")
    for seed in range(200):
        turns = data.acquaintance(random.Random(seed))
        roles = [t.role for t in turns]
        assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
        for i, turn in enumerate(turns):
            if result := re.match(r"Your name is (\w+)\.$", turn.content):
                assert result.group(1) in " ".join(t.content for t in turns[:i] if t.role == "user")


def test_stories_are_on_one_side(texts: Any) -> None:
    seen, kept = set(texts.stories(False)), set(texts.stories(True))
    assert seen
    assert kept
    assert not seen & kept
    assert 0.05 < len(kept) / (len(seen) + len(kept)) < 0.15


def test_renaming_is_consistent(texts: Any) -> None:
    story = "Lily met Tom. Tom saw Lily."
    new = texts.rename(story, random.Random(1))
    first, second = new.split()[0], new.split()[2].rstrip(".")
    assert new == f"{first} met {second}. {second} saw {first}."
    assert {first, second}.isdisjoint({"Lily", "Tom"})


def test_a_told_story_is_about_what_was_asked(recipe: Any, texts: Any) -> None:
    data = recipe("language_data")
    for seed in range(30):
        ask, story = data.told_story(random.Random(seed))
        topic = ask.content.rstrip(".?").removesuffix(" in it").rsplit(" ", 1)[-1]
        if topic in texts.TOPICS:
            assert topic in story.content.lower()


def test_batches_are_a_function_of_the_step(recipe: Any, texts: Any) -> None:
    np = pytest.importorskip("numpy")
    mixture, schedule = recipe("mixture"), recipe("schedule")
    path = FOLDER / "tokenizer.json"
    first, second = (mixture.Batches(path, 4096, seed=1) for _ in range(2))
    for stage in schedule.STAGES:
        first.batch(stage, 0)
        tokens, weights = first.batch(stage, 5)
        again = second.batch(stage, 5)
        assert np.array_equal(tokens, again[0])
        assert np.array_equal(weights, again[1])
        assert tokens.shape == (weights.shape[0], weights.shape[1] + 1)
        assert weights.shape[1] in stage.lengths
        assert 0 < weights.mean() < 1


def test_tokenizer_round_trip_and_digits(tokenizer: Any) -> None:
    for text in ("Hello, world!", "naïve café 日本語 🙂\n\ttabs", "x = 4; y = x", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode("48213").ids) == 5
    assert tokenizer.get_vocab_size() == 4096
    for special in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        assert len(tokenizer.encode(special).ids) == 1


def test_chat_template(tokenizer: Any) -> None:
    jinja2 = pytest.importorskip("jinja2")
    config = json.loads((FOLDER / "tokenizer_config.json").read_text())
    template = jinja2.Environment().from_string(config["chat_template"])
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    assert template.render(messages=messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert config["eos_token"] == "<|im_end|>"


def test_folder_is_what_the_formats_need(tokenizer: Any) -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["hidden_size"] % 256 == 0
    assert config["intermediate_size"] % 256 == 0
    assert config["head_dim"] == 64
    assert config["max_position_embeddings"] >= 2048
    assert config["tie_word_embeddings"] is True
    generation = json.loads((FOLDER / "generation_config.json").read_text())
    wanted = [tokenizer.token_to_id(s) for s in ("<|im_end|>", "<|endoftext|>")]
    assert generation["eos_token_id"] == wanted
    assert sum(f.stat().st_size for f in FOLDER.iterdir() if f.is_file()) <= 25e6


def test_folder_loads_in_transformers_and_equals_the_recipes_model(recipe: Any) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    safetensors = pytest.importorskip("safetensors.torch")
    model_module = recipe("model")
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    tensors = safetensors.load_file(FOLDER / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert 4e6 <= model.num_parameters() <= 12e6
    own = model_module.Decoder(model_module.ModelConfig())
    own.load_state_dict(model_module.from_hf(tensors, own.c), strict=True)
    ids = torch.arange(40)[None] * 7 % 4096
    with torch.inference_mode():
        theirs = model(ids).logits
        ours = own(ids) @ own.embed.T
    assert theirs.shape == (1, 40, 4096)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_names_of_tensors_go_there_and_back(recipe: Any) -> None:
    torch = pytest.importorskip("torch")
    module = recipe("model")
    config = module.ModelConfig(vocab_size=64, num_hidden_layers=2)
    state = {k: v.bfloat16().float() for k, v in module.Decoder(config).state_dict().items()}
    back = module.from_hf(module.to_hf(state, config), config)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], state[k]) for k in state)
