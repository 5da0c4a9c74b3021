"""Exported checkpoints: loaded by transformers, or unpacked by hand."""

import json
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edgetok.converter.convert import ConvertOptions, Target, convert
from edgetok.converter.export.checkpoint import export
from edgetok.converter.read.dense_words import pack_words, unpack_words
from edgetok.converter.write.written_weights import WrittenWeights
from edgetok.errors import OutputError, UnsupportedError
from edgetok.formats.artefact import open_artefact
from edgetok.formats.layout import TensorFormat
from tests.converter.test_convert import SMALL, reference_with
from tests.rtn_artefact import random_tensors, uniform_formats, write_artefact
from tests.tiny import VOCAB_SIZE, tiny_checkpoint


def by_hand(words, bits, count):
    """Codes of one row of words, bit by bit."""
    value = sum((int(word) & 0xFFFFFFFF) << (32 * i) for i, word in enumerate(words))
    return [(value >> (bits * i)) & ((1 << bits) - 1) for i in range(count)]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("count", [1, 10, 32, 77])
def test_words(bits, count):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (5, count), dtype=np.uint8)
    words = pack_words(codes, bits)
    assert words.dtype == np.int32
    assert words.shape == (5, -(-count * bits // 32))
    for row, packed in zip(codes, words, strict=True):
        assert by_hand(packed, bits, count) == row.tolist()
    np.testing.assert_array_equal(unpack_words(words, bits, count), codes)


SIZES = {"hidden_size": 96, "intermediate_size": 128, "head_dim": 24}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    def make(family, options, target=None, **config):
        folder = tmp_path_factory.mktemp(family)
        source = tiny_checkpoint(family, folder / "source", **{**SIZES, **config})
        convert(str(source), folder / "artefact", options, None, target)
        return source, folder / "artefact"

    return make


def expected_logits(source, artefact, tokens):
    """transformers with the weights that the artefact stands for."""
    with open_artefact(artefact) as opened:
        written = WrittenWeights(artefact, opened.spec, opened.formats, opened.layout)
        model = reference_with(source, written, opened.spec)
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"bits": 4, "method": "rtn", "symmetric": True}),
        ("llama", {"bits": 3, "method": "rtn"}),
        ("qwen3", {"bits": 2, "method": "rtn"}),
        ("gemma2", {"bits": 8, "method": "rtn", "symmetric": True}),
        ("llama", {"method": "gptq", "symmetric": True, "portable": True, **SMALL}),
    ],
)
def test_transformers_loads_compressed_tensors(converted, tmp_path, family, options):
    for package in ("compressed_tensors", "accelerate"):
        pytest.importorskip(package, reason=f"pip install {package}")
    from transformers import AutoModelForCausalLM

    mixed = options["method"] == "gptq"
    source, artefact = converted(
        family,
        ConvertOptions(**{"reference_tokens": 0, **options}),
        Target(nbytes=210_000, padded=False) if mixed else None,
    )
    result = export(artefact, tmp_path / "out", "compressed-tensors")
    assert result.quantised == 3 * 7 if family != "gemma2" else 4 * 7
    if mixed:
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert len(config["quantization_config"]["config_groups"]) > 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", dtype=torch.float32, attn_implementation="eager"
        ).eval()
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, 20))
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)).logits.numpy()
    expected = expected_logits(source, artefact, tokens)
    # Only float16's rounding of the embedding and the head is between the two.
    np.testing.assert_allclose(logits, expected, atol=4e-3 * np.abs(expected).max())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_compressed_tensors_unpacks_them_itself(converted, tmp_path, bits):
    """With zero points, through the library's own decompression."""
    pytest.importorskip("compressed_tensors", reason="pip install compressed-tensors")
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme

    _, artefact = converted("llama", ConvertOptions(bits=bits, method="rtn", reference_tokens=0))
    export(artefact, tmp_path / "out", "compressed-tensors")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    (group,) = settings["config_groups"].values()
    assert group["weights"]["num_bits"] == max(bits, 4)
    assert group["weights"]["symmetric"] == (bits < 4)
    stem = "model.layers.2.mlp.down_proj."
    state = {
        name.removeprefix(stem): torch.from_numpy(values)
        for name, values in load_file(tmp_path / "out" / "model.safetensors").items()
        if name.startswith(stem) and not name.endswith("bias")
    }
    result = PackedQuantizationCompressor.decompress(state, QuantizationScheme(**group))["weight"]
    with open_artefact(artefact) as opened:
        written = WrittenWeights(artefact, opened.spec, opened.formats, opened.layout)
        expected = written.tensor("layers.2.down_proj.weight")
    np.testing.assert_allclose(result.float().numpy(), expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "bits", "symmetric"),
    [
        ("llama", 4, 0),
        ("phi3", 3, 0),
        ("llama", 2, 0),
        ("llama", 4, 1),
        ("llama", 8, 1),
        ("llama", 3, 1),
    ],
)
def test_gptq_unpacked_by_hand(converted, tmp_path, family, bits, symmetric):
    """w[n, k] = scales[g_idx[k], n] * (q[k, n] - z[g_idx[k], n]) is the artefact's weight."""
    options = ConvertOptions(bits=bits, method="rtn", symmetric=bool(symmetric), reference_tokens=0)
    sizes = {} if family == "llama" else {"num_attention_heads": 4, "num_key_value_heads": 2}
    _, artefact = converted(family, options, **sizes)
    result = export(artefact, tmp_path / "out", "gptq")
    narrow = result.plain.get("model.layers.1.self_attn.v_proj")  # 48 outputs
    assert narrow == (None if family == "phi3" else "gptq's loaders take sizes in multiples of 32")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert settings["bits"] == bits
    assert settings["sym"] == bool(symmetric)
    first = symmetric and bits != 3
    assert settings["checkpoint_format"] == ("gptq" if first else "gptq_v2")
    stem = "model.layers.1." + ("self_attn.qkv_proj" if family == "phi3" else "self_attn.o_proj")
    scales, index = tensors[stem + ".scales"], tensors[stem + ".g_idx"]
    N = scales.shape[1]
    K = len(index)
    q = np.array([by_hand(column, bits, K) for column in tensors[stem + ".qweight"].T])
    z = np.array([by_hand(row, bits, N) for row in tensors[stem + ".qzeros"]])
    z += bool(first)  # stored less one
    weight = (scales.astype(np.float32)[index] * (q.T - z[index])).T
    with open_artefact(artefact) as opened:
        written = WrittenWeights(artefact, opened.spec, opened.formats, opened.layout)
        names = ("q_proj", "k_proj", "v_proj") if family == "phi3" else ("o_proj",)
        parts = [written.tensor(f"layers.1.{name}.weight") for name in names]
    np.testing.assert_allclose(weight, np.concatenate(parts), rtol=1e-6, atol=1e-7)


def test_what_cannot_be_kept_is_named(tmp_path):
    """72 inputs are not a multiple of 32."""
    source = tiny_checkpoint("llama", tmp_path / "source", intermediate_size=128)
    convert(str(source), tmp_path / "a", ConvertOptions(method="rtn", reference_tokens=0))
    result = export(tmp_path / "a", tmp_path / "out", "compressed-tensors")
    assert result.quantised == 3 * 2  # o_proj and down_proj
    assert "not a multiple of the group" in result.plain["model.layers.0.self_attn.q_proj"]
    assert "loaders expect" in result.plain["lm_head"]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["model.layers.0.self_attn.q_proj.weight"].dtype == np.float16
    with pytest.raises(OutputError, match=r"not empty|not an edgetok model"):
        export(tmp_path / "a", tmp_path / "out", "gptq")
    with pytest.raises(UnsupportedError, match=r"no layer's integers.*multiples of 32"):
        export(tmp_path / "a", tmp_path / "none", "gptq")
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="asks for limits of POSIX")
@pytest.mark.parametrize("form", ["compressed-tensors", "gptq"])
def test_a_full_disk(repository, tmp_path, form):
    """Files may not grow beyond 300 kB: enough for the tokenizer, not for the weights."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(OutputError, match=r"out: cannot be written: .*File too large") as error:
            export(repository / "models/default-4bit", tmp_path / "out", form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_needs_a_config(tmp_path):
    from edgetok.models.registry import read_family

    source = tiny_checkpoint("llama", tmp_path / "source")
    spec = read_family(json.loads((source / "config.json").read_text()), {}).spec
    write_artefact(
        tmp_path / "a", spec, random_tensors(spec), uniform_formats(spec, TensorFormat(4))
    )
    with pytest.raises(UnsupportedError, match=r"has no config\.json"):
        export(tmp_path / "a", tmp_path / "out", "gptq")
    assert not (tmp_path / "out").exists()
