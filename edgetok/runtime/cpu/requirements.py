"""Needs of an artefact and its options: modules of kernels, threads; and what is refused."""

from __future__ import annotations

from edgetok.errors import OptionError, UnsupportedError
from edgetok.formats.artefact import Artefact
from edgetok.kernels_cpu.attention.launch import KV_BITS, is_rotated
from edgetok.kernels_cpu.linear.layout import grouped_size
from edgetok.kernels_cpu.linear.operands import GROUP_SIZES
from edgetok.kernels_cpu.program import loader
from edgetok.machine import physical_cores
from edgetok.models.layers.altup import MixStreams
from edgetok.models.layers.experts import Route
from edgetok.models.layers.gated_delta import DeltaRule
from edgetok.models.layers.mamba2 import StateSpace
from edgetok.models.layers.short_conv import Convolution
from edgetok.models.operations import operations
from edgetok.models.ops import (
    PER_LAYER_TABLE,
    Activate,
    Columns,
    Norm,
    Op,
    PositionScale,
    ScaleBy,
    ScaleColumns,
    SigmoidScale,
    Sparsify,
)
from edgetok.runtime.cpu.head_eviction import EVICTION_MODULES
from edgetok.runtime.cpu.lowering.experts import MODULES as EXPERT_MODULES
from edgetok.runtime.cpu.plan import Compute

# Below this many weight bytes per token a second thread costs more in waiting than it computes.
SMALL_MODEL_BYTES = 4 << 20


def useful_threads(artefact: Artefact) -> int:
    """Return the number of threads worth starting for this model: one, or one for each core."""
    return 1 if artefact.weight_bytes < SMALL_MODEL_BYTES else physical_cores()


def needed_modules(artefact: Artefact, kv_bits: int, compute: Compute) -> list[str]:
    """The kernels' modules without those that this artefact never calls: less to compile."""
    forms = set(artefact.formats.values())
    bits = {form.bits for form in forms}
    plain = {form.bits for form in forms if form.quantised and not form.grouped}
    grouped = {form.bits for form in forms if form.grouped and not form.table}
    sixes = {form.supers for form in forms if form.bits == 6}
    tables = any(form.table for form in forms)
    table = artefact.formats.get("embed_tokens") or artefact.formats["lm_head"]
    tables_read = (table, artefact.formats.get(PER_LAYER_TABLE, table))
    wanted = {
        **{f"linear.q{b}": b in plain and compute == "int8" for b in (2, 3, 4, 8)},
        "linear.q3_supers": 3 in grouped and compute == "int8",
        "linear.q4_offsets": 4 in grouped and compute == "int8",
        "linear.q4_table": tables and compute == "int8",
        "linear.q5": 5 in grouped and compute == "int8",
        "linear.q6": True in sixes and compute == "int8",
        "linear.q6_scales": False in sixes and compute == "int8",
        "linear.embed_grouped": any(form.grouped for form in tables_read),
        "linear.exact": compute == "float32" and bool(plain),
        "linear.exact_grouped": compute == "float32" and (bool(grouped) or tables),
        "linear.float_rows": bool(bits & {16, 32}),
        "recurrent.short_conv": _has(artefact, Convolution),
        "recurrent.gated_delta": _has(artefact, DeltaRule),
        "recurrent.state_space": _has(artefact, StateSpace),
        "elementwise.layer_norm": artefact.spec is not None and artefact.spec.centred_norms,
        "elementwise.columns": _has(artefact, Columns, ScaleBy, ScaleColumns, SigmoidScale),
        "elementwise.streams": _has(artefact, Sparsify, MixStreams),
        "elementwise.position_scale": _has(artefact, PositionScale),
        "elementwise.ungated": _has(artefact, Activate),
        "elementwise.unit_norm": artefact.spec is not None
        and any(isinstance(op, Norm) and not op.weight for op in operations(artefact.spec)),
        **dict.fromkeys(
            EXPERT_MODULES,
            _has(artefact, Route),
        ),
        "attention.hadamard": is_rotated(kv_bits),
        "attention.int4": kv_bits == 4,
        "attention.int6_int4": kv_bits == 5,
        "attention.int8": kv_bits == 8,
        "attention.float16": kv_bits == 16,
        "attention.float32": kv_bits == 32,
        **dict.fromkeys(EVICTION_MODULES, False),  # loaded with the first bounded cache
        "bandwidth.kernels": False,
    }
    return [module for module in loader.MODULES if wanted.get(module, True)]


def _has(artefact: Artefact, *kinds: type[Op]) -> bool:
    """Return whether the decoder has an operation of one of these kinds."""
    return artefact.spec is not None and any(
        isinstance(op, kinds) for op in operations(artefact.spec)
    )


def check_groups(artefact: Artefact) -> None:
    """Refuse weights in smaller groups than a block of activations, which the layout allows.

    Raises:
        UnsupportedError: naming the tensor.
    """
    for name, form in artefact.formats.items():
        sizes = (grouped_size(form.bits, form.supers),) if form.grouped else GROUP_SIZES
        if form.quantised and form.group_size not in sizes:
            raise UnsupportedError(
                f"{artefact.folder}: {name} is quantised in groups of {form.group_size}, the cpu "
                f"backend takes {', '.join(map(str, sizes))}; run it with --device "
                "onnxruntime, or convert again with --group-size 32"
            )


def check_options(threads: int | None, kv_bits: int, compute: str, block_tokens: int) -> None:
    """Refuse options out of range.

    Raises:
        OptionError: naming the option, what it is and what it may be.
    """
    if threads is not None and (type(threads) is not int or not 1 <= threads <= 1024):
        raise OptionError(f"threads is {threads!r}, expected a whole number from 1 to 1024")
    if kv_bits not in KV_BITS:
        raise OptionError(f"kv_bits is {kv_bits!r}, expected one of {KV_BITS}")
    if compute not in ("int8", "float32"):
        raise OptionError(f"compute is {compute!r}, expected 'int8' or 'float32'")
    if type(block_tokens) is not int or not 1 <= block_tokens <= 4096:
        raise OptionError(f"block_tokens is {block_tokens!r}, expected a whole number in 1..4096")
