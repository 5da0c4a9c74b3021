"""The Python API over the bundled model, on edgetok's own kernels."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgetok
from edgetok.errors import OptionError
from edgetok.models.bundled import bundled_model


@pytest.fixture(scope="module")
def model(default_artefact: Path) -> Iterator[edgetok.Model]:
    with edgetok.load(default_artefact, threads=1) as loaded:
        yield loaded


def test_load(model: edgetok.Model) -> None:
    assert model.backend.name == "cpu"
    assert model.notes == ()
    assert model.context_tokens == 2048
    assert model.sampling.temperature == 0.7
    ends = {model.tokenizer.token_text(token) for token in model.eos_tokens}
    assert ends == {"<|im_end|>", "<|endoftext|>"}


def test_load_without_a_name_loads_the_bundled_model() -> None:
    with edgetok.load(threads=1) as model, edgetok.load(bundled_model(), threads=1) as named:
        assert model.artefact.identity == named.artefact.identity


def test_kernels_agree_with_onnxruntime(model: edgetok.Model, default_artefact: Path) -> None:
    """Both round activations to 8 bits, each its own way: the first words are the same."""
    with edgetok.load(default_artefact, device="onnxruntime", threads=1) as other:
        for prompt in ("Once upon a time", "The dog and the cat"):
            ours = model.generate(prompt, temperature=0.0, max_tokens=8)
            theirs = other.generate(prompt, temperature=0.0, max_tokens=8)
            assert ours.tokens[:4] == theirs.tokens[:4]


def test_greedy_is_the_same_every_time(model: edgetok.Model) -> None:
    result = [model.generate("Once upon", temperature=0.0, max_tokens=20).tokens for _ in range(3)]
    assert result[0] == result[1] == result[2]
    seeded = [model.generate("Once upon", seed=3, max_tokens=20).tokens for _ in range(2)]
    assert seeded[0] == seeded[1]


def test_a_chat_says_the_same_with_and_without_its_cache(model: edgetok.Model) -> None:
    chat = model.new_chat(temperature=0.0, max_tokens=24)
    chat.send("Hello!").run()
    chat.send("Tell me about a cat.").run()
    assert chat.last is not None
    assert chat.last.stats.cached_tokens > 10
    fresh = model.new_chat(temperature=0.0, max_tokens=24)
    fresh._turns = chat.messages[:-1]
    again = fresh.retry().run()
    assert again.stats.cached_tokens == 0
    # int8 keys and values do not depend on how a sequence was cut into blocks
    assert again.text == chat.messages[-1]["content"]


def test_many_threads_say_what_one_says(model: edgetok.Model) -> None:
    prompts = [f"Tom had {i} dogs. One day" for i in range(8)]
    alone = [model.generate(p, temperature=0.0, max_tokens=12).tokens for p in prompts]
    together: dict[int, tuple[int, ...]] = {}

    def work(i: int) -> None:
        together[i] = model.generate(prompts[i], temperature=0.0, max_tokens=12).tokens

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(len(prompts))] == alone


def test_cancel_in_decode_and_prefill(model: edgetok.Model) -> None:
    chat = model.new_chat(temperature=0.0)
    answer = chat.send("Tell me a very long story.")
    first = next(answer)
    answer.cancel()
    assert "".join(answer) == ""
    assert chat.messages[-1] == {"role": "assistant", "content": first}
    answer = chat.send("dog " * 1500)
    answer.cancel()
    result = answer.run()
    assert (result.text, result.finish) == ("", "cancelled")
    chat.undo()
    assert chat.send("Hello!", max_tokens=5).run().stats.generated_tokens > 0


def test_errors(model: edgetok.Model, default_artefact: Path, tmp_path: Path) -> None:
    with pytest.raises(edgetok.ContextError, match=r"the context holds 2,048"):
        model.generate("dog " * 3000)
    with (
        edgetok.load(default_artefact, context=64) as short,
        pytest.raises(edgetok.ContextError, match="holds 64; shorten it or give a larger context"),
    ):
        short.generate("dog " * 100)
    for too_long in (model.generate, model.score):  # no larger context would help
        with pytest.raises(edgetok.ContextError, match="as the model was trained for no more"):
            too_long("dog " * 3000)
    with pytest.raises(edgetok.OptionError, match="context is 4096 tokens, expected 1 to 2048"):
        edgetok.load(default_artefact, context=4096)
    with pytest.raises(edgetok.CheckpointError, match="no such model or folder"):
        edgetok.load(tmp_path / "nowhere")
    with pytest.raises(edgetok.CheckpointError, match="holds no model"):
        edgetok.load(tmp_path)


def test_parts_of_text_are_joined(model: edgetok.Model) -> None:
    parts = [{"type": "text", "text": "My cat is "}, {"type": "text", "text": "Minka."}]
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0}
    said = model.chat([{"role": "user", "content": "My cat is Minka."}], **options)
    assert model.chat([{"role": "user", "content": parts}], **options).text == said.text
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(OptionError, match=r"messages\[0\]: content\[2\] is .*reads text alone"):
        model.chat([{"role": "user", "content": [*parts, image]}])


def test_progress_that_cannot_be_called(model: edgetok.Model) -> None:
    with pytest.raises(OptionError, match="progress is an int, expected a function"):
        model.generate("x", progress=5)  # type: ignore[arg-type]


def test_a_session_is_bound_to_its_model(
    model: edgetok.Model, default_artefact: Path, tmp_path: Path
) -> None:
    chat = model.new_chat(max_tokens=5)
    chat.send("Hello!").run()
    chat.save(tmp_path / "talk.json")
    with edgetok.load(default_artefact, device="onnxruntime") as same:
        later = same.new_chat()
        later.load(tmp_path / "talk.json")
        assert later.messages == chat.messages


def test_closed(default_artefact: Path) -> None:
    model = edgetok.load(default_artefact)
    model.close()
    model.close()
    with pytest.raises(edgetok.EdgetokError):
        model.generate("Hello", max_tokens=2)


CUT = """
import os, sys
import edgetok
from edgetok.models.bundled import bundled_model
from edgetok.errors import ArtefactError

folder = sys.argv[1]
with edgetok.load(folder) as model:
    chat = model.new_chat()
    answer = chat.send("My name is Nora.")
    answer.run()
    stream = model.stream("Once upon a time", max_tokens=50)
    next(stream)
    os.truncate(os.path.join(folder, "model.onnx.data"), 4096)
    try:
        for piece in stream:
            pass
    except ArtefactError as error:
        print(error)
    try:
        chat.send("And yours?").run()
    except ArtefactError:
        chat.save(os.path.join(folder, "talk.json"))
with open(os.path.join(folder, "talk.json"), "rb") as file:
    print(b"Nora" in file.read())
"""


def test_weights_cut_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    """An error and no SIGBUS; the conversation can still be saved."""
    folder = tmp_path / "model"
    shutil.copytree(bundled_model(), folder)
    done = subprocess.run(
        [sys.executable, "-c", CUT, str(folder)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    error, kept = done.stdout.splitlines()
    assert error.endswith("model.onnx.data: changed since it was opened; load the model again")
    assert kept == "True"
