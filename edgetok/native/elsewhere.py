"""Run exported libraries of other instruction sets and machines, and compare logits with Python's.

What runs here: this processor's other instruction sets; Arm Linux under qemu-aarch64, whose
processors differ in what they can do; WebAssembly in node; Windows under wine. Sums are rounded
otherwise where there is no fused multiply-add, so distributions are compared, not ids.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetok.errors import EdgetokError
from edgetok.formats.artefact import Artefact
from edgetok.kernels_cpu.simd.isa import host_isas
from edgetok.native.binding import Library
from edgetok.native.library import (
    HEADER,
    WINDOWS_LIBRARIES,
    Compiler,
    Machine,
    build_library,
    this_machine,
)
from edgetok.runtime.cpu.backend import CpuBackend

_CHECKS = Path(__file__).with_name("checks")
_PROMPT_TOKENS, _CONTEXT_TOKENS = (1, 12, 32), 64
_MOST_KL = 0.01  # nats; other roundings give less than 0.0001
_MOST_SECONDS = 120  # for one library: an emulator takes a second a token for 100 MB of weights
# A processor of qemu-aarch64 for which each set is the best.
_PROCESSORS = {"i8mm": "max", "neon": "cortex-a76", "portable": "cortex-a53"}
_BEGAN = "began"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One instruction set of a target, run or not.

    Attributes:
        target: the machine's name.
        isa: the instruction set.
        by: what ran it: "this processor", or the program.
        kl: the largest Kullback-Leibler divergence from Python's distributions, in nats; None
            where it was not run.
        why: then the reason.
    """

    target: str
    isa: str
    by: str = ""
    kl: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exports:
    """An export that is compared with Python.

    Attributes:
        artefact: the exported artefact.
        folder: the export, with libraries in `lib`.
        modules: kernel modules of its libraries.
        isas: instruction sets that were asked for; none: all of each machine.
        kv_bits: bits of the caches.
        cache_dir: where compiled kernels are kept.
    """

    artefact: Artefact
    folder: Path
    modules: Sequence[str]
    isas: Sequence[str]
    kv_bits: int
    cache_dir: Path


class _NotRun(Exception):
    """Nothing here runs a library; its text says why."""


def compare_elsewhere(exports: Exports, machines: Sequence[Machine]) -> tuple[Run, ...]:
    """Run what can be run of all targets but this machine's best instruction set.

    Raises:
        EdgetokError: a library fails, or its distributions are not Python's.
    """
    here = this_machine()
    wanted = [
        (machine, isa)
        for machine in machines
        for isa in exports.isas or machine.isas
        if here is None or (machine.name, isa) != (here.name, here.isas[0])
    ]
    if not wanted:
        return ()
    backend = CpuBackend(
        exports.artefact.folder, threads=1, kv_bits=exports.kv_bits, cache_dir=exports.cache_dir
    )
    try:
        prompts = list(_prompts(backend.vocab_size))
        context = min(backend.context_tokens, _CONTEXT_TOKENS)
        prompts = [prompt[:context] for prompt in prompts]
        expected = [backend.forward(backend.new_cache(context), prompt) for prompt in prompts]
    finally:
        backend.close()
    found = []
    for machine, isa in wanted:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:  # wine lingers
            try:
                by, logits = _logits(exports, machine, isa, prompts, context, Path(work))
            except _NotRun as reason:
                found.append(Run(target=machine.name, isa=isa, why=str(reason)))
                continue
        kl = max(divergence(*pair) for pair in zip(expected, logits, strict=True))
        if not kl <= _MOST_KL:
            raise EdgetokError(
                f"the library for {machine.name} with {isa} differs from Python by {kl:.2g} nats, "
                f"expected at most {_MOST_KL}; please report this model"
            )
        found.append(Run(target=machine.name, isa=isa, by=by, kl=kl))
    return tuple(found)


def divergence(expected: npt.ArrayLike, found: npt.ArrayLike) -> float:
    """KL(expected || found) of two vectors of logits, in nats; sums of float64."""
    p, q = (
        _log_softmax(np.asarray(values, np.float64).reshape(-1)) for values in (expected, found)
    )
    return float(np.maximum(np.exp(p) @ (p - q), 0.0))


def _log_softmax(logits: npt.NDArray[np.float64]) -> Any:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def _prompts(vocab_size: int) -> Iterator[npt.NDArray[np.int32]]:
    rng = np.random.default_rng(1)
    for size in _PROMPT_TOKENS:
        yield rng.integers(0, vocab_size, size).astype(np.int32)


def _logits(
    exports: Exports,
    machine: Machine,
    isa: str,
    prompts: Sequence[npt.NDArray[np.int32]],
    context: int,
    work: Path,
) -> tuple[str, Floats]:
    """Return what ran a library, and its logits."""
    here = this_machine()
    if here is not None and machine.name == here.name and here.shared:
        if isa not in host_isas():
            raise _NotRun("this processor does not have it")
        build_library(machine, exports.modules, work, exports.cache_dir, isas=[isa])
        return "this processor", _here(exports.folder, work / machine.shared, prompts, context)
    by, command, settings = _command(exports, machine, isa, work)
    out = work / "logits"
    ids = " , ".join(" ".join(map(str, prompt.tolist())) for prompt in prompts).split()
    told = [str(exports.folder), str(context), str(out), *ids]
    try:
        done = subprocess.run(
            [*command, *told], capture_output=True, text=True, errors="replace", check=False,
            timeout=_MOST_SECONDS, env={**os.environ, **settings}, cwd=work,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise _NotRun(f"{by} took longer than {_MOST_SECONDS} s") from None
    said = done.stdout.split()
    problem = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
    if _BEGAN not in said:
        raise _NotRun(f"{by} does not start it: {problem:.120}")
    if done.returncode:
        raise EdgetokError(f"the library for {machine.name} fails under {by}: {problem:.200}")
    if said[-1] != isa:
        raise _NotRun(f"{by} runs {said[-1]}")
    return by, np.fromfile(out, "<f4").reshape(len(prompts), -1)


def _here(
    folder: Path, library: Path, prompts: Sequence[npt.NDArray[np.int32]], context: int
) -> Floats:
    made = []
    with Library(library).open(folder, threads=1) as model, model.chat(context) as chat:
        for prompt in prompts:
            chat.prefill(prompt.tolist())
            made.append(chat.logits())
    return np.array(made, np.float32)


def _command(
    exports: Exports, machine: Machine, isa: str, work: Path
) -> tuple[str, list[str], dict[str, str]]:
    """Return what runs a target's library: name, command, variables of its environment."""
    library = exports.folder / "lib" / machine.name
    if machine.os == "wasm":
        node = _tool("node")
        return "node", [node, str(_CHECKS / "logits.mjs"), str(library)], {}
    if machine.name == "aarch64-linux":
        emulator = _tool("qemu-aarch64", "qemu-aarch64-static")
        program = _program(machine, library, work, "aarch64-linux-musl", "-static")
        return "qemu-aarch64", [emulator, "-cpu", _PROCESSORS[isa], program], {}
    if machine.os == "windows":
        if isa not in host_isas():
            raise _NotRun("this processor does not have it")
        wine = _tool("wine", "wine64", "/usr/lib/wine/wine64")
        program = _program(machine, library, work, machine.triple, *WINDOWS_LIBRARIES)
        settings = {"WINEPREFIX": str(work / "wine"), "WINEDEBUG": "-all"}
        return "wine", [wine, program], settings
    raise _NotRun("nothing here runs it")


def _tool(*names: str) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    raise _NotRun(f"needs {names[0]}")


def _program(machine: Machine, library: Path, work: Path, triple: str, *flags: str) -> str:
    """`checks/logits.c` for a machine."""
    program = work / "logits.exe"
    Compiler(machine, triple).run(
        str(_CHECKS / "logits.c"), f"-I{HEADER.parent}", str(library / "libedgetok.a"), *flags,
        "-o", str(program),
    )  # fmt: skip
    return str(program)
