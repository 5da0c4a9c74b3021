"""`abi.h`: Python's constants for the C sources, so that slots, layouts and limits stand once."""

from __future__ import annotations

import json
from types import ModuleType

from edgetok.cache import bounds, recurrent, slot_memory, state, table
from edgetok.cache.limits import DEFAULT_POLICY
from edgetok.cache.policies import shared
from edgetok.cache.policies.policy import POLICIES
from edgetok.formats.layout import DATA_FILE
from edgetok.kernels_cpu.attention import launch as attention
from edgetok.kernels_cpu.cache import launch as keep
from edgetok.kernels_cpu.elementwise import launch as elementwise
from edgetok.kernels_cpu.eviction import launch as eviction
from edgetok.kernels_cpu.plan import launch as opening
from edgetok.kernels_cpu.program import abi, tables
from edgetok.kernels_cpu.sampling import launch as sampling
from edgetok.kernels_cpu.session import launch as sessions
from edgetok.kernels_cpu.text import launch as text
from edgetok.models import ops
from edgetok.native import plan
from edgetok.runtime.select import DEFAULT_CONTEXT_TOKENS

# Of each module, how the names that C uses begin.
_TAKEN: tuple[tuple[ModuleType, tuple[str, ...]], ...] = (
    (abi, ("INSTR_SLOTS", "CTX_", "PART_", "LIST_")),
    (tables, ("PROGRAM_", "TEAM_", "LINE")),
    (attention, ("REC_", "RECORD_", "PAGE_", "KEY_TILE", "VALUE_TILE", "DIM_TILE", "EMPTY")),
    (attention, ("SLOT_TILE", "FIRST_CHUNKS", "BLOCK", "ROWS", "MASS_LANES")),
    (eviction, ("EV_", "SCORE_", "CHOOSE_", "RENUMBER_", "ROTATE_", "SHARE_", "REST_")),
    (sampling, ("SAMPLE_", "OPTION")),
    (elementwise, ("ANGLES_",)),
    (keep, ("KEEP_", "NO_", "SNAPSHOT_GAP_TOKENS")),
    (sessions, ("SESSION_",)),
    (
        opening,
        ("OPEN_", "HASH_", "CHECK_", "HOST_", "NAME_BYTES", "SHAPE_NUMBERS", "WRONG_NUMBERS"),
    ),
    (bounds, ("SINKS", "FREED_SHARE", "FAR_SHARE", "NARROW_SPAN", "WIDE_SPAN")),
    (ops, ("STATES",)),
    (text, ("KIND_UNIGRAM", "TOKEN_", "TAB_", "LIMIT_", "ENCODE_", "WRITE_", "RENDER_")),
)
# Kernels that C calls by name; a library has them for every model.
_OWN = (
    *("run_program", "team_lead", "team_work", "team_close"),
    *("plan_read", "plan_place", "plan_link", "sha256", "tokenizer_check"),
    *("encode", "write_token", "render"),
    *("cache_check", "cache_size", "cache_place", "cache_begin", "cache_list_free"),
    *("cache_append", "cache_advance", "cache_evict", "cache_lower", "cache_truncate"),
    *("cache_save", "cache_restore"),
    *("session_read", "session_text", "session_write"),
)
# Tokens of a conversation whose cache evicts: its ids are memory that is reserved at the beginning.
MOST_CHAT_TOKENS = 1 << 20


# Policies of the library, the default first. The others look at queries or at attention mass.
_POLICIES = (DEFAULT_POLICY, "content", "retain", "window")


# Constants of the Python runtime that kernels state as well, as they import nothing of it.
_SAME: tuple[tuple[ModuleType, ModuleType, tuple[str, ...]], ...] = (
    (table, attention, ("EMPTY", "SLOT_TILE")),
    (recurrent, keep, ("SNAPSHOT_TOKENS", "SNAPSHOT_GAP_TOKENS", "SNAPSHOTS_BYTES")),
    (recurrent, keep, ("MOST_SNAPSHOTS", "FEWEST_SNAPSHOTS")),
    (ops, keep, ("STATES",)),
    (slot_memory, attention, ("REST_TOKENS",)),
    (shared, eviction, ("OF_ALL",)),
    (state, keep, ("SHAPE", "COUNTERS", "TABLE", "ROWS", "MASS", "REST", "SNAPSHOT")),
)
_STRUCTS = {
    "CACHE_FIELDS": keep.CACHE, "GROUP_FIELDS": keep.GROUP, "HISTORY_FIELDS": keep.HISTORY,
    "OPENED_FIELDS": opening.OPENED, "ROPE_FIELDS": opening.ROPE,
    "SESSION_FIELDS": sessions.SESSION,
}  # fmt: skip
_LISTS = {
    "OWN_KERNELS": _OWN,
    "PLAN_FAULTS": opening.PLAN_FAULTS,
    "RESTORE_ERRORS": keep.RESTORE_ERRORS,
    "SESSION_FAULTS": sessions.FAULTS,
}


def abi_header() -> str:
    """The text of the file."""
    numbers: dict[str, int] = {}
    for module, beginnings in _TAKEN:
        for name, value in vars(module).items():
            if type(value) is int and name.isupper() and name.startswith(beginnings):
                numbers[name] = value
    for own, kernels, names in _SAME:
        if any(getattr(own, name) != getattr(kernels, name) for name in names):
            raise ValueError(f"{own.__name__} and {kernels.__name__} disagree about {names}")
    for prefix, names in (("OWN", _OWN), ("RUN", keep.RUN), ("TOK", text.NUMBERS)):
        numbers |= {f"{prefix}_{name.upper()}": i for i, name in enumerate(names)}
        numbers[f"{prefix}_COUNT"] = len(names)
    numbers |= {
        "MOST_ROPES": keep.RUN_LIMITS["ropes"][1],
        "MOST_CHAT_TOKENS": MOST_CHAT_TOKENS,
        "DEFAULT_CONTEXT_TOKENS": DEFAULT_CONTEXT_TOKENS,
    }
    texts = {
        "PLAN_FILE": plan.PLAN_FILE,
        "WEIGHTS_FILE": DATA_FILE,
        "POLICY_NAMES": ", ".join(_POLICIES),
    }
    lines = ["/* Made by edgetok/native/abi_header.py from the constants of the Python runtime. */"]
    lines += ["#ifndef EDGETOK_ABI_H", "#define EDGETOK_ABI_H", "enum {"]
    lines += [f"    {name} = {value}," for name, value in numbers.items()]
    lines += ["};", *(f'#define {name} "{value}"' for name, value in texts.items())]
    lines += [
        f"#define POLICIES {', '.join(map(_policy, _POLICIES))}",
        *(f"#define {name} {_fields(fields)}" for name, fields in _STRUCTS.items()),
        f"#define RUN_LIMITS {', '.join(f'{{{a}, {b}}}' for a, b in keep.RUN_LIMITS.values())}",
        *(f"#define {name} {', '.join(map(json.dumps, texts))}" for name, texts in _LISTS.items()),
        f"#define TABLE_SHAPES {', '.join(map(_shape, text.TABLES))}",
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def _fields(names: tuple[str, ...]) -> str:
    """A table of a kernel as the fields of a struct."""
    return f"int64_t {', '.join(names)};"


def _shape(table: text.Table) -> str:
    """A table of a tokenizer as a row of C: its number of rows, more of them, limits of columns."""
    rows = text.NUMBERS.index(table.rows) if table.rows else -1
    shape = (rows, table.more, len(table.columns), *table.columns)
    return f"{{{', '.join(map(str, shape))}}}"


def _policy(name: str) -> str:
    """A policy as a row of C: name, index of its scores' kernel, recent, around, unequal."""
    found = POLICIES[name]
    scores = plan.SCORES.index(found.kernel or name)
    return f'{{"{name}", {scores}, {found.recent}, {found.around}, {int(found.unequal)}}}'
