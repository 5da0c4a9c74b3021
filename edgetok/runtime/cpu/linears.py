"""The linear layers of an artefact: weights in place in the mapped file, and their products."""

from __future__ import annotations

from collections.abc import Mapping

from edgetok.formats.artefact import Artefact
from edgetok.kernels_cpu.linear.launch import (
    Activations,
    Floats,
    LinearWeight,
    Span,
    allocate_scratch,
    matmul_instruction,
    quantise_instruction,
)
from edgetok.kernels_cpu.program.loader import Kernels
from edgetok.kernels_cpu.program.tables import Instruction, Table


class Linears:
    """Makes the instructions of linear layers; keeps the buffers that only they use."""

    def __init__(self, artefact: Artefact, kernels: Kernels, *, threads: int, exact: bool) -> None:
        """Allocate scratch.

        Args:
            artefact: the weights.
            kernels: to be called.
            threads: that will run the instructions.
            exact: float32 activations also where weights are quantised.
        """
        self._artefact = artefact
        self._kernels = kernels
        self._exact = exact
        self._scratch = allocate_scratch(threads)
        self._activations: list[Activations] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return self._scratch.nbytes + sum(a.array.nbytes for a in self._activations)

    def products(
        self,
        x: Floats,
        outs: Mapping[str, Floats],
        *,
        add: Mapping[str, bool],
        scale: Mapping[str, float],
        last: bool = False,
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
            made.append(quantise_instruction(self._kernels, x=x, qx=qx, last=last, barrier=barrier))
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
                    last=last,
                    barrier=i == len(weights) - 1,
                )
            )
        return made

    def weight(self, name: str) -> LinearWeight:
        """A linear layer's or an embedding's weights, in place."""
        form, shape = self._artefact.formats[name], self._artefact.shapes[name]

        def span(suffix: str) -> Span:
            tensor = self._artefact.tensor(name + suffix)
            return Span(self._artefact.address(name + suffix), tensor.nbytes)

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
            high=span(".qweight_high") if form.bits == 3 else None,
            scales=span(".scales"),
            zeros=span(".zeros") if form.zeros else None,
            bias=bias,
        )

    def _activations_for(self, weight: LinearWeight, tokens: int) -> Activations:
        """A buffer of quantised activations; stages that never overlap share it."""
        for activations in self._activations:
            if activations.serves(weight) and activations.tokens_max == tokens:
                return activations
        made = Activations.allocate(
            self._kernels.isa,
            tokens_max=tokens,
            K=weight.K,
            bits=weight.bits,
            group_size=weight.group_size,
        )
        self._activations.append(made)
        return made
