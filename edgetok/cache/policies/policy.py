"""Policies of a bounded cache: which tokens a KV head keeps.

A policy gives each token a score in float32; the cache evicts those with the lowest, and never
the first tokens, the pinned ones and the latest. One small file each; `POLICIES` names them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgetok.cache.policies.content import content
from edgetok.cache.policies.expected_attention import expected_attention
from edgetok.cache.policies.h2o import h2o
from edgetok.cache.policies.keydiff import keydiff
from edgetok.cache.policies.retain import retain
from edgetok.cache.policies.snapkv import snapkv
from edgetok.cache.policies.tova import tova
from edgetok.cache.policies.view import Floats, HeadView
from edgetok.cache.policies.window import window
from edgetok.errors import OptionError

Score = Callable[[HeadView], Floats]


@dataclass(frozen=True, slots=True)
class Policy:
    """The rule by which a cache chooses.

    Attributes:
        name: as on the command line.
        score: [n] float32 from a head's view, higher is kept.
        queries: whether it asks for the latest queries.
        covariance: whether it asks for the mean and covariance of all of them.
        mass: whether it looks at attention mass; it is counted in any case.
        recent: one in so many slots belongs to the latest tokens, whatever they are worth; where
            heads differ in their slots, `bounds.py` says how many.
        around: how many tokens held before a token, and after it, count with their scores as much
            as its own; not where heads differ in their slots and most are narrow.
        unequal: whether heads that look things up get more slots than others (`bounds.py`).
        kernel: which policy's kernels compute the same scores; empty for those of its own name.
    """

    name: str
    score: Score
    queries: bool = False
    covariance: bool = False
    mass: bool = True
    recent: int = 8
    around: int = 0
    unequal: bool = False
    kernel: str = ""

    @property
    def remembers(self) -> bool:
        """Return whether a score depends on what tokens attended to, those taken back included."""
        return self.queries or self.covariance or self.mass


POLICIES = {
    policy.name: policy
    for policy in (
        Policy("window", window, mass=False),
        Policy("h2o", h2o),
        Policy("tova", tova, queries=True),
        Policy("snapkv", snapkv, queries=True),
        Policy("expected-attention", expected_attention, queries=True, covariance=True),
        Policy("keydiff", keydiff, mass=False),
        Policy("content", content, mass=False, recent=3, around=2),
        Policy("recall", content, mass=False, recent=3, around=2, unequal=True, kernel="content"),
        Policy("retain", retain, mass=False, recent=4),
    )
}


def register(added: Policy) -> None:
    """Let caches use a policy by its name.

    Raises:
        OptionError: there is one of that name.
    """
    if added.name in POLICIES:
        raise OptionError(f"there is a cache policy {added.name!r:.40} already")
    POLICIES[added.name] = added


def policy(name: str) -> Policy:
    """The policy of that name.

    Raises:
        OptionError: there is none.
    """
    if name not in POLICIES:
        raise OptionError(f"cache policy {name!r:.40}, expected one of {', '.join(POLICIES)}")
    return POLICIES[name]
