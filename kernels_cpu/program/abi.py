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
from typing import TypeVar

INSTR_SLOTS = 16
CTX_SLOTS = 32

# Slots of ctx that all kernels agree on. Kernels work on rows, one a token. The rows of a sequence
# lie one after the other and are a part; only kernels that touch a cache look at parts.
CTX_TOKENS = 0  # rows that are computed: of the run, or of the list that `use_rows` named last
CTX_PARTS = 1  # how many parts there are
CTX_PART_TABLE = 2  # address of int64 [parts, PART_SLOTS]
# Rows that go on, as the rows before them are numbered: LIST_SLOTS each.
CTX_TAIL = 3  # beyond the last layer's keys and values
CTX_HEAD = 6  # to the output head, numbered as in CTX_TAIL

LIST_ROWS = 0  # address of int32 [count], ascending
LIST_COUNT = 1
LIST_PARTS = 2  # address of the table of parts where only these rows are left; 0: as before
LIST_SLOTS = 3

# A part. What a cache says of itself is the same in every step; the step sets the rest.
PART_RECORDS = 0  # address of the cache's records, [layers, KH, RECORD_SLOTS] int64
PART_FIRST = 1  # its first row
PART_ROWS = 2  # how many; none where it does not go on
PART_PARTIALS = 3  # address of `partials_bytes`; where it has one row
PART_CHUNKS = 4  # what they were asked for
PART_MASS = 5  # address of `mass_workspace_bytes`; 0: no attention mass
PART_MASS_SLOTS = 6  # what they were asked for; a cache that keeps no mass says 0
PART_MASS_FIRST = 7  # rows of the part before this one do not count
PART_MASS_KEEP = 8  # float32 bits
PART_QUERIES = 9  # address of float32 [layers, rows, H, D]; 0 keeps nothing
PART_QUERY_ROWS = 10  # how many rows
PART_QUERY_ROW = 11  # row of the part's first token; later ones follow, modulo rows
PART_STATES = 12  # address of the states of recurrent layers: int64 [states], each an address
PART_SEEN = 13  # tokens before its first row
PART_SLOTS = 16

_PREFIX = "edgetok_"  # of every symbol that objects show or want

Kernel = Callable[[int, int, int, int], None]
_Plain = TypeVar("_Plain", bound=Callable[..., int])

REGISTRY: dict[str, Kernel] = {}
SHARED: list[Callable[..., int]] = []


def kernel(function: Kernel) -> Kernel:
    """Register a function of the calling convention under its own name, for `build`."""
    if function.__name__ in REGISTRY:
        raise ValueError(f"two kernels are called {function.__name__}")
    REGISTRY[function.__name__] = function
    return function


def shared(function: _Plain) -> _Plain:
    """Mark a plain function of integers that kernels and launchers call alike, for `build`."""
    SHARED.append(function)
    return function


def symbol(isa_name: str, name: str) -> str:
    """C name of a kernel: objects of several instruction sets link into one library."""
    return f"{_PREFIX}{isa_name}_{name}"
