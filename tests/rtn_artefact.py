"""A small artefact writer for tests: round to nearest in NumPy, independent of the converter's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from edgetok.converter.quantised import Quantised
from edgetok.converter.write.data_file import DataFile, TensorFormat, linear_shapes, plan
from edgetok.converter.write.onnx_graph import build
from edgetok.converter.write.pack_codes import pack_quantised
from edgetok.formats.artefact import open_artefact
from edgetok.formats.layout import CONSTANTS_KEY, CONSTANTS_VERSION, DATA_FILE, GRAPH_FILE
from edgetok.formats.manifest import write_manifest
from edgetok.models.spec import DecoderSpec
from edgetok.models.tensors import tensor_shapes

Arrays = dict[str, np.ndarray]
LEVELS = np.array([-127, -99, -80, -64, -49, -35, -22, -9, 3, 14, 27, 40, 54, 70, 90, 118], np.int8)


def uniform_formats(spec: DecoderSpec, form: TensorFormat) -> dict[str, TensorFormat]:
    """The same format for every linear layer."""
    return {name: form for name in linear_shapes(spec)}


def random_tensors(spec: DecoderSpec, seed: int = 0) -> Arrays:
    """Random float32 weights for every canonical tensor, of sizes that keep activations tame."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(spec).items():
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 2:
            values *= 1.0 / np.sqrt(shape[1])
        else:
            values = (name.endswith("norm.weight") + 0.2 * values).astype(np.float32)
        tensors[name] = values
    return tensors


def quantise(
    weight: np.ndarray, form: TensorFormat
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    """Codes [N, K], scales [N, G], zeros [N, G] or None, and the weights [N, K] they stand for."""
    N, K = weight.shape
    g = form.group_size
    G = -(-K // g)
    top = 2**form.bits - 1
    codes = np.zeros((N, K), np.uint8)
    scales = np.zeros((N, G), np.float16)
    zeros = np.zeros((N, G), np.uint8)
    stands_for = np.zeros((N, K), np.float32)
    for group in range(G):
        part = weight[:, group * g : (group + 1) * g]
        if form.table:
            scale = np.maximum(np.abs(part).max(1) / 120, 1e-6).astype(np.float16)
            wide = scale.astype(np.float32)[:, None]
            q = np.abs((part / wide)[..., None] - LEVELS.astype(np.float32)).argmin(-1)
            codes[:, group * g : (group + 1) * g], scales[:, group] = q, scale
            stands_for[:, group * g : (group + 1) * g] = LEVELS.astype(np.float32)[q] * wide
            continue
        if form.zeros:
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scale = np.maximum((high - low) / top, 1e-6).astype(np.float16)
            zero = np.clip(np.round(-low / scale.astype(np.float32)), 0, top)
        else:
            scale = np.maximum(np.abs(part).max(1) * 2 / top, 1e-6).astype(np.float16)
            zero = np.full(N, 2 ** (form.bits - 1))
        wide = scale.astype(np.float32)[:, None]
        q = np.clip(np.round(part / wide) + zero[:, None], 0, top)
        codes[:, group * g : (group + 1) * g] = q
        scales[:, group], zeros[:, group] = scale, zero
        stands_for[:, group * g : (group + 1) * g] = (q - zero[:, None]) * wide
    return codes, scales, zeros if form.zeros else None, stands_for


def write_artefact(
    folder: Path,
    spec: DecoderSpec,
    tensors: Mapping[str, np.ndarray],
    formats: Mapping[str, TensorFormat],
    *,
    accuracy_level: int = 4,
) -> Arrays:
    """Write a whole artefact folder.

    Returns:
        The weights that it stands for, by the names of `tensors`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layout = plan(spec, formats)
    stands_for = dict(tensors)
    with DataFile(folder / DATA_FILE, layout) as file:
        for name in layout.tensors:
            if not name.endswith((".qweight", ".weight", ".bias")):
                continue
            module, _, suffix = name.rpartition(".")
            source = "embed_tokens" if spec.tied and module == "lm_head" else module
            values = tensors[f"{source}.{'weight' if suffix == 'qweight' else suffix}"]
            if suffix == "qweight":
                form = formats[module]
                codes, scales, zeros, dequantised = quantise(values, form)
                found = Quantised(
                    codes, scales, zeros, form.bits, form.group_size,
                    offsets=np.zeros_like(scales) if form.offsets else None,
                    table=LEVELS if form.table else None,
                )  # fmt: skip
                for part, array in pack_quantised(found).items():
                    file.write(module + part, array)
                stands_for[f"{source}.weight"] = dequantised
            else:
                stored = values.astype(layout.tensors[name].dtype)
                file.write(name, stored)
                stands_for[f"{source}.{suffix}"] = stored.astype(np.float32)
    model = build(spec, layout, formats, accuracy_level=accuracy_level)
    onnx.save(model, folder / GRAPH_FILE)
    write_manifest(folder, exporter="edgetok")
    return stands_for


def add_constants(folder: Path, seed: int = 0) -> None:
    """Give an artefact random cache constants, as the converter appends measured ones."""
    rng = np.random.default_rng(seed)
    with open_artefact(folder) as artefact:
        spec, formats = artefact.spec, artefact.formats
    assert spec is not None
    layout = plan(spec, formats, constants=True)
    with (folder / DATA_FILE).open("r+b") as file:
        file.truncate(layout.file_bytes)
        for name, slot in layout.constants.items():
            if name.endswith(".centre"):
                values = rng.standard_normal(slot.shape)
            elif name.endswith(".factor") and not name.endswith(".query_factor"):
                values = factor = np.exp2(rng.uniform(-1, 1, slot.shape))
            else:
                values = 1.0 / factor
            file.seek(slot.offset)
            file.write(values.astype(np.float32).tobytes())
    model = onnx.load(folder / GRAPH_FILE, load_external_data=False)
    entry = model.metadata_props.add()
    entry.key, entry.value = CONSTANTS_KEY, CONSTANTS_VERSION
    (folder / GRAPH_FILE).write_bytes(model.SerializeToString(deterministic=True))
    write_manifest(folder, exporter="edgetok")
