"""The device: memory, copies, streams and graphs. No other file names CUDA.

`torch.cuda` is also ROCm's name for its devices, so an AMD GPU goes the same way. Importing this
file imports neither torch nor Triton; using it does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgetok.errors import MissingExtraError, OptionError, UnsupportedError

if TYPE_CHECKING:
    import torch

_OLDEST = (8, 0)  # compute capability that Triton's tensor-core products begin with
_INSTEAD = "use --device cpu"
_NODES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA, either under WSL, AMD
_UNBOUNDED = 1 << 46  # the interpreter's memory is this machine's


def present() -> bool:
    """Return whether the system seems to have a GPU, without importing torch."""
    if any(Path(node).exists() for node in _NODES):
        return True
    return sys.platform == "win32" and find_library("nvcuda") is not None


def find() -> Device:
    """Return the first GPU.

    Raises:
        MissingExtraError: torch or Triton is not installed.
        UnsupportedError: there is no driver or no GPU, or the GPU is too old.
    """
    try:
        import torch
        import triton  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"device is 'cuda', which needs {error.name}: pip install 'edgetok[gpu]', or {_INSTEAD}"
        ) from error
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        reason = (
            "no GPU with a working driver was found"
            if built
            else "this torch was built without GPU support; install its CUDA or ROCm build"
        )
        raise UnsupportedError(f"device is 'cuda', but {reason}, or {_INSTEAD}")
    if torch.version.hip is None:
        capability = torch.cuda.get_device_capability()
        if capability < _OLDEST:
            raise UnsupportedError(
                f"{torch.cuda.get_device_name()} has compute capability {capability[0]}."
                f"{capability[1]}, expected at least {_OLDEST[0]}.{_OLDEST[1]}; {_INSTEAD}"
            )
    return Device(interpreted=False)


class Device:
    """One GPU, or with `interpreted` this machine's memory and Triton's interpreter.

    Attributes:
        torch_device: where tensors are.
        name: name of the GPU.
        interpreted: whether kernels run in NumPy: for tests.
        processors: that run programs side by side.
    """

    def __init__(self, *, interpreted: bool) -> None:
        """Take the current GPU.

        Raises:
            UnsupportedError: the interpreter is wanted, but kernels were compiled, or vice versa.
        """
        import torch
        import triton

        if bool(triton.knobs.runtime.interpret) != interpreted:
            raise UnsupportedError(
                "Triton's interpreter is chosen by TRITON_INTERPRET=1 before anything is imported; "
                f"{'set' if interpreted else 'unset'} it, or {_INSTEAD}"
            )
        self.interpreted = interpreted
        if interpreted:
            self.torch_device = torch.device("cpu")
            self.name, self.processors = "Triton's interpreter", 1
        else:
            self.torch_device = torch.device("cuda", torch.cuda.current_device())
            self.name = torch.cuda.get_device_name()
            properties = torch.cuda.get_device_properties(self.torch_device)
            self.processors = int(properties.multi_processor_count)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make launches inside the block go to this device, from any thread."""
        import torch

        if self.interpreted:
            yield
            return
        with torch.cuda.device(self.torch_device):
            yield

    def memory(self) -> tuple[int, int]:
        """Bytes that can be had now, and all that the GPU has."""
        import torch

        if self.interpreted:
            return _UNBOUNDED, _UNBOUNDED
        free, total = torch.cuda.mem_get_info(self.torch_device)
        held = torch.cuda.memory_reserved(self.torch_device)
        return free + held - torch.cuda.memory_allocated(self.torch_device), total

    def require(self, nbytes: int, what: str, remedy: str) -> None:
        """Refuse what does not fit, before anything of it is allocated.

        Raises:
            OptionError: there is less free memory.
        """
        free, total = self.memory()
        if nbytes > free:
            raise OptionError(
                f"{what} needs {nbytes / 1e6:,.0f} MB on the GPU; {self.name} has "
                f"{free / 1e6:,.0f} of {total / 1e6:,.0f} MB free; {remedy}, or {_INSTEAD}"
            )

    def zeros(self, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        """Zeroed memory."""
        import torch

        return torch.zeros(shape, dtype=getattr(torch, dtype), device=self.torch_device)

    def copy(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """Return a copy on the device."""
        import torch

        return torch.from_numpy(np.array(array)).to(self.torch_device)

    def staging(self, count: int) -> Staging:
        """Integers that go to the device in one copy."""
        return Staging(self, count)

    def fetch(self, tensor: torch.Tensor, out: npt.NDArray[Any]) -> None:
        """Copy to the host; waits for everything that was launched."""
        import torch

        torch.from_numpy(out).copy_(tensor)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return a function that launches everything that `work` launches, in one call.

        `work` must have run before, so that its kernels are compiled, and allocate nothing, wait
        for nothing and launch on the current stream alone. What other threads do on the GPU
        meanwhile is not part of it.
        """
        import torch

        if self.interpreted:
            return work
        torch.cuda.synchronize(self.torch_device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()

        def replay() -> None:
            graph.replay()

        return replay

    def release(self) -> None:
        """Give memory that is no longer used back to the system."""
        import torch

        if not self.interpreted:
            torch.cuda.synchronize(self.torch_device)
            torch.cuda.empty_cache()


class Staging:
    """Host memory that the device can copy from by itself, and its place on the device.

    Attributes:
        host: int32 [count], to be filled.
        tensor: int32 [count] on the device.
    """

    def __init__(self, device: Device, count: int) -> None:
        """Allocate both."""
        import torch

        pinned = not device.interpreted
        self._source = torch.zeros(count, dtype=torch.int32, pin_memory=pinned)
        self.host: npt.NDArray[np.int32] = self._source.numpy()
        self.tensor = torch.zeros(count, dtype=torch.int32, device=device.torch_device)

    def send(self) -> None:
        """Copy; does not wait. `host` may be changed once something later was waited for."""
        self.tensor.copy_(self._source, non_blocking=True)

    def floats(self, begin: int, rows: int, columns: int) -> torch.Tensor:
        """Return a part of `tensor` as float32 [rows, columns]."""
        import torch

        part = self.tensor[begin : begin + rows * columns]
        return part.view(torch.float32).view(rows, columns)
