"""Policies of a bounded cache: which tokens a KV head keeps.

A policy gives each token a score in float32; the cache forgets those with the lowest, and never
the first tokens, the pinned ones and the latest. One small file each; `POLICIES` names them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgetok.cache.expected_attention import expected_attention
from edgetok.cache.h2o import h2o
from edgetok.cache.keydiff import keydiff
from edgetok.cache.retain import retain
from edgetok.cache.snapkv import snapkv
from edgetok.cache.tova import tova
from edgetok.cache.view import Floats, HeadView
from edgetok.cache.window import window
from edgetok.errors import OptionError

Score = Callable[[HeadView], Floats]


@dataclass(frozen=True, slots=True)
class Policy:
    """How a cache chooses.

    Attributes:
        name: as on the command line.
        score: [n] float32 from a head's view, higher is kept.
        shared_budget: whether heads compete for slots; scores are then shares of a head's worth
            that add up to 1.
        covariance: whether it asks for the queries' covariance.
    """

    name: str
    score: Score
    shared_budget: bool = False
    covariance: bool = False


POLICIES = {
    policy.name: policy
    for policy in (
        Policy("window", window),
        Policy("h2o", h2o),
        Policy("tova", tova),
        Policy("snapkv", snapkv),
        Policy("expected-attention", expected_attention, covariance=True),
        Policy("keydiff", keydiff),
        Policy("retain", retain, covariance=True),
    )
}


def policy(name: str) -> Policy:
    """The policy of that name.

    Raises:
        OptionError: there is none.
    """
    if name not in POLICIES:
        raise OptionError(f"cache policy {name!r:.40}, expected one of {', '.join(POLICIES)}")
    return POLICIES[name]
