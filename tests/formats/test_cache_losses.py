"""Losses of caches on a card, whoever wrote the card."""

from __future__ import annotations

import pytest

from edgetok.formats.cache_losses import cache_losses, loss_text


def test_losses():
    report = {"cache": [{"kv_bits": 8, "kl": 0.001, "tokens": 256}, {"kv_bits": 4, "kl": 1}]}
    assert cache_losses(report) == {8: 0.001, 4: 1.0}
    assert loss_text(8, 0.001) == "8 bits lose 0.0010 nats"
    assert loss_text(4, 0.06) == "4 bits lose 0.0600 nats, which changes its answers"


@pytest.mark.parametrize(
    "report",
    [
        None, {}, {"cache": None}, {"cache": {"kv_bits": 8}}, {"cache": [7, {}, {"kv_bits": 8}]},
        {"cache": [{"kv_bits": "8", "kl": 0.1}, {"kv_bits": True, "kl": 0.1}]},
        {"cache": [{"kv_bits": 8, "kl": float("nan")}, {"kv_bits": 8, "kl": "0.1"}]},
    ],
)  # fmt: skip
def test_odd_cards(report):
    assert cache_losses(report) == {}
