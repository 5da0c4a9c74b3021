"""Which backend runs an artefact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from edgetok.config import read_settings
from edgetok.errors import OptionError, UnsupportedError
from edgetok.formats.artefact import Artefact
from edgetok.machine import physical_cores
from edgetok.runtime.backend import Backend, GpuCompute

Device = Literal["auto", "cpu", "cuda", "onnxruntime"]
Compute = Literal["int8", "float32"]
KvBits = Literal[4, 8, 16, 32]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How an artefact is run.

    Attributes:
        device: "cpu" or "cuda" (a GPU) for edgetok's kernels, "onnxruntime" for any graph, "auto"
            for the CPU, or onnxruntime where only that fits.
        threads: how many compute; None for one per physical core that this process may use, or
            one where a model is too small to gain from more.
        kv_bits: of keys and values in the cache: 4 or 8, or 16 or 32 for floats; on a GPU 8 or 16.
        compute: of activations in products: "int8" (on a GPU float16), or "float32" to compare.
        isa: restricts the CPU backend to one instruction set, such as "avx2"; None takes the best.
    """

    device: Device = "auto"
    threads: int | None = None
    kv_bits: KvBits = 8
    compute: Compute = "int8"
    isa: str | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            OptionError: names the option, its value and what it may be.
        """
        device: str = self.device
        if device not in get_args(Device):
            raise OptionError(f"device is {device!r}, expected one of {_list(Device)}")
        if self.compute not in get_args(Compute):
            raise OptionError(f"compute is {self.compute!r}, expected one of {_list(Compute)}")
        if self.kv_bits not in get_args(KvBits):
            raise OptionError(f"kv_bits is {self.kv_bits!r}, expected one of {_list(KvBits)}")
        if self.threads is not None and (
            type(self.threads) is not int or not 1 <= self.threads <= 1024
        ):
            raise OptionError(
                f"threads is {self.threads!r}, expected a whole number from 1 to 1024"
            )


def choose(artefact: Artefact, device: Device) -> tuple[Device, str | None]:
    """The backend that "auto" means for this artefact.

    Returns:
        Its name, and a line for the user where it is not the expected one.

    Raises:
        UnsupportedError: the wanted backend cannot run the artefact.
    """
    if artefact.spec is not None:
        return ("cpu" if device == "auto" else device), None
    if device in ("cpu", "cuda"):
        raise UnsupportedError(
            f"{artefact.folder}: the graph was exported by {artefact.manifest.exporter} and has no "
            "edgetok spec; run it with device 'onnxruntime'"
        )
    return "onnxruntime", (
        f"{artefact.folder.name}: a graph exported by {artefact.manifest.exporter}; it runs in "
        "onnxruntime, slower than edgetok's own kernels"
        if device == "auto"
        else None
    )


def load_backend(
    artefact: Artefact,
    options: RunOptions,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Backend, str | None]:
    """Load the backend for an artefact.

    Args:
        artefact: closed with the backend.
        options: how to run it.
        progress: told (modules done, modules to compile) where kernels have to be compiled first.

    Returns:
        The backend, and a line for the user where it is not the expected one.

    Raises:
        MissingExtraError: a GPU was asked for, and what it needs is not installed.
        OptionError: the GPU has too little memory, or not this kind of cache.
        UnsupportedError: the wanted backend cannot run the artefact, or there is no GPU.
    """
    device, note = choose(artefact, options.device)
    if device == "cuda":
        from edgetok.kernels_gpu.device import find

        gpu = find()  # first of all: what it needs may not be installed
        from edgetok.runtime.gpu_backend import GpuBackend

        compute: GpuCompute = "float32" if options.compute == "float32" else "float16"
        return (
            GpuBackend(
                artefact,
                device=gpu,
                kv_bits=options.kv_bits,
                compute=compute,
                cache_dir=read_settings().cache_dir,
            ),
            note,
        )
    if device == "onnxruntime":
        from edgetok.runtime.onnxruntime_backend import OnnxRuntimeBackend

        return OnnxRuntimeBackend(artefact, threads=options.threads or physical_cores()), note
    from edgetok.runtime.cpu_backend import CpuBackend

    return (
        CpuBackend(
            artefact,
            threads=options.threads,
            kv_bits=options.kv_bits,
            compute=options.compute,
            isa=options.isa,
            cache_dir=read_settings().cache_dir,
            progress=progress,
        ),
        note,
    )


def _list(choices: object) -> str:
    return ", ".join(repr(choice) for choice in get_args(choices))
