"""The calling convention of every CPU kernel, and the slots of its tables.

    kernel(instr: int64, ctx: int64, tid: int64, threads: int64) -> void

`instr` is the address of an instruction: INSTR_SLOTS int64 of which slot 0 is the kernel's own
address, slot 1 is 1 where all threads wait for each other afterwards, and the rest are the
kernel's arguments (addresses, sizes, float32 bits), named in the kernel's module. `ctx` is the
address of the run's state, CTX_SLOTS int64, the same for all instructions of a program.

A kernel does the share of thread `tid` of `threads`. It allocates nothing, raises nothing and knows
no Python, so that the same function can be compiled ahead of time for any target. Launchers in the
runtime do all checking.
"""

from __future__ import annotations

from collections.abc import Callable

INSTR_SLOTS = 16
CTX_SLOTS = 32

# Slots of ctx that the interpreter and all kernels agree on; 2..31 belong to the runtime.
CTX_TOKENS = 0  # how many tokens (columns) this run computes
CTX_POSITION = 1  # position of the first of them

Kernel = Callable[[int, int, int, int], None]

REGISTRY: dict[str, Kernel] = {}


def kernel(function: Kernel) -> Kernel:
    """Register a function of the calling convention under its own name, for `build`."""
    if function.__name__ in REGISTRY:
        raise ValueError(f"two kernels are called {function.__name__}")
    REGISTRY[function.__name__] = function
    return function
