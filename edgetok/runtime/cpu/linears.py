"""The linear layers of an artefact: weights in place in the mapped file, and their products."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgetok.formats.artefact import Artefact
from edgetok.formats.layout import HIGH_BITS
from edgetok.kernels_cpu.linear.launch import (
    SCRATCH_BYTES,
    Activations,
    Floats,
    LinearWeight,
    Span,
    activation_bytes,
    matmul_instruction,
    quantise_instruction,
)
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
        self._scratch = Span(address_in(Segment.LINEAR, 0), SCRATCH_BYTES)
        self._activations: list[Activations] = []

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
        inputs: dict[str, Activations | Floats] = {}
        made: list[Instruction | Table] = []
        quantised: list[Activations] = []
        for name, weight in weights.items():
            if weight.bits in (16, 32) or self._exact:
                inputs[name] = x
                continue
            qx = self._activations_for(weight, x.tokens_max)
            inputs[name] = qx
            if not any(qx is other for other in quantised):
                quantised.append(qx)
        for i, qx in enumerate(quantised):
            barrier = i == len(quantised) - 1
            made.append(quantise_instruction(self._kernels, x=x, qx=qx, barrier=barrier))
        for i, (name, weight) in enumerate(weights.items()):
            made.append(
                matmul_instruction(
                    self._kernels,
                    weight=weight,
                    x=inputs[name],
                    y=outs[name],
                    scratch=self._scratch,
                    add=add[name],
                    scale=scale[name],
                    barrier=i == len(weights) - 1,
                )
            )
        return made

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
        address: of an offset in the file.
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
        scales=span(".scales"),
        zeros=span(".zeros") if form.zeros else None,
        offsets=span(".offsets") if form.offsets else None,
        super_scales=span(".super_scales") if form.supers else None,
        bias=bias,
    )
