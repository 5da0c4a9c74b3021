"""Scores of heads, against attention weights that transformers computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgetok.converter.convert import ConvertOptions, convert
from edgetok.errors import OptionError
from edgetok.runtime.cpu.measure_heads import PHRASE_TOKENS, recall_scores
from tests.tiny import VOCAB_SIZE, load_reference, tiny_checkpoint

BETWEEN = 30  # tokens before each phrase


def test_scores_are_the_attention_to_what_is_repeated(tmp_path):
    source = tiny_checkpoint("llama", tmp_path / "model", max_position_embeddings=256)
    convert(str(source), tmp_path / "out", ConvertOptions(bits=16, reference_tokens=0))
    rng = np.random.default_rng(4)
    texts = [rng.integers(3, VOCAB_SIZE, 150).astype(np.int32) for _ in range(2)]
    scores = recall_scores(tmp_path / "out", texts, threads=1)
    assert scores == recall_scores(tmp_path / "out", texts, threads=2)

    model = load_reference(source)
    config = model.config
    model.set_attn_implementation("eager")
    group = config.num_attention_heads // config.num_key_value_heads
    expected = np.zeros((config.num_hidden_layers, config.num_key_value_heads))
    step, count = BETWEEN + PHRASE_TOKENS, 3  # phrases of 16 that fit into 150 tokens
    for text, other in (texts, texts[::-1]):
        phrases = [other[i * step + BETWEEN : (i + 1) * step] for i in range(count)]
        parts = []
        for i, phrase in enumerate(phrases):
            parts += [text[i * BETWEEN : (i + 1) * BETWEEN], phrase]
        told = np.concatenate([*parts, text[count * BETWEEN :]])[: 256 - PHRASE_TOKENS]
        for i, phrase in enumerate(phrases):
            ids = torch.from_numpy(np.concatenate([told, phrase])[None].astype(np.int64))
            with torch.no_grad():
                layers = model(ids, output_attentions=True).attentions
            for layer, weights in enumerate(layers):
                # [KH, G, repeated tokens, told tokens], summed over query heads.
                seen = weights[0, :, -PHRASE_TOKENS:, : len(told)].double().numpy()
                mass = seen.reshape(-1, group, *seen.shape[1:]).sum(axis=(1, 2)) / PHRASE_TOKENS
                to = [mass[:, j * step + BETWEEN : (j + 1) * step].sum(-1) for j in range(count)]
                others = np.mean([to[j] for j in range(count) if j != i], axis=0)
                expected[layer] += (to[i] - others) / count / 2
    error = np.abs(np.array(scores) - expected).max()
    assert error < 0.02 * np.abs(expected).max()


def test_what_cannot_be_measured(tmp_path):
    source = tiny_checkpoint("llama", tmp_path / "model")  # trained for 64 tokens
    convert(str(source), tmp_path / "out", ConvertOptions(bits=16, reference_tokens=0))
    texts = [np.arange(3, 60, dtype=np.int32)] * 2
    assert not np.any(recall_scores(tmp_path / "out", texts, threads=1))
    with pytest.raises(OptionError, match="at least 2"):
        recall_scores(tmp_path / "out", texts[:1], threads=1)
