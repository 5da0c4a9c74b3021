"""Build the launches that compute a block of tokens or one, from a spec and an artefact.

    embed
    each layer:  [norm +] q, k, v | norm, rope, append | attention [| merge] | o_proj (+ x)
                 [norm +] gate, up, activation | down_proj (+ x)
    [norm +] lm_head

A bar is a launch; which operations it does is in `lowering.py`. One token's products take the norm
of their input themselves; of more tokens the input becomes float16 first, with the norm in the same
launch. Layers that share input and format are one product. Weights are copied to the device as they
are in the file, buffers are allocated once, and everything that changes from step to step is read
from device memory: a captured step serves every token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgetok.errors import ShapeError
from edgetok.formats.artefact import Artefact
from edgetok.kernels_gpu.device import Device
from edgetok.models.operations import body_operations, head_operations
from edgetok.models.ops import Linear
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.gpu.cache_memory import GpuCacheMemory
from edgetok.runtime.gpu.inputs import Inputs
from edgetok.runtime.gpu.lowering import lower
from edgetok.runtime.gpu.target import Rows, Target
from edgetok.runtime.gpu.weights import Weights

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPlanOptions:
    """The options of a plan.

    Attributes:
        compute: type of products of many tokens: "float16", or "float32" to compare with.
        block_tokens: most tokens of one run.
        head_tokens: most tokens whose logits are computed at once.
        first_layer: those before it are computed elsewhere, the embedding too.
    """

    compute: str
    block_tokens: int
    head_tokens: int
    first_layer: int = 0


class GpuPlan:
    """Weights, buffers and launches of one artefact on a device.

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
            UnsupportedError: a weight is too large for half precision, or an operation has no
                launch.
        """
        self._spec, self._device = spec, device
        self._head_tokens = options.head_tokens
        body = list(body_operations(spec, options.first_layer))
        head = list(head_operations(spec))
        if options.first_layer:
            body = body[1:]  # what earlier layers left takes the embedding's place
        weights = Weights(artefact, device)
        target = Target(
            weights,
            device,
            half="float32" if options.compute == "float32" else "float16",
            rows=options.block_tokens,
            widest=max(op.inputs for op in (*body, *head) if isinstance(op, Linear)),
            tied=spec.tied,
        )
        self._embeds = not options.first_layer
        self._x = target.planes("x", spec.hidden_size)
        self._body, self._stored = lower(body, target)
        self._head, _ = lower(head, target)
        stored = [op.layer for op in body if op.STORES]
        self._last_layer = stored[-1] if stored else None
        for kind in _half_kinds(artefact, options):
            target.half_inputs(kind)
        self.logits = device.zeros((1, spec.vocab_size), "float32")
        self._many_logits: torch.Tensor | None = None
        self.weight_bytes = self.bytes_per_token = weights.nbytes
        if self._embeds and not spec.tied:
            self.bytes_per_token -= weights.product("embed_tokens").nbytes
        buffers = (self.logits, *target.buffers.values())
        self.nbytes = self.weight_bytes + sum(buffer.nbytes for buffer in buffers)

    def body(self, inputs: Inputs, cache: GpuCacheMemory, wanted: int) -> None:
        """Compute the residual stream from tokens, or from the outputs of earlier layers.

        Keys and values of all are stored. Of how many of the last ones the stream is `wanted`, the
        last layer need not do more for others.
        """
        cache.used.copy_(inputs.used)
        rows = Rows(begin=0, end=inputs.count, inputs=inputs, cache=cache)
        if not self._embeds:
            if inputs.hidden is None:
                raise ShapeError("this plan begins behind layers whose result is not given")
            rows.of(self._x).copy_(inputs.hidden)
        for at, launch in enumerate(self._body):
            launch(rows)
            if at == self._stored and not self._counts_mass(cache):
                if not wanted:
                    return
                rows = rows.last(wanted)

    def head(self, count: int) -> None:
        """Logits of the last of `count` tokens."""
        self._logits(Rows(begin=count - 1, end=count, logits=self.logits))

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
        self._logits(Rows(begin=begin, end=end, logits=out))
        return out

    def _logits(self, rows: Rows) -> None:
        for launch in self._head:
            launch(rows)

    def _counts_mass(self, cache: GpuCacheMemory) -> bool:
        """Return whether the last layer's attention counts for tokens without wanted results."""
        layer = self._last_layer
        return layer is not None and cache.layers[layer].mass is not None


def _half_kinds(artefact: Artefact, options: GpuPlanOptions) -> set[str]:
    """Types of inputs that products of many tokens take."""
    half = "float32" if options.compute == "float32" else "float16"
    return {half, *("float32" for form in artefact.formats.values() if form.bits == 32)}


def buffer_bytes(spec: DecoderSpec, options: GpuPlanOptions) -> int:
    """About what `_buffers` allocates."""
    mixed = (spec.num_heads * 3 + 2 * spec.num_kv_heads) * spec.head_dim
    wide = max(spec.hidden_size, spec.intermediate_size)
    row = 2 * spec.hidden_size + mixed + 3 * spec.intermediate_size + wide
    return 4 * (options.block_tokens * row + (1 + options.head_tokens) * spec.vocab_size)
