"""Measure other engines on the same sizes, for `gpu.py`: transformers, and torch's 4-bit product.

`seconds(device, work, repeats)` of `gpu.py` times a call.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from edgetok.formats.layout import linear_shapes
from edgetok.kernels_gpu.device import Device
from edgetok.models.spec import DecoderSpec

Seconds = Callable[..., float]


def transformers_bf16(
    device: Device, spec: DecoderSpec, args: argparse.Namespace, seconds: Seconds
) -> dict[str, Any]:
    """Return tokens/s of decoding and prefill with transformers in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

    where = device.torch_device
    config = LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        tie_word_embeddings=spec.tied,
        max_position_embeddings=8192,
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        with where:
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    tokens = max(args.prompt, args.depth)
    ids = torch.randint(0, spec.vocab_size, (1, tokens), device=where)
    prompt = ids[:, : args.prompt]
    with torch.inference_mode():
        prefill_s = seconds(device, lambda: model(prompt, use_cache=False, logits_to_keep=1), 5)
        cache = StaticCache(config, max_cache_len=args.depth + 256)
        model(ids[:, : args.depth], past_key_values=cache, logits_to_keep=1)
        at = torch.tensor([args.depth], device=where)

        def step() -> None:
            model(ids[:, :1], past_key_values=cache, cache_position=at).logits.argmax().item()

        step_s = seconds(device, step, 50)
    return {
        "transformers_bf16_decode_tokens_per_s": 1 / step_s,
        "transformers_bf16_prefill_tokens_per_s": args.prompt / prefill_s,
    }


def torch_int4(device: Device, spec: DecoderSpec, seconds: Seconds) -> dict[str, Any]:
    """Return tokens/s of all products of one token with torch's `_weight_int4pack_mm`."""
    if device.interpreted or not hasattr(torch.ops.aten, "_weight_int4pack_mm"):
        return {"torch_int4_products_tokens_per_s": None}
    where, total = device.torch_device, 0.0
    sizes: dict[tuple[int, int], int] = {}
    for linear_name, shape in linear_shapes(spec).items():
        if linear_name != "embed_tokens":
            sizes[shape.N, shape.K] = sizes.get((shape.N, shape.K), 0) + 1
    for (N, K), count in sizes.items():
        codes = torch.randint(0, 255, (N, K // 2), dtype=torch.uint8, device=where)
        packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
        scales = torch.ones((K // 32, N, 2), dtype=torch.bfloat16, device=where)
        x = torch.randn((1, K), dtype=torch.bfloat16, device=where)
        total += count * seconds(
            device,
            lambda x=x, p=packed, s=scales: torch.ops.aten._weight_int4pack_mm(x, p, 32, s),
        )
    return {"torch_int4_products_tokens_per_s": 1 / total}
