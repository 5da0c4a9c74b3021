"""GGUF files of newer families, stored as llama.cpp does, against transformers' own models."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edgetok.converter.convert import ConvertOptions, convert
from edgetok.converter.read.source import open_source
from edgetok.converter.write.written_weights import WrittenWeights
from edgetok.errors import UnsupportedError
from edgetok.formats.artefact import open_artefact
from tests.converter.test_convert import onnx_logits
from tests.tiny import FAMILIES, VOCAB_SIZE, load_reference, tiny_checkpoint

gguf = pytest.importorskip("gguf")

from tests.converter.read.gguf_conversion import round_checkpoint, write_conversion  # noqa: E402

EXACT = ConvertOptions(bits=16, method="rtn", reference_tokens=0)
# llama.cpp has no dense layers among those with experts in this family.
CASES = {
    "bitnet": ("bitnet", {"attention_bias": False, "tie_word_embeddings": True}),
    "bitnet_silu": ("bitnet", {
        "attention_bias": False, "tie_word_embeddings": True, "hidden_act": "silu",
    }),
    "arcee": ("arcee", {"rope_scaling": None, "mlp_bias": False}),
    "ernie4_5": ("ernie4_5", {"use_bias": False}),
    "ernie4_5_moe": ("ernie4_5_moe", {}),
    # llama.cpp fixes which layers have a window.
    "cohere2": ("cohere2", {"attention_bias": False, "layer_types": None}),
    "glm4": ("glm4", {}),
    "hunyuan": ("hunyuan_v1_dense", {}),
    "lfm2": ("lfm2", {"head_dim": 18}),  # llama.cpp has heads as wide as the model alone
    "lfm2_moe": ("lfm2_moe", {"routed_scaling_factor": 1.0}),
    "qwen3_moe": ("qwen3_moe", {"mlp_only_layers": []}),
    "gpt_oss": ("gpt_oss", {}),
    "granite_experts": ("granitemoehybrid", {}),
    "granite_dense": ("granitemoehybrid", {
        "num_local_experts": 0, "num_experts_per_tok": 0, "intermediate_size": 52,
    }),
    # llama.cpp has heads of keys and of values as wide as each other, and no biases.
    "qwen3_5_text": ("qwen3_5_text", {"linear_value_head_dim": 32, "linear_key_head_dim": 32}),
    "qwen3_5_moe": ("qwen3_5_moe_text", {"linear_value_head_dim": 32, "linear_key_head_dim": 32}),
    "gemma4": ("gemma4_text", {}),
    "gemma4_values": ("gemma4_text", {"attention_k_eq_v": False}),
    "qwen3_next": ("qwen3_next", {
        "linear_value_head_dim": 32, "linear_key_head_dim": 32, "attention_bias": False,
        "mlp_only_layers": [],
    }),
}  # fmt: skip


def write(folder, case, kind="F32", **config):
    family, own = CASES[case]
    if family not in FAMILIES:
        pytest.skip(f"the installed transformers does not know {family}")
    source = tiny_checkpoint(family, folder / "source", **{**own, **config})
    path = folder / "model.gguf"
    write_conversion(source, path, kind)
    return source, path


def agree(artefact, source):
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (1, 24))
    with torch.no_grad():
        expected = load_reference(source)(torch.from_numpy(tokens)).logits.numpy()
    result = onnx_logits(artefact, tokens, exact=True)
    np.testing.assert_allclose(result, expected, atol=2e-5 * np.abs(expected).max())


# Matrices of these types, of which K is a multiple of 32 or 256 in a checkpoint of these sizes.
WHOLE = {
    "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 64, "head_dim": 32,
    "block_auto_adjust_ff_dim": False,
}  # fmt: skip
WIDE = {
    "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256, "head_dim": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "kind", "parts", "config"),
    [
        ("gpt_oss", "MXFP4", ("experts.gate_up_proj", "experts.down_proj"), WHOLE),
        ("qwen3_moe", "Q4_0", ("proj",), WHOLE),
        ("qwen3_moe", "TQ2_0", ("proj",), WIDE),
        ("lfm2_moe", "Q8_0", ("proj", "w1", "w2", "w3"), WHOLE),
    ],
)
def test_integers_of_experts_are_kept(tmp_path, case, kind, parts, config):
    family, own = CASES[case]
    if family not in FAMILIES:
        pytest.skip(f"the installed transformers does not know {family}")
    source = tiny_checkpoint(family, tmp_path / "source", **{**own, **config})
    round_checkpoint(source, kind, *parts, turned=family == "gpt_oss")
    path = tmp_path / "model.gguf"
    kinds = {"exps": kind} if family == "gpt_oss" else {"token_embd": "F32", "output.": "F32"}
    tensors = write_conversion(source, path, "F16" if family == "gpt_oss" else kind, kinds=kinds)
    options = ConvertOptions(bits=16, method="rtn", reference_tokens=0)
    report = convert(str(path), tmp_path / "out", options)
    assert report.method == f"GGUF {kind} as it was"
    with open_artefact(tmp_path / "out") as opened:
        weights = WrittenWeights(tmp_path / "out", opened.spec, opened.formats, opened.layout)
        for which in ("gate", "up", "down"):
            stack = tensors[f"blk.2.ffn_{which}_exps.weight"]
            found = weights.tensor(f"layers.2.experts_{which}.weight")
            np.testing.assert_array_equal(found, stack.reshape(-1, stack.shape[-1]))


def test_integers_of_heads_in_another_order_are_kept(tmp_path):
    family, own = CASES["qwen3_5_text"]
    if family not in FAMILIES:
        pytest.skip(f"the installed transformers does not know {family}")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32}
    source = tiny_checkpoint(family, tmp_path / "source", **own, **sizes)
    round_checkpoint(source, "Q4_0", "proj")
    path = tmp_path / "model.gguf"
    write_conversion(source, path, "Q4_0", kinds={"token_embd": "F32"})
    report = convert(str(path), tmp_path / "out", EXACT)
    assert report.method == "GGUF Q4_0 as it was"
    original = load_file(source / "model.safetensors")
    with open_artefact(tmp_path / "out") as opened:
        weights = WrittenWeights(tmp_path / "out", opened.spec, opened.formats, opened.layout)
        for name, stored in (("delta_qkv", "in_proj_qkv"), ("delta_out", "out_proj")):
            found = weights.tensor(f"layers.2.{name}.weight")
            expected = original[f"model.layers.2.linear_attn.{stored}.weight"]
            np.testing.assert_array_equal(found, expected)


def test_integers_of_rows_in_pairs_are_kept(tmp_path):
    """Of each head the even rows, then the odd ones."""
    own = {"use_bias": False, "hidden_size": 64, "intermediate_size": 64}
    source = tiny_checkpoint("ernie4_5", tmp_path / "source", **own)
    round_checkpoint(source, "Q8_0", "proj")
    path = tmp_path / "model.gguf"
    write_conversion(source, path, "Q8_0", kinds={"token_embd": "F32"})
    report = convert(str(path), tmp_path / "out", EXACT)
    assert report.method == "GGUF Q8_0 as it was"
    stored = load_file(source / "model.safetensors")["model.layers.2.self_attn.q_proj.weight"]
    heads = stored.reshape(4, 24, 64)
    with open_artefact(tmp_path / "out") as opened:
        weights = WrittenWeights(tmp_path / "out", opened.spec, opened.formats, opened.layout)
        found = weights.tensor("layers.2.q_proj.weight")
    expected = np.concatenate([heads[:, ::2], heads[:, 1::2]], 1).reshape(96, 64)
    np.testing.assert_array_equal(found, expected)


def test_experts_of_gemma4_are_refused(tmp_path):
    if "gemma4_text" not in FAMILIES:
        pytest.skip("the installed transformers does not know gemma4_text")
    source = tiny_checkpoint("gemma4_text", tmp_path / "source")
    path = tmp_path / "model.gguf"
    write_conversion(source, path, fields={"gemma4.expert_count": 128})
    with pytest.raises(UnsupportedError, match=r"Gemma 4 with experts .* its safetensors"):
        open_source(path)
    write_conversion(source, path, fields={"gemma4.feed_forward_length": [100, 50] * 3})
    with pytest.raises(UnsupportedError, match="feed_forward_length"):
        open_source(path)


def test_ternary_files_keep_their_codes(tmp_path):
    """Files from before llama.cpp wrote which activation have SiLU."""
    source = tiny_checkpoint("bitnet", tmp_path / "source", **CASES["bitnet_silu"][1], **WIDE)
    round_checkpoint(source, "TQ1_0", "proj")
    path = tmp_path / "model.gguf"
    kinds = {"token_embd": "F32"}
    write_conversion(source, path, "TQ1_0", kinds=kinds, fields={"bitnet.hidden_activation": None})
    report = convert(str(path), tmp_path / "out", EXACT)
    assert report.method == "GGUF TQ1_0 as it was"
    original = load_file(source / "model.safetensors")
    with open_artefact(tmp_path / "out") as opened:
        assert opened.spec.activation == "silu"
        weights = WrittenWeights(tmp_path / "out", opened.spec, opened.formats, opened.layout)
        found = weights.tensor("layers.1.q_proj.weight")
        np.testing.assert_array_equal(found, original["model.layers.1.self_attn.q_proj.weight"])
    fields = {"bitnet.hidden_activation": "tanh"}
    write_conversion(source, path, "TQ1_0", kinds=kinds, fields=fields)
    with pytest.raises(UnsupportedError, match="hidden_act is 'tanh'"):
        open_source(path)


@pytest.mark.parametrize("case", CASES)
def test_a_file_computes_what_its_model_computes(tmp_path, case):
    source, path = write(tmp_path, case)
    convert(str(path), tmp_path / "out", EXACT)
    agree(tmp_path / "out", source)
