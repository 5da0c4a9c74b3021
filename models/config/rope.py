"""Reading a rotary embedding from a config, as transformers 4 and as transformers 5 write it.

Version 4 has `rope_theta` and, where scaled, `rope_scaling` with a `rope_type` (once `type`).
Version 5 has one object, `rope_parameters`, with all of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from edgetok.errors import CheckpointError
from edgetok.models.config.reader import ConfigReader
from edgetok.models.spec import RopeScaling, RopeSpec

_TYPES: dict[str, RopeScaling] = {
    "default": "none",
    "linear": "linear",
    "llama3": "llama3",
    "yarn": "yarn",
    "longrope": "longrope",
}
# Dims that rotate by positions in time, height and width, which are equal for text.
AXES = ("mrope_section", "mrope_interleaved")
_THETA = {"low": 1.0 + 1e-6, "high": 1e15}
_NO_ALIASES: Mapping[str, str] = {}


def read_rope(
    config: ConfigReader,
    head_dim: int,
    *,
    theta: float = 1e4,
    share: float | None = None,
    others: tuple[str, ...] = (),
    aliases: Mapping[str, str] = _NO_ALIASES,
) -> RopeSpec:
    """Return the one rotary embedding of a family whose layers share it.

    Args:
        config: the whole config.
        head_dim: dims of a head.
        theta: default for an absent `rope_theta`.
        share: what an absent `partial_rotary_factor` means; None: the family has none.
        others: settings that mean nothing for text, such as `AXES`, or that the family reads.
        aliases: names that the family has for a rope type.

    Raises:
        UnsupportedError: a rope type or one of its settings is unknown.
        CheckpointError: a number is missing, of the wrong type or out of range.
    """
    parameters = config.section("rope_parameters")
    if parameters is None:
        return read_rope_v4(
            config, head_dim, theta=theta, share=share, others=others, aliases=aliases
        )
    if config.has("rope_scaling"):
        raise CheckpointError(
            f"{config.where}: both rope_parameters and rope_scaling are given; remove one"
        )
    if config.has("rope_theta"):
        config.expect("rope_theta", parameters.number("rope_theta", **_THETA))
    return read_rope_parameters(
        config, parameters, head_dim, theta=theta, share=share, others=others, aliases=aliases
    )


def read_layer_ropes(
    config: ConfigReader, head_dim: int, *, theta: float, local_theta: float
) -> tuple[RopeSpec, RopeSpec]:
    """The embeddings of full and of sliding attention, in this order, of a family that has two.

    Version 4 has `rope_local_base_freq` for the sliding layers, version 5 an object a layer type.

    Args:
        config: the whole config.
        head_dim: dims of a head.
        theta: default for an absent `rope_theta`.
        local_theta: what an absent base of the sliding layers means.
    """
    parameters = config.section("rope_parameters")
    if parameters is None:
        full = read_rope_v4(config, head_dim, theta=theta)
        base = config.number("rope_local_base_freq", local_theta, **_THETA)
        return full, RopeSpec(theta=base, rotary_dim=head_dim)
    ropes = []
    for key, default in (("full_attention", theta), ("sliding_attention", local_theta)):
        own = parameters.section(key)
        if own is None:
            raise CheckpointError(f"{parameters.where}: {key} is missing, expected an object")
        ropes.append(read_rope_parameters(config, own, head_dim, theta=default))
    for key in ("rope_theta", "rope_type"):
        parameters.value(key)  # transformers may write them beside both, and reads neither
    parameters.finish()
    return ropes[0], ropes[1]


def read_proportional_rope(
    config: ConfigReader, parameters: ConfigReader, head_dim: int, *, theta: float
) -> RopeSpec:
    """Return the embedding that one object describes, where it may be of the proportional type.

    All dims of a head are in pairs; the first `partial_rotary_factor` of the pairs turn, with the
    frequencies that they would have if all did.
    """
    if parameters.text("rope_type", "default") != "proportional":
        return read_rope_parameters(config, parameters, head_dim, theta=theta)
    share = parameters.number("partial_rotary_factor", 1.0, low=0.0, high=1.0)
    rope = RopeSpec(
        theta=parameters.number("rope_theta", theta, **_THETA),
        rotary_dim=head_dim,
        scaling="proportional",
        factor=parameters.number("factor", 1.0, low=1e-6, high=1e6),
        turning_dim=max(2, 2 * int(share * head_dim // 2)),
    )
    if int(share * head_dim // 2) < 1:
        raise parameters.unsupported("partial_rotary_factor", share, "so much that a pair turns")
    parameters.finish()
    return rope


def read_rope_v4(
    config: ConfigReader,
    head_dim: int,
    *,
    theta: float = 1e4,
    share: float | None = None,
    others: tuple[str, ...] = (),
    aliases: Mapping[str, str] = _NO_ALIASES,
) -> RopeSpec:
    """Return the embedding that `rope_theta` and `rope_scaling` describe."""
    theta = config.number("rope_theta", theta, **_THETA)
    rotary_dim = _rotary_dim(config, head_dim, share)
    scaling = config.section("rope_scaling")
    if scaling is None:
        config.value("original_max_position_embeddings")  # no effect without scaling
        return RopeSpec(theta=theta, rotary_dim=rotary_dim)
    return _scaled(config, scaling, theta, rotary_dim, others, aliases)


def read_rope_parameters(
    config: ConfigReader,
    parameters: ConfigReader,
    head_dim: int,
    *,
    theta: float = 1e4,
    share: float | None = None,
    others: tuple[str, ...] = (),
    aliases: Mapping[str, str] = _NO_ALIASES,
) -> RopeSpec:
    """Return the embedding that one `rope_parameters` object describes."""
    theta = parameters.number("rope_theta", theta, **_THETA)
    if config.has("partial_rotary_factor") and parameters.has("partial_rotary_factor"):
        config.expect("partial_rotary_factor", parameters.value("partial_rotary_factor"))
    outer = _rotary_dim(config, head_dim, share)
    inner = _rotary_dim(parameters, head_dim, share)
    rotary_dim = inner if parameters.has("partial_rotary_factor") else outer
    return _scaled(config, parameters, theta, rotary_dim, others, aliases)


def _rotary_dim(config: ConfigReader, head_dim: int, share: float | None) -> int:
    if share is None:
        config.expect("partial_rotary_factor", 1.0)
        return head_dim
    share = config.number("partial_rotary_factor", share, low=0.0, high=1.0)
    rotary_dim = int(head_dim * share)
    if rotary_dim < 2 or rotary_dim % 2:
        raise CheckpointError(
            f"{config.where}: partial_rotary_factor {share:g} of head_dim {head_dim} gives "
            f"{rotary_dim} dims, expected an even number from 2 on"
        )
    return rotary_dim


def _scaled(
    config: ConfigReader,
    scaling: ConfigReader,
    theta: float,
    rotary_dim: int,
    others: tuple[str, ...],
    aliases: Mapping[str, str],
) -> RopeSpec:
    for key in others:
        scaling.value(key)
    legacy = scaling.text("type", "default")
    name = scaling.text("rope_type", legacy)
    if scaling.has("type") and aliases.get(legacy, legacy) != aliases.get(name, name):
        raise scaling.unsupported("type", legacy, f"the rope_type {name!r} beside it")
    kind = _TYPES.get(aliases.get(name, name))
    if kind is None:
        key = "rope_type" if scaling.has("rope_type") else "type"
        raise scaling.unsupported(key, name, ", ".join(sorted(_TYPES)))
    plain = RopeSpec(theta=theta, rotary_dim=rotary_dim)
    rope = _READERS[kind](config, scaling, plain)
    scaling.finish()
    return rope


def _default(config: ConfigReader, scaling: ConfigReader, plain: RopeSpec) -> RopeSpec:
    for reader in (config, scaling):
        reader.value("original_max_position_embeddings")  # no effect without scaling
    return plain


def _linear(config: ConfigReader, scaling: ConfigReader, plain: RopeSpec) -> RopeSpec:
    return RopeSpec(
        theta=plain.theta,
        rotary_dim=plain.rotary_dim,
        scaling="linear",
        factor=_factor(scaling),
    )


def _llama3(config: ConfigReader, scaling: ConfigReader, plain: RopeSpec) -> RopeSpec:
    low = scaling.number("low_freq_factor", low=1e-6, high=1e6)
    high = scaling.number("high_freq_factor", low=1e-6, high=1e6)
    if high <= low:
        raise CheckpointError(
            f"{scaling.where}: high_freq_factor {high:g} is not above low_freq_factor {low:g}"
        )
    return RopeSpec(
        theta=plain.theta,
        rotary_dim=plain.rotary_dim,
        scaling="llama3",
        factor=_factor(scaling),
        low_freq_factor=low,
        high_freq_factor=high,
        original_context_tokens=_original_context(config, scaling),
    )


def _yarn(config: ConfigReader, scaling: ConfigReader, plain: RopeSpec) -> RopeSpec:
    factor = _factor(scaling)
    mscale = scaling.number("mscale", 0.0, low=0.0, high=1e3)
    mscale_all_dim = scaling.number("mscale_all_dim", 0.0, low=0.0, high=1e3)

    def magnitude(weight: float) -> float:
        return 1.0 + 0.1 * weight * math.log(factor)

    both = bool(mscale and mscale_all_dim)
    derived = magnitude(mscale) / magnitude(mscale_all_dim) if both else magnitude(1.0)
    fallback = config.integer("max_position_embeddings", high=1 << 28)
    return RopeSpec(
        theta=plain.theta,
        rotary_dim=plain.rotary_dim,
        scaling="yarn",
        factor=factor,
        beta_fast=scaling.number("beta_fast", 32.0, low=1e-3, high=1e6),
        beta_slow=scaling.number("beta_slow", 1.0, low=1e-3, high=1e6),
        truncate=scaling.flag("truncate", True),
        original_context_tokens=_original_context(config, scaling, fallback),
        attention_factor=scaling.number("attention_factor", derived, low=1e-6, high=1e6),
    )


def _longrope(config: ConfigReader, scaling: ConfigReader, plain: RopeSpec) -> RopeSpec:
    context = config.integer("max_position_embeddings", high=1 << 28)
    original = _original_context(config, scaling)
    factor = context / original
    if scaling.has("factor") and not scaling.has("attention_factor"):
        # Releases of transformers differ in which of the two they believe.
        scaling.expect("factor", factor)
    scaling.value("factor")
    derived = math.sqrt(1.0 + math.log(factor) / math.log(original)) if factor > 1.0 else 1.0
    pairs = plain.rotary_dim // 2
    return RopeSpec(
        theta=plain.theta,
        rotary_dim=plain.rotary_dim,
        scaling="longrope",
        original_context_tokens=original,
        short_factors=scaling.numbers("short_factor", pairs, low=1e-6, high=1e6),
        long_factors=scaling.numbers("long_factor", pairs, low=1e-6, high=1e6),
        attention_factor=scaling.number("attention_factor", derived, low=1e-6, high=1e6),
    )


def _factor(scaling: ConfigReader) -> float:
    return scaling.number("factor", low=1.0, high=1e6)


def _original_context(
    config: ConfigReader, scaling: ConfigReader, default: int | None = None
) -> int:
    """Return the trained length, from beside the rope settings, inside them, or both."""
    key = "original_max_position_embeddings"
    outer = config.optional_integer(key, None, low=2, high=1 << 28)
    original = scaling.integer(key, outer or default, low=2, high=1 << 28)
    if outer is not None and outer != original:
        raise CheckpointError(
            f"{config.where}: {key} is {outer} and {original} in {scaling.where}; expected one"
        )
    return original


_READERS: dict[RopeScaling, Callable[[ConfigReader, ConfigReader, RopeSpec], RopeSpec]] = {
    "none": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
