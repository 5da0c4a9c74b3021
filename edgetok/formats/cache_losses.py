"""The cost of KV caches of few bits, as a quality card (`report.json`) has it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOST_CACHE_KL = 0.05  # nats; beyond, as much as 4-bit weights cost


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLoss:
    """The cost of a KV cache of few bits, beside one of 32 bits.

    Attributes:
        kv_bits: bits of each key and value.
        kl: mean Kullback-Leibler divergence, in nats.
        top1_agreement: share of positions where both have the same most likely token.
        tokens: number of predictions compared.
    """

    kv_bits: int
    kl: float
    top1_agreement: float
    tokens: int


def cache_losses(report: Mapping[str, Any] | None) -> dict[int, float]:
    """Return the KL of each measured `kv_bits`, in nats; empty where none was measured.

    Args:
        report: `Artefact.report`. Entries that are not as the converter writes them are left out.
    """
    entries = (report or {}).get("cache")
    losses: dict[int, float] = {}
    for entry in entries if isinstance(entries, list) else ():
        bits, kl = (
            (entry.get("kv_bits"), entry.get("kl")) if isinstance(entry, dict) else (None,) * 2
        )
        if type(bits) is int and isinstance(kl, int | float) and math.isfinite(kl):
            losses[bits] = float(kl)
    return losses


def loss_text(kv_bits: int, kl: float) -> str:
    """Return a line for people, such as "4 bits lose 0.1700 nats, which changes its answers"."""
    harm = ", which changes its answers" if kl > MOST_CACHE_KL else ""
    return f"{kv_bits} bits lose {kl:.4f} nats{harm}"
