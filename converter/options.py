"""What the user may choose about a conversion."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edgetok.errors import OptionError

Method = Literal["rtn", "gptq", "awq", "auto"]
Step = Literal["write", "fold", "search", "gptq", "descent", "tune"]
Order = Literal["group_aware", "plain"]

BITS = (2, 3, 4, 8, 16)
HEAD_BITS = (2, 4, 8, 16)
GROUP_SIZES = (32, 64, 128)
LEARNED_WHOLE = 20_000_000  # weights; beyond, copies in float32 and the steps' time are too much
REFINED = 300


def learns_whole(parameters: int) -> bool:
    """Whether a model of so many weights learns as a whole, not block by block."""
    return parameters <= LEARNED_WHOLE


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """How to convert.

    Attributes:
        bits: of the linear layers; 16 quantises nothing.
        method: round to nearest, GPTQ, AWQ, or the recipe of several steps; without meaning for 16
            bits.
        without: steps that the recipe leaves out; see `recipe`.
        refine: over how many batches the recipe learns codes, too; None: `REFINED` at 2 and 3
            bits of models that learn as a whole (see `quantise/train_model.py`), else 0.
        group_size: inputs that share a scale.
        head_bits: of the output head and the embedding; None: 8, or 16 where `bits` is 16.
        symmetric: no zero points.
        calibration: a text of the user's own; None: the one that ships with edgetok and, where it
            is not too large for that, as much again that the model writes.
        calibration_windows: how many pieces of it are used to calibrate gptq and awq. 64 took twice
            as long on a model of 4 million weights and were no better (KL 0.053 against 0.052).
        window_tokens: their length, capped by the model's context.
        reference_tokens: how many held-out tokens the result is compared with the original on; 0:
            none. None: 4096, or on more than 10^8 weights 2048, and 0 for rtn and 16 bits.
        damping: gptq adds this share of the Hessian's mean diagonal to it.
        order: in which gptq quantises a layer's inputs: greatest activation first within and among
            groups, or as they stand.
        revision: of a hub repository.
    """

    bits: int = 4
    method: Method = "auto"
    without: tuple[Step, ...] = ()
    refine: int | None = None
    group_size: int = 32
    head_bits: int | None = None
    symmetric: bool = False
    calibration: Path | None = None
    calibration_windows: int = 32
    window_tokens: int = 512
    reference_tokens: int | None = None
    damping: float = 0.01
    order: Order = "group_aware"
    revision: str | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            OptionError: naming the option, the value and what it may be.
        """
        choices: dict[str, tuple[Any, ...]] = {
            "bits": BITS,
            "method": get_args(Method),
            "group_size": GROUP_SIZES,
            "head_bits": (None, *HEAD_BITS),
            "order": get_args(Order),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                known = ", ".join(str(item) for item in allowed if item is not None)
                raise OptionError(f"{name} is {value!r}, expected one of {known}")
        for name, low, high in (
            ("calibration_windows", 1, 65536),
            ("refine", 0, 1 << 20),
            ("window_tokens", 2, 65536),
            ("reference_tokens", 0, 1 << 24),
        ):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not low <= value <= high):
                raise OptionError(f"{name} is {value!r}, expected an integer in {low}..{high}")
        for step in self.without:
            if step not in get_args(Step):
                known = ", ".join(get_args(Step))
                raise OptionError(f"without is {step!r}, expected one of {known}")
        if self.without and self.method != "auto":
            raise OptionError(
                f"without {self.without[0]}: --method {self.method} is no recipe of steps; use "
                "--method auto"
            )
        if self.refine and self.method != "auto":
            raise OptionError(
                f"refine is {self.refine}: --method {self.method} learns nothing; use --method auto"
            )
        if self.refine and "tune" in self.without:
            raise OptionError(f"refine is {self.refine}: part of the step tune, which is left out")
        if not 0 < self.damping <= 1:
            raise OptionError(f"damping is {self.damping!r}, expected a number in (0, 1]")

    @property
    def quantises(self) -> bool:
        """Whether linear layers become codes."""
        return self.bits < 16

    @property
    def calibrates(self) -> bool:
        """Whether the method looks at activations."""
        return self.quantises and self.method != "rtn"

    @property
    def steps(self) -> frozenset[Step]:
        """Of the recipe; gptq and awq are one step each, as their papers have them."""
        if self.method == "auto":
            return frozenset(get_args(Step)) - frozenset(self.without)
        if self.method == "rtn":
            return frozenset()
        return frozenset({"gptq"} if self.method == "gptq" else {"fold"})

    def refinement(self, parameters: int) -> int:
        """Over how many batches a model of so many weights learns codes."""
        if self.refine is not None:
            return self.refine
        wanted = self.bits <= 3 and "tune" in self.steps and learns_whole(parameters)
        return REFINED if wanted else 0

    @property
    def effective_head_bits(self) -> int:
        """Bits of the output head and the embedding."""
        if self.head_bits is not None:
            return self.head_bits
        return 8 if self.quantises else 16

    def to_json(self) -> dict[str, Any]:
        """As plain values, for the report and the journal."""
        values = dataclasses.asdict(self)
        values["calibration"] = None if self.calibration is None else self.calibration.name
        values["without"] = sorted(self.without)
        values["head_bits"] = self.effective_head_bits
        return values


REFERENCE_TOKENS = 4096
