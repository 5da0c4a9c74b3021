"""One decoder block of the original model, with its weights in memory."""

from __future__ import annotations

import contextlib
import copy
import functools
import posixpath
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgetok.converter.calibrate.calls import Calls, batches
from edgetok.converter.calibrate.expert_parameters import put_stacked, read_stacked, write_stacked
from edgetok.converter.calibrate.paused import PausedForward
from edgetok.converter.calibrate.transformers_model import joined
from edgetok.converter.workers import side_by_side
from edgetok.errors import UnsupportedError
from edgetok.models.family import TensorSource
from edgetok.models.layers.experts import inputs_of
from edgetok.models.operations import layer_operations, stages
from edgetok.models.ops import Linear, Op

if TYPE_CHECKING:
    from edgetok.converter.calibrate.original_model import Original


ROUTER = "router"


class Paused(NamedTuple):
    """A block that waits.

    Attributes:
        observe: runs it up to a linear layer, and shows the layer's inputs.
        outputs: runs it to its end and returns its outputs.
    """

    observe: Callable[[str, Callable[[Tensor], None]], None]
    outputs: Callable[[], Tensor]


class _Followed(NamedTuple):
    """Results of following a batch back.

    Attributes:
        start: gradient with respect to the block's input.
        others: gradients with respect to `Calls.leaves`.
        inputs: of linear layers, [tokens, K] by the module's path.
        gradients: with respect to their outputs, [tokens, N].
    """

    start: Tensor
    others: Sequence[Tensor]
    inputs: dict[str, Tensor]
    gradients: dict[str, Tensor]


class Block:
    """One materialised decoder block. Made by `Original.block`.

    Attributes:
        names: canonical names of its tensors without the layer, such as `q_proj.weight`.
        operations: what it computes.
        stages: names of its linear layers in order of execution, without the layer; those of one
            stage have the same input.
        measured: what `backward` shows gradients of.
        before_experts: the module whose inputs are shown for all experts: the router, or the norm
            of what they read, where that is not what the router reads; "" without experts.
    """

    def __init__(self, original: Original, index: int, layer: nn.Module, prefix: str) -> None:
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
        self.before_experts = _before_experts(self.operations)
        routed = (ROUTER,) if self.before_experts else ()
        linears = (op for op in self.operations if isinstance(op, Linear) and not op.kept)
        self.measured = (*(op.weight.rpartition(".")[2] for op in linears), *routed)
        self._original = original
        self._layer = layer
        self._lanes = [layer]
        # By the names that files have for them.
        file_name = original.weights.family.file_name
        self._in_module = {file_name(prefix + n): n for n, _ in layer.named_parameters()}
        self._in_module |= {file_name(prefix + n): n for n, _ in layer.named_buffers()}

    @torch.no_grad()
    def __call__(self, hidden: Tensor, calls: Calls | None = None) -> Tensor:
        """Run the block: [B, T, hidden_size] -> the same shape.

        Args:
            hidden: all windows that were embedded.
            calls: what else it is given; keys and values that later blocks look at are added.
        """
        calls = calls or self._original.calls
        cut = list(batches(hidden))
        given = [calls.of(self.index, batch) for batch in cut]

        def forward(batch: slice, args: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
            with torch.no_grad():  # which is said for each thread
                return self._run(hidden[batch], args, named)

        works = [
            functools.partial(forward, batch, *both) for batch, both in zip(cut, given, strict=True)
        ]
        results = side_by_side(self._original.threads, works)
        if calls.shares(self.index):
            calls.keep(self.index, [named for _, named in given])
        return torch.cat(results)

    @contextlib.contextmanager
    def paused(self, hidden: Tensor, linears: Sequence[str]) -> Iterator[Paused]:
        """Run the block once while its weights are replaced.

        Args:
            hidden: all windows that were embedded, [B, T, hidden_size].
            linears: canonical names without the layer of what it waits before, in order of
                execution.
        """
        calls = self._original.calls
        cut = list(batches(hidden))
        given = [calls.of(self.index, batch) for batch in cut]

        def forward(batch: slice, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
            return self._run(hidden[batch], *arguments)

        works = [functools.partial(forward, *both) for both in zip(cut, given, strict=True)]
        modules = [self._module(name) for name in linears]
        running = PausedForward(works, modules, self._original.threads)

        def observe(name: str, see: Callable[[Tensor], None]) -> None:
            running.up_to(self._module(name), see)

        def outputs() -> Tensor:
            result = running.outputs()
            if calls.shares(self.index):
                calls.keep(self.index, [named for _, named in given])
            return result

        try:
            yield Paused(observe, outputs)
        finally:
            running.close()

    @torch.no_grad()
    def observe(
        self,
        hidden: Tensor,
        linears: Sequence[str],
        see: Callable[[str, Tensor], None],
        windows: Tensor | None = None,
    ) -> None:
        """Show the inputs of linear layers while the block runs.

        Args:
            hidden: [B, T, hidden_size].
            linears: canonical names without the layer.
            see: called with a name and [tokens, K] float32, for a few windows at a time, in order
                of execution. The block is not run beyond the last one.
            windows: [B] which of those that were embedded; None: all of them.
        """
        works = []
        for batch in batches(hidden):
            chosen = batch if windows is None else windows[batch]
            arguments = self._original.calls.of(self.index, chosen)
            works.append(functools.partial(self._run, hidden[batch], *arguments))
        modules = [self._module(name) for name in linears]
        threads = self._original.threads
        for first in range(0, len(works), threads):  # no more of them in memory than run at once
            running = PausedForward(works[first : first + threads], modules, threads)
            try:
                waiting = list(zip(modules, linears, strict=True))
                while waiting:  # a shared expert may be computed before the router or behind it
                    at = running.onward()
                    place = next((i for i, (module, _) in enumerate(waiting) if module is at), None)
                    if place is None:
                        raise RuntimeError(f"waits before {at}, expected one of {waiting}")
                    _, name = waiting.pop(place)
                    for x in running.inputs():
                        see(name, x)
            finally:
                running.close()

    def backward(
        self, hidden: Tensor, gradient: Tensor, see: Callable[[str, Tensor, Tensor], None]
    ) -> Tensor:
        """Run the block and follow a gradient back through it, and into `calls` what else it gets.

        Args:
            hidden: [B, T, hidden_size] its input.
            gradient: the same shape, with respect to its output.
            see: called with the name of each linear layer that is quantised, its inputs
                [tokens, K] and the gradient with respect to its outputs [tokens, N], for a few
                windows at a time. ROUTER stands for all experts: its inputs are those of
                `before_experts`, and the gradient is that with respect to their result.

        Returns:
            The gradient with respect to `hidden`.
        """
        calls, threads = self._original.calls, self._original.threads
        running = threading.local()  # inputs and gradients of the batch that a thread computes

        def hook_input(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def seen(_: nn.Module, given: tuple[Any, ...]) -> None:
                running.inputs[path] = given[0].detach().flatten(0, -2)

            return seen

        def hook_output(path: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
            def seen(_: nn.Module, given: tuple[Any, ...], output: Any) -> None:
                del given
                gradients = running.gradients

                def keep(value: Tensor) -> None:
                    gradients[path] = value.flatten(0, -2)

                result = output[0] if isinstance(output, tuple) else output
                result.register_hook(keep)

            return seen

        def back(batch: slice) -> _Followed:
            running.inputs, running.gradients = {}, {}
            with torch.enable_grad():  # which is said for each thread
                start = hidden[batch].detach().requires_grad_()
                args, named = calls.of(self.index, batch)
                leaves = calls.leaves(self.index, args, named)
                result = self._run(start, args, named)
                stored, behind = calls.stored(self.index, named, batch)
                found = torch.autograd.grad(
                    [result, *stored], [start, *leaves], [gradient[batch], *behind]
                )
            return _Followed(found[0], found[1:], running.inputs, running.gradients)

        shown = {name: name for name in self.measured}
        if ROUTER in shown:
            shown[ROUTER] = self.before_experts
        places = {name: self._path(module + ".weight")[0] for name, module in shown.items()}
        written = {**places}
        if ROUTER in places:
            written[ROUTER] = self._experts_path()
        found, cut = [], list(batches(hidden))
        with contextlib.ExitStack() as stack:
            for path in {*places.values()}:
                module = self._layer.get_submodule(path)
                stack.callback(module.register_forward_pre_hook(hook_input(path)).remove)
            for path in {*written.values()}:
                module = self._layer.get_submodule(path)
                stack.callback(module.register_forward_hook(hook_output(path)).remove)
            for first in range(0, len(cut), threads):  # no more in memory than run at once
                some = cut[first : first + threads]
                works = [functools.partial(back, batch) for batch in some]
                for batch, one in zip(some, side_by_side(threads, works), strict=True):
                    calls.take_gradients(self.index, batch, one.others)
                    found.append(one.start)
                    for name, path in places.items():
                        g = one.gradients[written[name]]
                        if name != ROUTER:
                            _, rows, _ = self._place(name + ".weight")
                            g = g[:, rows]
                        see(name, one.inputs[path], g)
        return torch.cat(found)

    def with_weights(
        self,
        weights: Mapping[str, Tensor],
        hidden: Tensor,
        windows: Tensor | None = None,
        *,
        lane: int = 0,
    ) -> Tensor:
        """Run the block on [B, T, hidden_size] with some layers' weights replaced.

        Args:
            weights: [N, K] by canonical name, such as `q_proj`; gradients pass through them.
            hidden: its input.
            windows: [B] which of those that were embedded; None: all of them.
            lane: runs in other lanes may go on beside this one.
        """
        parts = []
        parameters, stacked = self.parameters(), dict[str, Tensor]()
        for name in (name for stage in self.stages for name in stage):
            source = self._source(name + ".weight")
            if source.stack is not None:
                if name in weights:
                    put_stacked(source.stack, weights[name], parameters, stacked)
                continue
            value = weights[name] if name in weights else self.get(name + ".weight")
            path = ".".join(self._path(name + ".weight"))
            parts.append((path, source, value - source.add))
        arguments = self._original.calls.of(self.index, slice(None) if windows is None else windows)
        while lane >= len(self._lanes):  # parameters and buffers are those of the first
            shared = [*self._layer.parameters(), *self._layer.buffers()]
            self._lanes.append(copy.deepcopy(self._layer, {id(t): t for t in shared}))
        replaced = joined(parts) | {self._in_module[n]: values for n, values in stacked.items()}
        return self._run(hidden, *arguments, replaced, self._lanes[lane])

    def get(self, name: str) -> Tensor:
        """A canonical tensor of this block as it is now, such as `q_proj.weight`: a copy."""
        source = self._source(name)
        if source.stack is not None:
            return read_stacked(source, self.parameters(), 2 if name.endswith(".weight") else 1)
        parameter, rows, add = self._place(name)
        return parameter[rows] + add if add else parameter[rows].clone()

    def set(self, name: str, values: Tensor) -> None:
        """Replace a canonical tensor of this block; the new one has its shape."""
        source = self._source(name)
        if source.stack is not None:
            write_stacked(source, self.parameters(), values)
            return
        parameter, rows, add = self._place(name)
        parameter[rows] = values - add if add else values

    def parameters(self) -> dict[str, Tensor]:
        """Return its parameters and buffers by the names that files have for them."""
        named = dict([*self._layer.named_parameters(), *self._layer.named_buffers()])
        return {in_file: named[name].data for in_file, name in self._in_module.items()}

    def _run(
        self,
        batch: Tensor,
        args: tuple[Any, ...],
        named: dict[str, Any],
        replaced: Mapping[str, Tensor] | None = None,
        layer: nn.Module | None = None,
    ) -> Tensor:
        layer = layer or self._layer
        with torch.autocast("cpu", torch.bfloat16, enabled=self._original.short):
            if replaced is None:  # what replaces changes the module meanwhile
                output = layer(batch, *args, **named)
            else:
                output = functional_call(layer, dict(replaced), (batch, *args), named)
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        return hidden.float()

    def _path(self, name: str) -> tuple[str, str]:
        path, _, leaf = self._in_module[self._source(name).name].rpartition(".")
        return path, leaf

    def _experts_path(self) -> str:
        """Path of the module that holds the experts, and the router where that reads the same.

        Its output is their result.
        """
        parameters, names = self.parameters(), list[str]()
        if self.before_experts == ROUTER:
            names.append(self._in_module[self._source("router.weight").name])
        for name in self.names:
            if name.startswith("experts_"):
                parts = self._source(name).parts(parameters)
                names += [self._in_module[part.name] for part in parts]
        common = posixpath.commonpath([name.replace(".", "/") for name in names])
        if not common:
            raise UnsupportedError(
                "the installed transformers has no module that holds a layer's router and experts; "
                "give --bits instead of --fit or --max-kl"
            )
        return common.replace("/", ".")

    def _module(self, linear: str) -> nn.Module:
        return self._layer.get_submodule(self._path(linear + ".weight")[0])

    def _source(self, name: str) -> TensorSource:
        return self._original.weights.family.tensors[f"layers.{self.index}.{name}"]

    def _place(self, name: str) -> tuple[Tensor, slice | Tensor, float]:
        source = self._source(name)
        path, leaf = self._path(name)
        parameter: Tensor = getattr(self._layer.get_submodule(path), leaf).data
        if source.columns is not None:  # a vector, which is a row in the module
            parameter = parameter.view(-1)
        if not source.in_order:
            first, end = source.rows or (0, len(parameter))
            return parameter, torch.from_numpy(source.order(end - first)), source.add
        return parameter, slice(*source.rows) if source.rows else slice(None), source.add


def _before_experts(operations: Sequence[Op]) -> str:
    """See `Block.before_experts`."""
    found = inputs_of(operations)
    if found is None:
        return ""
    return ROUTER if found.norms is None else found.norms[1].weight.rpartition(".")[2]
