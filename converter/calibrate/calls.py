"""Arguments of blocks beside the stream: mask, rotary embeddings, and more in few families.

Inputs of a layer's own depend on the token alone, so that one row for each token that occurs is
enough. Keys and values that later layers look at are kept as the layer that stores them computed
them.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgetok.errors import UnsupportedError
from edgetok.models.spec import DecoderSpec

Windows = Tensor | slice  # which windows of a text, numbers or a range

_BATCH_TOKENS = 2048
_LEAST_BATCHES = 4  # so that few windows, too, keep several threads busy
# Names of a layer's arguments in transformers.
_OWN_INPUT = "per_layer_input"
_SHARED = "shared_kv_states"


@dataclass(slots=True)
class Calls:
    """Arguments that the blocks of a decoder are called with, for some windows of text.

    Attributes:
        recorded: positional and named arguments of each layer, as one window had them.
        sources: of each layer the earlier one whose keys and values it looks at; -1: its own.
        tokens: [B, T] numbers of the tokens, rows of `inputs`.
        inputs: [tokens, size] of each layer; none where layers have no inputs of their own.
        shared: keys and values [B, KH, T, D] by the name that transformers gives them, for each
            layer that others look at, once it was run.
        shared_gradients: gradients with respect to those, once a later layer was followed back.
        input_gradients: gradients [B, T, size] with respect to the inputs of layers of their own.
    """

    recorded: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]
    sources: Sequence[int]
    tokens: Tensor
    inputs: Sequence[Tensor] = ()
    shared: dict[int, dict[str, tuple[Tensor, ...]]] = field(default_factory=dict)
    shared_gradients: dict[int, dict[str, tuple[Tensor, ...]]] = field(default_factory=dict)
    input_gradients: dict[int, Tensor] = field(default_factory=dict)

    def again(self) -> Calls:
        """Return the same arguments for another pass, in which other keys and values are stored."""
        return Calls(self.recorded, self.sources, self.tokens, self.inputs)

    def of(self, index: int, windows: Windows) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a layer for some windows."""
        args, named = self.recorded[index]
        named = dict(named)
        if self.inputs:
            args = (self.inputs[index][self.tokens[windows]], *args[1:])
        if _SHARED in named:
            made = type(named[_SHARED])()
            if self.sources[index] >= 0:
                for name, values in self.shared[self.sources[index]].items():
                    made[name] = tuple(x[windows] for x in values)
            named[_SHARED] = made
        return args, named

    def shares(self, index: int) -> bool:
        """Return whether later layers look at the keys and values of a layer."""
        return index in self.sources

    def keep(self, index: int, calls: Sequence[Mapping[str, Any]]) -> None:
        """Keep what a layer stored for later ones.

        Args:
            index: which layer.
            calls: named arguments of its calls, which were for one window after the other.
        """
        stored = [named[_SHARED] for named in calls]
        for name in stored[0]:
            pairs = zip(*(each[name] for each in stored), strict=True)
            self.shared.setdefault(index, {})[name] = tuple(torch.cat(x).float() for x in pairs)

    def leaves(self, index: int, args: tuple[Any, ...], named: Mapping[str, Any]) -> list[Tensor]:
        """Return what a gradient also goes to of what `of` gave a layer, as autograd's leaves.

        That is its own input, then the keys and values of an earlier layer.
        """
        found = [args[0]] if self.inputs else []
        if self.sources[index] >= 0:
            found += [x for pair in named[_SHARED].values() for x in pair]
        return [x.requires_grad_() for x in found]

    def stored(
        self, index: int, named: Mapping[str, Any], windows: slice
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the keys and values that a layer stored in a call, and the gradients there."""
        values: list[Tensor] = []
        gradients: list[Tensor] = []
        for name, pair in self.shared_gradients.get(index, {}).items():
            values += named[_SHARED][name]
            gradients += [x[windows] for x in pair]
        return values, gradients

    def take_gradients(self, index: int, windows: slice, found: Sequence[Tensor]) -> None:
        """Keep the gradients with respect to a layer's `leaves`, for the layers that made them."""
        gradients = list(found)
        if self.inputs:
            own = gradients.pop(0)
            kept = self.input_gradients.setdefault(
                index, torch.zeros(*self.tokens.shape, own.shape[-1])
            )
            kept[windows] = own
        source = self.sources[index]
        if source < 0:
            return
        sums = self.shared_gradients.setdefault(source, {})
        for name, pair in self.shared[source].items():
            kept_pair = sums.setdefault(name, tuple(torch.zeros_like(x) for x in pair))
            for total in kept_pair:
                total[windows] += gradients.pop(0)

    def saved(self, index: int) -> bytes:
        """Return the keys and values of a layer that others look at, for a file."""
        file = io.BytesIO()
        torch.save(self.shared[index], file)
        return file.getvalue()

    def restore(self, index: int, saved: bytes) -> None:
        """Take what `saved` gave."""
        self.shared[index] = torch.load(io.BytesIO(saved), weights_only=True)


def sources_of(spec: DecoderSpec) -> list[int]:
    """Return `Calls.sources` of a decoder."""
    attentions = [layer.attention for layer in spec.layers]
    return [-1 if mixer is None else mixer.shares for mixer in attentions]


def check_arguments(spec: DecoderSpec, layer: nn.Module) -> None:
    """Refuse a release of transformers that hands a family's additions on in other ways.

    Raises:
        UnsupportedError: see above.
    """
    names = list(inspect.signature(type(layer).forward).parameters)[1:]  # without self
    wanted = [_OWN_INPUT] if spec.per_layer_size else []
    if max(sources_of(spec)) >= 0:
        wanted.append(_SHARED)
    for name in wanted:
        if name not in names or (name == _OWN_INPUT and names.index(name) != 1):
            raise UnsupportedError(
                f"the installed transformers calls layers without {name!r}, so edgetok cannot "
                "record their inputs; use --method rtn, or another release"
            )


def batches(hidden: Tensor) -> Iterator[slice]:
    """Ranges of windows of `hidden` [windows, T, hidden_size] that are computed together."""
    most = min(_BATCH_TOKENS // hidden.shape[1], -(-len(hidden) // _LEAST_BATCHES))
    step = max(1, most)
    for first in range(0, len(hidden), step):
        yield slice(first, min(first + step, len(hidden)))
