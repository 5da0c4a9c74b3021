"""Other machines: run where an emulator is installed, else linked and looked at."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgetok.native.library import HEADER, MACHINES, Compiler, build_library
from edgetok.runtime.cpu.backend import CpuBackend
from edgetok.runtime.cpu.head_eviction import modules_of
from edgetok.runtime.cpu.requirements import needed_modules
from tests.kernels_cpu.program.object_symbols import symbols
from tests.native.conftest import write_export
from tests.tiny import WITH_STATES

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="needs ziglang: the extra [native]"
)

PROMPT = np.random.default_rng(3).integers(3, 307, 37).astype(np.int32)
NODE = """
import { readFileSync } from 'node:fs'
const [library, folder, wasm, prompt, options] = process.argv.slice(2)
const { load } = await import(library)
const edgetok = await load(readFileSync(wasm))
const read = (name) => readFileSync(`${folder}/${name}`)
const files = ['model.plan', 'model.onnx.data'].map((name) => [name, read(name)])
const model = edgetok.open(Object.fromEntries(files))
const chat = model.chat({ context: 64 })
chat.sample({ maxTokens: 16, ...JSON.parse(options) })
console.log(JSON.stringify(Array.from(chat.prefill(JSON.parse(prompt)), (one) => one.token)))
let said = ''
try { chat.prefill([400]) } catch (error) { said = error.message }
console.log(JSON.stringify(said))
"""
BEYOND_2_GB = "if (c.memory.grow(33_000) < 0) throw new Error('no memory')"
PROGRAM = """
#include <edgetok.h>
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
    char error[EDGETOK_ERROR_BYTES] = "";
    int32_t ids[64];
    for (int i = 3; i < argc; i++) ids[i - 3] = atoi(argv[i]);
    edgetok_model *model = edgetok_open(argv[1], atoi(argv[2]), 1, error);
    edgetok_chat *chat = model ? edgetok_chat_new(model, NULL, error) : NULL;
    edgetok_sampling sampling = {.max_tokens = 16};
    edgetok_output output;
    edgetok_info info;
    if (!chat || edgetok_sample(chat, &sampling, error) < 0 ||
        edgetok_prefill(chat, ids, (size_t)(argc - 3), error) < 0)
        return fprintf(stderr, "%s\\n", error), 1;
    edgetok_describe(model, &info);
    printf("%s", info.isa);
    while (edgetok_next(chat, &output, error) > 0) printf(" %d", (int)output.token);
    edgetok_chat_free(chat);
    edgetok_close(model);
    return 0;
}
"""


# Attention alone; delta nets, convolutions and experts.
KINDS = ["qwen3", *(family for family in ("qwen3_next",) if family in WITH_STATES)]


@pytest.fixture(scope="module", params=KINDS)
def model(request, tiny, kernel_cache, tmp_path_factory):
    """An exported tiny model, the modules that it needs, and what Python writes."""
    made = tiny(request.param, 4)
    backend = CpuBackend(made.artefact, threads=1, kv_bits=8, cache_dir=kernel_cache)
    modules = [*needed_modules(backend._artefact, 8, "int8"), *modules_of(8)]
    cache, tokens = backend.new_cache(64), []
    logits = backend.forward(cache, PROMPT)
    for _ in range(16):
        tokens.append(int(np.argmax(logits)))
        logits = backend.forward(cache, np.array(tokens[-1:], np.int32))
    backend.close()
    out = write_export(made.artefact, tmp_path_factory.mktemp("model"), block_tokens=256)
    return out, modules, tokens


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_wasm(model, kernel_cache, tmp_path):
    out, modules, expected = model
    files = build_library(MACHINES["wasm32"], modules, tmp_path, kernel_cache)
    assert [path.name for path in files] == ["libedgetok.a", "edgetok.wasm", "edgetok.mjs"]
    assert files[1].stat().st_size < 1_500_000
    script = tmp_path / "run.mjs"
    script.write_text(NODE)
    told = [out, files[1], json.dumps(PROMPT.tolist())]
    begun = "c._initialize?.()"
    code = files[2].read_text()
    assert begun in code
    high = tmp_path / "high.mjs"  # addresses that are negative numbers to JavaScript
    high.write_text(code.replace(begun, f"{begun}; {BEYOND_2_GB}"))
    draws = json.dumps({"temperature": 1.0, "seed": 7, "topK": 5})
    greedy, drawn, beyond = (
        subprocess.run(
            ["node", script, host, *told, options], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for host, options in ((files[2], "{}"), (files[2], draws), (high, "{}"))
    )
    assert json.loads(greedy[0]) == expected
    assert beyond == greedy
    assert json.loads(drawn[0]) != expected
    assert "token 400" in json.loads(greedy[1])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-aarch64") is None, reason="needs qemu-aarch64")
def test_arm_under_an_emulator(model, kernel_cache, tmp_path):
    """The instruction set is chosen by what the processor says that it has."""
    out, modules, expected = model
    machine = MACHINES["aarch64-linux"]
    static, shared = build_library(machine, modules, tmp_path, kernel_cache)
    assert shared.name == "libedgetok.so"
    (tmp_path / "program.c").write_text(PROGRAM)
    program = tmp_path / "program"
    Compiler(machine, "aarch64-linux-musl").run(
        str(tmp_path / "program.c"),
        f"-I{HEADER.parent}",
        str(static),
        "-static",
        "-o",
        str(program),
    )
    processors = (("max", "i8mm", 2), ("cortex-a76", "neon", 2), ("cortex-a53", "portable", 1))
    for processor, isa, threads in processors:
        told = [str(out), str(threads), *map(str, PROMPT.tolist())]
        done = subprocess.run(
            ["qemu-aarch64", "-cpu", processor, program, *told],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found, *tokens = done.stdout.split()
        assert found == isa
        assert list(map(int, tokens)) == expected


@pytest.mark.parametrize(
    ("name", "file", "magic"),
    [
        ("x86_64-windows", "edgetok.dll", b"MZ"),
        ("arm64-macos", "libedgetok.dylib", b"\xcf\xfa\xed\xfe"),
    ],
)
def test_what_links_elsewhere(name, file, magic, kernel_cache, tmp_path):
    """Every symbol is there, and the functions of the header are shown."""
    machine = MACHINES[name]
    files = build_library(
        machine, ["program.interpreter"], tmp_path, kernel_cache, isas=machine.isas[-1:]
    )
    shared = (tmp_path / file).read_bytes()
    assert shared.startswith(magic)
    assert b"edgetok_chat_new" in shared
    assert files[0].read_bytes().startswith(b"!<arch>\n")


@pytest.mark.parametrize("name", ["aarch64-android", "arm64-ios"])
def test_machines_whose_own_compiler_builds(name, kernel_cache, tmp_path):
    machine = MACHINES[name]
    modules = ["program.interpreter"]
    (archive,) = build_library(machine, modules, tmp_path, kernel_cache, isas=["portable"])
    assert archive.name == "libedgetok_kernels.a"
    sources = {path.name for path in (tmp_path / "src").iterdir()}
    assert {"kernels.c", "abi.h", "internal.h", "plan.c"} <= sources
    work = tmp_path / "objects"
    work.mkdir()
    subprocess.run(["ar", "x", archive], cwd=work, check=False)
    found = [symbols(path.read_bytes()) for path in work.glob("*.o")]
    shown = {name for object_ in found for name, (there, _) in object_.items() if there}
    wanted = {name for object_ in found for name, (there, _) in object_.items() if not there}
    hosts = {"edgetok_wait", "edgetok_wake", "edgetok_yield"}
    assert hosts <= wanted - shown <= hosts | {"memcpy", "memset", "memmove"}


def test_android_loads_what_its_compiler_links(kernel_cache, tmp_path):
    """Pages of 16 KB, no text relocations, nothing asked of other libraries than C's."""
    modules = ["program.interpreter", "linear.q4", "attention.int8"]
    build_library(
        MACHINES["aarch64-android"], modules, tmp_path, kernel_cache, isas=["i8mm", "neon"]
    )  # by the NDK's clang with bionic; here by the same clang with musl
    table = (tmp_path / "src/kernels.c").read_text()
    i8mm, neon = re.findall(r"named_kernel of_\w+\[\] = {(.*?)};", table, re.DOTALL)
    own = re.findall(r'{"(\w+)", edgetok_i8mm_\1}', i8mm)
    assert own == ["matmul_q4"]  # all else is neon's
    assert sorted(i8mm.replace("_i8mm_", "_neon_").split()) == sorted(neon.split())
    shared = tmp_path / "libedgetok_app.so"
    Compiler(MACHINES["aarch64-linux"], "aarch64-linux-musl").run(
        "-shared", "-fPIC", "-O1", f"-I{HEADER.parent}",
        *map(str, sorted((tmp_path / "src").glob("*.c"))), str(tmp_path / "libedgetok_kernels.a"),
        "-Wl,-z,max-page-size=16384", "-lm", "-o", str(shared),
    )  # fmt: skip
    code = shared.read_bytes()
    assert code[:6] == b"\x7fELF\x02\x01"
    (begin,) = struct.unpack_from("<Q", code, 32)
    size, count = struct.unpack_from("<HH", code, 54)
    headers = [struct.unpack_from("<II6Q", code, begin + i * size) for i in range(count)]
    loaded = [header for header in headers if header[0] == 1]  # PT_LOAD
    assert len(loaded) >= 2
    for _, flags, offset, address, _, _, _, align in loaded:
        assert align >= 16384
        assert offset % 16384 == address % 16384
        assert flags & 3 != 3  # never writable and executable
    ((_, _, at, _, _, length, _, _),) = (header for header in headers if header[0] == 2)
    dynamic = dict(struct.iter_unpack("<qQ", code[at : at + length]))
    assert 22 not in dynamic  # DT_TEXTREL
    assert not dynamic.get(30, 0) & 4  # DF_TEXTREL of DT_FLAGS


def test_targets_have_a_compiler(monkeypatch):
    from edgetok.errors import MissingExtraError

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"edgetok\[native\]"):
        Compiler(MACHINES["wasm32"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    Compiler(MACHINES["wasm32"])
    monkeypatch.setattr(sys, "frozen", True, raising=False)  # it would start itself
    with pytest.raises(MissingExtraError, match=r"edgetok\[native\]"):
        Compiler(MACHINES["wasm32"])
    assert Path(HEADER).exists()
