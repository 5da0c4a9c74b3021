"""From a spec and an artefact to the program that computes a block of tokens or one.

One table of instructions serves both: kernels read the number of tokens from the run's state.
Weights are addresses inside the mapped file. All buffers are allocated here, once.

    embed
    each layer:  input_norm | quantise | q, k, v | q_norm, k_norm, rope, append | attention | merge
                 | quantise | o_proj (+ x)
                 | pre_mlp_norm | quantise | gate, up | act * up | quantise | down_proj (+ x)
    final_norm | quantise | lm_head

A bar is a barrier of the thread team. With float activations nothing is quantised; post norms
keep a projection from being added to x directly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgetok.formats.artefact import Artefact
from edgetok.kernels_cpu.attention import launch as launch_attention
from edgetok.kernels_cpu.attention.launch import CTX_CACHE
from edgetok.kernels_cpu.attention.launch_queries import keep_queries
from edgetok.kernels_cpu.elementwise import launch as launch_elementwise
from edgetok.kernels_cpu.linear.launch import (
    Floats,
    Span,
    aligned_bytes,
    embed_instruction,
)
from edgetok.kernels_cpu.program.abi import CTX_POSITION, CTX_SLOTS, CTX_TOKENS
from edgetok.kernels_cpu.program.loader import Kernels
from edgetok.kernels_cpu.program.tables import Instruction, Table
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.cpu.linears import Array, Linears

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
        self.x = self._floats(block, spec.hidden_size)
        self._h = self._floats(block, spec.hidden_size)
        self._q = self._floats(block, spec.num_heads * spec.head_dim)
        self._k = self._floats(block, spec.num_kv_heads * spec.head_dim)
        self._v = self._floats(block, spec.num_kv_heads * spec.head_dim)
        self._mixed = self._floats(block, spec.num_heads * spec.head_dim)
        self._gate = self._floats(block, spec.intermediate_size)
        self._up = self._floats(block, spec.intermediate_size)
        self._logits = self._floats(1, spec.vocab_size)
        self.logits = self._logits[0]
        self._linears = Linears(
            artefact, kernels, threads=options.threads, exact=options.compute == "float32"
        )
        attention_bytes = options.threads * launch_attention.scratch_bytes(spec.head_dim)
        self._attention_scratch = self._hold(aligned_bytes(attention_bytes))
        self._partials = self._hold(
            aligned_bytes(launch_attention.partials_bytes(spec.num_heads, spec.head_dim))
        )
        self.body = self._body()
        self.trunk = self.body[: self._stored_size]
        self.head = self._head(self.x, self._logits, last=True)
        self.tail = [*self.body[self._stored_size :], *self.head]

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

    def every_head(self) -> tuple[Array, Array, list[Instruction | Table]]:
        """Instructions for the logits of several tokens, with buffers of their own.

        Returns:
            x [head_tokens, hidden] to be filled, logits [head_tokens, vocab_size], instructions.
        """
        tokens = self._options.head_tokens
        x = self._floats(tokens, self._spec.hidden_size)
        logits = self._floats(tokens, self._spec.vocab_size)
        return x, logits, self._head(x, logits, last=False)

    def begin(self, tokens: int, position: int, cache: Table) -> None:
        """Set the run's state: how many tokens, from which position, and what the cache says."""
        self.ctx[CTX_TOKENS] = tokens
        self.ctx[CTX_POSITION] = position
        self.ctx[CTX_CACHE:] = cache[CTX_CACHE:]

    def only_last(self) -> None:
        """Between `trunk` and `tail`: make a run of the last token alone out of a run of many."""
        last = int(self.ctx[CTX_TOKENS]) - 1
        for rows in (self.x, self._q, self.positions):
            rows[0] = rows[last]
        self.ctx[CTX_TOKENS] = 1
        self.ctx[CTX_POSITION] += last

    # Instructions

    def _body(self) -> list[Instruction | Table]:
        spec = self._spec
        table = self._linears.weight("lm_head" if spec.tied else "embed_tokens")
        made: list[Instruction | Table] = [
            embed_instruction(
                self._kernels,
                table=table,
                tokens=Span.of(self.tokens),
                x=Floats.of(self.x),
                scale=spec.embed_scale,
            )
        ]
        for layer in range(spec.num_layers):
            made += self._stored(layer)
            self._stored_size = len(made)
            made += self._attended(layer)
            made += self._mlp_block(layer)
        return made

    def _stored(self, layer: int) -> list[Instruction | Table]:
        """Queries, keys and values of a layer; the latter two into the cache."""
        spec, prefix = self._spec, f"layers.{layer}."
        made: list[Instruction | Table] = []
        source = self.x
        if spec.pre_norm:
            made.append(self._norm(prefix + "input_norm", self.x, self._h))
            source = self._h
        projections = {"q_proj": self._q, "k_proj": self._k, "v_proj": self._v}
        made += self._linears.products(source, {prefix + n: out for n, out in projections.items()})
        made += self._positions_in(layer)
        if self._options.kv_bits == 4:
            made += [
                self._turned(x, heads)
                for x, heads in (
                    (self._q, spec.num_heads),
                    (self._k, spec.num_kv_heads),
                    (self._v, spec.num_kv_heads),
                )
            ]
        made.append(
            launch_attention.kv_append(
                self._kernels,
                kv_bits=self._options.kv_bits,
                k=_at(self._k),
                v=_at(self._v),
                layer=layer,
                kv_heads=spec.num_kv_heads,
                head_dim=spec.head_dim,
                wait=True,
            )
        )
        return made

    def _attended(self, layer: int) -> list[Instruction | Table]:
        """Attention to what the layer has stored, and o_proj."""
        spec, prefix = self._spec, f"layers.{layer}."
        made: list[Instruction | Table] = []
        made += launch_attention.attention(
            self._kernels,
            kv_bits=self._options.kv_bits,
            q=_at(self._q),
            out=_at(self._mixed),
            layer=layer,
            heads=spec.num_heads,
            kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            window=spec.layers[layer].window,
            scale=spec.attn_scale,
            softcap=spec.attn_softcap,
            positions=_at(self.positions),
            scratch=_at(self._attention_scratch),
            partials=_at(self._partials),
        )
        if self._options.kv_bits == 4:
            made.append(self._turned(self._mixed, spec.num_heads, wait=True))
        made += self._residual(prefix + "o_proj", self._mixed, prefix + "post_attention_norm")
        return made

    def _turned(self, x: Array, heads: int, wait: bool = False) -> Instruction:
        """Heads turned as 4-bit slots hold them, or back: mixed values are turned as values are."""
        return launch_attention.hadamard(
            self._kernels, x=_at(x), heads=heads, head_dim=self._spec.head_dim, wait=wait
        )

    def _positions_in(self, layer: int) -> list[Instruction | Table]:
        """Norms of queries and keys, and their rotation; heads are shared out alike in both."""
        spec, prefix = self._spec, f"layers.{layer}."
        made: list[Instruction | Table] = []
        parts = (("q_norm", self._q, spec.num_heads), ("k_norm", self._k, spec.num_kv_heads))
        if spec.qk_norm != "none":
            whole = spec.qk_norm == "full"
            for name, x, heads in parts:
                made.append(
                    launch_elementwise.rms_norm(
                        self._kernels,
                        x=_at(x),
                        out=_at(x),
                        weight=self._artefact.address(f"{prefix}{name}.weight"),
                        size=heads * spec.head_dim if whole else spec.head_dim,
                        units=1 if whole else heads,
                        eps=spec.norm_eps,
                        wait=whole and name == "k_norm",
                    )
                )
        made.append(
            keep_queries(
                self._kernels,
                q=_at(self._q),
                layer=layer,
                heads=spec.num_heads,
                head_dim=spec.head_dim,
            )
        )
        index = spec.layers[layer].rope
        if index >= 0:
            for _, x, heads in parts:
                made.append(
                    launch_elementwise.rope(
                        self._kernels,
                        x=_at(x),
                        cos=_at(self.cos[index]),
                        sin=_at(self.sin[index]),
                        heads=heads,
                        head_dim=spec.head_dim,
                        rotary_dim=spec.ropes[index].rotary_dim,
                        wait=False,
                    )
                )
        return made

    def _mlp_block(self, layer: int) -> list[Instruction | Table]:
        spec, prefix = self._spec, f"layers.{layer}."
        made: list[Instruction | Table] = []
        source = self.x
        if spec.pre_norm:
            made.append(self._norm(prefix + "pre_mlp_norm", self.x, self._h))
            source = self._h
        made += self._linears.products(
            source, {prefix + "gate_proj": self._gate, prefix + "up_proj": self._up}
        )
        made.append(
            launch_elementwise.activation_mul(
                self._kernels,
                kind=spec.activation,
                gate=_at(self._gate),
                up=_at(self._up),
                out=_at(self._gate),
                size=spec.intermediate_size,
                wait=True,
            )
        )
        made += self._residual(prefix + "down_proj", self._gate, prefix + "post_mlp_norm")
        return made

    def _residual(self, linear: str, source: Array, norm: str) -> list[Instruction | Table]:
        """x += residual_scale * norm(linear(source))."""
        spec = self._spec
        if not spec.post_norm:
            return self._linears.products(
                source, {linear: self.x}, add=True, scale=spec.residual_scale
            )
        made = self._linears.products(source, {linear: self._h})
        # Rows are shared out alike in both, so nothing waits in between.
        made.append(self._norm(norm, self._h, self._h, wait=False))
        made.append(
            launch_elementwise.add_scaled(
                self._kernels,
                x=_at(self.x),
                y=_at(self._h),
                size=spec.hidden_size,
                scale=spec.residual_scale,
                wait=True,
            )
        )
        return made

    def _head(self, x: Array, logits: Array, *, last: bool) -> list[Instruction | Table]:
        spec = self._spec
        h = self._h if last else self._floats(len(x), spec.hidden_size)
        made: list[Instruction | Table] = [self._norm("final_norm", x, h)]
        made += self._linears.products(h, {"lm_head": logits}, scale=spec.logit_scale, last=last)
        if spec.logit_softcap:
            made.append(
                launch_elementwise.softcap(
                    self._kernels,
                    x=_at(logits),
                    size=spec.vocab_size,
                    scale=1.0,
                    limit=spec.logit_softcap,
                    last=last,
                    wait=True,
                )
            )
        return made

    def _norm(self, name: str, x: Array, out: Array, wait: bool = True) -> Instruction:
        return launch_elementwise.rms_norm(
            self._kernels,
            x=_at(x),
            out=_at(out),
            weight=self._artefact.address(name + ".weight"),
            size=self._spec.hidden_size,
            eps=self._spec.norm_eps,
            wait=wait,
        )

    def _floats(self, rows: int, columns: int) -> Array:
        """Zeroed, so that no row that is read before it is written holds a NaN."""
        flat = aligned_bytes(4 * rows * columns)
        return self._hold(flat).view(np.float32).reshape(rows, columns)

    def _hold(self, array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        self._held.append(array)
        return array


def _at(array: npt.NDArray[np.generic]) -> int:
    return int(array.ctypes.data)
