"""Limits that a user sets for a bounded cache."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_POLICY = "recall"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLimits:
    """The limits of a cache for a conversation of any length.

    Attributes:
        policy: name of the policy that chooses what is kept.
        budget_bytes: most bytes of the cache; None takes as many slots as the context has tokens.
    """

    policy: str = DEFAULT_POLICY
    budget_bytes: int | None = None
