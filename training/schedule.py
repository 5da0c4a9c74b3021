"""The curriculum as data: recall first, dense and short; then longer; then with language.

Why in this order: a mix of everything from the beginning learns to write and never to look up.
`tokens` of the stages are what an hour on two shared CPU cores did. To go on,
add a stage after the last with a rate that rises again (`lr=(0.5, 0.03)`); `train.py` resumes.
"""

from __future__ import annotations

from dataclasses import replace

from mixture import Stage

SEED = 7
BATCH_TOKENS = 4096

_MIX = {
    "copy": 0.03,
    "terse": 0.1,
    "facts": 0.27,
    "quiz": 0.1,
    "pass_key": 0.05,
    "told_story": 0.24,
    "chat": 0.16,
    "story": 0.05,
}

_LONG = Stage(
    name="long",
    tokens=5_800_000,
    lengths=(256, 512, 1024, 2048, 2048),
    shares={
        "copy": 0.02,
        "terse": 0.08,
        "facts": 0.3,
        "quiz": 0.11,
        "pass_key": 0.05,
        "invented_story": 0.17,
        "story": 0.05,
        "chat": 0.22,
    },
    language_weight=0.4,
    span=(0.2, 1.0),
    lr=(0.6, 0.6),
)
# Values of every kind, so that copying does not go by what was often told (`value_data.py`).
_VALUES = replace(
    _LONG,
    name="values",
    tokens=10_500_000,
    shares={
        "copy": 0.04,
        "terse": 0.12,
        "facts": 0.4,
        "quiz": 0.14,
        "pass_key": 0.04,
        "invented_story": 0.12,
        "story": 0.02,
        "drill": 0.05,
        "chat": 0.09,
    },
    language_weight=0.25,
    lr=(0.5, 0.45),
)
_VALUES_ON = replace(
    _VALUES,
    name="values-on",
    tokens=3_956_000,
    shares={
        "copy": 0.01,
        "terse": 0.08,
        "facts": 0.37,
        "quiz": 0.16,
        "pass_key": 0.03,
        "invented_story": 0.18,
        "story": 0.02,
        "drill": 0.06,
        "chat": 0.12,
    },
    language_weight=0.35,
    lr=(0.45, 0.28),
)

STAGES = (
    Stage(
        name="dense-96",
        tokens=600_000,
        lengths=(96,),
        shares={"copy": 0.2, "terse": 0.5, "facts": 0.2, "quiz": 0.1},
    ),
    Stage(
        name="dense-256",
        tokens=1_200_000,
        lengths=(256,),
        shares={
            "copy": 0.12,
            "terse": 0.3,
            "facts": 0.25,
            "quiz": 0.13,
            "pass_key": 0.05,
            "told_story": 0.1,
            "chat": 0.05,
        },
        language_weight=0.2,
        span=(0.0, 0.4),
    ),
    Stage(
        name="mix-512",
        tokens=6_200_000,
        lengths=(256, 512),
        shares=_MIX,
        language_weight=0.25,
        span=(0.0, 0.9),
    ),
    Stage(
        name="mix-1024",
        tokens=3_600_000,
        lengths=(256, 512, 1024),
        shares=_MIX,
        language_weight=0.25,
        span=(0.0, 0.95),
    ),
    Stage(
        name="mix-2048",
        tokens=6_400_000,
        lengths=(256, 1024, 2048),
        shares=_MIX | {"copy": 0.06, "facts": 0.3},
        language_weight=0.25,
        span=(0.0, 1.0),
        lr=(1.0, 0.03),
    ),
    Stage(
        name="polish",
        tokens=1_500_000,
        lengths=(256, 1024, 2048),
        shares=_MIX | {"facts": 0.34},
        language_weight=0.25,
        span=(0.0, 1.0),
        lr=(0.5, 0.02),
    ),
    Stage(
        name="recall-again",
        tokens=3_000_000,
        lengths=(256, 512, 1024, 2048),
        shares={
            "copy": 0.04,
            "terse": 0.18,
            "facts": 0.42,
            "quiz": 0.16,
            "pass_key": 0.03,
            "told_story": 0.05,
            "chat": 0.12,
        },
        language_weight=0.25,
        span=(0.0, 1.0),
        lr=(0.3, 0.6),
    ),
    Stage(
        name="stories",
        tokens=2_300_000,
        lengths=(256, 512, 1024, 2048),
        shares={
            "copy": 0.03,
            "terse": 0.1,
            "facts": 0.28,
            "quiz": 0.1,
            "pass_key": 0.02,
            "invented_story": 0.2,
            "told_story": 0.07,
            "story": 0.06,
            "chat": 0.14,
        },
        language_weight=0.35,
        span=(0.0, 1.0),
        lr=(0.6, 0.6),
    ),
    Stage(
        name="talk",
        tokens=6_400_000,
        lengths=(256, 512, 1024, 2048),
        shares={
            "copy": 0.03,
            "terse": 0.1,
            "facts": 0.27,
            "quiz": 0.09,
            "pass_key": 0.02,
            "invented_story": 0.22,
            "story": 0.08,
            "chat": 0.2,
        },
        language_weight=0.4,
        span=(0.0, 1.0),
        lr=(0.6, 0.6),
    ),
    _LONG,
    replace(
        _LONG,
        name="settle",
        tokens=3_000_000,
        shares=_LONG.shares
        | {"facts": 0.29, "quiz": 0.12, "story": 0.03, "drill": 0.09, "chat": 0.16},
        lr=(0.6, 0.28),
    ),
    Stage(
        name="finish",
        tokens=2_700_000,
        lengths=(256, 512, 1024, 2048),
        shares={
            "copy": 0.01,
            "terse": 0.06,
            "facts": 0.24,
            "quiz": 0.1,
            "pass_key": 0.04,
            "invented_story": 0.24,
            "story": 0.02,
            "drill": 0.14,
            "chat": 0.15,
        },
        language_weight=0.5,
        span=(0.2, 1.0),
        lr=(0.35, 0.01),
    ),
    replace(_VALUES, name="values-warm", tokens=600_000, lr=(0.05, 0.5)),
    _VALUES,
    _VALUES_ON,
    # Values before their subjects, which takes two steps to look up.
    replace(
        _VALUES_ON,
        name="values-finish",
        tokens=12_000_000,
        shares=_VALUES_ON.shares
        | {
            "terse": 0.14,
            "facts": 0.35,
            "invented_story": 0.15,
            "story": 0.01,
            "drill": 0.05,
            "chat": 0.1,
        },
        lr=(0.4, 0.005),
    ),
)


def at(tokens: int) -> tuple[Stage, float] | None:
    """Return the stage after so many tokens and its learning rate factor; None at the end."""
    for stage in STAGES:
        if tokens < stage.tokens:
            a, b = stage.lr
            return stage, a + (b - a) * tokens / stage.tokens
        tokens -= stage.tokens
    return None
