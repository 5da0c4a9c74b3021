"""The linear layers of an artefact: weights in place in the mapped file, and their products."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from edgetok.formats.artefact import Artefact
from edgetok.formats.layout import HIGH_BITS, TABLE
from edgetok.kernels_cpu.linear.launch import (
    SCRATCH_BYTES,
    matmul_instruction,
    quantise_instruction,
)
from edgetok.kernels_cpu.linear.operands import Activations, LinearWeight, activation_bytes
from edgetok.kernels_cpu.program.memory import Floats, Span
from edgetok.kernels_cpu.program.tables import Addresses, Instruction, Table
from edgetok.runtime.cpu.arenas import Arena, Segment, address_in


class Linears:
    """Makes the instructions of linear layers, and places the buffers that only they use."""

    def __init__(
        self, artefact: Artefact, kernels: Addresses, workspace: Arena, *, exact: bool
    ) -> None:
        """Begin without buffers.

        Args:
            artefact: says where weights are in the file.
            kernels: gives the addresses of kernels.
            workspace: where quantised activations get their place.
            exact: float32 activations also where weights are quantised.
        """
        self._artefact = artefact
        self._kernels = kernels
        self._workspace = workspace
        self._exact = exact
        self.scratch = Span(address_in(Segment.LINEAR, 0), SCRATCH_BYTES)
        self._activations: list[Activations] = []
        self._shared: dict[str, Span] = {}

    def products(
        self,
        x: Floats,
        outs: Mapping[str, Floats],
        *,
        add: Mapping[str, bool],
        scale: Mapping[str, float],
    ) -> list[Instruction | Table]:
        """Linear layers that share their input: quantise it once for each format, then multiply."""
        weights = {name: self.weight(name) for name in outs}
        made, inputs = self.quantised(x, weights.values())
        for i, (name, weight) in enumerate(weights.items()):
            made.append(
                matmul_instruction(
                    self._kernels,
                    weight=weight,
                    x=inputs[name],
                    y=outs[name],
                    scratch=self.scratch,
                    add=add[name],
                    scale=scale[name],
                    barrier=i == len(weights) - 1,
                )
            )
        return made

    def quantised(
        self, x: Floats, weights: Iterable[LinearWeight], rows: int = 1
    ) -> tuple[list[Instruction | Table], dict[str, Activations | Floats]]:
        """Quantise an input once for each format, where weights are quantised.

        Args:
            x: [T * rows, K].
            weights: the matrix.
            rows: number of rows for each token.

        Returns:
            Instructions, and what each weight, by name, is multiplied with.
        """
        inputs: dict[str, Activations | Floats] = {}
        made: list[Activations] = []
        for weight in weights:
            if weight.bits in (16, 32) or self._exact:
                inputs[weight.name] = x
                continue
            qx = self._activations_for(weight, x.tokens_max)
            inputs[weight.name] = qx
            if not any(qx is other for other in made):
                made.append(qx)
        return [
            quantise_instruction(self._kernels, x=x, qx=qx, rows=rows, barrier=i == len(made) - 1)
            for i, qx in enumerate(made)
        ], inputs

    def sorted_rows(self, x: Activations | Floats, times: int) -> Activations | Floats:
        """Allocate `times` as many rows of activations as `x` has, apart from any input's."""
        tokens = x.tokens_max * times
        if isinstance(x, Activations):
            nbytes = activation_bytes(tokens, x.K, x.bits, x.group_size)
            at = self.shared(f"rows {tokens} {x.K} {x.bits} {x.group_size}", nbytes)
            return replace(x, tokens_max=tokens, array=at)
        at = self.shared(f"rows {tokens} {x.width}", 4 * tokens * x.width)
        return Floats(at.address, tokens, x.width, x.width)

    def shared(self, name: str, nbytes: int) -> Span:
        """Memory that all who name it share."""
        if name not in self._shared:
            self._shared[name] = Span(self._workspace.take(nbytes), nbytes)
        return self._shared[name]

    def weight(self, name: str) -> LinearWeight:
        """A linear layer's or an embedding's weights, by their place in the file."""
        return stored_weight(self._artefact, name, lambda at: address_in(Segment.WEIGHTS, at))

    def _activations_for(self, weight: LinearWeight, tokens: int) -> Activations:
        """A buffer of quantised activations; stages that never overlap share it."""
        for activations in self._activations:
            if activations.serves(weight) and activations.tokens_max == tokens:
                return activations
        bits, group_size = weight.bits, weight.group_size
        nbytes = activation_bytes(tokens, weight.K, bits, group_size)
        made = Activations.at(
            Span(self._workspace.take(nbytes), nbytes),
            tokens_max=tokens,
            K=weight.K,
            bits=bits,
            group_size=group_size,
        )
        self._activations.append(made)
        return made


def stored_weight(artefact: Artefact, name: str, address: Callable[[int], int]) -> LinearWeight:
    """A linear layer's or an embedding's weights.

    Args:
        artefact: says where they are in the file.
        name: canonical, without suffix.
        address: address of an offset in the file.
    """
    form, shape = artefact.formats[name], artefact.shapes[name]

    def span(suffix: str) -> Span:
        slot = artefact.slot(name + suffix)
        return Span(address(slot.offset), slot.nbytes)

    bias = span(".bias") if shape.bias else None
    if not form.quantised:
        return LinearWeight(
            name=name, bits=form.bits, N=shape.N, K=shape.K, weight=span(".weight"), bias=bias
        )
    return LinearWeight(
        name=name,
        bits=form.bits,
        N=shape.N,
        K=shape.K,
        group_size=form.group_size,
        weight=span(".qweight"),
        high=span(".qweight_high") if form.bits in HIGH_BITS else None,
        table=span(TABLE) if form.table else None,
        scales=span(".scales"),
        zeros=span(".zeros") if form.zeros else None,
        offsets=span(".offsets") if form.offsets else None,
        super_scales=span(".super_scales") if form.supers else None,
        bias=bias,
    )
