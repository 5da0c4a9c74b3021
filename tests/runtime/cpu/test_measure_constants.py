"""Constants of the cache, against the definition on keys and queries that transformers computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from edgetok.converter.convert import ConvertOptions, convert
from edgetok.errors import OptionError
from edgetok.formats.artefact import open_artefact
from edgetok.formats.layout import constant_shapes
from edgetok.models.rope import inv_freq
from edgetok.runtime.cpu.measure_constants import constants_of
from tests.tiny import VOCAB_SIZE, load_reference, tiny_checkpoint

TOKENS = 40


def test_constants(tmp_path):
    source = tiny_checkpoint("llama", tmp_path / "llama")
    convert(str(source), tmp_path / "out", ConvertOptions(bits=16, reference_tokens=0))
    rng = np.random.default_rng(3)
    texts = [rng.integers(0, VOCAB_SIZE, TOKENS).astype(np.int32) for _ in range(2)]
    made = {n: constants_of(tmp_path / "out", texts, threads=n) for n in (1, 2)}
    for name, values in made[1].items():
        np.testing.assert_array_equal(values, made[2][name])

    model = load_reference(source)
    config = model.config
    keys, queries = [], []  # [layers, KH, T, D] and [layers, T, H, D] of each text
    for text in texts:
        seen = []

        def note(_module, _inputs, output, seen=seen):
            seen.append(output)

        hooks = [layer.self_attn.q_proj.register_forward_hook(note) for layer in model.model.layers]
        cache = DynamicCache()
        with torch.no_grad():
            model(torch.from_numpy(text[None].astype(np.int64)), past_key_values=cache)
        for hook in hooks:
            hook.remove()
        keys.append(np.stack([layer.keys[0].double().numpy() for layer in cache.layers]))
        shape = (TOKENS, config.num_attention_heads, config.head_dim)
        queries.append(np.stack([q.double().numpy().reshape(shape) for q in seen]))

    with open_artefact(tmp_path / "out") as artefact:
        spec = artefact.spec
    assert {name: values.shape for name, values in made[1].items()} == constant_shapes(spec)
    frequencies = inv_freq(spec.ropes[0], TOKENS)

    def turn(x, positions):
        half = x.shape[-1] // 2
        a, b = x[..., :half], x[..., half:]
        cos, sin = (
            np.cos(positions[:, None] * frequencies),
            np.sin(positions[:, None] * frequencies),
        )
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    positions = np.arange(TOKENS)
    every = np.arange(spec.context_tokens)
    for layer in range(config.num_hidden_layers):
        for head in range(config.num_key_value_heads):
            own = [text[layer, head] for text in keys]
            mean = np.concatenate([turn(k, -positions) for k in own]).mean(axis=0)
            centre = turn(np.repeat(mean[None], len(every), axis=0), every).mean(axis=0)

            def squares(c, own=own):
                both = np.concatenate(own) - c
                return (np.square(both).mean(0) + np.square([k[0] - c for k in own]).mean(0)) / 2

            if squares(centre).sum() >= squares(0.0).sum():
                centre = np.zeros_like(centre)
            group = config.num_attention_heads // config.num_key_value_heads
            asked = np.concatenate(
                [q[layer][:, group * head : group * (head + 1)] for q in queries]
            )
            asked, k = np.square(asked).mean(axis=(0, 1)), squares(centre)
            half = len(k) // 2
            ratio = np.tile((asked[:half] + asked[half:]) / (k[:half] + k[half:]), 2) ** 0.25
            factor = ratio / np.exp(np.log(ratio).mean())
            name = f"layers.{layer}.keys."
            np.testing.assert_allclose(made[1][name + "centre"][head], centre, atol=2e-4)
            np.testing.assert_allclose(made[1][name + "factor"][head], factor, rtol=2e-3)
            np.testing.assert_allclose(made[1][name + "query_factor"][head] * factor, 1, rtol=2e-3)


def test_nothing_to_measure_on(tmp_path):
    with pytest.raises(OptionError, match="no tokens"):
        constants_of(tmp_path, [])
