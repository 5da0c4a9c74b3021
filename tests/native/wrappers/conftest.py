"""An exported app with every wrapper, and what edgetok in Python makes of the same model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import edgetok
from edgetok.cache.state import CacheState
from edgetok.kernels_cpu.simd.isa import host_isas
from edgetok.native.export import export_native
from edgetok.native.languages import LANGUAGES
from edgetok.native.library import this_machine
from tests.native.test_tokens import GREEDY, python_answer
from tests.native.wrappers.programs import COUNT, DRAWN, PROMPT, new_cache


@pytest.fixture(scope="session")
def bundled(repository: Path) -> Path:
    return repository / "models/default-4bit"


@pytest.fixture(scope="session")
def app(bundled: Path, kernel_cache: Path, tmp_path_factory) -> Path:
    """The bundled model with the wrappers that this machine's library is enough for."""
    out = tmp_path_factory.mktemp("wrappers") / "app"
    here = this_machine().name
    wrappers = [name for name, language in LANGUAGES.items() if here in language.targets]
    export_native(
        bundled, out, [here], cache_dir=kernel_cache, isas=host_isas()[:1], wrappers=wrappers
    )
    assert {"python", "rust"} <= set(wrappers)
    return out


@contextmanager
def loaded(bundled: Path, kernel_cache: Path, **options: str) -> Iterator[edgetok.Model]:
    """The model in Python, with the window that programs use."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EDGETOK_CACHE_DIR", str(kernel_cache))
        with edgetok.load(bundled, context=256, threads=1, kv_policy="window", **options) as model:
            yield model


@pytest.fixture(scope="module")
def python(bundled: Path, kernel_cache: Path):
    """The same model in Python."""
    with loaded(bundled, kernel_cache) as model:
        yield model


@pytest.fixture(scope="module")
def state(python, tmp_path_factory) -> Path:
    """A cache that Python filled with the prompt."""
    cache = new_cache(python.backend)
    python.backend.forward(cache, np.array(python.tokenizer.encode(PROMPT), np.int32))
    path = tmp_path_factory.mktemp("state") / "state"
    path.write_bytes(cache.save().block.tobytes())
    return path


@pytest.fixture(scope="module")
def expected(python, bundled, state) -> dict[str, str]:
    """What each program prints, by edgetok in Python."""
    return told_by(python, bundled, state)


def told_by(python: edgetok.Model, bundled: Path, state: Path) -> dict[str, str]:
    """What each program prints, by a model in Python."""
    backend, eos = python.backend, python.engine.eos_tokens
    ids = np.array(python.tokenizer.encode(PROMPT), np.int32)

    def answer(prompt, options=GREEDY, cache=None):
        cache = cache or new_cache(backend)
        return python_answer(backend, cache, prompt, options, COUNT, eos)

    def joined(tokens):
        return " ".join(str(int(token)) for token in tokens)

    greedy = answer(ids)
    assert len(greedy) == COUNT
    whole = np.array([*ids, *greedy[:-1]], np.int32)
    cache = new_cache(backend)
    backend.forward(cache, ids)
    for token in greedy[:-1]:
        logits = backend.forward(cache, np.array([token], np.int32))
    restored = new_cache(backend)
    restored.load(CacheState(np.frombuffer(state.read_bytes(), np.uint8).copy()))
    stopped = python.generate(PROMPT, max_tokens=40, temperature=0.0, stop=["never", " girl"])
    chat = python.new_chat(system="You are a pirate.")
    options = {"max_tokens": COUNT, "temperature": 0.0}
    texts = ("Hi! Who are you?", "Tell me a story about a cat.")
    said = [chat.send(text, **options).run() for text in texts]
    third = chat.send("Why?", **options).run()
    sha256 = json.loads((bundled / "manifest.json").read_text())["files"]["model.onnx.data"]
    spec = backend.spec
    return {
        "info": f"{spec.vocab_size} {len(spec.layers)} 8 1 {spec.family}",
        "sha256": sha256 if isinstance(sha256, str) else sha256["sha256"],
        "flags": "1 1",
        "ids": joined(ids),
        "pieces": PROMPT,
        "no piece": "True",
        "no logits": "True",
        "greedy": joined(greedy),
        "logits": f"{spec.vocab_size} {np.argmax(logits)}",
        "stats": f"{len(whole)} {len(ids)} 0 {COUNT}",
        "truncate": "3",
        "nothing": "nothing to continue: call edgetok_prefill or edgetok_say first",
        "again": joined(greedy),
        "cached": "3",
        "drawn": joined(answer(ids, DRAWN)),
        "stopped": stopped.text,
        "saved": joined(whole),
        "tokens": joined(whole),
        "restored": joined(answer(np.array([5], np.int32), cache=restored)),
        "restored cached": str(len(ids)),
        "no state": "this is not a saved cache",
        "said": said[0].text,
        "finish": said[0].finish,
        "then": said[1].text,
        "session": third.text,
        "no session": "this is not a session file",
        "cancelled": "3",
        "policy": "cache policy h2o",
        "token": f"token {spec.vocab_size}, expected 0 to {spec.vocab_size - 1}",
        "nul": "a text holds a NUL character; remove it",
        "option": "a sampling option is out of range",
    }


@pytest.fixture(scope="module")
def python_by_plain_arithmetic(bundled: Path, kernel_cache: Path):
    """The same model with kernels like those of wasm, whose sums are rounded otherwise."""
    with loaded(bundled, kernel_cache, isa="portable") as model:
        yield model


@pytest.fixture(scope="module")
def expected_by_plain_arithmetic(python_by_plain_arithmetic, bundled, state) -> dict[str, str]:
    """What each program prints, by those kernels."""
    return told_by(python_by_plain_arithmetic, bundled, state)
