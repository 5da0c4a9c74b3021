"""The canonical tensors of a decoder and their shapes before quantisation."""

from __future__ import annotations

from edgetok.models.spec import DecoderSpec


def tensor_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor that `spec` calls for, by canonical name, in order of execution.

    Linear layers are [N, K] with their `.bias` [N] after them; norms are [size]. `lm_head.weight`
    is missing where the head is tied to the embedding.
    """
    hidden, inner = spec.hidden_size, spec.intermediate_size
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    qk_norms: dict[str, tuple[int, ...]] = {}
    if spec.qk_norm == "head":
        qk_norms = {"q_norm": (spec.head_dim,), "k_norm": (spec.head_dim,)}
    elif spec.qk_norm == "full":
        qk_norms = {"q_norm": (queries,), "k_norm": (keys,)}

    layer: dict[str, tuple[int, ...]] = {}

    def add(module: str, shape: tuple[int, ...], bias: bool = False) -> None:
        layer[f"{module}.weight"] = shape
        if bias:
            layer[f"{module}.bias"] = shape[:1]

    if spec.pre_norm:
        add("input_norm", (hidden,))
    add("q_proj", (queries, hidden), spec.qkv_bias)
    add("k_proj", (keys, hidden), spec.qkv_bias)
    add("v_proj", (keys, hidden), spec.qkv_bias)
    for name, shape in qk_norms.items():
        add(name, shape)
    add("o_proj", (hidden, queries), spec.o_bias)
    if spec.post_norm:
        add("post_attention_norm", (hidden,))
    if spec.pre_norm:
        add("pre_mlp_norm", (hidden,))
    add("gate_proj", (inner, hidden), spec.mlp_bias)
    add("up_proj", (inner, hidden), spec.mlp_bias)
    add("down_proj", (hidden, inner), spec.mlp_bias)
    if spec.post_norm:
        add("post_mlp_norm", (hidden,))

    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (spec.vocab_size, hidden)}
    for i in range(spec.num_layers):
        shapes.update({f"layers.{i}.{name}": shape for name, shape in layer.items()})
    shapes["final_norm.weight"] = (hidden,)
    if not spec.tied:
        shapes["lm_head.weight"] = (spec.vocab_size, hidden)
    return shapes
