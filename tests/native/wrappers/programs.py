"""What programs in every language print and save, and how it is compared with Python."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgetok.cache.limits import CacheLimits
from edgetok.cache.state import MASS, CacheState
from edgetok.native.library import this_machine
from edgetok.sampling.options import SamplingOptions
from tests.native.test_tokens import GREEDY, python_answer

# Of every file of tests here.
pytestmark = [
    pytest.mark.skipif(this_machine() is None, reason="libedgetok is built for other machines"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, cc"),
]

PROGRAMS = Path(__file__).parent
PROMPT = "Once upon a time there was a"
DRAWN = SamplingOptions(temperature=0.8, top_k=40, top_p=0.95, min_p=0.0, seed=2**64 - 1)
COUNT = 20


def new_cache(backend):
    """A cache like that of a chat with a context and nothing else."""
    return backend.new_bounded_cache(256, CacheLimits())


def told(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The lines of a program by name."""
    assert done.returncode == 0, done.stderr
    lines = (line.partition(": ") for line in done.stdout.splitlines())
    return {name: value.encode().decode("unicode_escape") for name, _, value in lines}


def run(command: list[object], **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **options
    )


def check_programs(found: dict[str, str], expected: dict[str, str]) -> None:
    """All that every program prints."""
    found["policy"] = found["policy"][: len(expected["policy"])]
    assert re.search("model.plan: cannot be (opened|read)", found.pop("no folder"))
    assert found == expected


def without_mass(block: bytes) -> dict[tuple[int, int], bytes]:
    """All else of a saved cache: a chat that went back keeps the mass that later tokens gave."""
    state = CacheState(np.frombuffer(block, np.uint8).copy())
    kept = sorted(key for key in state.sections if key[0] != MASS)
    return {key: state.section(key[0], np.uint8, key[1]).tobytes() for key in kept}


def check_saved(python, out: Path, ids: str, *, exact: bool = True) -> None:
    """Python goes on from the cache that a program saved, as from its own."""
    backend, tokens = python.backend, np.array(ids.split(), np.int32)
    prompt = np.array(python.tokenizer.encode(PROMPT), np.int32)
    saved, own = new_cache(backend), new_cache(backend)
    saved.load(CacheState(np.frombuffer(out.read_bytes(), np.uint8).copy()))
    assert saved.length_tokens == len(tokens)
    backend.forward(own, prompt)
    for token in tokens[len(prompt) :]:
        backend.forward(own, np.array([token], np.int32))
    if exact:
        assert without_mass(out.read_bytes()) == without_mass(own.save().block.tobytes())
    more = np.array([5, 6, 7], np.int32)
    eos = python.engine.eos_tokens
    assert python_answer(backend, saved, more, GREEDY, COUNT, eos) == python_answer(
        backend, own, more, GREEDY, COUNT, eos
    )


def check_example(command: Callable[..., list[object]], app: Path, expected, python) -> None:
    """An example prints text, or tokens, or one line that says what is wrong."""
    text = python.generate(PROMPT, max_tokens=COUNT, temperature=0.0).text
    done = run(command(app, PROMPT, COUNT))
    assert (done.returncode, done.stdout.rstrip()) == (0, text.rstrip()), done.stderr
    assert run(command(app, PROMPT, COUNT, "--ids")).stdout.rstrip() == expected["greedy"]
    wrong = run(command(app.parent, PROMPT, COUNT))
    assert wrong.returncode == 1
    assert re.fullmatch(r"[^\n]*(cannot be (opened|loaded|read))[^\n]*\n", wrong.stderr)
