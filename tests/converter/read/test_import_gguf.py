"""GGUF files: written by the `gguf` package, run against transformers on what it dequantises."""

import json
import shutil
import struct
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edgetok.cli.main import run
from edgetok.converter.convert import ConvertOptions, Target, convert
from edgetok.converter.write.written_weights import WrittenWeights
from edgetok.errors import CheckpointError, MissingExtraError, UnsupportedError
from edgetok.formats.artefact import open_artefact
from edgetok.formats.gguf import open_gguf
from tests.converter.read.gguf_writer import add, tokenizer_fields, write_gguf
from tests.converter.test_convert import onnx_logits
from tests.tiny import VOCAB_SIZE, load_reference, tiny_checkpoint

gguf = pytest.importorskip("gguf")

EXACT = ConvertOptions(bits=16, method="rtn", reference_tokens=0)
AS_IT_IS = ConvertOptions(bits=4, method="rtn", reference_tokens=0)
SIZES = {"hidden_size": 96, "intermediate_size": 128, "head_dim": 24, "rope_scaling": None}
FACTORS = np.linspace(1, 7, 12, dtype=np.float32)
LONGROPE = {
    "rope_type": "longrope", "attention_factor": 1.25, "original_max_position_embeddings": 16,
    "short_factor": [float(str(x)) for x in FACTORS],
    "long_factor": [float(str(x)) for x in FACTORS + np.float32(0.5)],
}  # fmt: skip


def add_factors(*names):
    def edit(writer):
        for i, name in enumerate(names):
            writer.add_tensor(name, FACTORS + np.float32(i / 2))

    return edit


# What transformers is told, and what llama.cpp's conversion would write of it.
CASES = {
    "llama": ({}, {}, None),
    "llama with factors": (
        {"rope_scaling": {**LONGROPE, "long_factor": LONGROPE["short_factor"],
                          "attention_factor": 1.0, "original_max_position_embeddings": 64}},
        {}, add_factors("rope_freqs.weight"),
    ),
    "llama, yarn": (
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                          "original_max_position_embeddings": 16}},
        {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
         "llama.rope.scaling.original_context_length": 16}, None,
    ),
    "qwen2": ({"use_sliding_window": False}, {}, None),
    "qwen3": ({}, {}, None),
    "gemma2": (
        {"query_pre_attn_scalar": 24},
        {"gemma2.attention.sliding_window": 8, "gemma2.attn_logit_softcapping": 3.0,
         "gemma2.final_logit_softcapping": 5.0}, None,
    ),
    "gemma3_text": (
        {"query_pre_attn_scalar": 24, "num_hidden_layers": 7, "sliding_window_pattern": 6,
         "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"gemma3.attention.sliding_window": 8, "gemma3.rope.scaling.type": "linear",
         "gemma3.rope.scaling.factor": 4.0}, None,
    ),
    "phi3": (
        {"rope_scaling": {"type": "longrope", "short_factor": LONGROPE["short_factor"],
                          "long_factor": LONGROPE["long_factor"]},
         "original_max_position_embeddings": 16, "partial_rotary_factor": 1.0,
         "num_attention_heads": 4, "num_key_value_heads": 2},
        {"phi3.rope.scaling.original_context_length": 16,
         "phi3.rope.scaling.attn_factor": float(np.sqrt(1 + np.log(4) / np.log(16)))},
        add_factors("rope_factors_short.weight", "rope_factors_long.weight"),
    ),
    "granite": (
        {},
        {"granite.attention.scale": 0.15, "granite.embedding_scale": 3.0,
         "granite.residual_scale": 0.4, "granite.logit_scale": 2.5}, None,
    ),
    "smollm3": (
        {"no_rope_layer_interval": 4, "attention_bias": False, "use_sliding_window": False,
         "num_hidden_layers": 5},
        {}, None,
    ),
    "olmo2": ({}, {}, None),
}  # fmt: skip


def write(folder, case="llama", kind="F16", **more):
    """A checkpoint, its GGUF file, and the weights in there."""
    config, fields, edit = CASES[case]
    family = case.split()[0].rstrip(",")
    source = tiny_checkpoint(family, folder / "source", **{**SIZES, **config})
    path = folder / "model.gguf"
    more = {"fields": fields, "edit": edit, **more}
    return source, path, write_gguf(source, path, kind, **more)


def expected_logits(source, held, tokens):
    model = load_reference(source)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(held[name]))
        return model(torch.from_numpy(tokens)).logits.numpy()


def agree(artefact, source, held):
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, 24))
    expected = expected_logits(source, held, tokens)
    result = onnx_logits(artefact, tokens, exact=True)
    np.testing.assert_allclose(result, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_every_architecture_against_transformers(tmp_path, case):
    source, path, held = write(tmp_path, case)
    report = convert(str(path), tmp_path / "out", EXACT)
    assert report.source == "model.gguf"
    agree(tmp_path / "out", source, held)


# Where a block's float16 numbers are, for blocks that the package does not write itself.
HALVES = {
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,),
}  # fmt: skip
# Random integers of these types are several times those of others. Weights that large make a
# model in which float32's own rounding (of torch too) reaches the bound that logits have.
SMALLER = {"Q6_K": 4, "IQ4_XS": 4}
# Kept at so many bits.
KEPT = {
    "Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8, "IQ4_NL": 4, "IQ4_XS": 4, "Q4_K": 4,
    "Q5_K": 5, "Q6_K": 6, "Q3_K": 3, "TQ1_0": 2, "TQ2_0": 2, "MXFP4": 4,
}  # fmt: skip
# Bytes against the file, where that is more than 1.03.
MORE_BYTES = {"Q3_K": 1.04, "MXFP4": 1.06, "TQ1_0": 1.23}
WIDE = {**SIZES, "hidden_size": 256, "intermediate_size": 256, "head_dim": 64}


@pytest.fixture
def random_blocks(monkeypatch):
    """Random blocks, with modest scales, of types that the package does not write."""
    real = gguf.quants.quantize
    rng = np.random.default_rng(0)

    def quantize(weight, number):
        halves = HALVES.get(number.name)
        if halves is None:
            return real(weight, number)
        weights, nbytes = gguf.GGML_QUANT_SIZES[number]
        shape = (*weight.shape[:-1], weight.shape[-1] // weights, nbytes)
        blocks = rng.integers(0, 256, shape, dtype=np.uint8)
        for at in halves:
            scale = rng.uniform(1e-4, 4e-4, shape[:-1]) / SMALLER.get(number.name, 1)
            scale = scale.astype(np.float16)
            blocks[..., at : at + 2] = scale[..., None].view(np.uint8)
        return blocks.reshape(*shape[:-2], -1)

    monkeypatch.setattr(gguf.quants, "quantize", quantize)


@pytest.mark.parametrize(("kind", "bits"), KEPT.items())
def test_integers_are_kept(tmp_path, random_blocks, kind, bits):
    """Each weight is what the `gguf` package makes of the file's blocks, bit by bit."""
    sizes = WIDE if gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0] > 32 else SIZES
    source = tiny_checkpoint("llama", tmp_path / "source", **sizes)
    path = tmp_path / "model.gguf"
    held = write_gguf(source, path, kind)
    options = ConvertOptions(bits=2, method="gptq", reference_tokens=0)
    report = convert(str(path), tmp_path / "out", options)
    assert report.method == f"GGUF {kind} as it was"
    assert {layer.bits for layer in report.layers} == {bits}
    assert report.notes[0] == f"{kind}: integers kept (23 of 23 matrices)"
    assert "the original here is quantised itself" in report.notes[1]
    with open_artefact(tmp_path / "out") as opened:
        weights = WrittenWeights(tmp_path / "out", opened.spec, opened.formats, opened.layout)
        for name, weight in NAMES.items():
            values = weights.tensor(f"{name}.weight")
            np.testing.assert_array_equal(values, held[f"{weight}.weight"])
        stored = sum(i.nbytes for i in open_gguf(path).infos.values())
        assert opened.weight_bytes <= MORE_BYTES.get(kind, 1.03) * stored
    agree(tmp_path / "out", source, held)


NAMES = {
    "lm_head": "lm_head",
    "embed_tokens": "model.embed_tokens",
    "layers.1.q_proj": "model.layers.1.self_attn.q_proj",
    "layers.1.down_proj": "model.layers.1.mlp.down_proj",
}


def test_other_types_among_those_that_are_kept(tmp_path, random_blocks):
    sizes = {**WIDE, "tie_word_embeddings": True}
    source = tiny_checkpoint("llama", tmp_path / "source", **sizes)
    path = tmp_path / "model.gguf"
    kinds = {"attn_v": "Q2_K", "token_embd": "Q6_K", "attn_q": "F16"}
    held = write_gguf(source, path, "Q4_K", kinds=kinds)
    report = convert(str(path), tmp_path / "out", EXACT)
    assert "Q2_K: dequantised and quantised again (3 of 22 matrices)" in report.notes
    bits = {layer.name: layer.bits for layer in report.layers}
    assert (bits["lm_head"], bits["layers.0.v_proj"], bits["layers.0.o_proj"]) == (6, 8, 4)
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, 24))
    expected = expected_logits(source, held, tokens)
    result = onnx_logits(tmp_path / "out", tokens, exact=True)
    np.testing.assert_allclose(result, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q4_1", "Q5_0", "Q4_K"])
def test_what_is_dequantised(tmp_path, random_blocks, kind):
    """At 16 bits but for the float16 that those weights are stored as."""
    sizes = WIDE if kind.endswith("_K") else SIZES
    source = tiny_checkpoint("qwen3", tmp_path / "source", **sizes)
    path = tmp_path / "model.gguf"
    held = write_gguf(source, path, kind)
    options = ConvertOptions(bits=16, method="rtn", reference_tokens=0, keep_codes=False)
    report = convert(str(path), tmp_path / "out", options)
    assert report.method == "none"
    assert any(kind in note for note in report.notes) == (kind[0] == "Q")
    assert any("quantised itself" in note for note in report.notes) == (kind[0] == "Q")
    rounded = {name: value.astype(np.float16).astype(np.float32) for name, value in held.items()}
    agree(tmp_path / "out", source, rounded)


def test_files_of_types_that_are_not_kept(tmp_path, random_blocks):
    source = tiny_checkpoint("llama", tmp_path / "source", **WIDE)
    path = tmp_path / "model.gguf"
    write_gguf(source, path, "Q2_K", kinds={"attn_v": "Q8_0"})
    options = ConvertOptions(bits=8, method="rtn", reference_tokens=0)
    report = convert(str(path), tmp_path / "out", options)
    assert report.method == "rtn"
    assert {layer.bits for layer in report.layers} == {8}
    assert max(layer.weight_error for layer in report.layers) < 0.01


@pytest.mark.parametrize(("head", "better"), [("Q4_1", "Q8_0"), ("F16", "F16")])
def test_a_tied_matrix_that_is_there_twice(tmp_path, head, better):
    sizes = {**SIZES, "tie_word_embeddings": True}
    source = tiny_checkpoint("llama", tmp_path / "source", **sizes)
    embedding = load_file(source / "model.safetensors")["model.embed_tokens.weight"]
    number = gguf.GGMLQuantizationType[head]
    data = gguf.quants.quantize(embedding.astype(np.float32), number)
    if head == "F16":
        data = data.view(np.float16)

    def twice(writer):
        raw = None if head == "F16" else number
        writer.add_tensor("output.weight", data, raw_dtype=raw)

    path = tmp_path / "model.gguf"
    held = write_gguf(source, path, "Q8_0", edit=twice)
    held["lm_head.weight"] = held["model.embed_tokens.weight"]
    report = convert(str(path), tmp_path / "out", AS_IT_IS)
    assert f"token_embd (Q8_0) and output ({head}) are one matrix" in report.notes[0]
    assert f"as {better};" in report.notes[0]
    with open_artefact(tmp_path / "out") as opened:
        assert opened.spec.tied
    if better == "Q8_0":
        agree(tmp_path / "out", source, held)


def test_two_matrices_that_are_not_one(tmp_path):
    source = tiny_checkpoint("llama", tmp_path / "source", **SIZES)
    path = tmp_path / "model.gguf"
    write_gguf(source, path, "Q8_0")
    convert(str(path), tmp_path / "out", AS_IT_IS)
    with open_artefact(tmp_path / "out") as opened:
        assert not opened.spec.tied


def test_calibrates_on_its_own_tokenizer(tmp_path):
    _, path, _ = write(tmp_path, "qwen3")
    options = ConvertOptions(bits=4, calibration_windows=4, window_tokens=16, reference_tokens=32)
    report = convert(str(path), tmp_path / "out", options)
    assert report.method == "auto"
    assert report.agreement is not None


def test_a_target_chooses_its_bits_again(tmp_path):
    _, path, _ = write(tmp_path, "llama", "Q4_0")
    options = ConvertOptions(calibration_windows=4, window_tokens=16, reference_tokens=32)
    report = convert(str(path), tmp_path / "out", options, None, Target(nbytes=1 << 20))
    assert report.fit is not None
    assert report.weight_bytes <= 1 << 20


def test_what_stands_beside_the_weights(tmp_path):
    source, path, _ = write(tmp_path, "llama", fields={"tokenizer.ggml.eot_token_id": 3})
    convert(str(path), tmp_path / "out", EXACT)
    defaults = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert defaults == {"bos_token_id": 1, "eos_token_id": [2, 3]}
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    original = json.loads((source / "tokenizer_config.json").read_text())
    for key in ("chat_template", "bos_token", "eos_token"):
        assert settings[key] == original[key]
    assert not {"source", "config.gguf"} & {path.name for path in (tmp_path / "out").iterdir()}


def test_without_the_package(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgetok\[gguf\]'"):
        convert(str(path), tmp_path / "out", EXACT)


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"llama.expert_count": 8}, UnsupportedError, "'expert_count' is 8"),
        ({"llama.block_count": None}, CheckpointError, "block_count is missing"),
        ({"llama.block_count": 4}, CheckpointError, "layers.3.*is missing"),
        ({"llama.block_count": 2}, UnsupportedError, "'blk.2.*is not part of a"),
        ({"llama.attention.value_length": 48}, UnsupportedError, "value_length"),
        ({"llama.attention.causal": False}, UnsupportedError, "attention.causal"),
        ({"llama.use_parallel_residual": True}, UnsupportedError, "use_parallel_residual"),
        ({"llama.rope.dimension_count": 12}, UnsupportedError, "partial_rotary_factor"),
        ({"llama.rope.scaling.type": "su"}, UnsupportedError, "expected none, linear"),
        ({"llama.feed_forward_length": [1, 2, 3]}, CheckpointError, "feed_forward_length"),
        ({"llama.embedding_length": 1 << 31}, CheckpointError, "embedding_length"),
        ({"tokenizer.ggml.eos_token_id": 5000}, CheckpointError, "eos_token_id"),
        ({"tokenizer.ggml.model": "bert"}, UnsupportedError, "expected gpt2, llama or gemma4"),
        ({"tokenizer.ggml.pre": "default"}, UnsupportedError, "how it splits words"),
        ({"tokenizer.ggml.merges": ["x yz"]}, CheckpointError, "does not join two tokens"),
        ({"tokenizer.ggml.tokens": ["a"] * 5}, CheckpointError, "a token twice"),
        ({"tokenizer.ggml.token_type": [1]}, CheckpointError, "token_type"),
        ({"split.count": 2}, UnsupportedError, "one of 2 parts"),
    ],
)  # fmt: skip
def test_fields_that_are_refused(tmp_path, fields, error, says):
    _, path, _ = write(tmp_path, "llama", fields=fields)
    with pytest.raises(error, match=says):
        convert(str(path), tmp_path / "out", EXACT)
    assert not (tmp_path / "out").exists()


def test_foreign_architecture(tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        UnsupportedError, match=r"general\.architecture is 'mamba', expected one of"
    ):
        convert(str(path), tmp_path / "out", EXACT)


def test_weights_that_are_no_numbers(tmp_path):
    for kind, value in (("F16", 0x7C00), ("Q4_0", 0x7E00), ("Q5_0", 0x7E00)):
        shutil.rmtree(tmp_path / kind, ignore_errors=True)
        _, path, _ = write(tmp_path / kind, "llama", kind)
        place = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.ffn_up.weight")
        data = bytearray(path.read_bytes())
        data[place.data_offset : place.data_offset + 2] = struct.pack("<H", value)
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"up_proj.*(inf|is not finite|not a number)"):
            convert(str(path), tmp_path / "out", AS_IT_IS)
        assert not (tmp_path / "out").exists()


TEXTS = [
    "Hello world", " two  spaces\n\n\nlines\t\ttabs ", "don't WE'LL 12345 3.14e-10 x=1;", "",
    "naïve façade", "日本語のテキスト и русский 🙂🙃", "a<|im_end|>b </s> <s>", " ",
    "the cat sat on the mat\r\n",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "pre", "skip"),
    [("smollm2", "smollm", ()), ("tinyllama-chat", "", ()), ("phi-3-mini", "", ("<", "</s>"))],
)
def test_tokenizers_against_the_originals(data, tmp_path, name, pre, skip):
    """The same ids as the tokenizer.json that the fields were made of, on real text."""
    import tokenizers

    from edgetok.converter.read.gguf_tokenizer import tokenizer_files
    from edgetok.formats.gguf import open_gguf

    source = data / "tokenizers" / name
    original = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    size = original.get_vocab_size(with_added_tokens=True)
    fields = tokenizer_fields(source, {"vocab_size": size}, pre)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for key, value in fields.items():
        add(writer, key, value)
    add(writer, "tokenizer.ggml.add_bos_token", name == "tinyllama-chat")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    started = time.monotonic()
    files = tokenizer_files(open_gguf(tmp_path / "m.gguf"), size)
    assert time.monotonic() - started < 20
    made = tokenizers.Tokenizer.from_str(json.dumps(files["tokenizer.json"]))
    story = (data / "text" / "tinystories.txt").read_text()[:20000]
    code = (data / "text" / "calibration.technical.txt").read_text()[:20000]
    many = (data / "text" / "calibration.multilingual.txt").read_text()[:20000]
    for text in [*TEXTS, story, code, many]:
        if any(part in text for part in skip):
            continue  # Phi-3's special tokens swallow spaces, which a GGUF file does not say
        expected = original.encode(text).ids
        assert made.encode(text).ids == expected
        assert made.decode(expected) == original.decode(expected)


def test_bits_that_are_asked_for(tmp_path, monkeypatch, capsys):
    """Without them the folder's name has none, as all integers are kept."""
    _, path, _ = write(tmp_path, "llama", "Q8_0")
    monkeypatch.chdir(tmp_path)
    assert run(["convert", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == "artefacts/model"
    assert (tmp_path / "artefacts" / "model" / "manifest.json").exists()
    assert run(["convert", str(path), "--bits", "4", "--method", "rtn", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["out"] == "artefacts/model-4bit"
    assert made["method"] == "rtn"
    assert made["bits"] == 4
