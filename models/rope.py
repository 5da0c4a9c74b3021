"""The frequencies of rotary position embeddings.

Dims i and i + rotary_dim / 2 of a head are rotated by the angle position * f_i; without scaling
f_i = theta ** (-2 i / rotary_dim) (arXiv 2104.09864).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgetok.models.spec import RopeSpec

Frequencies = npt.NDArray[np.float64]


def inv_freq(rope: RopeSpec, capacity_tokens: int) -> Frequencies:
    """Return the angle per position of each pair.

    Args:
        rope: the embedding.
        capacity_tokens: the most positions that the conversation or graph may reach. Longrope
            rotates every position by its long factors where that exceeds the original context, so
            that keys in the cache never have to be rotated again.

    Returns:
        [rotary_dim / 2] float64, radians. cos and sin are to be multiplied by
        `rope.attention_factor`.

    Source:
        linear: arXiv 2306.15595. llama3: Llama 3.1's release (`apply_scaling`). yarn: arXiv
        2309.00071, section 3. longrope: arXiv 2402.13753. proportional: transformers 5,
        `_compute_proportional_rope_parameters`.
    """
    exponents = np.arange(0, rope.rotary_dim, 2, dtype=np.float64) / rope.rotary_dim
    base: Frequencies = np.power(rope.theta, -exponents)
    if rope.scaling == "linear":
        return base / rope.factor
    if rope.scaling == "proportional":
        base[rope.turning_dim // 2 :] = 0.0
        return base / rope.factor
    if rope.scaling == "llama3":
        return _llama3(rope, base)
    if rope.scaling == "yarn":
        return _yarn(rope, base)
    if rope.scaling == "longrope":
        is_long = capacity_tokens > rope.original_context_tokens
        return base / np.array(rope.long_factors if is_long else rope.short_factors, np.float64)
    return base


def _llama3(rope: RopeSpec, base: Frequencies) -> Frequencies:
    """Slow waves are stretched by `factor`, fast ones kept, those between blended."""
    turns = rope.original_context_tokens * base / (2 * math.pi)
    span = rope.high_freq_factor - rope.low_freq_factor
    keep = np.clip((turns - rope.low_freq_factor) / span, 0.0, 1.0)
    return base * (keep + (1.0 - keep) / rope.factor)


def _yarn(rope: RopeSpec, base: Frequencies) -> Frequencies:
    """Blend as llama3 does, but linearly in the index of the pair instead of the frequency."""

    def pair_with(turns: float) -> float:
        wavelength = rope.original_context_tokens / (turns * 2 * math.pi)
        return rope.rotary_dim * math.log(wavelength) / (2 * math.log(rope.theta))

    # Rounding outwards and the bounds are those of the paper's code; the upper one counts dims.
    fast, slow = pair_with(rope.beta_fast), pair_with(rope.beta_slow)
    if rope.truncate:
        fast, slow = math.floor(fast), math.ceil(slow)
    first, last = max(fast, 0), min(slow, rope.rotary_dim - 1)
    width = last - first if last != first else 0.001
    stretch: Frequencies = np.clip((np.arange(rope.rotary_dim // 2) - first) / width, 0.0, 1.0)
    return base * (1.0 - stretch + stretch / rope.factor)
