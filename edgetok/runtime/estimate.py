"""Estimate the memory that a model takes, before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from edgetok.cache.limits import CacheLimits
from edgetok.errors import UnsupportedError
from edgetok.formats.artefact import Artefact
from edgetok.models.spec import DecoderSpec
from edgetok.runtime.options import RunOptions
from edgetok.runtime.select import DEFAULT_CONTEXT_TOKENS, LEAST_EVICTING_TOKENS

# Measured on Linux with CPython 3.11: resident before a model is loaded, and what loading kernels
# adds; the tokenizers package takes 35 MB for SmolLM2's 1.8 MB.
_PROGRAM_BYTES = 115_000_000
_TOKENIZER_FACTOR = 20


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Estimate:
    """Bytes that a model takes for one conversation at its full length.

    On a CPU, all that is resident in the process; on a GPU, what is on the GPU.

    Attributes:
        device: "cpu" or "cuda".
        weights_bytes: mapped from the file on a CPU, copied to a GPU; without a per-layer table,
            of which only a token's row is read where it lies.
        cache_bytes: the KV cache of one conversation, full.
        workspace_bytes: buffers of a step.
        draft_bytes: bytes of a draft model: its weights, cache and buffers.
        program_bytes: about what Python, libraries, kernels and tokenizer take; 0 on a GPU.
    """

    device: str
    weights_bytes: int
    cache_bytes: int
    workspace_bytes: int
    program_bytes: int = 0
    draft_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All together."""
        held = self.weights_bytes + self.cache_bytes + self.workspace_bytes
        return held + self.draft_bytes + self.program_bytes

    def __repr__(self) -> str:
        parts = (
            (self.weights_bytes, "weights"),
            (self.cache_bytes, "cache"),
            (self.workspace_bytes, "workspace"),
            (self.draft_bytes, "draft model"),
            (self.program_bytes, "program"),
        )
        text = " + ".join(f"{count / 1e6:,.1f} MB {name}" for count, name in parts if count)
        return f"<Estimate on {self.device}: {text} = {self.total_bytes / 1e6:,.1f} MB>"


def estimate(artefact: Artefact, options: RunOptions) -> Estimate:
    """Return the memory for a run with these options; "auto" means the CPU.

    Raises:
        OptionError: the cache's limits are too tight, or the context is too long.
        UnsupportedError: onnxruntime would run it, whose memory is not known.
    """
    spec = artefact.spec
    if spec is None or options.device == "onnxruntime":
        raise UnsupportedError(
            f"{artefact.folder}: runs in onnxruntime; edgetok cannot estimate its memory"
        )
    tokens = options.context_tokens or min(spec.context_tokens, DEFAULT_CONTEXT_TOKENS)
    limits = options.cache_limits
    if limits is None and options.kv_policy != "none" and tokens >= LEAST_EVICTING_TOKENS:
        limits = CacheLimits()  # of a conversation's cache
    if options.device == "cuda":
        return _on_gpu(artefact, spec, options, tokens)
    return _on_cpu(artefact, spec, options, tokens, limits)


def _on_cpu(
    artefact: Artefact,
    spec: DecoderSpec,
    options: RunOptions,
    tokens: int,
    limits: CacheLimits | None,
) -> Estimate:
    from edgetok.runtime.cpu.arenas import BY_THREAD, Segment
    from edgetok.runtime.cpu.backend import block_tokens_of, plan_options
    from edgetok.runtime.cpu.cache_memory import planned_bytes
    from edgetok.runtime.cpu.plan import make_plan
    from edgetok.runtime.cpu.requirements import useful_threads
    from edgetok.runtime.cpu.step_tables import StepTables

    tokenizer = (artefact.folder / "tokenizer.json").stat()
    threads = options.threads or useful_threads(artefact)
    kv_bits, rows = options.kv_bits, block_tokens_of(spec)
    plan = make_plan(spec, artefact, plan_options(kv_bits, options.compute, rows))
    workspace = StepTables(spec, threads=threads, rows=rows).nbytes
    for segment in (Segment.TABLES, Segment.WORKSPACE, *BY_THREAD):
        workspace += plan.sizes[segment] * (threads if segment in BY_THREAD else 1)
    cache = planned_bytes(spec, tokens, limits, kv_bits=kv_bits, block_tokens=rows, threads=threads)
    return Estimate(
        device="cpu",
        weights_bytes=artefact.weight_bytes - artefact.table_bytes,
        cache_bytes=cache,
        workspace_bytes=workspace,
        program_bytes=_PROGRAM_BYTES + _TOKENIZER_FACTOR * tokenizer.st_size,
    )


def _on_gpu(artefact: Artefact, spec: DecoderSpec, options: RunOptions, tokens: int) -> Estimate:
    from edgetok.runtime.gpu.backend import plan_options
    from edgetok.runtime.gpu.placement import place

    placed = place(
        artefact,
        spec,
        spec.num_layers,
        options=plan_options("float32" if options.compute == "float32" else "float16"),
        kv_bits=options.kv_bits,
        cache_tokens=tokens,
        cache_budget=options.kv_budget_bytes,
    )
    return Estimate(
        device="cuda",
        weights_bytes=placed.weights_bytes,
        cache_bytes=placed.cache_bytes,
        workspace_bytes=placed.workspace_bytes,
    )
