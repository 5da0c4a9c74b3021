"""Choice of the backend that runs an artefact."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgetok.environment import read_settings
from edgetok.errors import MissingExtraError, OptionError, UnsupportedError
from edgetok.formats.artefact import Artefact
from edgetok.formats.cache_losses import MOST_CACHE_KL, cache_losses
from edgetok.machine import physical_cores
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.backend import Backend, GpuCompute
from edgetok.runtime.options import Device, RunOptions

if TYPE_CHECKING:
    from edgetok.runtime.cpu.backend import CpuBackend

DEFAULT_CONTEXT_TOKENS = 4096
LEAST_EVICTING_TOKENS = 64  # of a context: less leaves a policy nothing to choose from


def choose(artefact: Artefact, device: Device) -> tuple[Device, str | None]:
    """The backend that "auto" means for this artefact where there is no GPU.

    Returns:
        Its name, and a line for the user where it is not the expected one.

    Raises:
        UnsupportedError: the wanted backend cannot run the artefact.
    """
    if artefact.spec is not None:
        if artefact.spec.both_sides and device not in ("auto", "cpu"):
            raise _cpu_alone(artefact)
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
        progress: told (work done, work in all) where kernels have to be compiled first.

    Returns:
        The backend, and a line for the user where it is not the expected one.

    Raises:
        MissingExtraError: what a GPU or onnxruntime needs is not installed.
        OptionError: the GPU has too little memory, or not this kind of cache.
        UnsupportedError: the wanted backend cannot run the artefact, or there is no GPU.
    """
    device, note = choose(artefact, options.device)
    both_sides = artefact.spec is not None and artefact.spec.both_sides
    if both_sides and options.gpu_layers:
        raise _cpu_alone(artefact)
    if options.device == "auto" and artefact.spec is not None and not both_sides:
        wanted = options.gpu_layers
        if wanted is None:
            found = _gpu_if_any(artefact, artefact.spec, options)
            if not isinstance(found, str):
                return found
            note = f"device cpu: {found}" if options.verbose else note
        elif wanted:
            device = "cuda"
    if device == "cuda" and artefact.spec is not None and options.gpu_layers != 0:
        return _gpu(artefact, artefact.spec, options, progress)
    if device == "onnxruntime":
        try:
            from edgetok.runtime.onnx.backend import OnnxRuntimeBackend
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"device onnxruntime needs {error.name}: pip install 'edgetok[onnx]'"
            ) from error
        threads, exact = options.threads or physical_cores(), options.compute == "float32"
        return OnnxRuntimeBackend(artefact, threads=threads, exact=exact), note
    backend = _cpu(artefact, options, progress)
    lines = (note, backend.note, _cache_note(artefact, options))
    return backend, "\n".join(line for line in lines if line) or None


def _cpu_alone(artefact: Artefact) -> UnsupportedError:
    return UnsupportedError(
        f"{artefact.folder}: an embedding model with attention in both directions, which only the "
        "CPU backend computes; use --device cpu"
    )


def _cache_note(artefact: Artefact, options: RunOptions) -> str | None:
    """A warning where the quality card says that such a cache changes the model's answers."""
    measured = cache_losses(artefact.report)
    kl = measured.get(options.kv_bits, 0.0)
    if kl <= MOST_CACHE_KL:
        return None
    better = min((bits for bits in measured if measured[bits] <= MOST_CACHE_KL), default=16)
    return (
        f"--kv-bits {options.kv_bits} changes this model's answers (KL {kl:.2f} nats, measured "
        f"when it was converted); use --kv-bits {better}"
    )


def _cpu(
    artefact: Artefact, options: RunOptions, progress: Callable[[int, int], None] | None
) -> CpuBackend:
    from edgetok.runtime.cpu.backend import CpuBackend

    return CpuBackend(
        artefact,
        threads=options.threads,
        kv_bits=options.kv_bits,
        compute=options.compute,
        isa=options.isa,
        cache_dir=read_settings().cache_dir,
        kernels_dir=options.kernels_dir,
        progress=progress,
    )


def _gpu_if_any(
    artefact: Artefact, spec: DecoderSpec, options: RunOptions
) -> tuple[Backend, str | None] | str:
    """A GPU with room for all of it, or why not; looks before it imports anything large."""
    from edgetok.kernels_gpu import device

    if options.isa is not None:
        return "an instruction set was asked for"
    if not device.present():
        return "no GPU was found"
    try:
        return _gpu(artefact, spec, options, None)
    except (MissingExtraError, OptionError, UnsupportedError) as error:
        return str(error)


def _gpu(
    artefact: Artefact,
    spec: DecoderSpec,
    options: RunOptions,
    progress: Callable[[int, int], None] | None,
) -> tuple[Backend, str | None]:
    """Layers on the first GPU, those before them on the CPU, once both are known to fit."""
    from edgetok.kernels_gpu import device

    gpu = device.find()  # first of all: what it needs may not be installed
    from edgetok.runtime.gpu.backend import GpuBackend, plan_options
    from edgetok.runtime.gpu.placement import first_layers, place, require

    total = spec.num_layers
    layers = total if options.gpu_layers is None else options.gpu_layers
    if layers > total:
        raise OptionError(f"gpu_layers is {layers}, the model has {total}")
    compute: GpuCompute = "float32" if options.compute == "float32" else "float16"
    tokens = options.context_tokens or min(spec.context_tokens, DEFAULT_CONTEXT_TOKENS)
    plans = [
        place(
            artefact,
            spec,
            count,
            options=plan_options(compute),
            kv_bits=options.kv_bits,
            cache_tokens=tokens,
            cache_budget=options.kv_budget_bytes if count == total else None,
        )
        for count in range(1, total + 1)
    ]
    free, _ = gpu.memory()
    require(plans[layers - 1], sum(plan.device_bytes <= free for plan in plans), gpu)
    before = None
    if layers < total:
        before = _cpu(first_layers(artefact, spec, total - layers), options, progress)
    backend = GpuBackend(
        artefact,
        device=gpu,
        before=before,
        kv_bits=options.kv_bits,
        compute=compute,
        cache_dir=read_settings().cache_dir,
    )
    told = options.gpu_layers is not None or options.verbose
    lines = (plans[layers - 1].describe(gpu) if told else None, _cache_note(artefact, options))
    return backend, "\n".join(line for line in lines if line) or None
