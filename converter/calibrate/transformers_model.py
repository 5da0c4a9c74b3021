"""Modules of `transformers` built without their large weights, and parameters for them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgetok.converter.calibrate.expert_parameters import fill_missing
from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.errors import MissingExtraError, UnsupportedError
from edgetok.kernels_cpu.simd.host_cpu import host_features
from edgetok.models.family import TensorSource
from edgetok.models.operations import operations
from edgetok.models.ops import Attend
from edgetok.models.spec import DecoderSpec


class _WeightsOnMeta(TorchFunctionMode):
    """Linear layers and embeddings get no memory; norms and buffers, which are small, do.

    Buffers such as rotary frequencies are computed when a module is built, so they must be real.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def multiplies_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 faster than float32."""
    return bool({"avx512bf16", "amx-bf16", "bf16"} & host_features())


def attention_of(spec: DecoderSpec) -> str:
    """Return which of transformers' attentions computes the decoder: the fast one has no caps."""
    attends = (op for op in operations(spec) if isinstance(op, Attend))
    return "eager" if any(op.softcap or op.sinks for op in attends) else "sdpa"


def build_on_meta(config: dict[str, Any], attention: str) -> Any:
    """The model of `transformers` without its large weights.

    Raises:
        UnsupportedError: `transformers` does not know the family.
        MissingExtraError: `transformers` is too old.
    """
    try:
        from transformers import AutoModelForCausalLM
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    except ImportError as error:
        raise MissingExtraError(
            "running the original needs transformers 4.57 or later: pip install 'edgetok[convert]'"
        ) from error
    model_type = config["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedError(
            f"config.json: model_type {model_type!r} is unknown to this release of transformers; "
            "install a newer one"
        )
    # Built from the class of that name: `auto_map` is never followed.
    known = {key: _numbers(value) for key, value in config.items() if key != "auto_map"}
    # A class's own default may be beyond the vocabulary; padding only matters in training.
    known.setdefault("pad_token_id", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hf_config = CONFIG_MAPPING[model_type].from_dict(known)
        with _WeightsOnMeta():
            model = AutoModelForCausalLM.from_config(
                hf_config, dtype=torch.float32, attn_implementation=attention
            )
    _run_experts_of_any_size(model)
    return model.eval().requires_grad_(False)


def _run_experts_of_any_size(model: Any) -> None:
    """Have experts computed one by one where torch cannot multiply with all of them at once.

    transformers 5 does that where nothing is said, and torch wants rows of whole 16 bytes.
    """
    stacks = (p for name, p in model.named_parameters() if ".experts." in name and p.ndim == 3)
    odd = any(4 * size % 16 for stack in stacks for size in stack.shape[1:])
    if odd and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")


def _numbers(value: Any) -> Any:
    """`value` of a config with infinity, which transformers 5 saves as an object, as a number."""
    if value == {"__float__": "Infinity"}:
        return math.inf
    return [_numbers(item) for item in value] if isinstance(value, list) else value


def why_not_run(weights: CanonicalWeights) -> str | None:
    """Return why the installed `transformers` cannot run a checkpoint, if so."""
    spec, names = weights.family.spec, set(weights.checkpoint.names)
    if spec.streams:
        return "a model of several residual streams is not calibrated"
    try:
        module = build_on_meta(weights.checkpoint.config, attention_of(spec))
    except UnsupportedError as error:
        return str(error)
    known = {weights.family.file_name(name) for name, _ in module.named_parameters()}
    stacks = (source for source in weights.family.tensors.values() if source.stack is not None)
    experts = {part.name for source in stacks for part in source.parts(known)}
    odd = sorted(known - names - experts)
    return f"the installed transformers has {odd[0]} under another name" if odd else None


def joined(parts: Iterable[tuple[str, TensorSource, Tensor]]) -> dict[str, Tensor]:
    """Parameters by name, from the name, the source and the values of each part."""
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for name, source, values in parts:
        if source.pairs is not None:
            values = values[torch.from_numpy(np.argsort(source.paired(len(values))))]
        ranges = source.ranges
        pieces = torch.split(values, [end - start for start, end in ranges or [(0, len(values))]])
        starts = [start for start, _ in ranges] or [0]
        found.setdefault(name, []).extend(zip(starts, pieces, strict=True))
    return {
        name: torch.cat([piece for _, piece in sorted(pieces, key=lambda piece: piece[0])])
        for name, pieces in found.items()
    }


def original_parameters(module: nn.Module, weights: CanonicalWeights) -> dict[str, Tensor]:
    """The whole checkpoint's parameters and buffers in float32; a tied head has none of its own."""
    named = set(weights.checkpoint.names)
    theirs = {
        weights.family.file_name(name): (name, values)
        for name, values in [*module.named_parameters(), *module.named_buffers()]
    }
    found = {name: to_torch(weights.checkpoint.tensor(name)) for name in theirs if name in named}
    experts = {
        part.name
        for source in weights.family.tensors.values()
        if source.stack is not None
        for part in source.parts(theirs)
    }
    missing = experts - named
    found |= {name: torch.empty(theirs[name][1].shape, device="cpu") for name in missing}
    fill_missing(weights, weights.family.tensors, found, missing)
    return {theirs[name][0]: values for name, values in found.items()}


def to_torch(values: npt.NDArray[np.float32]) -> Tensor:
    """A copy in memory of torch's own alignment, on which the order of its sums may depend."""
    return torch.from_numpy(values).clone()
