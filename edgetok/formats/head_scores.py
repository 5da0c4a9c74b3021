"""Scores of KV heads that look for earlier text, as in a quality card (`report.json`).

    "heads": {"tokens": 576, "recall": [[0.001, 0.0, 0.31], ...]}

The score of a head is the attention that the tokens of a repeated phrase give to the place where
it was said first, less what they give to other phrases: sums of softmax weights of its query heads,
mean over tokens. One list a layer, one number a KV head; 0 where nothing was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgetok.models.spec import DecoderSpec

HeadScores = Mapping[tuple[int, int], float]  # by (layer, KV head)


def head_scores(report: Mapping[str, Any] | None, spec: DecoderSpec) -> HeadScores | None:
    """Return the scores of the heads that see every token; None where they were not measured.

    Args:
        report: `Artefact.report`. Entries that are not as the converter writes them count as none.
        spec: the decoder.
    """
    entry = (report or {}).get("heads")
    rows = entry.get("recall") if isinstance(entry, dict) else None
    if not isinstance(rows, list) or len(rows) != spec.num_layers:
        return None
    found: dict[tuple[int, int], float] = {}
    for layer in spec.attention_layers:
        row = rows[layer]
        if not isinstance(row, list) or len(row) != spec.kv_sizes(layer)[0]:
            return None
        for head, score in enumerate(row):
            if not isinstance(score, int | float) or not math.isfinite(score):
                return None
            if spec.layers[layer].window == 0:
                found[layer, head] = float(score)
    return found or None
