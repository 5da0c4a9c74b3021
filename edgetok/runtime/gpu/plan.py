"""From a spec and an artefact to the launches that compute a block of tokens or one.

    embed
    each layer:  [norm +] q, k, v | norm, rope, append | attention [| merge] | o_proj (+ x)
                 [norm +] gate, up, activation | down_proj (+ x)
    [norm +] lm_head

A bar is a launch. One token's products take the norm of their input themselves; of more tokens the
input becomes float16 first, with the norm in the same launch. Layers that share input and format
are one product. Weights are copied to the device as they are in the file, buffers are allocated
once, and everything that changes from step to step is read from device memory: a captured step
serves every token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgetok.errors import ShapeError
from edgetok.formats.artefact import Artefact
from edgetok.kernels_gpu.activation import gated
from edgetok.kernels_gpu.attention import MAX_SPLITS, attention, attention_mass, partials_shape
from edgetok.kernels_gpu.device import Device
from edgetok.kernels_gpu.embed import embed
from edgetok.kernels_gpu.jit import PLANES, plane_stride, to_planes
from edgetok.kernels_gpu.linear import Linear, Stored, upload
from edgetok.kernels_gpu.matmul_nbits import Epilogue, matmul_nbits
from edgetok.kernels_gpu.norm import rms_norm, to_half
from edgetok.kernels_gpu.rope import rope_append
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.gpu.inputs import Inputs
from edgetok.runtime.gpu.kv_cache import GpuCache

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPlanOptions:
    """What a plan is made for.

    Attributes:
        compute: of products of many tokens: "float16", or "float32" to compare with.
        block_tokens: most tokens of one run.
        head_tokens: most tokens whose logits are computed at once.
        first_layer: those before it are computed elsewhere, the embedding too.
    """

    compute: str
    block_tokens: int
    head_tokens: int
    first_layer: int = 0


@dataclass(frozen=True, slots=True)
class _Product:
    """Layers that share an input: where each begins in the output, and what it is."""

    parts: tuple[tuple[int, Linear], ...]

    @property
    def joined(self) -> Linear | None:
        """The one product that they are, if they are."""
        return self.parts[0][1] if len(self.parts) == 1 else None


class GpuPlan:
    """Weights and buffers of one artefact on a device.

    Attributes:
        logits: float32 [1, vocab_size] of the last token.
        weight_bytes: bytes of weights.
        nbytes: bytes of weights and buffers.
        bytes_per_token: bytes of weights that a decode step reads.
    """

    def __init__(
        self, spec: DecoderSpec, artefact: Artefact, device: Device, options: GpuPlanOptions
    ) -> None:
        """Copy the weights and allocate buffers; whether there is room was asked before.

        Raises:
            UnsupportedError: a weight is too large for half precision.
        """
        self._spec, self._artefact, self._device = spec, artefact, device
        self._first = options.first_layer
        self._half = "float32" if options.compute == "float32" else "float16"
        self._head_tokens = options.head_tokens
        self._norms: dict[str, torch.Tensor] = {}
        self._weights(spec)
        self._buffers(spec, options)

    # Weights

    def _weights(self, spec: DecoderSpec) -> None:
        self._head = self._join("lm_head")
        self._table: Linear | None = None
        if self._first == 0:
            self._table = (self._head if spec.tied else self._join("embed_tokens")).parts[0][1]
        self._qkv, self._o, self._gate_up, self._down = [], [], [], []
        for i in range(spec.num_layers):
            prefix = f"layers.{self._first + i}."
            self._qkv.append(self._join(*(prefix + f"{n}_proj" for n in "qkv")))
            self._o.append(self._join(prefix + "o_proj"))
            self._gate_up.append(self._join(prefix + "gate_proj", prefix + "up_proj"))
            self._down.append(self._join(prefix + "down_proj"))
        for name in self._artefact.layout.tensors if self._artefact.layout else ():
            before = name.startswith("layers.") and int(name.split(".")[1]) < self._first
            if name.endswith("_norm.weight") and not before:
                weight = self._device.copy(self._artefact.tensor(name))
                heads = name.endswith(("q_norm.weight", "k_norm.weight"))
                self._norms[name] = weight if heads else to_planes(weight[None])[0]
        products = [self._head, *self._qkv, *self._o, *self._gate_up, *self._down]
        linears = [linear for product in products for _, linear in product.parts]
        norms = sum(norm.nbytes for norm in self._norms.values())
        self.bytes_per_token = sum(linear.nbytes for linear in linears) + norms
        self.weight_bytes = self.bytes_per_token
        if self._table is not None and not spec.tied:
            self.weight_bytes += self._table.nbytes

    def _join(self, *names: str) -> _Product:
        """One product where formats are the same, else one each."""
        stored = [self._stored(name) for name in names]
        if all(layer.kind == stored[0].kind for layer in stored):
            return _Product(((0, upload(stored, self._device.torch_device)),))
        parts, at = [], 0
        for layer in stored:
            parts.append((at, upload([layer], self._device.torch_device)))
            at += len(layer.weight)
        return _Product(tuple(parts))

    def _stored(self, name: str) -> Stored:
        form, shape = self._artefact.formats[name], self._artefact.shapes[name]
        read = self._artefact.tensor
        bias = read(name + ".bias") if shape.bias else None
        if not form.quantised:
            weight = read(name + ".weight")
            return Stored(name=name, bits=form.bits, inputs=shape.K, weight=weight, bias=bias)
        stored_bits = 2 if form.bits == 3 else form.bits
        groups = -(-shape.K // form.group_size)
        return Stored(
            name=name,
            bits=form.bits,
            inputs=shape.K,
            group_size=form.group_size,
            weight=read(name + ".qweight").reshape(
                shape.N, groups, form.group_size * stored_bits // 8
            ),
            high=read(name + ".qweight_high") if form.bits == 3 else None,
            scales=read(name + ".scales"),
            zeros=read(name + ".zeros") if form.zeros else None,
            bias=bias,
        )

    # Buffers

    def _buffers(self, spec: DecoderSpec, options: GpuPlanOptions) -> None:
        block, zeros = options.block_tokens, self._device.zeros

        def planes(size: int) -> torch.Tensor:
            return zeros((block, PLANES, plane_stride(size)), "float32")

        mixed = spec.num_heads * spec.head_dim
        self._columns = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        self._x, self._mixed = planes(spec.hidden_size), planes(mixed)
        self._act = planes(spec.intermediate_size)
        self._h = planes(spec.hidden_size) if spec.post_norm else None
        self._qkv_out = zeros((block, self._columns), "float32")
        self._q = zeros((block, spec.num_heads, spec.head_dim), "float32")
        self._lse = zeros((block, spec.num_heads), "float32")
        largest = max(spec.hidden_size, mixed, spec.intermediate_size)
        self._half_out = {
            kind: zeros((block * PLANES * plane_stride(largest),), kind)
            for kind in self._half_kinds()
        }
        self._half_scale = zeros((block,), "float32")
        apart = any(product.joined is None for product in self._gate_up)
        self._apart = zeros((block, 2 * spec.intermediate_size), "float32") if apart else None
        self.logits = zeros((1, spec.vocab_size), "float32")
        self._many_logits: torch.Tensor | None = None
        splits = min(MAX_SPLITS, max(1, 2 * self._device.processors // spec.num_kv_heads))
        self._partials = zeros(partials_shape(spec.num_heads, spec.head_dim, splits), "float32")
        buffers = [
            self._x, self._mixed, self._act, self._qkv_out, self._q, *self._half_out.values(),
            self._half_scale, self.logits, self._partials, self._lse,
        ]  # fmt: skip
        self.nbytes = self.weight_bytes + sum(
            t.nbytes for t in (*buffers, self._h, self._apart) if t is not None
        )

    def _half_kinds(self) -> set[str]:
        """Float32 weights are there because float16 would overflow: their inputs stay as they are.

        Returns:
            Types of inputs that products of many tokens take.
        """
        return {self._half, *("float32" for f in self._artefact.formats.values() if f.bits == 32)}

    # Launches

    def body(self, inputs: Inputs, cache: GpuCache, wanted: int) -> None:
        """From tokens, or what is left of earlier layers, to their residual stream.

        Keys and values of all are stored. Of how many of the last ones the stream is `wanted`, the
        last layer need not do more for others.
        """
        T = inputs.count
        x = self._x[:T]
        cache.used.copy_(inputs.used)
        if self._table is not None:
            embed(inputs.tokens, self._table, x, self._spec.embed_scale)
        else:
            x.copy_(self._required(inputs.hidden))
        positions = inputs.positions
        for layer in range(self._spec.num_layers):
            self._store(layer, x, inputs, cache)
            q = self._q[:T]
            if layer == self._spec.num_layers - 1 and cache.layers[layer].mass is None:
                x, q, positions = (part[T - wanted :] for part in (x, q, positions))
            if len(x):
                self._attend(layer, x, q, positions, cache)
                self._mlp_block(layer, x)

    def head(self, count: int) -> None:
        """Logits of the last of `count` tokens."""
        self._logits(self._x[count - 1 : count], self.logits)

    def many_logits(self, begin: int, end: int) -> torch.Tensor:
        """Logits of some tokens of the block; overwritten by the next call.

        Args:
            begin: the first.
            end: the last and one, at most `head_tokens` further.

        Returns:
            float32 [end - begin, vocab_size].
        """
        if self._many_logits is None:
            shape = (self._head_tokens, self._spec.vocab_size)
            self._many_logits = self._device.zeros(shape, "float32")
        out = self._many_logits[: end - begin]
        self._logits(self._x[begin:end], out)
        return out

    def _store(self, layer: int, x: torch.Tensor, inputs: Inputs, cache: GpuCache) -> None:
        """Queries, keys and values of a layer; the latter two into the cache."""
        spec, prefix, T = self._spec, f"layers.{self._first + layer}.", len(x)
        slots, (begin, end) = cache.layers[layer], cache.rows[layer]
        qkv, q = self._qkv_out[:T], self._q[:T]
        norm = self._norms[prefix + "input_norm.weight"] if spec.pre_norm else None
        self._multiply(self._qkv[layer], x, qkv, norm=norm)
        norms = None
        if spec.qk_norm != "none":
            norms = (self._norms[prefix + "q_norm.weight"], self._norms[prefix + "k_norm.weight"])
        if norms is not None and spec.qk_norm == "full":
            at = 0
            for weight in norms:
                part = qkv[:, at : at + len(weight)]
                rms_norm(part, weight, part, size=len(weight), eps=spec.norm_eps)
                at += len(weight)
            norms = None
        rope = spec.layers[layer].rope
        rope_append(
            qkv,
            q,
            slots,
            token_positions=inputs.positions,
            token_slots=inputs.slots[begin:end],
            rope=inputs.ropes[rope] if rope >= 0 else None,
            norms=norms,
            eps=spec.norm_eps,
            query_row=inputs.query_row,
        )

    def _attend(
        self,
        layer: int,
        x: torch.Tensor,
        q: torch.Tensor,
        positions: torch.Tensor,
        cache: GpuCache,
    ) -> None:
        """Attention of some tokens to what a layer has stored, and o_proj."""
        spec, prefix, T = self._spec, f"layers.{self._first + layer}.", len(x)
        slots, mixed = cache.layers[layer], self._mixed[:T]
        seen: dict[str, Any] = {
            "token_positions": positions,
            "window": spec.layers[layer].window,
            "scale": spec.attn_scale,
            "softcap": spec.attn_softcap,
        }
        lse = self._lse[:T] if slots.mass is not None else None
        attention(
            q,
            slots,
            mixed,
            ordered=cache.ordered[layer] and T > 1,
            partials=self._partials if T == 1 else None,
            lse=lse,
            **seen,
        )
        if lse is not None:
            attention_mass(q, slots, lse, **seen)
        self._residual(self._o[layer], mixed, x, prefix + "post_attention_norm.weight")

    def _mlp_block(self, layer: int, x: torch.Tensor) -> None:
        spec, prefix, T = self._spec, f"layers.{self._first + layer}.", len(x)
        product, act = self._gate_up[layer], self._act[:T]
        norm = self._norms[prefix + "pre_mlp_norm.weight"] if spec.pre_norm else None
        if product.joined is not None:
            self._multiply(
                product, x, act, norm=norm, epilogue=Epilogue(gate=spec.activation, planes=True)
            )
        else:
            apart, size = self._required(self._apart)[:T], spec.intermediate_size
            self._multiply(product, x, apart, norm=norm)
            gated(apart[:, :size], apart[:, size:], act, spec.activation)
        self._residual(self._down[layer], act, x, prefix + "post_mlp_norm.weight")

    def _residual(
        self, product: _Product, source: torch.Tensor, x: torch.Tensor, norm: str
    ) -> None:
        """x += residual_scale * norm(product(source))."""
        spec = self._spec
        if not spec.post_norm:
            epilogue = Epilogue(factor=spec.residual_scale, add=True, planes=True)
            self._multiply(product, source, x, epilogue=epilogue)
            return
        h = self._required(self._h)[: len(x)]
        self._multiply(product, source, h, epilogue=Epilogue(planes=True))
        rms_norm(
            h.view(len(h), -1),
            self._norms[norm].view(-1),
            x.view(len(x), -1),
            size=spec.hidden_size,
            eps=spec.norm_eps,
            add=spec.residual_scale,
        )

    def _logits(self, x: torch.Tensor, out: torch.Tensor) -> None:
        spec = self._spec
        epilogue = Epilogue(factor=spec.logit_scale, cap=spec.logit_softcap)
        norm = self._norms["final_norm.weight"]
        self._multiply(self._head, x, out, norm=norm, epilogue=epilogue)

    def _multiply(
        self,
        product: _Product,
        x: torch.Tensor,
        out: torch.Tensor,
        *,
        norm: torch.Tensor | None = None,
        epilogue: Epilogue | None = None,
    ) -> None:
        """The product of one token or many; layers of different formats fill columns of `out`."""
        epilogue = epilogue or Epilogue()
        T, size, eps = len(x), product.parts[0][1].K, self._spec.norm_eps
        made: dict[str, torch.Tensor] = {}
        for at, linear in product.parts:
            part = out if product.joined is not None else out[:, at : at + linear.N]
            if T == 1:
                matmul_nbits(x, linear, part, epilogue, norm=norm, eps=eps)
                continue
            kind = "float32" if linear.weight.element_size() == 4 and linear.bits == 16 else None
            kind = kind or self._half
            scale = self._half_scale[:T]
            if kind not in made:
                flat = self._half_out[kind][: T * PLANES * linear.stride]
                made[kind] = flat.view(T, PLANES, linear.stride)
                to_half(x, made[kind], scale, size=size, weight=norm, eps=eps)
            matmul_nbits(made[kind], linear, part, epilogue, x_scale=scale)

    @staticmethod
    def _required(buffer: torch.Tensor | None) -> torch.Tensor:
        if buffer is None:
            raise ShapeError("a buffer that this decoder uses was not allocated")
        return buffer


def buffer_bytes(spec: DecoderSpec, options: GpuPlanOptions) -> int:
    """About what `_buffers` allocates."""
    mixed = (spec.num_heads * 3 + 2 * spec.num_kv_heads) * spec.head_dim
    wide = max(spec.hidden_size, spec.intermediate_size)
    row = 2 * spec.hidden_size + mixed + 3 * spec.intermediate_size + wide
    return 4 * (options.block_tokens * row + (1 + options.head_tokens) * spec.vocab_size)
