"""Options of a run: how a loaded model computes and how large its KV cache is.

`RunOptions` is the one place that declares them. The command line makes its flags and help texts
from the fields (`edgetok.cli.options`), and `Model.load` takes the same names as keywords.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, get_args

from edgetok.cache.limits import DEFAULT_POLICY, CacheLimits
from edgetok.errors import OptionError
from edgetok.quantities import parse_bytes, parse_tokens

DEFAULT_WAIT_S = 0.150  # that a token of a running answer may take while a prompt is read

Device = Literal["auto", "cpu", "cuda", "onnxruntime"]
Compute = Literal["int8", "float32"]
KvBits = Literal[4, 5, 8, 16, 32]
Size = int | str  # bytes, or a text such as "64MB"
TokenCount = int | str  # or a text such as "4k"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Options of a run. Each annotation holds the option's help text."""

    device: Annotated[
        Device,
        "Where to compute: on the CPU, on a GPU (cuda), or in onnxruntime. auto uses a GPU if the "
        "model fits; cuda requires one.",
    ] = "auto"
    gpu_layers: Annotated[
        int | None,
        "Compute the last N layers on a GPU and the others on the CPU, for a model that does not "
        "fit on the GPU.",
    ] = None
    threads: Annotated[
        int | None,
        "Number of threads.  [default: EDGETOK_THREADS, else one per physical performance core, or "
        "one for a small model]",
    ] = None
    context: Annotated[
        TokenCount | None,
        "Maximum tokens of prompt and answer together, e.g. 8k.  [default: 4096, or the trained "
        "length if that is less]",
    ] = None
    kv_bits: Annotated[
        KvBits,
        "Bits per value of the KV cache: 8 for integers, 5 for 6-bit keys and 4-bit values, 4 for "
        "4-bit ones, 16 or 32 for floats. 5 and 32 need the CPU. `edgetok inspect` shows what "
        "8, 5 and 4 cost on a model.",
    ] = 8
    kv_budget: Annotated[
        Size | None,
        "KV-cache limit, e.g. 64MB. When it is full, old tokens are evicted, so a chat never ends.",
    ] = None
    kv_policy: Annotated[
        str | None,
        "Policy that chooses which tokens a full cache keeps: recall, content, retain, window, "
        "h2o, tova, snapkv, keydiff or expected-attention. none evicts nothing and refuses what "
        "does not fit.  [default: recall in a chat or with a KV-cache limit, else none]",
    ] = None
    prefix_cache: Annotated[
        Size | None,
        "Cache prompt prefixes, up to this size, e.g. 256MB, so that they are not computed again.",
    ] = None
    speculate: Annotated[
        bool,
        "Guess the next tokens where the text repeats prompt or answer, and compute several at "
        "once. The answer is the same.",
    ] = True
    pace: Annotated[
        float | None,
        "Limit of tokens per second over all answers together, for a device that must stay cool, "
        "e.g. 10. Between steps nothing runs; prompts are read at full speed.  [default: no limit]",
    ] = None
    max_wait: Annotated[
        float,
        "Longest time in seconds that a token of a running answer should take while a prompt is "
        "read, e.g. 0.3. The longer, the sooner the prompt is read.",
    ] = DEFAULT_WAIT_S
    draft: Annotated[
        Path | str | None,
        "Second, smaller model with the same vocabulary, which drafts the next tokens where that "
        "is faster. The answer is the same.",
    ] = None
    compute: Annotated[
        Compute,
        "Type of the activations in matrix products. int8 (float16 on a GPU) is fast; float32 is "
        "exact and slower.",
    ] = "int8"
    kernels: Annotated[
        Path | str | None,
        "Folder that `edgetok compile` wrote; its kernels are used instead of compiling.  "
        "[default: EDGETOK_KERNELS]",
    ] = None
    isa: Annotated[
        str | None, "Restrict the CPU backend to one instruction set, e.g. avx2, for comparison."
    ] = None
    verbose: Annotated[bool, "Print which device auto chose, and why."] = False

    def __post_init__(self) -> None:
        """Refuse values out of range.

        Raises:
            OptionError: names the option, its value and what it may be.
        """
        device: str = self.device
        if device not in get_args(Device):
            raise OptionError(f"device is {device!r}, expected one of {_list(Device)}")
        if self.compute not in get_args(Compute):
            raise OptionError(f"compute is {self.compute!r}, expected one of {_list(Compute)}")
        if self.kv_bits not in get_args(KvBits):
            raise OptionError(f"kv_bits is {self.kv_bits!r}, expected one of {_list(KvBits)}")
        if self.threads is not None and (
            type(self.threads) is not int or not 1 <= self.threads <= 1024
        ):
            raise OptionError(
                f"threads is {self.threads!r}, expected a whole number from 1 to 1024"
            )
        if self.gpu_layers is not None:
            if type(self.gpu_layers) is not int or self.gpu_layers < 0:
                raise OptionError(f"gpu_layers is {self.gpu_layers!r}, expected a number from 0 up")
            if device not in ("auto", "cuda"):
                raise OptionError(f"gpu_layers was given with device {device!r}, expected 'cuda'")
        if self.kv_budget is not None and self.kv_policy == "none":
            raise OptionError("--kv-budget conflicts with --kv-policy none; remove one")
        if self.context_tokens is not None and type(self.context_tokens) is not int:
            raise OptionError(f"context is {self.context!r}, expected a number of tokens")
        if self.pace is not None:
            check_pace(self.pace)
        if type(self.max_wait) not in (int, float) or not 0 < self.max_wait < math.inf:
            raise OptionError(
                f"max_wait is {self.max_wait!r} seconds, expected a finite number above 0"
            )
        for name in ("draft", "kernels"):
            if getattr(self, name) == "":  # as a path it would mean the current folder
                raise OptionError(f"{name} is empty, expected a path")
        if self.draft is not None and not self.speculate:
            raise OptionError("--draft conflicts with --no-speculate; remove one")
        _bytes("kv_budget", self.kv_budget)
        _bytes("prefix_cache", self.prefix_cache)

    @property
    def context_tokens(self) -> int | None:
        """Return the limit of prompt and answer together; None: the default."""
        return parse_tokens(self.context) if isinstance(self.context, str) else self.context

    @property
    def kernels_dir(self) -> Path | None:
        """Return the folder of shipped kernels; None: what the environment says."""
        return None if self.kernels is None else Path(self.kernels).expanduser()

    @property
    def kv_budget_bytes(self) -> int | None:
        """Return the KV-cache limit in bytes."""
        return _bytes("kv_budget", self.kv_budget)

    @property
    def prefix_cache_bytes(self) -> int | None:
        """Return the size of the prefix cache in bytes."""
        return _bytes("prefix_cache", self.prefix_cache)

    @property
    def cache_limits(self) -> CacheLimits | None:
        """Return the limits that `kv_budget` and `kv_policy` ask for; None: nothing is evicted.

        Raises:
            OptionError: the policy is unknown.
        """
        from edgetok.cache.policies.policy import POLICIES  # needs NumPy

        budget, policy = self.kv_budget_bytes, self.kv_policy
        if policy == "none" or (policy is None and budget is None):
            return None
        name = DEFAULT_POLICY if policy is None else policy
        if name not in POLICIES:
            known = ", ".join((*POLICIES, "none"))
            raise OptionError(f"cache policy {name!r:.40}, expected one of {known}")
        return CacheLimits(policy=name, budget_bytes=budget)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> RunOptions:
        """Return options from keywords.

        Raises:
            OptionError: a name is unknown, or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                near = get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
                raise OptionError(f"unknown option {name!r}; {hint}")
        return cls(**given)


class RunChanges(TypedDict, total=False):
    """Run options by keyword; see `RunOptions`. A test compares names and types of the two."""

    device: Device
    gpu_layers: int | None
    threads: int | None
    context: TokenCount | None
    kv_bits: KvBits
    kv_budget: Size | None
    kv_policy: str | None
    prefix_cache: Size | None
    speculate: bool
    pace: float | None
    max_wait: float
    draft: Path | str | None
    compute: Compute
    kernels: Path | str | None
    isa: str | None
    verbose: bool


SLOWEST_PACE = 0.001  # tokens a second


def check_pace(tokens_per_s: float) -> None:
    """Refuse a speed that cannot be held.

    Raises:
        OptionError: it is no number, not finite, or below `SLOWEST_PACE`.
    """
    number = type(tokens_per_s) in (int, float)
    if not number or not SLOWEST_PACE <= tokens_per_s < math.inf:
        raise OptionError(
            f"pace is {tokens_per_s!r} tokens per second, expected a finite number of at least "
            f"{SLOWEST_PACE}"
        )


def _bytes(name: str, value: Size | None) -> int | None:
    if isinstance(value, str):
        return parse_bytes(value)
    if value is not None and (type(value) is not int or value < 1):
        raise OptionError(f"{name} is {value!r}, expected a number of bytes above 0")
    return value


def _list(choices: object) -> str:
    return ", ".join(repr(choice) for choice in get_args(choices))
