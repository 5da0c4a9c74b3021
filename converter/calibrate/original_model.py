"""The original model, one decoder block in memory at a time.

Modules come from `transformers`; their large weights stay on the meta device until a block's turn
comes. What each layer is called with (mask, rotary embeddings, whatever a family has) is recorded
from the model's own forward pass with the layers left out, so that no family's wiring is repeated
here and other releases of `transformers` bring their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgetok.converter.calibrate.block import Block
from edgetok.converter.calibrate.calls import Calls, batches, check_arguments, sources_of
from edgetok.converter.calibrate.expert_parameters import fill_missing
from edgetok.converter.calibrate.transformers_model import (
    attention_of,
    build_on_meta,
    multiplies_bfloat16,
    to_torch,
)
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.errors import UnsupportedError

# What stands before the first layer beside the embedding, of whose rows few are needed.
_BEFORE = ("per_layer_proj.weight", "per_layer_norm.weight")
_TABLES = ("embed_tokens.weight", "embed_per_layer.weight")

Rows = Callable[[npt.NDArray[np.int64]], Tensor]


class Source(Protocol):
    """Canonical tensors, of a checkpoint or an artefact."""

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """Return a whole tensor."""

    def pieces(self, name: str) -> Iterator[npt.NDArray[np.float32]]:
        """Yield a matrix, some rows at a time."""


class Original:
    """The original decoder. Blocks are materialised with `block`.

    Attributes:
        weights: weights of the checkpoint.
        short: whether products are bfloat16.
        threads: how many batches of windows are computed at once.
        calls: what blocks are called with for the windows that were embedded last.
        prefix: text before `layers.` in names of tensors.
    """

    def __init__(self, weights: CanonicalWeights, *, short: bool = False, threads: int = 1) -> None:
        """Build the modules without their weights.

        Args:
            weights: weights of the checkpoint.
            short: multiply in bfloat16 where the processor does so, in a quarter of the time: for
                statistics, not for what is measured. What blocks pass on stays float32.
            threads: how many batches of windows are computed at once; no result depends on it.

        Raises:
            UnsupportedError: `transformers` does not know the family or builds it otherwise.
            MissingExtraError: `transformers` is too old.
        """
        self.weights = weights
        self.threads = threads
        self.short = short and multiplies_bfloat16()
        spec = weights.family.spec
        model = build_on_meta(weights.checkpoint.config, attention_of(spec))
        norm = weights.family.tensors["final_norm.weight"].name
        self.prefix = norm.removesuffix(norm.rsplit(".", 2)[-2] + ".weight")
        self._inner = model.get_submodule(self.prefix.removesuffix("."))
        self._layers: nn.ModuleList = self._inner.layers
        if len(self._layers) != spec.num_layers:
            raise UnsupportedError(
                f"transformers builds {len(self._layers)} layers, config.json says "
                f"{spec.num_layers}"
            )
        check_arguments(spec, self._layers[0])
        self.calls = Calls([], [], torch.empty(0, dtype=torch.int64))

    @torch.no_grad()
    def embed(
        self,
        tokens: npt.NDArray[np.int64],
        source: Source | None = None,
        *,
        rows: Rows | None = None,
    ) -> Tensor:
        """Return the input of the first block; `calls` is what else blocks are given then.

        Args:
            tokens: [B, T], all windows of equal length.
            source: what stands before the first block; None takes the original.
            rows: gives the embedding's rows of some token ids; None takes the source's.

        Returns:
            [B, T, hidden_size] float32.
        """
        known, compact = np.unique(tokens, return_inverse=True)
        first = _Recorder(self._layers[0], None)
        stubs = [first, *(_Recorder(layer, first) for layer in self._layers[1:])]
        ids = torch.from_numpy(compact.reshape(tokens.shape))
        with self._before(known, source or self.weights, rows):
            self._inner.layers = nn.ModuleList(stubs)
            try:
                hidden = []
                for batch in batches(ids):
                    self._inner(input_ids=ids[batch], use_cache=False)
                    hidden.append(first.hidden)
                # What is recorded for one window holds for any number of them.
                self._inner(input_ids=ids[:1], use_cache=False)
                recorded = [(stub.args, stub.kwargs) for stub in stubs]
                inputs = self._own_inputs(stubs, len(known), tokens.shape[1])
            finally:
                self._inner.layers = self._layers
        self.calls = Calls(recorded, sources_of(self.weights.family.spec), ids, inputs)
        return torch.cat(hidden)

    @contextlib.contextmanager
    def _before(
        self, known: npt.NDArray[np.int64], source: Source, rows: Rows | None
    ) -> Iterator[None]:
        """Give modules before the first layer their weights; of tables only the `known` rows."""
        with contextlib.ExitStack() as stack:
            for name in (*_TABLES, *_BEFORE):
                if name not in self.weights.family.tensors:
                    continue
                path, leaf = self._relative(name)
                module = self._inner.get_submodule(path)
                if name in _BEFORE:
                    values = torch.from_numpy(source.tensor(name))
                    values = values - self.weights.family.tensors[name].add
                elif rows is not None and name == _TABLES[0]:
                    values = rows(known)
                else:
                    values = gather_rows(source.pieces(name), known)
                if name in _TABLES:
                    module.padding_idx = None  # it only matters in training
                stack.enter_context(_parameter(module, leaf, values))
            yield

    def _own_inputs(self, stubs: list[_Recorder], known: int, most: int) -> list[Tensor]:
        """Return the inputs [known, size] of each layer's own, `most` tokens at a time."""
        if not self.weights.family.spec.per_layer_size:
            return []
        found: list[list[Tensor]] = [[] for _ in stubs]
        for first in range(0, known, most):
            ids = torch.arange(first, min(first + most, known))
            self._inner(input_ids=ids[None], use_cache=False)
            for parts, stub in zip(found, stubs, strict=True):
                parts.append(stub.args[0][0].clone())
        return [torch.cat(parts) for parts in found]

    @contextlib.contextmanager
    def block(self, index: int) -> Iterator[Block]:
        """Read block `index` into memory for as long as the context lasts; `embed` comes first."""
        layer = self._layers[index]
        prefix = f"{self.prefix}layers.{index}."
        stored = self.weights.checkpoint.infos
        missing: list[str] = []
        with contextlib.ExitStack() as stack:
            for name, former in [*layer.named_parameters(), *layer.named_buffers()]:
                in_file = self.weights.family.file_name(prefix + name)
                if in_file in stored:
                    values = to_torch(self.weights.checkpoint.tensor(in_file))
                elif isinstance(former, nn.Parameter):
                    values = torch.empty(former.shape, device="cpu")
                    missing.append(in_file)
                else:
                    continue  # computed when the module was built
                owner, _, leaf = name.rpartition(".")
                stack.enter_context(_parameter(layer.get_submodule(owner), leaf, values))
            block = Block(self, index, layer, prefix)
            own = [f"layers.{index}.{name}" for name in block.names]
            fill_missing(self.weights, own, block.parameters(), missing)
            yield block

    def final_norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Apply the last norm with a canonical weight [hidden_size]: [..., hidden_size] -> same."""
        path, _ = self._relative("final_norm.weight")
        source = self.weights.family.tensors["final_norm.weight"]
        module = self._inner.get_submodule(path)
        with _parameter(module, "weight", weight - source.add):
            normed: Tensor = module(hidden)
        return normed

    def _relative(self, canonical: str) -> tuple[str, str]:
        """Module path within the inner model, and the parameter's name."""
        name = self.weights.family.tensors[canonical].name.removeprefix(self.prefix)
        path, _, leaf = name.rpartition(".")
        return path, leaf


def gather_rows(pieces: Iterator[npt.NDArray[np.float32]], tokens: npt.NDArray[np.int64]) -> Tensor:
    """Rows `tokens` (sorted) of a matrix that is read in pieces: [len(tokens), K]."""
    found, first = [], 0
    for piece in pieces:
        here = tokens[(tokens >= first) & (tokens < first + len(piece))]
        found.append(to_torch(piece[here - first]))
        first += len(piece)
    return torch.cat(found)


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
