"""A forward pass that waits before some layers, so that their weights can change meanwhile.

A layer is calibrated on inputs that the quantised layers before it compute. With a pass that waits,
a block runs once while all of its layers are quantised, and not once for each group of layers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from edgetok.converter.workers import side_by_side

_of_thread = threading.local()


class _AbandonedError(Exception):
    """Nobody wants the rest of the pass."""


class _Pass:
    """One batch, in a thread of its own; this thread or its caller's works, never both."""

    def __init__(self, owner: PausedForward, forward: Callable[[], Tensor]) -> None:
        self.owner = owner
        self._forward = forward
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: BaseException | None = None
        self._abandoned = False
        self.at: nn.Module | None = None
        self.inputs: Tensor | None = None
        self.result: Tensor | None = None

    def resume(self) -> None:
        """Go on up to the next layer that is waited before, or to the end."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._turn.release()
        self._back.acquire()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """End the thread where it is."""
        if self._thread.is_alive():
            self._abandoned = True
            self._turn.release()
            self._thread.join()

    def wait(self, module: nn.Module, inputs: Tensor) -> None:
        """Hand over to the caller's thread: called before a layer, in this pass's thread."""
        self.at, self.inputs = module, inputs
        self._back.release()
        self._turn.acquire()
        if self._abandoned:
            raise _AbandonedError

    def _run(self) -> None:
        _of_thread.running = self
        try:
            with torch.no_grad():
                self.result = self._forward()
        except _AbandonedError:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self.at = None
            self._back.release()


class PausedForward:
    """The forward passes of several batches, which wait before the same layers."""

    def __init__(
        self,
        batches: Sequence[Callable[[], Tensor]],
        layers: Sequence[nn.Module],
        threads: int = 1,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            batches: each computes one batch.
            layers: modules to wait before.
            threads: how many batches are computed at once.
        """
        self._threads = threads
        self._passes = [_Pass(self, forward) for forward in batches]
        self._handles = [layer.register_forward_pre_hook(self._wait) for layer in layers]

    def up_to(self, layer: nn.Module, see: Callable[[Tensor], None]) -> None:
        """Run up to a layer and show its inputs, [tokens, K] float32 a batch.

        Raises:
            RuntimeError: the block computes another layer first.
        """
        at = self.onward()
        if at is not layer:
            raise RuntimeError(f"waits before {at}, expected {layer}")
        for x in self.inputs():
            see(x)

    def onward(self) -> nn.Module | None:
        """Run up to the next layer that is waited before, and return it; None at the end.

        Raises:
            RuntimeError: not all batches come to the same one.
        """
        side_by_side(self._threads, [one.resume for one in self._passes])
        found = {one.at for one in self._passes}
        if len(found) > 1:
            raise RuntimeError(f"batches wait before several layers: {found}")
        return found.pop()

    def inputs(self) -> Iterator[Tensor]:
        """Yield the inputs of the layer that is waited before, [tokens, K] float32 a batch."""
        for one in self._passes:
            if one.inputs is None:
                raise RuntimeError(f"{one.at} has no inputs")
            yield one.inputs.flatten(0, -2).float()
            one.inputs = None

    def outputs(self) -> Tensor:
        """Run to the end and return all batches' outputs."""
        found = []
        side_by_side(self._threads, [one.resume for one in self._passes])
        for one in self._passes:
            if one.result is None:
                raise RuntimeError(f"waits before {one.at}, expected the block's end")
            found.append(one.result)
        return torch.cat(found)

    def close(self) -> None:
        """Abandon what has not run to its end."""
        for one in self._passes:
            one.abandon()
        for handle in self._handles:
            handle.remove()

    def _wait(self, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        running: _Pass | None = getattr(_of_thread, "running", None)
        # Else the block runs for something else meanwhile.
        if running is not None and running.owner is self:
            running.wait(module, given[0])
