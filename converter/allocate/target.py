"""The target of a conversion, given instead of bits: a size or a loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgetok.converter.allocate.scope import WIDE, Scope, around
from edgetok.converter.options import REFERENCE_TOKENS, ConvertOptions
from edgetok.errors import OptionError
from edgetok.formats.layout import TensorFormat, plan
from edgetok.models.spec import DecoderSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The target of a conversion: a size or a loss.

    Attributes:
        nbytes: most bytes of weights and cache.
        most_kl: greatest KL to the original, nats.
        context_tokens: whose cache is part of `nbytes`; 0: none.
        cache_bytes: how large a cache is for a decoder and a number of tokens.
        padded: whether the pages that tensors begin with count, as they do in memory; without them
            different choices compare on their weights alone.
        average_bits: the width whose bytes they are, where that was asked for; 0: a size was.
    """

    nbytes: int | None = None
    most_kl: float | None = None
    context_tokens: int = 0
    cache_bytes: Callable[[DecoderSpec, int], int] | None = None
    padded: bool = True
    average_bits: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be aimed at.

        Raises:
            OptionError: both or neither, or a value out of range.
        """
        if (self.nbytes is None) == (self.most_kl is None):
            raise OptionError("give either --fit SIZE or --max-kl X")
        if self.most_kl is not None and not 0 < self.most_kl < math.inf:
            raise OptionError(f"--max-kl is {self.most_kl:g}, expected a number above 0")
        if self.context_tokens < 0:
            raise OptionError(f"--context is {self.context_tokens}, expected 1 or more tokens")
        if self.context_tokens and (self.nbytes is None or self.cache_bytes is None):
            raise OptionError("--context needs --fit SIZE; add it, or remove --context")

    @classmethod
    def spreading(cls, spec: DecoderSpec, formats: Mapping[str, TensorFormat], bits: int) -> Target:
        """Return the bytes that `formats`, which have `bits` in all layers, take."""
        nbytes = plan(spec, formats, constants=True).weight_bytes
        return cls(nbytes=nbytes, padded=False, average_bits=bits)

    @property
    def scope(self) -> Scope:
        """Return what is measured for it."""
        return around(self.average_bits) if self.average_bits else WIDE

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the journal."""
        return {
            "nbytes": self.nbytes,
            "most_kl": self.most_kl,
            "context_tokens": self.context_tokens,
            "padded": self.padded,
        }

    def options(self, options: ConvertOptions) -> ConvertOptions:
        """Options with which it can be aimed at: a width, and a comparison if it is a loss."""
        bits = min(options.bits, 8)
        tokens = options.reference_tokens
        if self.most_kl is not None and not tokens:
            tokens = REFERENCE_TOKENS
        return dataclasses.replace(options, bits=bits, reference_tokens=tokens)
