"""Find a checkpoint's tensors in a GGUF file, and undo what llama.cpp's conversion did to them.

Most tensors of transformers are one of the file, under another name, perhaps with its rows in
another order. Where transformers has one tensor and the file several (gate and up of experts), the
family is told to take the file's, so that each keeps its own type.

Source: llama.cpp, `conversion/`; names from the `gguf` package's tensor map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.converter.quantised import Quantised
from edgetok.converter.read.gguf_architectures import Architecture
from edgetok.converter.read.gguf_config import GUESSING
from edgetok.formats.gguf import BLOCKS, GgufFile
from edgetok.formats.safetensors_file import TensorInfo
from edgetok.models.family import Family, TensorSource
from edgetok.models.layers.gated_delta import GatedDeltaNet
from edgetok.models.spec import DecoderSpec
from edgetok.models.tensors import tensor_shapes

Order = npt.NDArray[np.int64]

_SUFFIXES = ("", ".weight", ".bias")
_RECURRENT_NORM = "ssm_norm"


@dataclass(frozen=True, slots=True)
class Undo:
    """Steps that make a file's tensor that of transformers.

    Attributes:
        rows: the file's row of each row; None: in order.
        columns: likewise.
        add: what is added to every value.
        log: whether the file has -exp of every value.
    """

    rows: Order | None = None
    columns: Order | None = None
    add: float = 0.0
    log: bool = False

    @property
    def moves(self) -> bool:
        """Return whether rows or columns stand in another order."""
        return self.rows is not None or self.columns is not None

    def keeps(self, kind: str) -> bool:
        """Return whether columns move in whole blocks of a type, so that its codes can be kept."""
        return self.columns is None or _groups(self.columns, BLOCKS[kind][0]) is not None

    def move(self, q: Quantised, block: int) -> Quantised:
        """Return codes with rows and columns as transformers has them; see `keeps`.

        Args:
            q: the file's.
            block: inputs of a block of the type.

        Raises:
            ValueError: columns do not move in whole blocks.
        """
        if self.rows is not None:
            q = q.rows(self.rows)
        if self.columns is None:
            return q
        blocks = _groups(self.columns, block)
        if blocks is None:
            raise ValueError(f"columns do not move in blocks of {block}, see `keeps`")

        def moved(values: npt.NDArray[Any], each: int) -> npt.NDArray[Any]:
            """Values of which each block of inputs has `each`, beside each other."""
            wide = values.reshape(len(values), -1, each)
            return np.ascontiguousarray(wide[:, blocks]).reshape(values.shape)

        groups = block // q.group_size
        changed: dict[str, Any] = {"codes": moved(q.codes, block)}
        for name in ("scales", "zeros", "offsets"):
            if getattr(q, name) is not None:
                changed[name] = moved(getattr(q, name), groups)
        if q.super_scales is not None:
            changed["super_scales"] = moved(q.super_scales, q.super_scales.shape[2])
        return replace(q, **changed)


def _groups(columns: Order, block: int) -> Order | None:
    """The file's block of each block of inputs; None if some are torn apart."""
    if len(columns) % block:
        return None
    runs = columns.reshape(-1, block)
    first = runs[:, 0]
    whole = (runs == first[:, None] + np.arange(block)).all() and not (first % block).any()
    return first // block if whole else None


def name_in_file(
    name: str, names: Mapping[str, str], infos: Mapping[str, TensorInfo]
) -> str | None:
    """Return the file's name of a tensor of transformers; None if it has none.

    Args:
        name: in transformers.
        names: names of modules, by their names there.
        infos: the file's tensors.
    """
    if name.endswith(".dt_bias"):
        name = name.removesuffix("_bias") + "_proj.bias"
    if name.endswith(".e_score_correction_bias"):
        name = name.removesuffix("_bias") + ".bias"
    for suffix in _SUFFIXES:
        stem = name.removesuffix(suffix) if suffix else name
        if stem in names and (suffix == "" or name.endswith(suffix)):
            found = (names[stem] + (suffix or other) for other in _SUFFIXES)
            return next((name for name in found if name in infos), None)
    return name if name in infos else None


def described(
    family: Family, architecture: Architecture, infos: Mapping[str, TensorInfo]
) -> Family:
    """Return the family with the file's own tensors in place of parts of larger ones."""
    sources = dict(family.tensors)
    for canonical, source in family.tensors.items():
        *layer, module, suffix = canonical.split(".")
        apart = architecture.apart.get(module)
        if apart is None:
            continue
        name = f"blk.{layer[1]}.{apart}.{suffix}"
        if name not in infos:
            continue
        stack = source.stack
        if stack is None:
            sources[canonical] = TensorSource(name)
        elif suffix == "weight":
            joined = ((name, stack.rows, 0), *stack.joined)
            sources[canonical] = replace(source, stack=replace(stack, joined=joined))
        else:
            turned = ((name, 1, 0, 1), *stack.turned)
            sources[canonical] = replace(source, stack=replace(stack, turned=turned))
    return dataclasses.replace(family, tensors=sources)


def with_axes(family: Family, infos: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Return the tensors with axes of length one as transformers has them.

    llama.cpp drops that of a convolution and adds one to numbers a head.
    """
    shapes = tensor_shapes(family.spec)
    result = dict(infos)
    for canonical, source in family.tensors.items():
        info, wanted = infos.get(source.name), shapes[canonical]
        if info is None or source.ranges or source.stack is not None:
            continue
        if len(wanted) == len(info.shape) == 2:
            continue  # a matrix, which nothing was done to
        if [n for n in info.shape if n > 1] == [n for n in wanted if n > 1]:
            result[source.name] = replace(info, shape=wanted)
    return result


def guessing_tensors(file: GgufFile, architecture: Architecture, count: int) -> set[str]:
    """Return the names of tensors of blocks that guess further tokens, behind `count` others."""
    name = file.fields["general.architecture"]
    guessing = file.fields.get(f"{name}.{GUESSING}", 0) if architecture.guessing else 0
    blocks = {f"blk.{count + i}" for i in range(guessing)}
    return {name for name in file.infos if ".".join(name.split(".")[:2]) in blocks}


def undo_of(stored: str, architecture: Architecture, spec: DecoderSpec) -> Undo:
    """Return what undoes the conversion of a tensor.

    Args:
        stored: its name in the file.
        architecture: architecture of the file.
        spec: spec of the decoder.
    """
    parts = stored.split(".")
    module = parts[2] if parts[0] == "blk" and len(parts) > 2 else parts[0]
    add = 0.0
    if stored.endswith("norm.weight") and module != _RECURRENT_NORM:
        add = -architecture.norm_add
    rows = None
    if architecture.interleaved and module in ("attn_q", "attn_k"):
        heads = spec.num_heads if module == "attn_q" else spec.num_kv_heads
        rows = np.arange(heads * spec.head_dim).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
    columns = None
    mixer = spec.layers[int(parts[1])].mixer if parts[0] == "blk" else None
    if architecture.tiled and isinstance(mixer, GatedDeltaNet):
        rows, columns = _untiled(module, mixer)
    return Undo(rows=rows, columns=columns, add=add, log=module == "ssm_a")


def _untiled(module: str, mixer: GatedDeltaNet) -> tuple[Order | None, Order | None]:
    """The file's rows and columns of a delta net's tensor, whose heads of values are tiled."""
    shared = mixer.value_heads // mixer.key_heads
    heads = np.arange(mixer.value_heads).reshape(shared, mixer.key_heads).T.reshape(-1)
    values = (heads[:, None] * mixer.value_dim + np.arange(mixer.value_dim)).reshape(-1)
    before = 2 * mixer.key_heads * mixer.key_dim
    if shared == 1:
        return None, None
    if module in ("attn_qkv", "ssm_conv1d"):
        return np.concatenate([np.arange(before), before + values]), None
    if module in ("ssm_alpha", "ssm_beta", "ssm_a", "ssm_dt"):
        return heads, None
    return values if module == "attn_gate" else None, values if module == "ssm_out" else None
