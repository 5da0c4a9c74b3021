"""A plan is data: the same for every machine, written, read back and run elsewhere."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgetok.errors import ArtefactError, ShapeError
from edgetok.formats.artefact import open_artefact
from edgetok.kernels_cpu.program.abi import INSTR_SLOTS
from edgetok.kernels_cpu.simd.isa import host_isas
from edgetok.runtime.cpu.arenas import Arena, Place, Segment, address_in, bound, check, relocations
from edgetok.runtime.cpu.backend import CpuBackend
from edgetok.runtime.cpu.plan import PlanOptions, make_plan
from edgetok.runtime.cpu.plan_file import (
    HEADER,
    plan_bytes,
    plan_from_bytes,
    read_plan,
    write_plan,
)
from tests.tiny import VOCAB_SIZE

OPTIONS = PlanOptions(kv_bits=8, compute="int8", block_tokens=16, head_tokens=4)
TOKENS = np.random.default_rng(5).integers(3, VOCAB_SIZE, 40).astype(np.int32)
# What another process does: nothing of this one's but the plan, the weights and the kernels.
RUN = """
import json, sys
from pathlib import Path
import numpy as np
from edgetok.runtime.cpu.backend import CpuBackend
from edgetok.runtime.cpu.plan_file import read_plan
artefact, plan, cache_dir, isa, threads, tokens, out = json.loads(sys.argv[1])
backend = CpuBackend(
    artefact, threads=threads, isa=isa, cache_dir=Path(cache_dir), plan=read_plan(Path(plan))
)
ids = np.array(tokens, np.int32)
cache = backend.new_cache(64)
found = [backend.forward(cache, ids[:30], all_logits=True).copy()]
found += [backend.forward(cache, ids[i : i + 1])[None].copy() for i in range(30, len(ids))]
found.append(backend.forward(cache, ids[:20])[None].copy())
np.save(out, np.concatenate(found))
"""


def logits(backend):
    cache = backend.new_cache(64)
    found = [backend.forward(cache, TOKENS[:30], all_logits=True).copy()]
    found += [backend.forward(cache, TOKENS[i : i + 1])[None].copy() for i in range(30, 40)]
    return np.concatenate([*found, backend.forward(cache, TOKENS[:20])[None].copy()])


@pytest.mark.parametrize(
    ("family", "bits", "kv_bits"), [("llama", 4, 8), ("gemma2", 3, 4), ("olmo2", 16, 16)]
)
def test_runs_in_another_process(family, bits, kv_bits, tiny, kernel_cache, tmp_path):
    """One plan file, every instruction set and number of threads: bits as without it."""
    model = tiny(family, bits)
    with open_artefact(model.artefact) as artefact:
        options = PlanOptions(kv_bits=kv_bits, compute="int8", block_tokens=16, head_tokens=16)
        write_plan(tmp_path / "plan", make_plan(model.spec, artefact, options))
    for i, isa in enumerate(host_isas()):
        backend = CpuBackend(
            model.artefact, threads=1, isa=isa, kv_bits=kv_bits, block_tokens=16,
            cache_dir=kernel_cache,
        )  # fmt: skip
        expected = logits(backend)
        backend.close()
        out = tmp_path / f"{isa}.npy"
        told = [str(model.artefact), str(tmp_path / "plan"), str(kernel_cache), isa, 1 + i % 2]
        told += [TOKENS.tolist(), str(out)]
        subprocess.run([sys.executable, "-c", RUN, json.dumps(told)], check=True)
        np.testing.assert_array_equal(np.load(out), expected)


def test_a_file_gives_the_same_plan(tiny, tmp_path):
    model = tiny("phi3", 4)
    with open_artefact(model.artefact) as artefact:
        plan = make_plan(model.spec, artefact, OPTIONS)
        assert make_plan(model.spec, artefact, OPTIONS) == plan
    write_plan(tmp_path / "plan", plan)
    assert read_plan(tmp_path / "plan") == plan
    assert plan_bytes(plan) == (tmp_path / "plan").read_bytes()


def test_layout_of_the_file(tiny):
    """Read by hand, as a program in C would."""
    model = tiny("llama", 4)
    with open_artefact(model.artefact) as artefact:
        plan = make_plan(model.spec, artefact, OPTIONS)
    content = plan_bytes(plan)
    assert content[:8] == b"edgeplan"
    header = dict(zip(HEADER, np.frombuffer(content, "<i8", len(HEADER), 8).tolist(), strict=True))
    assert header["version"] == 1
    assert header["kv_bits"] == 8
    assert header["weights_bytes"] == (model.artefact / "model.onnx.data").stat().st_size
    at = 8 + 8 * len(HEADER)
    data = (model.artefact / "model.onnx.data").read_bytes()
    assert content[at : at + 32] == hashlib.sha256(data).digest()
    at += 32
    count = header["instructions"]
    table = np.frombuffer(content, "<i8", count * INSTR_SLOTS, at)
    at += table.nbytes
    moved = np.frombuffer(content, "<i4", 2 * header["relocations"], at).reshape(-1, 2)
    at += moved.nbytes + 64 * header["places"]
    kernels = content[at : at + header["kernel_bytes"]].rstrip(b"\0").split(b"\0")
    first = {int(slot): int(segment) for slot, segment in moved if slot < INSTR_SLOTS}
    assert first[0] == 1  # a kernel
    assert kernels[table[0]] == b"embed_q4"
    assert first[4] == 2  # the embedding's codes
    with open_artefact(model.artefact) as artefact:
        assert table[4] == artefact.layout.tensors["embed_tokens.qweight"].offset
    spec = content[at + header["kernel_bytes"] : -32].rstrip(b"\0").decode()
    assert spec == model.spec.to_json()
    assert content[-32:] == hashlib.sha256(content[:-32]).digest()


def test_refuses_damage(tiny):
    model = tiny("llama", 4)
    with open_artefact(model.artefact) as artefact:
        content = plan_bytes(make_plan(model.spec, artefact, OPTIONS))
    rng = np.random.default_rng(0)
    for _ in range(50):
        at = int(rng.integers(8, len(content)))
        damaged = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        with pytest.raises(ArtefactError, match="damaged"):
            plan_from_bytes(damaged)
    with pytest.raises(ArtefactError, match="not a plan"):
        plan_from_bytes(b"")


@pytest.mark.parametrize("name", HEADER)
def test_refuses_a_wrong_header(tiny, name):
    """A header that says something else with a hash that fits: refused, never another plan."""
    model = tiny("llama", 4)
    with open_artefact(model.artefact) as artefact:
        plan = make_plan(model.spec, artefact, OPTIONS)
    content = bytearray(plan_bytes(plan)[:-32])
    numbers = np.frombuffer(content, "<i8", len(HEADER), 8)
    numbers[HEADER.index(name)] += 1 << 40
    changed = bytes(content)
    try:
        found = plan_from_bytes(changed + hashlib.sha256(changed).digest())
    except ArtefactError:
        return
    # What is only larger, as a segment may be, or an option that a backend compares.
    assert name.endswith("_bytes") or name in ("kv_bits", "compute", "block_tokens", "head_tokens")
    assert found != plan


def test_refuses_other_weights_and_decoders(tiny, kernel_cache):
    model, other = tiny("llama", 4), tiny("llama", 8)
    with open_artefact(model.artefact) as artefact:
        plan = make_plan(model.spec, artefact, OPTIONS)
        fewer = dataclasses.replace(model.spec, layers=model.spec.layers[:1])
        short = make_plan(fewer, artefact, OPTIONS)
    with pytest.raises(ArtefactError, match="the plan was made for"):
        CpuBackend(other.artefact, cache_dir=kernel_cache, plan=plan)
    with pytest.raises(ArtefactError, match="a plan for another decoder"):
        CpuBackend(model.artefact, cache_dir=kernel_cache, plan=short)


def test_nothing_of_this_process_is_in_it(tiny, kernel_cache):
    """The same bytes whatever instruction set and threads a backend has."""
    model = tiny("llama", 4)
    found = set()
    for threads, isa in enumerate(host_isas(), 1):
        backend = CpuBackend(model.artefact, threads=threads, isa=isa, cache_dir=kernel_cache)
        found.add(plan_bytes(backend.plan))
        backend.close()
    assert len(found) == 1


def test_addresses():
    arena = Arena(Segment.WORKSPACE)
    first, second = arena.array(3, 5), arena.array(2, 2, "int32")
    assert (first.offset, second.offset, arena.nbytes) == (0, 64, 128)
    table = np.array([[address_in(Segment.KERNELS, 1), 1, second.address + 4, 1 << 40, -1]])
    at, segments = relocations(table)
    assert at.tolist() == [0, 2]
    assert segments.tolist() == [Segment.KERNELS, Segment.WORKSPACE]
    made = bound(table, {Segment.WORKSPACE: 1000}, np.array([7, 8]))
    assert made.tolist() == [[8, 1, 1068, 1 << 40, -1]]
    check(table, {Segment.KERNELS: 2, Segment.WORKSPACE: 128})
    with pytest.raises(ShapeError, match="byte 68 of WORKSPACE, expected fewer than 68"):
        check(table, {Segment.KERNELS: 2, Segment.WORKSPACE: 68})
    memory = np.arange(128, dtype=np.uint8)
    place = Place(segment=Segment.WORKSPACE, offset=64, rows=1, columns=2, dtype="int32")
    assert place.view(memory).tolist() == [[0x43424140, 0x47464544]]


def test_a_plan_is_small(tiny, tmp_path: Path):
    """A few hundred bytes an instruction at most."""
    model = tiny("llama", 4)
    with open_artefact(model.artefact) as artefact:
        plan = make_plan(model.spec, artefact, OPTIONS)
    assert len(plan_bytes(plan)) < 256 * len(plan.table) + 4096
