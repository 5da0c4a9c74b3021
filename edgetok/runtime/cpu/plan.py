"""From a spec and an artefact to the program that computes a block of tokens or one.

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
from edgetok.kernels_cpu.attention.launch import CTX_CACHE
from edgetok.kernels_cpu.linear.launch import Floats, Span, aligned_bytes
from edgetok.kernels_cpu.program.abi import CTX_POSITION, CTX_SLOTS, CTX_TOKENS
from edgetok.kernels_cpu.program.loader import Kernels
from edgetok.kernels_cpu.program.tables import Table
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
    """What a plan is made for.

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
        logits: float32 [vocab_size] of the last token.
        body: instructions from tokens to x.
        head: instructions from the last row of x to `logits`.
        trunk: the beginning of the body, until all that a run leaves in the cache is there.
        tail: the rest of the body and the head, for a run of one token.
        ctx: the run's state.
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
        self.ctx = np.zeros(CTX_SLOTS, np.int64)
        self.tokens = np.zeros(block, np.int32)
        self.positions = np.zeros(block, np.int32)
        self.cos = [np.ones((block, rope.rotary_dim // 2), np.float32) for rope in spec.ropes]
        self.sin = [np.zeros((block, rope.rotary_dim // 2), np.float32) for rope in spec.ropes]
        columns = value_columns(operations(spec))
        self._logits = self._floats(1, columns.pop("logits"))
        self._values = {name: self._floats(block, count) for name, count in columns.items()}
        self.x = self._values["x"]
        self.logits = self._logits[0]
        self._linears = Linears(
            artefact, kernels, threads=options.threads, exact=options.compute == "float32"
        )
        attention_bytes = options.threads * launch_attention.scratch_bytes(spec.head_dim)
        self._attention_scratch = self._hold(aligned_bytes(attention_bytes))
        self._partials = self._hold(
            aligned_bytes(launch_attention.partials_bytes(spec.num_heads, spec.head_dim))
        )
        self.body, stored = self._lowered(body_operations(spec), self._values)
        self.trunk = self.body[:stored]
        head_values = self._values | {"logits": self._logits}
        self.head, _ = self._lowered(head_operations(spec), head_values, last=True)
        self.tail = [*self.body[stored:], *self.head]

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

    def every_head(self) -> tuple[Array, Array, Instructions]:
        """Instructions for the logits of several tokens, with buffers of their own.

        Returns:
            x [head_tokens, hidden] to be filled, logits [head_tokens, vocab_size], instructions.
        """
        tokens = self._options.head_tokens
        x = self._floats(tokens, self._spec.hidden_size)
        logits = self._floats(tokens, self._spec.vocab_size)
        values = {"x": x, "logits": logits, "h": self._floats(tokens, self._spec.hidden_size)}
        return x, logits, self._lowered(head_operations(self._spec), values)[0]

    def begin(self, tokens: int, position: int, cache: Table) -> None:
        """Set the run's state: how many tokens, from which position, and what the cache says."""
        self.ctx[CTX_TOKENS] = tokens
        self.ctx[CTX_POSITION] = position
        self.ctx[CTX_CACHE:] = cache[CTX_CACHE:]

    def only_last(self) -> None:
        """Between `trunk` and `tail`: make a run of the last token alone out of a run of many."""
        last = int(self.ctx[CTX_TOKENS]) - 1
        for rows in (self.x, self._values["q"], self.positions):
            rows[0] = rows[last]
        self.ctx[CTX_TOKENS] = 1
        self.ctx[CTX_POSITION] += last

    def _lowered(
        self, operations: Iterable[Op], values: dict[str, Array], *, last: bool = False
    ) -> tuple[Instructions, int]:
        buffers = Buffers(
            values={name: Floats.of(array) for name, array in values.items()},
            tokens=Span.of(self.tokens),
            positions=_at(self.positions),
            ropes=[(_at(cos), _at(sin)) for cos, sin in zip(self.cos, self.sin, strict=True)],
            scratch=_at(self._attention_scratch),
            partials=_at(self._partials),
        )
        target = Target(
            kernels=self._kernels,
            linears=self._linears,
            weight=self._artefact.address,
            buffers=buffers,
            rotary_dims=[rope.rotary_dim for rope in self._spec.ropes],
            kv_bits=self._options.kv_bits,
            tied=self._spec.tied,
            last=last,
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
