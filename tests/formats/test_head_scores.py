"""Scores of heads in a quality card; a card that is not as the converter writes it has none."""

from __future__ import annotations

import pytest

from edgetok.formats.head_scores import head_scores
from edgetok.models import DecoderSpec, LayerSpec, RopeSpec

ROWS = [[0.5, 0], [0.1, 0.2], [0.0, -0.25]]


SPEC = DecoderSpec(
    family="test",
    vocab_size=11,
    hidden_size=8,
    intermediate_size=8,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    layers=(LayerSpec(), LayerSpec(window=9), LayerSpec()),
    ropes=(RopeSpec(theta=1e4, rotary_dim=16),),
    context_tokens=200,
    norm_eps=1e-5,
    attn_scale=0.25,
)


def test_heads_of_layers_that_see_every_token():
    assert head_scores({"heads": {"tokens": 9, "recall": ROWS}}, SPEC) == {
        (0, 0): 0.5,
        (0, 1): 0.0,
        (2, 0): 0.0,
        (2, 1): -0.25,
    }


@pytest.mark.parametrize(
    "report",
    [
        None,
        {},
        {"heads": None},
        {"heads": {"recall": ROWS[:2]}},
        {"heads": {"recall": [*ROWS[:2], [0.5]]}},
        {"heads": {"recall": [*ROWS[:2], [0.5, "1"]]}},
        {"heads": {"recall": [*ROWS[:2], [0.5, float("nan")]]}},
        {"heads": {"recall": [*ROWS[:2], 3]}},
    ],
)
def test_other_cards_have_none(report):
    assert head_scores(report, SPEC) is None
