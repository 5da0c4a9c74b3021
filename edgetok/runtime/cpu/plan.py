"""The instructions that compute tokens, made from a spec and an artefact's layout.

One table of instructions serves both: kernels read the number of tokens from the run's state. A
plan is data: its addresses are a segment and an offset (`arenas.py`), its buffers are large enough
for the widest vectors, and nothing in it depends on the machine, the instruction set or the number
of threads. `plan_file.py` writes it to a file, `bound_plan.py` binds it to memory. Which
instructions an operation becomes is in `lowering.py`; for attention and a dense network:

    embed
    each layer:  input_norm | quantise | q, k, v | q_norm, k_norm, rope, append | attention | merge
                 | quantise | o_proj (+ x)
                 | pre_mlp_norm | quantise | gate, up | act * up | quantise | down_proj (+ x)
    final_norm | quantise | lm_head

A bar is a barrier of the thread team. With float activations nothing is quantised; post norms
keep a projection from being added to x directly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from edgetok.cache.query_log import query_dim
from edgetok.formats.artefact import Artefact
from edgetok.formats.layout import DATA_FILE
from edgetok.kernels_cpu.attention import launch as launch_attention
from edgetok.kernels_cpu.linear.launch import SCRATCH_BYTES
from edgetok.kernels_cpu.program.abi import CTX_HEAD, CTX_TAIL
from edgetok.kernels_cpu.program.launch_rows import go_on
from edgetok.kernels_cpu.program.memory import Floats, Span
from edgetok.kernels_cpu.program.tables import Table, table
from edgetok.models.operations import (
    body_operations,
    head_operations,
    value_columns,
)
from edgetok.models.ops import Op, Rope
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.cpu.arenas import Arena, Place, Segment, address_in, check
from edgetok.runtime.cpu.lowering.linears import Linears
from edgetok.runtime.cpu.lowering.lower import lower
from edgetok.runtime.cpu.lowering.target import Buffers, Instructions, Target

Compute = Literal["int8", "float32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """The options of a plan.

    Attributes:
        kv_bits: bits of the caches.
        compute: "int8" activations in products of quantised weights, or "float32".
        block_tokens: most tokens of one run.
        head_tokens: most tokens whose logits are computed at once.
    """

    kv_bits: int
    compute: Compute
    block_tokens: int
    head_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """A decoder's instructions and the memory that they need.

    Attributes:
        spec: the decoder.
        options: the options that it was made with.
        weights: sha256 of the weight file that offsets point into, as the manifest has it.
        kernels: names of the kernels, which addresses of KERNELS count.
        sizes: bytes of each segment; of those in BY_THREAD, for each thread.
        places: arrays that are read or written from outside, by name: `tokens`, `positions`,
            `cos.I` and `sin.I` of each rope, each value of the decoder; `x` is [block_tokens,
            hidden], `logits` is [head_tokens, vocab_size].
        table: all instructions, [count, INSTR_SLOTS]: the body, then the head.
        body: how many compute `x` from `tokens`; rows that do not go on (CTX_TAIL) are left out
            as soon as the cache has all that they leave there.
        trunk: how many of those come before that.
    """

    spec: DecoderSpec
    options: PlanOptions
    weights: str
    kernels: tuple[str, ...]
    sizes: Mapping[Segment, int]
    places: Mapping[str, Place]
    table: Table
    body: int
    trunk: int

    def __eq__(self, other: object) -> bool:
        """Return whether both are the same in every number."""
        if not isinstance(other, Plan):
            return NotImplemented
        return all(
            bool(np.array_equal(mine, theirs)) if isinstance(mine, np.ndarray) else mine == theirs
            for mine, theirs in (
                (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)
            )
        )

    __hash__ = None  # type: ignore[assignment]


def make_plan(spec: DecoderSpec, artefact: Artefact, options: PlanOptions) -> Plan:
    """Place buffers and build the instructions.

    Args:
        spec: the decoder, or the first layers of the artefact's.
        artefact: says how and where its weights are stored; they are not read.
        options: the options of the plan.

    Raises:
        ShapeError: sizes do not go together.
        UnsupportedError: an operation has no CPU instructions.
    """
    planner = _Planner(spec, artefact, options)
    body, trunk = planner.body()
    made = [*body, *planner.head()]
    instructions = table(made)
    sizes = planner.sizes()
    check(instructions, sizes)
    manifest = artefact.manifest.files
    return Plan(
        spec=spec,
        options=options,
        weights=manifest[DATA_FILE].sha256,
        kernels=tuple(planner.kernels.names),
        sizes=sizes,
        places=planner.places(),
        table=instructions,
        body=len(body),
        trunk=trunk,
    )


class _Names:
    """Stands for compiled kernels: a kernel's address is the number of its name."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def address(self, name: str) -> int:
        if name not in self.names:
            self.names.append(name)
        return address_in(Segment.KERNELS, self.names.index(name))


class _Planner:
    """Places buffers, and lowers operations to instructions on them."""

    def __init__(self, spec: DecoderSpec, artefact: Artefact, options: PlanOptions) -> None:
        self.kernels = _Names()
        self._spec, self._artefact, self._options = spec, artefact, options
        block = options.block_tokens
        self._tables, self._workspace = Arena(Segment.TABLES), Arena(Segment.WORKSPACE)
        self._tokens = self._tables.array(1, block, "int32")
        self._positions = self._tables.array(1, block, "int32")
        halves = [rope.rotary_dim // 2 for rope in spec.ropes]
        self._ropes = [
            (self._tables.array(block, half), self._tables.array(block, half)) for half in halves
        ]
        columns = value_columns((*body_operations(spec), *head_operations(spec)))
        rows = {name: block for name in columns} | {"logits": options.head_tokens}
        self._values = {
            name: self._workspace.array(rows[name], count) for name, count in columns.items()
        }
        exact = options.compute == "float32"
        self._linears = Linears(artefact, self.kernels, self._workspace, exact=exact)

    def body(self) -> tuple[Instructions, int]:
        """From tokens to rows of x that go on, and how many instructions come before that."""
        every = list(body_operations(self._spec))
        made, stored = self._lowered(every, self._values)
        trunk = stored or len(made)
        return [*made[:trunk], *self._going_on(every), *made[trunk:]], trunk

    def _going_on(self, every: Sequence[Op]) -> Instructions:
        """Behind the last thing that is stored only rows go on that something is wanted of."""
        last = max((i for i, op in enumerate(every) if op.STORES), default=len(every) - 1)
        live: dict[str, None] = {}  # what is read there was written before
        written: set[str] = set()
        for op in every[last + 1 :]:
            live.update(dict.fromkeys(name for name in op.reads if name not in written))
            written.update(op.writes)
        live.setdefault("x")
        columns = {name: n for op in every[: last + 1] for name, n in op.writes.items()}
        moves = [
            (place.address, place.address, columns[name])
            for name, place in ((name, self._values[name]) for name in live)
        ]
        for rope in dict.fromkeys(op.rope for op in every[last + 1 :] if isinstance(op, Rope)):
            moves += [(place.address, place.address, place.columns) for place in self._ropes[rope]]
        moves.append((self._positions.address, self._positions.address, 1))
        return [*go_on(self.kernels, rows=CTX_TAIL, moves=moves)]

    def head(self) -> Instructions:
        """From rows of x, copied together, to logits."""
        tokens, hidden = self._options.head_tokens, self._spec.hidden_size
        wanted = {name: self._workspace.array(tokens, hidden) for name in ("x", "h")}
        made, _ = self._lowered(list(head_operations(self._spec)), self._values | wanted)
        moves = [(self._values["x"].address, wanted["x"].address, hidden)]
        return [*go_on(self.kernels, rows=CTX_HEAD, moves=moves), *made]

    def _lowered(
        self, operations: Sequence[Op], values: Mapping[str, Place]
    ) -> tuple[Instructions, int]:
        buffers = Buffers(
            values={name: _floats(place) for name, place in values.items()},
            tokens=Span(self._tokens.address, self._tokens.nbytes),
            positions=self._positions.address,
            ropes=[(cos.address, sin.address) for cos, sin in self._ropes],
            scratch=address_in(Segment.ATTENTION, 0),
        )
        target = Target(
            kernels=self.kernels,
            linears=self._linears,
            weight=lambda name: address_in(Segment.WEIGHTS, self._artefact.slot(name).offset),
            buffers=buffers,
            rotary_dims=[rope.rotary_dim for rope in self._spec.ropes],
            head_dim=self._spec.most_head_dim,
            record_heads=self._spec.most_kv_heads,
            query_dim=query_dim(self._spec),
            kv_bits=self._options.kv_bits,
            tied=self._spec.tied,
            constants=self._artefact.constants,
        )
        return lower(operations, target)

    def sizes(self) -> dict[Segment, int]:
        """Bytes of each segment, once all is placed."""
        return {
            Segment.KERNELS: len(self.kernels.names),
            Segment.WEIGHTS: self._artefact.mapped_bytes,
            Segment.ATTENTION: launch_attention.scratch_bytes(self._spec.most_head_dim),
            Segment.LINEAR: SCRATCH_BYTES,
            Segment.TABLES: self._tables.nbytes,
            Segment.WORKSPACE: self._workspace.nbytes,
        }

    def places(self) -> dict[str, Place]:
        """See `Plan.places`."""
        made = {"tokens": self._tokens, "positions": self._positions}
        for i, (cos, sin) in enumerate(self._ropes):
            made |= {f"cos.{i}": cos, f"sin.{i}": sin}
        return made | self._values


def _floats(place: Place) -> Floats:
    return Floats(place.address, place.rows, place.columns, place.columns)
