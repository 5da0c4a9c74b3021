"""A trial of every way to store a matrix: the expected KL of each, from a sample of its rows."""

from __future__ import annotations

from collections.abc import Container, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgetok.converter.allocate.scope import WIDE, Scope, fitting
from edgetok.converter.allocate.whole_model_probe import PROBE_BITS, PROBE_GROUP
from edgetok.converter.calibrate.windows import spread
from edgetok.converter.options import ConvertOptions
from edgetok.converter.quantise import gptq
from edgetok.converter.quantise import round_to_nearest as rtn
from edgetok.converter.quantise.level_table import LEVELS
from edgetok.converter.quantised import fits_float16_scales
from edgetok.converter.workers import side_by_side
from edgetok.formats.layout import TensorFormat

Floats = npt.NDArray[np.float32]

_ROWS = 128  # of each tensor; twice as many gave the same choice on three models


class Costs(NamedTuple):
    """Expected KL in nats.

    Attributes:
        kl: by format.
        probes: by the bits that whole models are probed with.
    """

    kl: dict[TensorFormat, float]
    probes: dict[int, float]


class Trial:
    """A trial of every way to store a tensor, with the losses.

    Attributes:
        kl: see `Costs`, by tensor.
        probes: as above.
    """

    def __init__(
        self,
        options: ConvertOptions,
        greatest: Mapping[str, float],
        threads: int,
        without_table: Container[str] = (),
        scope: Scope = WIDE,
        *,
        probes: bool = True,
    ) -> None:
        """Begin without losses.

        Args:
            options: method, symmetry and damping are taken from them.
            greatest: magnitude in each matrix.
            threads: number of formats tried at once.
            without_table: matrices that no table of levels is tried for.
            scope: which formats are tried.
            probes: whether the losses are wanted that whole models are probed with.
        """
        self.options = options
        self.threads = threads
        self.kl: dict[str, dict[TensorFormat, float]] = {}
        self.probes: dict[str, dict[int, float]] = {}
        self._greatest = greatest
        self.scope = scope
        self._without_table = without_table
        self._probes = probes

    def greatest(self, name: str) -> float:
        """Return the greatest magnitude in a matrix."""
        return self._greatest[name]

    def ways(self, name: str, inputs: int) -> list[TensorFormat]:
        """Formats that hold a tensor with so many inputs."""
        zeros = not self.options.symmetric
        found = []
        for group in self.scope.groups(inputs):
            found += [TensorFormat(bits, group, zeros=zeros) for bits in (2, 3, 4, 8)]
            found.append(TensorFormat(8, group))
        # Kernels for these take no other groups.
        found += [TensorFormat(5, 32), TensorFormat(6, 32)]
        if name not in self._without_table:
            found.append(TensorFormat(4, 32, table=True))
        return fitting(found, inputs, self._greatest[name], self.options, self.scope)

    def nearest(self, values: Floats, form: TensorFormat) -> Tensor:
        """Return the change that rounding to nearest makes."""
        result = rtn.nearest(values, form)  # formats are tried side by side
        return torch.from_numpy(result.dequantise() - values)

    def linear(self, name: str, weight: Tensor, x: Tensor, g: Tensor, hessian: Tensor) -> None:
        """Take the costs of a layer: x [n, K], g [n, N], `hessian` of other tokens."""
        self.kl[name], self.probes[name] = self.costs(name, weight, x, g, hessian)

    def costs(
        self, name: str, weight: Tensor, x: Tensor, g: Tensor, hessian: Tensor, rows: int = _ROWS
    ) -> Costs:
        """Return the costs of a layer or a part of its rows, a mean over tokens.

        Args:
            name: of the layer.
            weight: [N, K].
            x: [n, K] inputs.
            g: [n, N] gradients with respect to the outputs.
            hessian: mean of x x^T of other tokens.
            rows: how many rows are tried, at most.
        """
        N = len(weight)
        chosen = torch.from_numpy(spread(N, min(N, rows)))
        some = weight[chosen].contiguous()
        g = g[:, chosen]

        def cost(difference: Tensor) -> float:
            moved = (x @ difference.T).mul_(g)
            return 0.5 * N / len(chosen) * float(moved.square_().sum(dtype=torch.float64)) / len(x)

        probes = {
            bits: cost(self.nearest(some.numpy(), self.probed(bits)))
            for bits in (PROBE_BITS if self._probes else ())
            if fits_float16_scales(self._greatest[name], bits)
        }
        ways = self.ways(name, x.shape[1])
        inverse = None
        if self.options.method != "rtn" and ways:
            # In plain order one factor serves every group size.
            inverse = gptq.invert(
                hessian, ways[0].group_size, damping=self.options.damping, order="plain"
            )

        def tried(form: TensorFormat) -> float:
            if inverse is None:
                return cost(self.nearest(some.numpy(), form))
            groups = gptq.order_inputs(hessian.diagonal(), form.group_size, "plain")
            result = gptq.quantise(
                some,
                gptq.Inverse(groups, inverse.factor, inverse.damping),
                form.bits,
                form.group_size,
                symmetric=not form.zeros,
                table=LEVELS if form.table else None,
            )
            return cost(torch.from_numpy(result.dequantise()) - some)

        found = side_by_side(self.threads, [partial(tried, form) for form in ways])
        kl = dict(zip(ways, found, strict=True))
        return Costs(kl, {bits: probes.get(bits, 0.0) for bits in PROBE_BITS})

    def probed(self, bits: int) -> TensorFormat:
        """Return the format of so many bits that whole models are probed with."""
        return TensorFormat(bits, PROBE_GROUP, zeros=not self.options.symmetric)
