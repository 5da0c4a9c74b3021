"""The onnxruntime backend: cache, blocks, foreign graphs. Logits are tested with the graph."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetok.cache.protocol import KVCache
from edgetok.errors import ArtefactError, ContextError, OptionError, ShapeError
from edgetok.formats.artefact import open_artefact
from edgetok.formats.layout import DATA_FILE, GRAPH_FILE, TensorFormat
from edgetok.formats.manifest import MANIFEST_FILE, write_manifest
from edgetok.models import DecoderSpec, LayerSpec, RopeSpec
from edgetok.runtime.backend import Backend, Interrupted
from edgetok.runtime.onnx.backend import OnnxRuntimeBackend
from tests.reference_decoder import forward
from tests.rtn_artefact import Arrays, random_tensors, uniform_formats, write_artefact

SPEC = DecoderSpec(
    family="test",
    vocab_size=61,
    hidden_size=40,
    intermediate_size=52,
    num_heads=4,
    num_kv_heads=2,
    head_dim=12,
    layers=(LayerSpec(window=5), LayerSpec(), LayerSpec(window=3, rope=-1)),
    ropes=(RopeSpec(theta=1e4, rotary_dim=8),),
    context_tokens=64,
    norm_eps=1e-5,
    attn_scale=0.4,
    tied=True,
)
TOKENS = np.random.default_rng(2).integers(0, SPEC.vocab_size, 23).astype(np.int32)
# float32 sums in another order: a few hundred roundings of 6e-8 on logits of about 3.
SAME = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Arrays]:
    folder = tmp_path_factory.mktemp("artefact")
    formats = uniform_formats(SPEC, TensorFormat(8, 16))
    return folder, write_artefact(folder, SPEC, random_tensors(SPEC), formats, accuracy_level=0)


@pytest.fixture(scope="module")
def backend(written: tuple[Path, Arrays]) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(written[0], threads=1, block_tokens=4)


@pytest.fixture(scope="module")
def expected(written: tuple[Path, Arrays]) -> np.ndarray:
    return forward(SPEC, written[1], TOKENS)


def test_is_a_backend(backend: OnnxRuntimeBackend) -> None:
    typed: Backend = backend
    cache: KVCache = typed.new_cache(8)
    assert (typed.name, typed.vocab_size, typed.context_tokens) == ("onnxruntime", 61, 64)
    assert typed.spec == SPEC
    assert (cache.length_tokens, cache.capacity_tokens) == (0, 8)
    # 3 layers, key and value, 2 heads, 8 tokens, 12 dims rounded up to 16, float32.
    assert cache.nbytes == 3 * 2 * 2 * 8 * 16 * 4


@pytest.mark.parametrize(
    "steps", [[23], [1] * 23, [3, 1, 9, 1, 9]], ids=["prefill", "decode", "mix"]
)
def test_any_division_gives_the_same(
    steps: list[int], backend: OnnxRuntimeBackend, expected: np.ndarray
) -> None:
    cache = backend.new_cache(len(TOKENS))
    found, start = [], 0
    for size in steps:
        part = TOKENS[start : start + size]
        found.append(backend.forward(cache, part, all_logits=True).copy())
        start += size
        assert cache.length_tokens == start
    np.testing.assert_allclose(np.concatenate(found), expected, **SAME)


def test_last_logits_alone(backend: OnnxRuntimeBackend, expected: np.ndarray) -> None:
    logits = backend.forward(backend.new_cache(30), TOKENS)
    assert logits.shape == (61,)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected[-1], **SAME)


def test_truncate_and_clear(backend: OnnxRuntimeBackend, expected: np.ndarray) -> None:
    cache = backend.new_cache(len(TOKENS))
    backend.forward(cache, TOKENS[::-1][:20])
    cache.clear()
    backend.forward(cache, TOKENS[:10])
    backend.forward(cache, TOKENS[:9])
    assert cache.truncate(10)
    assert cache.length_tokens == 10
    found = backend.forward(cache, TOKENS[10:], all_logits=True)
    np.testing.assert_allclose(found, expected[10:], **SAME)
    with pytest.raises(OptionError, match="24 of 23"):
        cache.truncate(24)


def test_too_many_tokens_change_nothing(backend: OnnxRuntimeBackend, expected: np.ndarray) -> None:
    cache = backend.new_cache(8)
    backend.forward(cache, TOKENS[:6])
    with pytest.raises(ContextError, match=r"9 tokens .* 8"):
        backend.forward(cache, TOKENS[6:9])
    assert cache.length_tokens == 6
    np.testing.assert_allclose(backend.forward(cache, TOKENS[6:8]), expected[7], **SAME)


def test_stops_between_blocks(backend: OnnxRuntimeBackend, expected: np.ndarray) -> None:
    cache = backend.new_cache(len(TOKENS))
    asked = iter([False, True])
    with pytest.raises(Interrupted):
        backend.forward(cache, TOKENS, should_stop=lambda: next(asked))
    assert cache.length_tokens == 8
    np.testing.assert_allclose(backend.forward(cache, TOKENS[8:]), expected[-1], **SAME)


def test_many_threads(backend: OnnxRuntimeBackend, expected: np.ndarray) -> None:
    results: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        cache = backend.new_cache(len(TOKENS))
        parts = [backend.forward(cache, TOKENS[j : j + 1 + i]).copy() for j in range(0, 6, 1 + i)]
        results[i] = parts[-1]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, logits in results.items():
        last = list(range(0, 6, 1 + i))[-1] + i
        np.testing.assert_allclose(logits, expected[last], **SAME)
    assert len(results) == 6


@pytest.mark.parametrize(
    ("tokens", "error"),
    [
        (np.array([61]), OptionError),
        (np.array([-1]), OptionError),
        (np.array([], np.int32), ShapeError),
        (np.array([[1]]), ShapeError),
        (np.array([1.0]), ShapeError),
    ],
)
def test_bad_tokens(
    tokens: np.ndarray, error: type[Exception], backend: OnnxRuntimeBackend
) -> None:
    with pytest.raises(error):
        backend.forward(backend.new_cache(4), tokens)


def test_close(written: tuple[Path, Arrays]) -> None:
    backend = OnnxRuntimeBackend(open_artefact(written[0]))
    cache = backend.new_cache(4)
    backend.close()
    backend.close()
    with pytest.raises(OptionError, match="closed"):
        backend.forward(cache, TOKENS[:2])


def test_bad_options(written: tuple[Path, Arrays], backend: OnnxRuntimeBackend) -> None:
    with pytest.raises(OptionError):
        OnnxRuntimeBackend(written[0], threads=-1)
    with pytest.raises(OptionError):
        backend.new_cache(0)


# Graphs of other exporters.


def foreign(folder: Path, **config: object) -> Path:
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 64, **config}))
    write_manifest(folder, exporter="optimum")
    return folder


def test_foreign_graph_with_a_growing_cache(
    written: tuple[Path, Arrays], expected: np.ndarray, tmp_path: Path
) -> None:
    folder = foreign(Path(shutil.copytree(written[0], tmp_path / "copy")))
    backend = OnnxRuntimeBackend(folder, block_tokens=4)
    assert backend.spec is None
    assert (backend.vocab_size, backend.context_tokens) == (61, 64)
    cache = backend.new_cache(23)
    assert cache.nbytes == 0
    found = backend.forward(cache, TOKENS[:13], all_logits=True)
    np.testing.assert_allclose(found, expected[:13], **SAME)
    assert cache.nbytes == 3 * 2 * 2 * 13 * 16 * 4 + 13 * 8
    backend.forward(cache, TOKENS[:5])
    assert cache.truncate(13)
    for i in range(13, 23):
        found = backend.forward(cache, TOKENS[i : i + 1])
        np.testing.assert_allclose(found, expected[i], **SAME)
    with pytest.raises(ContextError):
        backend.forward(cache, TOKENS[:1])
    cache.clear()
    with pytest.raises(ShapeError, match="new_cache"):
        OnnxRuntimeBackend(written[0]).forward(cache, TOKENS[:1])


def graph_without_cache(folder: Path, *extra_inputs: str) -> np.ndarray:
    """logits[t] = sum of rows of the tokens up to t, plus t; returns the rows."""
    rows = np.random.default_rng(4).standard_normal((11, 11)).astype(np.float32)
    inputs = ["input_ids", "attention_mask", "position_ids", *extra_inputs]
    nodes = [
        helper.make_node("Gather", ["rows", "input_ids"], ["x"]),
        helper.make_node("CumSum", ["x", "axis"], ["sums"]),
        helper.make_node("Cast", ["position_ids"], ["positions"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["positions", "last"], ["column"]),
        helper.make_node("Add", ["sums", "column"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "t"]) for n in inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "t", "v"])],
        [
            numpy_helper.from_array(rows, "rows"),
            numpy_helper.from_array(np.array(1), "axis"),
            numpy_helper.from_array(np.array([-1]), "last"),
        ],
    )
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / GRAPH_FILE)
    return rows


def test_foreign_graph_without_a_cache(tmp_path: Path) -> None:
    rows = graph_without_cache(tmp_path)
    backend = OnnxRuntimeBackend(foreign(tmp_path, vocab_size=11), block_tokens=3)
    tokens = np.array([3, 1, 4, 1, 5, 9, 2, 6], np.int32)
    expected = np.cumsum(rows[tokens], 0) + np.arange(8)[:, None]
    cache = backend.new_cache(9)
    found = backend.forward(cache, tokens[:5], all_logits=True)
    np.testing.assert_allclose(found, expected[:5], rtol=1e-5, atol=1e-5)
    backend.forward(cache, tokens[:2])
    cache.truncate(5)
    for i in range(5, 8):
        found = backend.forward(cache, tokens[i : i + 1])
        np.testing.assert_allclose(found, expected[i], rtol=1e-5, atol=1e-5)


def test_foreign_graph_that_is_no_language_model(tmp_path: Path) -> None:
    graph_without_cache(tmp_path, "pixel_values")
    with pytest.raises(ArtefactError, match="causal language model"):
        OnnxRuntimeBackend(foreign(tmp_path, vocab_size=11))


def test_foreign_graph_without_numbers(tmp_path: Path) -> None:
    graph_without_cache(tmp_path)
    with pytest.raises(ArtefactError, match="max_position_embeddings"):
        OnnxRuntimeBackend(foreign(tmp_path, max_position_embeddings="64"))


def test_what_onnxruntime_refuses(tmp_path: Path) -> None:
    graph_without_cache(tmp_path)
    model = onnx.load(tmp_path / GRAPH_FILE)
    model.graph.node[0].op_type = "Gathers"
    onnx.save(model, tmp_path / GRAPH_FILE)
    with pytest.raises(ArtefactError, match="not an operator of a decoder"):
        OnnxRuntimeBackend(foreign(tmp_path, vocab_size=11))


def _swap(node: onnx.NodeProto) -> None:
    first, second = ([*node.input] * 2)[:2]
    node.input[0] = second
    node.input[-1 if len(node.input) < 2 else 1] = first


def _repeat(node: onnx.NodeProto) -> None:
    node.input[len(node.input) - 1] = node.input[0]


def _another(node: onnx.NodeProto) -> None:
    node.input[0] = "input_ids"


@pytest.mark.parametrize("edit", [_swap, _repeat, _another])
def test_a_changed_node_is_one_line_or_harmless(
    edit: Callable[[onnx.NodeProto], None], tmp_path: Path
) -> None:
    """A node of each kind gets other inputs; the manifest agrees, as an attacker would make it."""
    formats = uniform_formats(SPEC, TensorFormat(4, 16, zeros=True))
    write_artefact(tmp_path, SPEC, random_tensors(SPEC), formats, accuracy_level=0)
    names = [path.name for path in tmp_path.iterdir() if path.name != MANIFEST_FILE]
    original = (tmp_path / GRAPH_FILE).read_bytes()
    kinds = sorted({node.op_type for node in onnx.ModelProto.FromString(original).graph.node})
    assert len(kinds) >= 14
    at_load: list[str] = []
    in_a_run: list[str] = []
    for kind in kinds:
        model = onnx.ModelProto.FromString(original)
        edit(next(node for node in model.graph.node if node.op_type == kind))
        (tmp_path / GRAPH_FILE).write_bytes(model.SerializeToString())
        write_manifest(tmp_path, names=names)
        try:
            backend = OnnxRuntimeBackend(tmp_path, threads=1, block_tokens=4)
        except ArtefactError as error:
            at_load.append(str(error))
            continue
        try:
            backend.forward(backend.new_cache(32), TOKENS[:9])
        except ArtefactError as error:
            in_a_run.append(str(error))
        backend.close()
    assert [line for line in at_load + in_a_run if "\n" in line] == []
    assert len(at_load) > 3
    assert len(in_a_run) > 3


def test_hostile_folder_is_refused_before_onnxruntime_sees_it(
    written: tuple[Path, Arrays], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(written[0], tmp_path / "copy"))
    (folder / DATA_FILE).write_bytes(b"")
    with pytest.raises(ArtefactError, match="manifest says"):
        OnnxRuntimeBackend(folder)
