"""`verify` tells right from wrong: sound models pass, and each planted fault fails.

onnxruntime runs the sound artefact, edgetok a copy with one fault in its weights or numbers.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from edgetok.cli.commands.verify import command
from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.write.same_graph import first_difference
from edgetok.evaluation.agreement import BackendAgreement, compare, compare_backends
from edgetok.formats.artefact import Artefact, open_artefact
from edgetok.formats.layout import DATA_FILE, GRAPH_FILE
from edgetok.formats.manifest import read_manifest, write_manifest
from edgetok.models.spec import DecoderSpec
from tests.tiny import FAMILIES, tiny_checkpoint

Edit = Callable[[dict[str, np.ndarray]], None]
Change = Callable[[DecoderSpec], DecoderSpec]


def artefact_of(source: Path, out: Path, bits: int = 4) -> Path:
    convert(str(source), out, ConvertOptions(bits=bits, method="rtn", reference_tokens=0))
    return out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def artefact(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family] = artefact_of(tiny_checkpoint(family, folder / "source"), folder / "out")
        return made[family]

    return artefact


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_pass(family: str, tiny: Callable[[str], Path]) -> None:
    result = compare_backends(tiny(family), threads=1)
    assert result.faults == ()
    assert result.step_error == 0
    with open_artefact(tiny(family)) as artefact:
        assert first_difference(artefact) is None


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_every_width_passes(bits: int, tmp_path: Path) -> None:
    source = tiny_checkpoint("qwen3", tmp_path / "source")
    folder = artefact_of(source, tmp_path / "out", bits)
    assert compare_backends(folder, threads=1).faults == ()
    with open_artefact(folder) as artefact:
        assert first_difference(artefact) is None


def test_the_bundled_model_passes(default_artefact: Path) -> None:
    assert compare_backends(default_artefact, threads=1).faults == ()


@pytest.mark.real
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_real_models_pass(name: str, real_artefact: Callable[[str], Path]) -> None:
    result = compare_backends(real_artefact(name))
    assert result.faults == ()
    assert result.longest_window == 0


def swap(array: np.ndarray, first: Any, second: Any) -> None:
    array[first], array[second] = array[second].copy(), array[first].copy()


def swapped_scale(tensors: dict[str, np.ndarray]) -> None:
    """One pair of neighbours in one row of one layer."""
    scales = tensors["layers.0.down_proj.scales"]
    row, column = divmod(
        int(np.abs(np.diff(scales.astype(np.float32))).argmax()), scales.shape[1] - 1
    )
    swap(scales, (row, column), (row, column + 1))


def swapped_layers(tensors: dict[str, np.ndarray]) -> None:
    for name, array in tensors.items():
        if name.startswith("layers.0."):
            other = tensors[name.replace("layers.0.", "layers.1.", 1)]
            array[...], other[...] = other.copy(), array.copy()


def dropped_bias(tensors: dict[str, np.ndarray]) -> None:
    tensors["layers.1.q_proj.bias"][...] = 0


def wrong_code(tensors: dict[str, np.ndarray]) -> None:
    """The highest bit of one byte of codes."""
    codes = tensors["layers.1.v_proj.qweight"]
    codes.reshape(-1)[codes.size // 2] ^= 0x80


def wrong_zero(tensors: dict[str, np.ndarray]) -> None:
    """One row's zero points of one layer, one too high."""
    zeros = tensors["layers.0.gate_proj.zeros"]
    zeros[0] ^= 0x01


def one_norm_factor(tensors: dict[str, np.ndarray]) -> None:
    tensors["layers.1.input_norm.weight"][0] *= 1.05


def swapped_rows(tensors: dict[str, np.ndarray]) -> None:
    """Two outputs of one layer."""
    for kind in ("qweight", "scales", "zeros"):
        swap(tensors[f"layers.1.up_proj.{kind}"], 3, 4)


def mixer(change: Callable[[Any], Any]) -> Change:
    def changed(spec: DecoderSpec) -> DecoderSpec:
        layers = [dataclasses.replace(x, mixer=change(x.mixer)) for x in spec.layers]
        return dataclasses.replace(spec, layers=tuple(layers))

    return changed


def window(by: int) -> Change:
    def change(part: Any) -> Any:
        return dataclasses.replace(part, window=part.window + by) if part.window else part

    return mixer(change)


def rope_base(spec: DecoderSpec) -> DecoderSpec:
    ropes = [dataclasses.replace(rope, theta=1.01 * rope.theta) for rope in spec.ropes]
    return dataclasses.replace(spec, ropes=tuple(ropes))


def number(name: str, factor: float) -> Change:
    return lambda spec: dataclasses.replace(spec, **{name: factor * getattr(spec, name)})


WEIGHTS: dict[str, Edit] = {
    "swapped scale": swapped_scale,
    "swapped layers": swapped_layers,
    "wrong code": wrong_code,
    "wrong zero": wrong_zero,
    "one norm factor": one_norm_factor,
    "swapped rows": swapped_rows,
}
NUMBERS: dict[str, Change] = {
    "rope base": rope_base,
    "norm epsilon": number("norm_eps", 10),
    "attention scale": number("attn_scale", 1.001),
    "activation": lambda spec: dataclasses.replace(
        spec, activation="gelu_tanh" if spec.activation == "silu" else "silu"
    ),
}
OF_FAMILIES: dict[str, tuple[str, Edit | Change]] = {
    "window too long": ("mistral", window(1)),
    "window too short": ("gemma3_text", window(-1)),
    "dropped bias": ("qwen2", dropped_bias),
    "softcap": ("gemma2", number("attn_softcap", 1.01)),
    "embedding scale": ("gemma3_text", number("embed_scale", 1.001)),
    "residual scale": ("granite", number("residual_scale", 1.001)),
}


def with_fault(folder: Path, fault: Edit | Change, copy: Path) -> BackendAgreement:
    """Compare a copy with one fault against the sound artefact."""
    if fault in WEIGHTS.values() or fault is dropped_bias:
        shutil.copytree(folder, copy)
        with open_artefact(folder) as sound:
            assert sound.layout is not None
            slots = sound.layout.tensors
        data = np.memmap(copy / DATA_FILE, np.uint8, "r+")
        tensors = {
            name: data[slot.offset : slot.offset + slot.nbytes].view(slot.dtype).reshape(slot.shape)
            for name, slot in slots.items()
        }
        before = bytes(data)
        fault(tensors)  # type: ignore[arg-type]
        assert bytes(data) != before
        data.flush()
        return compare(lambda: open_artefact(copy), lambda: open_artefact(folder), threads=1)

    def faulty() -> Artefact:
        artefact = open_artefact(folder)
        assert artefact.spec is not None
        changed = fault(artefact.spec)  # type: ignore[arg-type]
        assert changed != artefact.spec
        artefact.spec = changed  # type: ignore[assignment]
        return artefact

    return compare(faulty, lambda: open_artefact(folder), threads=1)


@pytest.mark.parametrize("fault", [*WEIGHTS, *NUMBERS])
def test_a_planted_fault_fails(fault: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    plant = WEIGHTS.get(fault) or NUMBERS[fault]
    assert with_fault(tiny("llama"), plant, tmp_path / "copy").faults


@pytest.mark.parametrize("fault", OF_FAMILIES)
def test_a_fault_of_a_family_fails(fault: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    family, plant = OF_FAMILIES[fault]
    assert with_fault(tiny(family), plant, tmp_path / "copy").faults


def changed_operator(graph: onnx.GraphProto) -> None:
    next(n for n in graph.node if n.op_type == "Sigmoid").op_type = "Tanh"


def changed_clamp(graph: onnx.GraphProto) -> None:
    """One that texts without padding do not reach, so that no arithmetic shows it."""
    next(n for n in graph.node if n.op_type == "Max").op_type = "Add"


def changed_edge(graph: onnx.GraphProto) -> None:
    """A residual sum that takes its first summand twice."""
    node = next(n for n in graph.node if n.op_type == "Add" and n.name.startswith("layers.1"))
    node.input[1] = node.input[0]


def changed_constant(graph: onnx.GraphProto) -> None:
    small = next(
        t
        for t in graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and (not t.external_data)
    )
    values = onnx.numpy_helper.to_array(small) * np.float32(1.5)
    small.CopyFrom(onnx.numpy_helper.from_array(values, small.name))


@pytest.mark.parametrize(
    "change", [changed_operator, changed_clamp, changed_edge, changed_constant]
)
def test_a_changed_graph_fails_though_its_manifest_was_sealed_again(
    change: Callable[[onnx.GraphProto], None], default_artefact: Path, tmp_path: Path
) -> None:
    """The check of structure alone finds it, and names the place."""
    copy = tmp_path / "copy"
    shutil.copytree(default_artefact, copy)
    model = onnx.load(str(copy / GRAPH_FILE), load_external_data=False)
    change(model.graph)
    (copy / GRAPH_FILE).write_bytes(model.SerializeToString())
    write_manifest(copy, names=list(read_manifest(copy).files))
    runner = CliRunner()
    sound = runner.invoke(command, [str(default_artefact), "--files-only", "--json"])
    assert (sound.exit_code, json.loads(sound.stdout)["good"]) == (0, True)
    found = runner.invoke(command, [str(copy), "--files-only", "--json"])
    assert found.exit_code == 2
    values = json.loads(found.stdout)
    assert not values["good"]
    assert "expected" in values["graph"]


@pytest.mark.real
@pytest.mark.parametrize("fault", ["swapped scale", "wrong code", "rope base", "norm epsilon"])
def test_a_planted_fault_in_a_real_model_fails(
    fault: str, real_artefact: Callable[[str], Path], tmp_path: Path
) -> None:
    """The smallest of them; all ten failed when they were tried."""
    plant = WEIGHTS.get(fault) or NUMBERS[fault]
    assert with_fault(real_artefact("smollm2"), plant, tmp_path / "copy").faults


@pytest.mark.real
def test_a_window_off_by_one_in_a_real_model_fails(
    real_artefact: Callable[[str], Path], tmp_path: Path
) -> None:
    assert with_fault(real_artefact("gemma3"), window(1), tmp_path / "copy").faults
