"""`model.plan`: all that a program without Python needs to run a model, beside its weights.

Made of the same plan that the CPU backend runs. All numbers are little-endian:

    magic      8 bytes, "edgetokP"
    head       int64: version, number of sections, bytes of the core
    sections   int64 [n, 3]: kind, offset, bytes; each begins at a multiple of 64
    the core: every section but TOKENIZER and TEMPLATE
    sha256     of all before it
    TOKENIZER, TEMPLATE

| section   | what |
|-----------|------|
| PLAN      | instructions, relocations, places: `runtime/cpu/plan_file.py` |
| RUN       | int64, named by `RUN` |
| LAYERS    | int64 [layers, 4], named by `LAYER`: window (-1: it stores no keys and values), rope (-1: none), offsets of its keys' centres and factors in the weights (-1: none) |
| SIZES     | int64 [layers, 7], named by `SIZE`: of what it stores; layers with equal windows have equal ones |
| ROPES     | of each: int64 pairs and original context (0: not longrope), float64 frequencies of short and of long contexts |
| STATES    | int64 [states, 4]: what recurrent layers keep, in the order of snapshots: index in the table of states, rows and columns of its ring, how many rows the next token needs |
| HOST      | of each kernel that the library calls itself: name (64 bytes), its instruction but for addresses |
| EOS       | int32: tokens that end an answer |
| FAMILY    | the checkpoint's model type, ended by a 0 |
| WIDE      | uint8 [layers, KV heads]: 1 where a head looks back and `recall` gives it more slots (`cache/bounds.py`); empty where all heads are alike |
| TOKENIZER | `native/tokenizer.py`; absent where the tokenizer is refused |
| TEMPLATE  | `native/template.py`; likewise |

The hash finds damage; whoever can write a plan is to be trusted like whoever writes a program.
"""  # noqa: E501

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from edgetok.cache.bounds import wide_heads
from edgetok.formats.artefact import Artefact
from edgetok.formats.head_scores import HeadScores, head_scores
from edgetok.kernels_cpu.attention import launch as attention
from edgetok.kernels_cpu.attention.launch import is_rotated
from edgetok.kernels_cpu.cache.launch import RUN
from edgetok.kernels_cpu.elementwise import launch as elementwise
from edgetok.kernels_cpu.eviction import launch as eviction
from edgetok.kernels_cpu.plan.launch import MAGIC, NAME_BYTES, VERSION
from edgetok.kernels_cpu.plan.launch import Section as Section
from edgetok.kernels_cpu.program.tables import Addresses, Instruction, instruction
from edgetok.kernels_cpu.sampling import launch as sampling
from edgetok.models.operations import operations, stateful
from edgetok.models.ops import Stateful, Store
from edgetok.models.rope import inv_freq
from edgetok.models.spec import DecoderSpec, RopeSpec
from edgetok.runtime.cpu.head_eviction import evicting_dim
from edgetok.runtime.cpu.lowering.recurrent import history_shape
from edgetok.runtime.cpu.plan import Plan
from edgetok.runtime.cpu.plan_file import plan_bytes
from edgetok.runtime.cpu.requirements import useful_threads

PLAN_FILE = "model.plan"
_ALIGNMENT_BYTES = 64
# Of an instruction that a library fills in; any number of slots passes the launchers' checks.
_NONE: dict[str, Any] = {
    "heads": 0, "records": 0, "slots": attention.PAGE_SLOTS, "scratch": 0, "wait": True,
}  # fmt: skip


SCORES = ("window", "retain", "content")  # whose kernels are in HOST, in this order


class _Recorder:
    """Stands for compiled kernels: remembers the name that was asked for last."""

    name = ""

    def address(self, name: str) -> int:
        self.name = name
        return 0


def model_plan(
    plan: Plan,
    artefact: Artefact,
    eos: Collection[int],
    extra: Mapping[Section, bytes],
) -> bytes:
    """The file.

    Args:
        plan: made for this artefact.
        artefact: whose weights it names.
        eos: tokens that end an answer.
        extra: the sections TOKENIZER and TEMPLATE, where there are any.

    Raises:
        UnsupportedError: the decoder has an operation with states that the CPU does not compute.
    """
    spec = plan.spec
    kept = stateful(operations(spec))
    core = {
        Section.PLAN: plan_bytes(plan),
        Section.RUN: _run(plan, artefact, len(eos), kept),
        Section.LAYERS: _layers(plan, artefact),
        Section.ROPES: b"".join(_rope(rope) for rope in spec.ropes),
        Section.HOST: b"".join(_host(plan)),
        Section.EOS: np.array(sorted(eos), "<i4").tobytes(),
        Section.FAMILY: spec.family.encode() + b"\0",
        Section.STATES: np.array(
            [(op.state, *history_shape(op), op.kept_tokens) for op in kept], "<i8"
        ).tobytes(),
        Section.SIZES: _sizes(plan),
        Section.WIDE: _wide(spec, head_scores(artefact.report, spec)),
        Section.IDENTITY: artefact.identity.encode(),
    }
    return _joined(core, extra)


def _joined(core: Mapping[Section, bytes], extra: Mapping[Section, bytes]) -> bytes:
    count = len(core) + len(extra)
    at = 32 + 24 * count
    entries, core_bytes = [], 0
    for part in (core, extra):
        for kind, content in part.items():
            at = _aligned(at)
            entries.append((kind, at, len(content)))
            at += len(content)
        if part is core:
            core_bytes = at
            at += hashlib.sha256().digest_size
    made = bytearray(at)
    struct.pack_into("<8s3q", made, 0, MAGIC, VERSION, count, core_bytes)
    for i, entry in enumerate(entries):
        struct.pack_into("<3q", made, 32 + 24 * i, *entry)
    every = {**core, **extra}
    for kind, offset, nbytes in entries:
        made[offset : offset + nbytes] = every[kind]
    digest = hashlib.sha256(made[:core_bytes]).digest()
    made[core_bytes : core_bytes + len(digest)] = digest
    return bytes(made)


def _run(plan: Plan, artefact: Artefact, eos: int, kept: Sequence[Stateful]) -> bytes:
    spec, bits = plan.spec, plan.options.kv_bits
    numbers = {
        "vocab": spec.vocab_size,
        "layers": spec.num_layers,
        "ropes": len(spec.ropes),
        "heads": spec.num_heads,
        "kv_heads": spec.most_kv_heads,
        "context": spec.context_tokens,
        "block": plan.options.block_tokens,
        "kv_bits": bits,
        "scale_bytes": attention.scale_bytes(bits),
        "partial_bytes": attention.partials_bytes(spec.num_heads, spec.most_head_dim, 1),
        "sample_scratch": sampling.scratch_bytes(spec.vocab_size),
        "evict_scratch": eviction.scratch_bytes(0, spec.most_head_dim),
        "eos": eos,
        "small": int(useful_threads(artefact) == 1),
        "states": len(kept),
        "bulky": int(any(op.BULKY for op in kept)),
        "rows_end": artefact.rows_end,
    }
    return np.array([numbers[name] for name in RUN], "<i8").tobytes()


def _layers(plan: Plan, artefact: Artefact) -> bytes:
    spec, known, stored = plan.spec, artefact.constants, set(plan.spec.attention_layers)
    made = np.array(
        [
            (layer.window if i in stored else -1, layer.rope, -1, -1)
            for i, layer in enumerate(spec.layers)
        ],
        "<i8",
    )
    if is_rotated(plan.options.kv_bits):
        for op in operations(spec):
            if isinstance(op, Store) and op.layer is not None and f"{op.constants}.factor" in known:
                made[op.layer, 2:] = [
                    known[f"{op.constants}.{name}"].offset for name in ("centre", "factor")
                ]
    return made.tobytes()


def _sizes(plan: Plan) -> bytes:
    spec, bits, rows = plan.spec, plan.options.kv_bits, []
    for i in range(spec.num_layers):
        heads, dims = spec.kv_sizes(i)
        rotated = _rotation(_Recorder(), dims, bits)[eviction.ROTATE_DIMS :][:4]
        heads = heads if i in spec.attention_layers else 0
        sizes = attention.key_bytes(dims, bits), attention.value_bytes(dims, bits)
        rows.append((heads, *sizes, *rotated))
    return np.array(rows, "<i8").tobytes()


def _wide(spec: DecoderSpec, scores: HeadScores | None) -> bytes:
    heads = wide_heads(scores or {})
    made = np.zeros((spec.num_layers, spec.most_kv_heads), np.uint8)
    for head in heads:
        made[head] = 1
    return made.tobytes() if heads else b""


def _rope(rope: RopeSpec) -> bytes:
    original = rope.original_context_tokens if rope.scaling == "longrope" else 0
    near = inv_freq(rope, original)
    head = struct.pack("<2q", len(near), original)
    return (
        head + near.astype("<f8").tobytes() + inv_freq(rope, original + 1).astype("<f8").tobytes()
    )


def _host(plan: Plan) -> list[bytes]:
    """Kernels that the library calls outside of a plan's instructions, with what is known now."""
    spec, bits, kernels = plan.spec, plan.options.kv_bits, _Recorder()
    size, none = attention.PAGE_SLOTS, _NONE
    dims = evicting_dim(spec)
    where: dict[str, Any] = {"page_slots": size, "head_dim": dims, "kv_bits": bits}

    def packed(made: Instruction) -> bytes:
        return kernels.name.encode().ljust(NAME_BYTES, b"\0") + np.array(made, "<i8").tobytes()

    made = [
        packed(instruction(kernels.address("sample"))),
        packed(
            eviction.window_scores(kernels, heads=0, records=0, slots=size, scores=0, wait=True)
        ),
        *(
            packed(eviction.key_scores(kernels, policy=policy, scores=0, **none, **where))
            for policy in SCORES[1:]
        ),
        packed(
            eviction.choose_evicted(
                kernels,
                scores=0,
                room=0,
                front=0,
                recent=0,
                around=0,
                far=0,
                most_far=0,
                evicted=0,
                counts=0,
                **none,
            )
        ),
        packed(eviction.renumber(kernels, shift=0, front=0, positions=0, by=0, **none)),
        packed(_rotation(kernels, dims, bits)),
        packed(eviction.share_scores(kernels, scores=0, **none)),
        packed(eviction.join_rests(kernels, evicted=0, counts=0, **none, **where)),
    ]
    for rope in spec.ropes:
        made.append(
            packed(
                elementwise.angles(
                    kernels,
                    positions=0,
                    frequencies=0,
                    factor=rope.attention_factor,
                    pairs=rope.rotary_dim // 2,
                    cos=0,
                    sin=0,
                    wait=False,
                )
            )
        )
    return made


def _rotation(kernels: Addresses, dims: int, bits: int) -> Instruction:
    size = attention.PAGE_SLOTS
    return eviction.rotate_keys(
        kernels, by=0, rest_by=0, page_slots=size, head_dim=dims, kv_bits=bits, **_NONE
    )


def _aligned(at: int) -> int:
    return -(-at // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
