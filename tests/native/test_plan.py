"""`model.plan`: its layout, and that nothing in it makes the library crash."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from edgetok.errors import EdgetokError
from edgetok.formats.artefact import open_artefact
from edgetok.kernels_cpu.cache.launch import LAYER, RUN, SIZE
from edgetok.native.abi_header import abi_header
from edgetok.native.library import FLAGS, SOURCES
from edgetok.native.plan import PLAN_FILE, Section
from edgetok.native.template import template_segments
from edgetok.native.tokenizer import tokenizer_tables
from edgetok.runtime.cpu.plan_file import plan_from_bytes
from edgetok.text.template import ChatTemplate
from edgetok.text.tokenizer import Tokenizer, read_config
from tests.native.conftest import write_export

MOST_LINES = 1500  # of the sources; the public header is the interface
# What an app does with a folder that it was given: a crash ends the process.
RUN_IT = """
import json, sys
from pathlib import Path
from edgetok.errors import EdgetokError
from edgetok.native.binding import Library
library, folder, cases = json.loads(sys.argv[1])
library, plan = Library(Path(library)), Path(folder) / "model.plan"
refused = 0
for case in sorted(Path(cases).iterdir()):
    plan.write_bytes(case.read_bytes())
    print(case.name, flush=True)
    try:
        with library.open(Path(folder), 1) as model:
            model.encode("Hello <s> 12 world")
            with model.chat(64) as chat, model.chat(64, policy="retain") as other:
                chat.sample(temperature=1.0, max_tokens=4, stop=["x"])
                chat.say("Hello", "Be kind.")
                chat.answer()
                other.prefill(list(range(3, 90)))
                other.answer()
                other.restore(other.save(), list(range(3, 90)) + [5] * 900)
    except EdgetokError as error:
        refused += 1
print("refused", refused)
"""


def sections(content: bytes) -> dict[Section, tuple[int, int]]:
    magic, version, count, core = struct.unpack_from("<8s3q", content)
    assert (magic, version) == (b"edgetokP", 12)
    found = {}
    for i in range(count):
        kind, at, size = struct.unpack_from("<3q", content, 32 + 24 * i)
        assert at % 64 == 0
        assert (at + size <= core) == (kind < Section.TOKENIZER)
        found[Section(kind)] = at, size
    assert content[core : core + 32] == hashlib.sha256(content[:core]).digest()
    return found


def rehashed(content: bytearray) -> bytes:
    """The content with a hash that fits, as far as the core can be found."""
    core = struct.unpack_from("<q", content, 24)[0]
    if 0 <= core <= len(content) - 32:
        content[core : core + 32] = hashlib.sha256(content[:core]).digest()
    return bytes(content)


def refuses_version(library, out, content, version):
    """Check that a plan of another version is refused with what to do."""
    other = bytearray(content)
    struct.pack_into("<q", other, 8, version)
    (out / PLAN_FILE).write_bytes(rehashed(other))
    message = f"version {version}, this library reads 12; export again"
    with pytest.raises(EdgetokError, match=message):
        library.open(out)


@pytest.fixture
def exported(tiny, data, tmp_path) -> Path:
    """A tiny model with a tokenizer and a template; only the weights are its own."""
    from dataclasses import replace

    from edgetok.formats.layout import TensorFormat
    from tests.rtn_artefact import random_tensors, uniform_formats, write_artefact

    folder = data / "models/stories260k"
    core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    spec = replace(tiny("gemma3_text", 16).spec, vocab_size=512, context_tokens=256)
    artefact = tmp_path / "artefact"
    write_artefact(artefact, spec, random_tensors(spec), uniform_formats(spec, TensorFormat(4, 32)))
    template = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}answer: "
    extra = {
        Section.TOKENIZER: tokenizer_tables(
            core, Tokenizer(core, read_config(folder), 512, "tokenizer.json")
        ),
        Section.TEMPLATE: template_segments(ChatTemplate(template, {})).to_bytes(),
    }
    return write_export(artefact, tmp_path / "out", extra=extra)


def test_layout(tiny, tmp_path):
    """Read by hand, as a program in C would."""
    model = tiny("phi3", 4)
    content = (write_export(model.artefact, tmp_path / "out") / PLAN_FILE).read_bytes()
    found = sections(content)
    at, size = found[Section.RUN]
    run = dict(zip(RUN, np.frombuffer(content, "<i8", size // 8, at).tolist(), strict=True))
    assert (run["vocab"], run["layers"], run["heads"], run["kv_heads"]) == (307, 3, 3, 1)
    assert (run["context"], run["kv_bits"], run["block"]) == (64, 8, 16)
    at, size = found[Section.PLAN]
    plan = plan_from_bytes(content[at : at + size])
    with open_artefact(model.artefact) as artefact:
        assert plan.weights == artefact.manifest.files["model.onnx.data"].sha256
    at, size = found[Section.LAYERS]
    layers = np.frombuffer(content, "<i8", size // 8, at).reshape(-1, len(LAYER))
    assert layers.tolist() == [[layer.window, layer.rope, -1, -1] for layer in model.spec.layers]
    at, size = found[Section.SIZES]
    sizes = np.frombuffer(content, "<i8", size // 8, at).reshape(-1, len(SIZE))
    scale = int(np.float32(8**-0.5).view(np.int32))
    # A head of 24 dims in room for 32, 8 of which are mixed.
    assert sizes.tolist() == [[1, 32, 32, 24, 32, 8, scale]] * 3
    at, size = found[Section.ROPES]
    pairs, original = struct.unpack_from("<2q", content, at)
    near, far = np.frombuffer(content, "<f8", 2 * pairs, at + 16).reshape(2, -1)
    base = model.spec.ropes[0].theta ** (-np.arange(9) / 9)
    assert (pairs, original) == (9, 16)
    np.testing.assert_allclose(near, base / (1 + 0.05 * np.arange(9)))
    np.testing.assert_allclose(far, base / (1.5 + 0.75 * np.arange(9)))
    at, _ = found[Section.EOS]
    assert struct.unpack_from("<i", content, at) == (2,)


def test_layers_that_cannot_be_are_refused(exported, library):
    plan = exported / PLAN_FILE
    content = plan.read_bytes()
    found = sections(content)
    wrongs = {
        Section.LAYERS: ((0, -2), (0, -1), (1, 2), (2, 4), (3, 4)),
        Section.SIZES: ((0, 3), (0, 0), (1, 0), (2, 1 << 17), (3, 16), (4, 48)),
    }
    for section, values in wrongs.items():
        for column, value in values:
            wrong = bytearray(content)
            struct.pack_into("<q", wrong, found[section][0] + 8 * column, value)
            plan.write_bytes(rehashed(wrong))
            with pytest.raises(EdgetokError, match="numbers contradict"):
                library.open(exported)


def test_what_is_damaged_is_refused(exported, library):
    plan = exported / PLAN_FILE
    content = plan.read_bytes()
    core = struct.unpack_from("<q", content, 24)[0]
    rng = np.random.default_rng(0)
    for at in [0, 8, 16, 24, 32, *rng.integers(40, core + 32, 60).tolist()]:
        broken = bytearray(content)
        broken[at] ^= 1 << int(rng.integers(8))
        plan.write_bytes(broken)
        with pytest.raises(EdgetokError, match=r"model\.plan"):
            library.open(exported)
    for size in (0, 7, 31, 100, core, core + 31):
        plan.write_bytes(content[:size])
        with pytest.raises(EdgetokError, match=r"model\.plan"):
            library.open(exported)
    plan.unlink()
    with pytest.raises(EdgetokError, match=r"model\.plan: cannot be opened"):
        library.open(exported)


def test_weights_of_another_model(exported, library, tiny):
    weights = exported / "model.onnx.data"
    original = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(original + bytes(4096))
    with pytest.raises(EdgetokError, match="the plan is for"):
        library.open(exported)
    changed = bytearray(original)
    changed[100] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(EdgetokError, match="damaged, or of another model"):
        library.open(exported, verify=True)


def test_hostile_plans_do_not_crash(exported, library_files, tmp_path):
    """Numbers that nobody wrote, under a hash that fits; all but what kernels are told to do.

    Those are instructions, and the sizes that go with them: they are trusted as a program is.
    """
    content = (exported / PLAN_FILE).read_bytes()
    found = sections(content)
    trusted = (Section.PLAN, Section.RUN, Section.SIZES, Section.HOST)
    whole = [span for kind, span in found.items() if kind not in trusted]
    whole.append((0, 32 + 24 * len(found)))
    rng = np.random.default_rng(int(os.environ.get("EDGETOK_FUZZ_SEED", "1")))
    cases = tmp_path / "cases"
    cases.mkdir()
    for i in range(int(os.environ.get("EDGETOK_FUZZ_CASES", "600"))):
        broken = bytearray(content)
        for _ in range(1 + int(rng.integers(3))):
            begin, length = whole[int(rng.integers(len(whole)))]
            place = begin + int(rng.integers(max(1, length)))
            if rng.random() < 0.5:
                broken[place] = int(rng.integers(256))
            else:
                number = int(rng.choice([0, 1, -1, 2**31, 2**62, -(2**63), 65, 4096, 2**20]))
                place -= place % 8
                if place + 8 <= len(broken):
                    struct.pack_into("<q", broken, place, number)
        (cases / f"{i:05d}").write_bytes(rehashed(broken))
    told = json.dumps([str(library_files[1]), str(exported), str(cases)])
    done = subprocess.run(
        [sys.executable, "-c", RUN_IT, told], capture_output=True, text=True, check=False
    )
    last = done.stdout.split("\n")[-2:]
    assert done.returncode == 0, (last, done.stderr[-500:])
    assert int(done.stdout.split()[-1]) > 100


def test_sources_are_few_and_strict():
    """The library stays small enough to read in an evening."""
    files = [*SOURCES, SOURCES[0].with_name("internal.h")]
    assert sum(len(path.read_text().splitlines()) for path in files) < MOST_LINES
    assert {"-Wall", "-Wextra", "-Werror", "-pedantic", "-std=c11"} <= set(FLAGS)
    text = abi_header()
    assert "    INSTR_SLOTS = 16," in text
    assert '#define PLAN_FILE "model.plan"' in text
