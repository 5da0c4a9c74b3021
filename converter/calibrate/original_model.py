"""The original model, one decoder block in memory at a time.

Modules come from `transformers`; their large weights stay on the meta device until a block's turn
comes. What each layer is called with (mask, rotary embeddings, whatever a family has) is recorded
from the model's own forward pass with the layers left out, so that no family's wiring is repeated
here and other releases of `transformers` bring their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgetok.converter.calibrate.expert_parameters import (
    fill_missing,
    read_stacked,
    write_stacked,
)
from edgetok.converter.calibrate.transformers_model import (
    attention_of,
    build_on_meta,
    joined,
    multiplies_bfloat16,
    to_torch,
)
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.errors import UnsupportedError
from edgetok.models.family import TensorSource
from edgetok.models.operations import layer_operations, stages

_BATCH_TOKENS = 2048

Rows = Callable[[npt.NDArray[np.int64]], Tensor]


class Original:
    """The original decoder. Blocks are materialised with `block`."""

    def __init__(self, weights: CanonicalWeights, *, short: bool = False) -> None:
        """Build the modules without their weights.

        Args:
            weights: of the checkpoint.
            short: multiply in bfloat16 where the processor does so, in a quarter of the time: for
                statistics, not for what is measured. What blocks pass on stays float32.

        Raises:
            UnsupportedError: `transformers` does not know the family or builds it otherwise.
            MissingExtraError: `transformers` is too old.
        """
        self.weights = weights
        self.short = short and multiplies_bfloat16()
        spec = weights.family.spec
        model = build_on_meta(weights.checkpoint.config, attention_of(spec))
        norm = weights.family.tensors["final_norm.weight"].name
        self._prefix = norm.removesuffix(norm.rsplit(".", 2)[-2] + ".weight")
        self._inner = model.get_submodule(self._prefix.removesuffix("."))
        self._layers: nn.ModuleList = self._inner.layers
        if len(self._layers) != spec.num_layers:
            raise UnsupportedError(
                f"transformers builds {len(self._layers)} layers, config.json says "
                f"{spec.num_layers}"
            )
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    @torch.no_grad()
    def embed(self, tokens: npt.NDArray[np.int64], rows: Rows | None = None) -> Tensor:
        """Return the input of the first block and the further arguments of each block.

        Args:
            tokens: [B, T], all windows of equal length.
            rows: gives the embedding's rows of some token ids; None takes the original's.

        Returns:
            [B, T, hidden_size] float32.
        """
        known, compact = np.unique(tokens, return_inverse=True)
        module = self._inner.get_submodule(self._relative("embed_tokens.weight")[0])
        matrix = (rows or self._embedding_rows)(known)
        first = _Recorder(self._layers[0], None)
        stubs = [first, *(_Recorder(layer, first) for layer in self._layers[1:])]
        module.padding_idx = None  # it is beyond the compact matrix, and only matters in training
        with _parameter(module, "weight", matrix):
            self._inner.layers = nn.ModuleList(stubs)
            try:
                hidden = []
                ids = torch.from_numpy(compact.reshape(tokens.shape))
                for batch in _batches(ids):
                    self._inner(input_ids=batch, use_cache=False)
                    hidden.append(first.hidden)
                # What is recorded for one window holds for any number of them.
                self._inner(input_ids=ids[:1], use_cache=False)
            finally:
                self._inner.layers = self._layers
        self._calls = [(stub.args, stub.kwargs) for stub in stubs]
        return torch.cat(hidden)

    @contextlib.contextmanager
    def block(self, index: int) -> Iterator[Block]:
        """Read block `index` into memory for as long as the context lasts; `embed` comes first."""
        layer = self._layers[index]
        prefix = f"{self._prefix}layers.{index}."
        stored = self.weights.checkpoint.infos
        missing: list[str] = []
        with contextlib.ExitStack() as stack:
            for name, former in [*layer.named_parameters(), *layer.named_buffers()]:
                if prefix + name in stored:
                    values = to_torch(self.weights.checkpoint.tensor(prefix + name))
                elif isinstance(former, nn.Parameter):
                    values = torch.empty(former.shape, device="cpu")
                    missing.append(prefix + name)
                else:
                    continue  # computed when the module was built
                owner, _, leaf = name.rpartition(".")
                stack.enter_context(_parameter(layer.get_submodule(owner), leaf, values))
            parameters = {prefix + name: p.data for name, p in layer.named_parameters()}
            own = [n for n in self.weights.family.tensors if n.startswith(f"layers.{index}.")]
            fill_missing(self.weights, own, parameters, missing)
            yield Block(self, index, layer, *self._calls[index])

    def final_norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Apply the last norm with a canonical weight."""
        path, _ = self._relative("final_norm.weight")
        source = self.weights.family.tensors["final_norm.weight"]
        module = self._inner.get_submodule(path)
        with _parameter(module, "weight", weight - source.add):
            normed: Tensor = module(hidden)
        return normed

    def _embedding_rows(self, tokens: npt.NDArray[np.int64]) -> Tensor:
        return gather_rows(self.weights.pieces("embed_tokens.weight"), tokens)

    def _relative(self, canonical: str) -> tuple[str, str]:
        """Module path within the inner model, and the parameter's name."""
        name = self.weights.family.tensors[canonical].name.removeprefix(self._prefix)
        path, _, leaf = name.rpartition(".")
        return path, leaf


class Block:
    """One materialised decoder block. Made by `Original.block`.

    Attributes:
        names: canonical names of its tensors without the layer, such as `q_proj.weight`.
        operations: what it computes.
        stages: names of its linear layers in order of execution, without the layer; those of one
            stage have the same input.
    """

    def __init__(
        self,
        original: Original,
        index: int,
        layer: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.index = index
        self.names = tuple(
            name.removeprefix(f"layers.{index}.")
            for name in original.weights.family.tensors
            if name.startswith(f"layers.{index}.")
        )
        self.operations = tuple(layer_operations(original.weights.family.spec, index))
        self.stages = tuple(
            tuple(op.weight.removeprefix(f"layers.{index}.") for op in stage)
            for stage in stages(self.operations)
        )
        self._original = original
        self._layer = layer
        self._args = args
        self._kwargs = kwargs

    @torch.no_grad()
    def __call__(self, hidden: Tensor) -> Tensor:
        """Run the block: [B, T, hidden_size] -> the same shape."""
        return torch.cat([self._forward(batch) for batch in _batches(hidden)])

    @torch.no_grad()
    def observe(
        self, hidden: Tensor, linears: Sequence[str], see: Callable[[str, Tensor], None]
    ) -> None:
        """Show the inputs of linear layers while the block runs.

        Args:
            hidden: [B, T, hidden_size].
            linears: canonical names without the layer, in order of execution.
            see: called with a name and [tokens, K] float32, for a few windows at a time. The block
                is not run beyond the last one.
        """

        def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def seen(_: nn.Module, inputs: tuple[Any, ...]) -> None:
                see(name, inputs[0].flatten(0, -2).float())
                if name == linears[-1]:
                    raise _SeenError

            return seen

        with contextlib.ExitStack() as stack:
            for name in linears:
                handle = self._module(name).register_forward_pre_hook(hook(name))
                stack.callback(handle.remove)
            for batch in _batches(hidden):
                with contextlib.suppress(_SeenError):
                    self._forward(batch)

    def backward(
        self, hidden: Tensor, gradient: Tensor, see: Callable[[str, Tensor, Tensor], None]
    ) -> Tensor:
        """Run the block and follow a gradient back through it.

        Args:
            hidden: [B, T, hidden_size] its input.
            gradient: the same shape, with respect to its output.
            see: called with the name of each linear layer, its inputs [tokens, K] and the gradient
                with respect to its outputs [tokens, N], for a few windows at a time.

        Returns:
            The gradient with respect to `hidden`.
        """
        linears = [name for stage in self.stages for name in stage]
        inputs: dict[str, Tensor] = {}
        gradients: dict[str, Tensor] = {}

        def hook(path: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
            def seen(_: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
                inputs[path] = given[0].detach().flatten(0, -2)

                def keep(value: Tensor) -> None:
                    gradients[path] = value.flatten(0, -2)

                output.register_hook(keep)  # type: ignore[no-untyped-call]

            return seen

        found = []
        with contextlib.ExitStack() as stack, torch.enable_grad():
            for path in {self._path(name + ".weight")[0] for name in linears}:
                handle = self._layer.get_submodule(path).register_forward_hook(hook(path))
                stack.callback(handle.remove)
            for batch, given in zip(_batches(hidden), _batches(gradient), strict=True):
                start = batch.detach().requires_grad_()
                (back,) = torch.autograd.grad(self._forward(start), start, given)
                found.append(back)
                for name in linears:
                    path = self._path(name + ".weight")[0]
                    _, rows, _ = self._place(name + ".weight")
                    see(name, inputs[path], gradients[path][:, rows])
        return torch.cat(found)

    def with_weights(self, weights: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        """Run the block on [B, T, hidden_size] with some layers' weights replaced.

        Args:
            weights: [N, K] by canonical name, such as `q_proj`; gradients pass through them.
            hidden: its input.
        """
        parts = []
        for name in (name for stage in self.stages for name in stage):
            source = self._source(name + ".weight")
            value = weights[name] if name in weights else self.get(name + ".weight")
            path = ".".join(self._path(name + ".weight"))
            parts.append((path, source.ranges, value - source.add))
        return self._forward(hidden, joined(parts))

    def get(self, name: str) -> Tensor:
        """A canonical tensor of this block as it is now, such as `q_proj.weight`: a copy."""
        source = self._source(name)
        if source.stack is not None:
            return read_stacked(source, self._parameters(), 2 if name.endswith(".weight") else 1)
        parameter, rows, add = self._place(name)
        return parameter[rows] + add if add else parameter[rows].clone()

    def set(self, name: str, values: Tensor) -> None:
        """Replace a canonical tensor of this block."""
        source = self._source(name)
        if source.stack is not None:
            write_stacked(source, self._parameters(), values)
            return
        parameter, rows, add = self._place(name)
        parameter[rows] = values - add if add else values

    def _forward(self, batch: Tensor, replaced: Mapping[str, Tensor] | None = None) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._original.short):
            arguments = (batch, *self._args)
            output = functional_call(self._layer, dict(replaced or {}), arguments, self._kwargs)
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        return hidden.float()

    def _path(self, name: str) -> tuple[str, str]:
        source = self._source(name)
        relative = source.name.removeprefix(f"{self._original._prefix}layers.{self.index}.")
        path, _, leaf = relative.rpartition(".")
        return path, leaf

    def _parameters(self) -> dict[str, Tensor]:
        prefix = f"{self._original._prefix}layers.{self.index}."
        return {prefix + name: p.data for name, p in self._layer.named_parameters()}

    def _module(self, linear: str) -> nn.Module:
        return self._layer.get_submodule(self._path(linear + ".weight")[0])

    def _source(self, name: str) -> TensorSource:
        return self._original.weights.family.tensors[f"layers.{self.index}.{name}"]

    def _place(self, name: str) -> tuple[Tensor, slice | Tensor, float]:
        source = self._source(name)
        path, leaf = self._path(name)
        parameter: Tensor = getattr(self._layer.get_submodule(path), leaf).data
        if source.pieces:
            rows = torch.cat([torch.arange(*piece) for piece in source.pieces])
            return parameter, rows, source.add
        return parameter, slice(*source.rows) if source.rows else slice(None), source.add


def gather_rows(pieces: Iterator[npt.NDArray[np.float32]], tokens: npt.NDArray[np.int64]) -> Tensor:
    """Rows `tokens` (sorted) of a matrix that is read in pieces: [len(tokens), K]."""
    found, first = [], 0
    for piece in pieces:
        here = tokens[(tokens >= first) & (tokens < first + len(piece))]
        found.append(to_torch(piece[here - first]))
        first += len(piece)
    return torch.cat(found)


class _SeenError(Exception):
    """All that was wanted of a forward pass has been seen."""


class _Recorder(nn.Module):
    """Stands for a layer and records what it is called with."""

    def __init__(self, layer: nn.Module, first: _Recorder | None) -> None:
        super().__init__()
        # A model may take the first item of what a layer returns: later layers begin anew.
        self._first = [self if first is None else first]
        # Some models choose the mask by an attribute of the layer, such as `attention_type`, or of
        # its attention.
        vars(self).update(_plain_attributes(layer))
        for name, child in layer.named_children():
            vars(self)[name] = SimpleNamespace(**_plain_attributes(child))

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.hidden, self.args, self.kwargs = hidden, args, kwargs
        return self._first[0].hidden


def _plain_attributes(module: nn.Module) -> dict[str, str | int | bool]:
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and isinstance(value, str | int | bool)
    }


@contextlib.contextmanager
def _parameter(module: nn.Module, name: str, values: Tensor) -> Iterator[None]:
    """Give a module a parameter, or a buffer, for as long as the context lasts."""
    if name in module._buffers:
        kept = module._buffers[name]
        module._buffers[name] = values
        try:
            yield
        finally:
            module._buffers[name] = kept
        return
    former = module._parameters[name]
    module._parameters[name] = nn.Parameter(values, requires_grad=False)
    try:
        yield
    finally:
        module._parameters[name] = former


def _batches(hidden: Tensor) -> Iterator[Tensor]:
    step = max(1, _BATCH_TOKENS // hidden.shape[1])
    for first in range(0, len(hidden), step):
        yield hidden[first : first + step]
