"""Write an artefact as a checkpoint that `transformers` and servers built on it load.

The checkpoint has the same integers, scales and zero points under other names:

    compressed-tensors  weight_packed int32 [N, ceil(K*bits/32)], weight_scale [N, G],
                        weight_zero_point int32 [ceil(N*bits/32), G], weight_shape
    gptq                qweight int32 [ceil(K*bits/32), N], qzeros int32 [G, ceil(N*bits/32)],
                        scales [G, N], g_idx int32 [K]

both packed densely, low bits first. In compressed-tensors 2 and 3 bits become 4 without zero
points, which is exact. The embedding and the output head become float16, as loaders expect them,
and so does a layer whose inputs are not a multiple of its group, or, for gptq, whose inputs or
outputs are not a multiple of 32.

gptq has two ways to store zero points. The first, which every loader supports, stores them minus
one and cannot hold a zero; it is written if the artefact has no zero points. Otherwise, and where
loaders add that one wrongly (3 bits, and several widths), the second, "gptq_v2", is written.

Source: compressed-tensors 0.20, `pack_quantized`; GPTQModel, docs of the "gptq" and "gptq_v2"
checkpoint formats.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgetok.converter.quantised import FLOAT16_MAX, Quantised
from edgetok.converter.read.dense_words import pack_words
from edgetok.converter.write.assets import CONFIG_FILE
from edgetok.converter.write.pack_codes import SUFFIXES, unpack_linear
from edgetok.converter.write.workspace import check_output, open_workspace
from edgetok.errors import MissingExtraError, OutputError, UnsupportedError
from edgetok.formats import strict_json
from edgetok.formats.artefact import Artefact, open_artefact
from edgetok.formats.layout import TensorFormat
from edgetok.models.family import Family, TensorSource
from edgetok.models.registry import read_family
from edgetok.models.tensors import tensor_shapes

Format = Literal["gptq", "compressed-tensors"]
Arrays = dict[str, npt.NDArray[Any]]

FORMATS: tuple[Format, ...] = ("compressed-tensors", "gptq")
WEIGHTS_FILE = "model.safetensors"

_WORD_BITS = 32

_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of an export.

    Attributes:
        quantised: number of modules that kept their integers.
        plain: why others are float16, by name of the module.
        nbytes: bytes of all tensors.
    """

    quantised: int
    plain: dict[str, str]
    nbytes: int


def export(artefact: Path, out: Path, form: Format) -> Exported:
    """Write a checkpoint.

    Args:
        artefact: what `edgetok convert` wrote.
        out: a folder that does not exist or is empty.
        form: how weights are stored.

    Raises:
        ArtefactError: the artefact is damaged.
        UnsupportedError: it has no config.json, or another exporter wrote its graph, or there is no
            layer that would stay quantised.
        OutputError: `out` holds something, or cannot be written.
        MissingExtraError: safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    except ImportError as error:
        raise MissingExtraError(
            "export needs safetensors: pip install 'edgetok[convert]'"
        ) from error
    out = out.expanduser().resolve()
    check_output(out, artefact.expanduser().resolve())
    if out.exists() and any(out.iterdir()):
        raise OutputError(f"{out}: is not empty; choose another --out")
    with open_artefact(artefact) as opened:
        config, family = _family(opened)
        layers = {f for n, f in opened.formats.items() if n.startswith("layers.") and f.quantised}
        symmetric = not any(result.zeros for result in layers)
        widths = {result.bits for result in layers}
        first = symmetric and len(widths) == 1 and 3 not in widths
        pack: Callable[[Quantised], Arrays] = _pack_compressed
        if form == "gptq":
            pack = partial(_pack_gptq, less=np.uint8(first))
        tensors, modules, plain = _tensors(opened, family, form, pack)
        if not modules:
            reasons = "; ".join(dict.fromkeys(plain.values()))
            raise UnsupportedError(f"{opened.folder}: no layer's integers can be kept: {reasons}")
        if form == "gptq":
            settings = _gptq_settings(modules, plain, symmetric, "gptq" if first else "gptq_v2")
        else:
            settings = _compressed_settings(modules, plain)
        config["quantization_config"] = settings
        config["torch_dtype"] = "float16"
        config.pop("dtype", None)
        with open_workspace(out, {"export": form, "of": opened.identity}) as workspace:
            try:
                for name in _COPIED:
                    if name in opened.manifest.files:
                        shutil.copyfile(opened.folder / name, workspace.artefact / name)
                text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
                (workspace.artefact / CONFIG_FILE).write_text(text, encoding="utf-8")
                save_file(tensors, workspace.artefact / WEIGHTS_FILE, {"format": "pt"})
            except (OSError, SafetensorError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                raise OutputError(f"{out}: cannot be written: {why}") from error
            workspace.publish()
    nbytes = sum(values.nbytes for values in tensors.values())
    return Exported(len(modules), plain, nbytes)


def _family(artefact: Artefact) -> tuple[dict[str, Any], Family]:
    if artefact.spec is None:
        raise UnsupportedError(
            f"{artefact.folder}: another exporter wrote it, so export does not know its tensors"
        )
    if artefact.spec.both_sides or artefact.spec.vector_sizes:
        raise UnsupportedError(
            f"{artefact.folder}: an embedding model; this checkpoint format cannot store its "
            "pooling and what follows it, so export takes only models that write text"
        )
    if CONFIG_FILE not in artefact.manifest.files:
        raise UnsupportedError(
            f"{artefact.folder}: has no {CONFIG_FILE}, because an earlier release wrote it; "
            "convert the model again"
        )
    config = strict_json.read_object(artefact.folder / CONFIG_FILE)
    config.pop("auto_map", None)
    config.pop("quantization_config", None)  # of a checkpoint that was quantised already
    family = read_family(config, {})
    return config, family


def _tensors(
    artefact: Artefact, family: Family, form: Format, pack: Callable[[Quantised], Arrays]
) -> tuple[Arrays, dict[str, TensorFormat], dict[str, str]]:
    """Return the tensors by checkpoint name, the quantised modules, and why others are not."""
    tensors: Arrays = {}
    modules: dict[str, TensorFormat] = {}
    plain: dict[str, str] = {}
    shapes = tensor_shapes(family.spec)
    for stored, parts in _stored(family).items():
        module, _, suffix = stored.rpartition(".")
        names = [name.rpartition(".")[0] for name, _ in parts]
        counts = [shapes[name][0] for name, _ in parts]
        order = _order([source for _, source in parts], counts)
        if suffix != "weight" or names[0] not in {*artefact.formats, "embed_tokens"}:
            tensors[stored] = np.concatenate(
                [artefact.tensor(name) - np.float32(source.add) for name, source in parts]
            ).astype(np.float16)[order]
            continue
        result = [
            _read(artefact, "lm_head" if _is_tied(artefact, name) else name) for name in names
        ]
        why = _why_plain(names[0], result, form)
        if why is None:
            joined = _joined([q for q in result if isinstance(q, Quantised)])
            joined = joined.rows(order)
            if form == "compressed-tensors":
                joined = _symmetric(joined)
            modules[module] = TensorFormat(
                joined.bits, joined.group_size, zeros=joined.zeros is not None
            )
            tensors |= {f"{module}.{key}": v for key, v in pack(joined).items()}
            continue
        plain[module] = why
        values = [q.dequantise() if isinstance(q, Quantised) else q for q in result]
        tensors[stored] = _float16(np.concatenate(values)[order], stored)
    return {name: np.ascontiguousarray(t) for name, t in tensors.items()}, modules, plain


def _stored(family: Family) -> dict[str, list[tuple[str, TensorSource]]]:
    """Canonical tensors by the checkpoint's name, in order of its rows."""
    stored: dict[str, list[tuple[str, TensorSource]]] = {}
    for canonical, source in family.tensors.items():
        stored.setdefault(source.name, []).append((canonical, source))
    for parts in stored.values():
        parts.sort(key=lambda part: part[1].rows or (0, 0))
    return stored


def _order(sources: Sequence[TensorSource], counts: Sequence[int]) -> slice | npt.NDArray[np.intp]:
    """Return where each of a tensor's rows is among the rows of its parts, in their order.

    Args:
        sources: of the parts.
        counts: rows of each.
    """
    if all(source.in_order for source in sources):
        return slice(None)
    parts = zip(sources, counts, strict=True)
    return np.argsort(np.concatenate([source.order(count) for source, count in parts]))


def _is_tied(artefact: Artefact, name: str) -> bool:
    return name == "embed_tokens" and name not in artefact.formats


def _read(artefact: Artefact, name: str) -> Quantised | npt.NDArray[np.float32]:
    form, shape = artefact.formats[name], artefact.shapes[name]
    if not form.quantised:
        return artefact.tensor(name + ".weight").astype(np.float32)
    stored = artefact.layout.tensors if artefact.layout is not None else {}
    parts = {s: artefact.tensor(name + s) for s in SUFFIXES if name + s in stored}
    q = unpack_linear(parts, form, shape.K)
    if q.zeros is None and _storable(q):
        q = replace(q, zeros=np.full(q.scales.shape, 1 << (q.bits - 1), np.uint8))
    return q


def _storable(q: Quantised) -> bool:
    """Return whether loaders of checkpoints know such a layer."""
    return not q.form.grouped


def _why_plain(
    name: str, result: list[Quantised | npt.NDArray[np.float32]], form: Format
) -> str | None:
    """Why a module's integers cannot be kept."""
    if name in ("lm_head", "embed_tokens"):
        return "loaders expect the embedding and the output head as they are"
    forms = {(q.bits, q.group_size) if isinstance(q, Quantised) else None for q in result}
    if None in forms:
        return "not quantised in the artefact"
    if not all(isinstance(q, Quantised) and _storable(q) for q in result):
        return "loaders know no 5 or 6 bits, offsets, super-scales or tables"
    if len(forms) > 1:
        return "one module there, and layers of several widths here"
    parts = [q for q in result if isinstance(q, Quantised)]
    if any(q.codes.shape[1] % q.group_size for q in parts):
        return "its inputs are not a multiple of the group"
    sizes = (sum(len(q.codes) for q in parts), parts[0].codes.shape[1])
    if form == "gptq" and any(size % _WORD_BITS for size in sizes):
        return f"gptq's loaders take sizes in multiples of {_WORD_BITS}"
    return None


def _joined(parts: list[Quantised]) -> Quantised:
    zeros = [part.zeros for part in parts if part.zeros is not None]
    return Quantised(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(zeros),
        parts[0].bits,
        parts[0].group_size,
    )


def _symmetric(q: Quantised) -> Quantised:
    """Return the same weights without zero points, if that is exact.

    Codes of 2 and 3 bits less their zero point are within the 4 bits that servers have kernels for.
    """
    zeros = np.repeat(q.zeros, q.group_size, axis=1) if q.zeros is not None else np.uint8(0)
    if q.bits < 4:
        return Quantised(q.codes + np.uint8(8) - zeros, q.scales, None, 4, q.group_size)
    if bool((zeros == 1 << (q.bits - 1)).all()):
        return Quantised(q.codes, q.scales, None, q.bits, q.group_size)
    return q


def _float16(values: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float16]:
    if float(np.abs(values).max()) > FLOAT16_MAX:
        raise UnsupportedError(f"{name}: a value does not fit into float16")
    return values.astype(np.float16)


def _pack_compressed(q: Quantised) -> Arrays:
    packed: Arrays = {
        "weight_packed": pack_words(q.codes, q.bits),
        "weight_scale": q.scales,
        "weight_shape": np.array(q.codes.shape, np.int64),
    }
    if q.zeros is not None:
        packed["weight_zero_point"] = pack_words(np.ascontiguousarray(q.zeros.T), q.bits).T
    return packed


def _pack_gptq(q: Quantised, less: np.uint8) -> Arrays:
    zeros = q.zeros - less if q.zeros is not None else np.empty(0, np.uint8)
    return {
        "qweight": pack_words(q.codes, q.bits).T,
        "scales": q.scales.T,
        "qzeros": pack_words(np.ascontiguousarray(zeros.T), q.bits),
        "g_idx": (np.arange(q.codes.shape[1]) // q.group_size).astype(np.int32),
    }


def _compressed_settings(modules: dict[str, TensorFormat], plain: dict[str, str]) -> dict[str, Any]:
    groups = {}
    for i, (kind, names) in enumerate(_kinds(modules)):
        groups[f"group_{i}"] = {
            "targets": names,
            "weights": {
                "num_bits": kind.bits,
                "type": "int",
                "symmetric": not kind.zeros,
                "strategy": "group",
                "group_size": kind.group_size,
                "dynamic": False,
                "observer": "minmax",
            },
            "input_activations": None,
            "output_activations": None,
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted({"lm_head", *(n for n in plain if not n.endswith("embed_tokens"))}),
        "kv_cache_scheme": None,
    }


def _gptq_settings(
    modules: dict[str, TensorFormat], plain: dict[str, str], symmetric: bool, checkpoint_format: str
) -> dict[str, Any]:
    kinds = sorted(_kinds(modules), key=lambda item: -len(item[1]))
    usual = kinds[0][0] if kinds else TensorFormat(4)
    dynamic: dict[str, Any] = {f"-:{name.replace('.', chr(92) + '.')}": {} for name in plain}
    for kind, names in kinds[1:]:
        for name in names:
            pattern = name.replace(".", "\\.")
            dynamic[f"+:{pattern}"] = {"bits": kind.bits, "group_size": kind.group_size}
    return {
        "quant_method": "gptq",
        "bits": usual.bits,
        "group_size": usual.group_size,
        "desc_act": False,
        "checkpoint_format": checkpoint_format,
        "sym": symmetric,
        "lm_head": False,
        "dynamic": dynamic,
    }


def _kinds(modules: dict[str, TensorFormat]) -> Iterator[tuple[TensorFormat, list[str]]]:
    for kind in dict.fromkeys(modules.values()):
        yield kind, [name for name, form in modules.items() if form == kind]
