"""Build the program that computes a block of tokens or one, from a spec and an artefact.

One table of instructions serves both: kernels read the number of tokens from the run's state.
Weights are addresses inside the mapped file. All buffers are allocated here, once; which
instructions an operation becomes is in `lowering.py`. For attention and a dense network:

    embed
    each layer:  input_norm | quantise | q, k, v | q_norm, k_norm, rope, append | attention | merge
                 | quantise | o_proj (+ x)
                 | pre_mlp_norm | quantise | gate, up | act * up | quantise | down_proj (+ x)
    final_norm | quantise | lm_head

A bar is a barrier of the thread team. With float activations nothing is quantised; post norms
keep a projection from being added to x directly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgetok.formats.artefact import Artefact
from edgetok.kernels_cpu.attention import launch as launch_attention
from edgetok.kernels_cpu.linear.launch import Floats, Span, aligned_bytes
from edgetok.kernels_cpu.program.abi import CTX_HEAD, CTX_TAIL
from edgetok.kernels_cpu.program.launch_rows import go_on
from edgetok.kernels_cpu.program.loader import Kernels
from edgetok.models.operations import (
    body_operations,
    head_operations,
    operations,
    value_columns,
)
from edgetok.models.ops import Op
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.cpu.linears import Linears
from edgetok.runtime.cpu.lowering import Buffers, Instructions, Target, lower

Array = npt.NDArray[np.float32]
Compute = Literal["int8", "float32"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """The options of a plan.

    Attributes:
        threads: of the team.
        kv_bits: of the caches.
        compute: "int8" activations in products of quantised weights, or "float32".
        block_tokens: most tokens of one run.
        head_tokens: most tokens whose logits are computed at once.
    """

    threads: int
    kv_bits: int
    compute: Compute
    block_tokens: int
    head_tokens: int


class Plan:
    """Buffers and instructions of one artefact.

    Attributes:
        tokens: int32 [block_tokens], to be filled before a run.
        positions: int32 [block_tokens], likewise.
        cos: of each rope, float32 [block_tokens, rotary_dim / 2], likewise.
        sin: likewise.
        x: float32 [block_tokens, hidden]: the residual stream, the body's result.
        logits: float32 [head_tokens, vocab_size] of the rows that went on to the head.
        body: instructions from tokens to x, where only rows that go on (CTX_TAIL) are left.
        head: instructions from rows of x that go on (CTX_HEAD) to `logits`.
        trunk: the beginning of the body, until all that a run leaves in the cache is there.
    """

    def __init__(
        self, spec: DecoderSpec, artefact: Artefact, kernels: Kernels, options: PlanOptions
    ) -> None:
        """Allocate buffers and build both instruction lists."""
        self._spec = spec
        self._artefact = artefact
        self._kernels = kernels
        self._options = options
        self._held: list[npt.NDArray[np.generic]] = []
        block = options.block_tokens
        self.tokens = np.zeros(block, np.int32)
        self.positions = np.zeros(block, np.int32)
        self.cos = [np.ones((block, rope.rotary_dim // 2), np.float32) for rope in spec.ropes]
        self.sin = [np.zeros((block, rope.rotary_dim // 2), np.float32) for rope in spec.ropes]
        columns = value_columns(operations(spec))
        self.logits = self._floats(options.head_tokens, columns.pop("logits"))
        self._values = {name: self._floats(block, count) for name, count in columns.items()}
        self.x = self._values["x"]
        self._linears = Linears(
            artefact, kernels, threads=options.threads, exact=options.compute == "float32"
        )
        attention_bytes = options.threads * launch_attention.scratch_bytes(spec.head_dim)
        self._attention_scratch = self._hold(aligned_bytes(attention_bytes))
        body, stored = self._lowered(body_operations(spec), self._values)
        self.trunk = body[:stored]
        self.body = [*self.trunk, *self._going_on(), *body[stored:]]
        self.head = self._head()

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        own = [*self._held, *self.cos, *self.sin, self.tokens, self.positions]
        return sum(a.nbytes for a in own) + self._linears.nbytes

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that a decode step reads; of the embedding, its row."""
        total = sum(self.weight_bytes(name) for name in self._artefact.shapes)
        if not self._spec.tied:
            table = self._linears.weight("embed_tokens")
            total -= table.read_bytes - table.read_bytes // table.N
        return total

    def weight_bytes(self, name: str) -> int:
        """Bytes of weights that one product of a linear layer reads."""
        return self._linears.weight(name).read_bytes

    def _going_on(self) -> Instructions:
        """Behind the last thing that is stored only rows go on that something is wanted of."""
        every = list(body_operations(self._spec))
        last = max(i for i, op in enumerate(every) if op.STORES)
        live: dict[str, None] = {}  # what is read there was written before
        written: set[str] = set()
        for op in every[last + 1 :]:
            live.update(dict.fromkeys(name for name in op.reads if name not in written))
            written.update(op.writes)
        buffers = [self._values[name] for name in live]
        moves = [(_at(rows), _at(rows), rows.shape[1]) for rows in buffers]
        moves.append((_at(self.positions), _at(self.positions), 1))
        return [*go_on(self._kernels, rows=CTX_TAIL, moves=moves)]

    def _head(self) -> Instructions:
        """Return the instructions from rows of x, copied together, to logits."""
        tokens, hidden = self._options.head_tokens, self._spec.hidden_size
        values = {"x": self._floats(tokens, hidden), "h": self._floats(tokens, hidden)}
        made, _ = self._lowered(
            head_operations(self._spec), self._values | values | {"logits": self.logits}
        )
        moves = [(_at(self.x), _at(values["x"]), hidden)]
        return [*go_on(self._kernels, rows=CTX_HEAD, moves=moves), *made]

    def _lowered(
        self, operations: Iterable[Op], values: dict[str, Array]
    ) -> tuple[Instructions, int]:
        buffers = Buffers(
            values={name: Floats.of(array) for name, array in values.items()},
            tokens=Span.of(self.tokens),
            positions=_at(self.positions),
            ropes=[(_at(cos), _at(sin)) for cos, sin in zip(self.cos, self.sin, strict=True)],
            scratch=_at(self._attention_scratch),
        )
        target = Target(
            kernels=self._kernels,
            linears=self._linears,
            weight=self._artefact.address,
            buffers=buffers,
            rotary_dims=[rope.rotary_dim for rope in self._spec.ropes],
            kv_bits=self._options.kv_bits,
            tied=self._spec.tied,
        )
        return lower(list(operations), target)

    def _floats(self, rows: int, columns: int) -> Array:
        """Zeroed, so that no row that is read before it is written holds a NaN."""
        flat = aligned_bytes(4 * rows * columns)
        return self._hold(flat).view(np.float32).reshape(rows, columns)

    def _hold(self, array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        self._held.append(array)
        return array


def _at(array: npt.NDArray[np.generic]) -> int:
    return int(array.ctypes.data)
