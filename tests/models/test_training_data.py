"""The training recipe's data, and the model folder it leads to."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "models" / "training"
FOLDER = ROOT / "models" / "default"


@pytest.fixture(scope="module")
def recipe() -> Iterator[Any]:
    """Imports a module of the recipe, which is scripts and not part of the package."""
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
    data = recipe("dialogue_data")
    for seed in range(200):
        _, answer = data.add(random.Random(seed))
        left, _, right = answer.rstrip(".").partition(" = ")
        a, sign, b = left.split()
        assert int(right) == int(a) + (int(b) if sign == "+" else -int(b))


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
