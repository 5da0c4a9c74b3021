"""Options of a conversion."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from edgetok.errors import OptionError

Method = Literal["rtn", "gptq", "awq", "auto"]
Step = Literal["write", "fold", "search", "gptq", "descent", "tune"]
Order = Literal["group_aware", "plain"]

BITS = (2, 3, 4, 8, 16)
HEAD_BITS = (2, 4, 8, 16)
GROUP_SIZES = (32, 64, 128)
LEARNED_WHOLE = 20_000_000  # weights; beyond, copies in float32 and the steps' time are too much
REFINED = 300
_QUICK_TO_MEASURE = 100_000_000  # weights; where larger ones are only rounded, half is measured


def learns_whole(parameters: int) -> bool:
    """Return whether a model of this size is trained as a whole, not block by block."""
    return parameters <= LEARNED_WHOLE


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """Options of a conversion.

    A field whose annotation holds a help text is a flag of `edgetok convert`, too.

    Attributes:
        calibration_windows: pieces of the calibration text that gptq and awq use. 64 took twice
            as long on a model of 4 million weights and were not better (KL 0.053 against 0.052).
        window_tokens: their length, at most the model's context.
        reference_tokens: held-out tokens on which the result is compared with the original; 0:
            none. None: 4096, or on more than 10^8 weights 2048, and 0 for rtn and 16 bits.
        damping: share of the Hessian's mean diagonal that gptq adds to the diagonal.
        keep_codes: whether a GGUF file's integers are kept, whatever bits and method say; types
            that cannot be get 8 bits. Otherwise they are dequantised and quantised as asked.
        order: order in which gptq quantises a layer's inputs: greatest activation first within and
            among groups, or as they are stored.
    """

    bits: Annotated[
        int,
        "Bits of the linear layers, e.g. 4; 16 keeps them as float16. Below 8, --method auto takes "
        "them as an average, and tensors that lose more get more.",
    ] = 4
    method: Annotated[
        Method,
        "How weights are rounded. auto loses least. gptq takes a third of the time on a small "
        "model. rtn (round to nearest) needs no calibration.",
    ] = "auto"
    without: Annotated[
        tuple[Step, ...],
        "Leave out a step of --method auto, e.g. tune. May be given several times.",
    ] = ()
    refine: Annotated[
        int | None,
        "Have --method auto train the integers as well, over N batches of text; slow on a large "
        "model.  [default: 300 at 2 and 3 bits up to 20 million weights, else 0]",
    ] = None
    group_size: Annotated[int | None, "Number of inputs that share a scale.  [default: 32]"] = None
    head_bits: Annotated[
        int | None, "Bits of the output head and the embedding.  [default: 8, or 16 with --bits 16]"
    ] = None
    symmetric: Annotated[bool, "Store no zero points."] = False
    uniform: Annotated[
        bool,
        "Give all layers the same width, instead of spreading the same number of bytes by what "
        "each tensor loses.",
    ] = False
    portable: Annotated[
        bool,
        "Choose only formats that other engines keep at their size: no table of levels, no 5 and 6 "
        "bits.",
    ] = False
    calibration: Annotated[
        Path | None,
        "Text file to calibrate on, instead of the built-in text and text that the model "
        "generates.",
    ] = None
    measure_cache: Annotated[
        bool,
        "Measure the KV cache's constants and what its widths cost. Without, caches of few bits "
        "lose more, and the card does not say how much.",
    ] = True
    calibration_windows: int = 32
    window_tokens: int = 512
    reference_tokens: int | None = None
    damping: float = 0.01
    keep_codes: bool = True
    order: Order = "group_aware"
    revision: Annotated[str | None, "Branch, tag or commit of a hub repository, e.g. main."] = None

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            OptionError: names the option, its value and what it may be.
        """
        choices: dict[str, tuple[Any, ...]] = {
            "bits": BITS,
            "method": get_args(Method),
            "group_size": (None, *GROUP_SIZES),
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
                f"without {self.without[0]}: --method {self.method} has no steps; use --method auto"
            )
        if self.refine and self.method != "auto":
            raise OptionError(
                f"refine is {self.refine}: --method {self.method} trains nothing; use --method auto"
            )
        if self.refine and "tune" in self.without:
            raise OptionError(
                f"refine is {self.refine}: --without tune leaves that step out; remove one"
            )
        if not 0 < self.damping <= 1:
            raise OptionError(f"damping is {self.damping!r}, expected a number in (0, 1]")

    @property
    def quantises(self) -> bool:
        """Return whether linear layers are quantised."""
        return self.bits < 16

    @property
    def calibrates(self) -> bool:
        """Return whether the method needs activations."""
        return self.quantises and self.method != "rtn"

    @property
    def spreads(self) -> bool:
        """Return whether the bytes of one width are spread over tensors by what each loses.

        Not where an option asks for one format; and no tensor has more than 8 bits.
        """
        one = self.uniform or self.symmetric or self.group_size or self.head_bits
        return self.method == "auto" and self.bits < 8 and not one

    @property
    def steps(self) -> frozenset[Step]:
        """Return the recipe's steps; gptq and awq are one step each, as in their papers."""
        if self.method == "auto":
            return frozenset(get_args(Step)) - frozenset(self.without)
        if self.method == "rtn":
            return frozenset()
        return frozenset({"gptq"} if self.method == "gptq" else {"fold"})

    def refinement(self, parameters: int) -> int:
        """Return the number of batches over which the codes of a model of this size are trained."""
        if self.refine is not None:
            return self.refine
        wanted = self.bits <= 3 and "tune" in self.steps and learns_whole(parameters)
        return REFINED if wanted else 0

    def cache_divisor(self, parameters: int) -> int:
        """Return what the text is divided by on which a model's KV cache is measured."""
        return 2 if not self.calibrates and parameters > _QUICK_TO_MEASURE else 1

    @property
    def tables(self) -> bool:
        """Return whether 4 bits choose levels of a table where the matrix allows it.

        In groups of 32 that loses less than zero points do and takes fewer bytes. Training codes
        needs evenly spaced ones, and the table's scales have to be searched.
        """
        return (
            self.method == "auto"
            and "search" in self.steps
            and self.effective_group_size == 32
            and not (self.symmetric or self.portable or self.refine)
        )

    @property
    def effective_group_size(self) -> int:
        """Return the number of inputs that share a scale where all tensors have one format."""
        return self.group_size or 32

    @property
    def effective_head_bits(self) -> int:
        """Return the bits of the output head and the embedding."""
        if self.head_bits is not None:
            return self.head_bits
        return 8 if self.quantises else 16

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the report and the journal."""
        values = dataclasses.asdict(self)
        values["calibration"] = None if self.calibration is None else self.calibration.name
        values["without"] = sorted(self.without)
        values["head_bits"] = self.effective_head_bits
        values["group_size"] = self.effective_group_size
        for name in ("portable", "uniform"):
            if not values[name]:
                del values[name]  # as in reports from before there was a choice
        if self.measure_cache:
            del values["measure_cache"]
        return values


REFERENCE_TOKENS = 4096
