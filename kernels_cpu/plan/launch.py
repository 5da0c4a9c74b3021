"""Numbers of plan files, and slots of the kernels that read one for the C library. No numba here.

`edgetok/native/plan.py` says how the file is laid out, `edgetok/runtime/cpu/plan_file.py` how its
section PLAN is. Tables are int64, one for each name; C gets them as structs of these names
(`native/abi_header.py`).
"""

from __future__ import annotations

import struct
from enum import IntEnum

MODULES = ("plan.link", "plan.read", "plan.tokenizer")

MAGIC = b"edgetokP"
# 2: no states of recurrent layers; 3: no normal forms of texts; 4: no Unigram; 5: no wide heads;
# 6: layers of one size; 7: not where tables of rows end; 8: contiguous positions; 9: no identity;
# 10: heads that evict leave nothing
VERSION = 12
CORE_VERSION = 1  # of the section PLAN


class Segment(IntEnum):
    """Memory that a plan points into. The numbers are part of a plan file."""

    KERNELS = 1
    """Compiled code; an offset is an index of the plan's kernel names."""
    WEIGHTS = 2
    """`model.onnx.data`, mapped."""
    TABLES = 3
    """Inputs of a run: tokens, positions, rotations."""
    WORKSPACE = 4
    """Values and what the kernels make of them."""
    ATTENTION = 5
    """Scratch of attention; as many bytes for each thread."""
    LINEAR = 6
    """Scratch of products; as many bytes for each thread."""


class Section(IntEnum):
    """The kinds of sections; their numbers are part of the file."""

    PLAN = 0
    RUN = 1
    LAYERS = 2
    ROPES = 3
    HOST = 4
    EOS = 5
    FAMILY = 6
    STATES = 7
    WIDE = 8
    SIZES = 9
    IDENTITY = 10
    TOKENIZER = 11
    TEMPLATE = 12


OPTIONAL = Section.TOKENIZER  # this section and those after it may be missing

HEADER = (
    "version",
    "kv_bits",
    "compute",  # 0 int8, 1 float32
    "block_tokens",
    "head_tokens",
    "instructions",
    "body",  # how many of them, as in `Plan`
    "trunk",
    "relocations",
    "places",
    "kernel_bytes",
    "spec_bytes",
    *(f"{segment.name.lower()}_bytes" for segment in Segment),
)
PLACE = struct.Struct("<32sii3q")  # name, segment, type, offset, rows, columns
DIGEST_BYTES = 32
IDENTITY_BYTES = 2 * DIGEST_BYTES  # digits of `Artefact.identity`, which session files name

# Instructions of section HOST, which the library calls itself: a name of NAME_BYTES, then slots.
HOST_SAMPLE, HOST_SCORES, HOST_CHOOSE, HOST_RENUMBER, HOST_ROTATE = 0, 1, 4, 5, 6
HOST_SHARE, HOST_JOIN, HOST_ANGLES = 7, 8, 9
NAME_BYTES = 64
# Of a rope; the last two are addresses of float64 [pairs].
ROPE = ("pairs", "original", "short_context", "long_context")
PROGRAMS = 3  # up to the head, up to the tail, up to the last layer's keys: all, body, trunk

# What is known of an open plan. C sets the first row; `plan_read` finds what lies in the file,
# `plan_place` gives everything a place in one block of memory, `plan_link` fills it.
OPENED = (
    *("file", "file_bytes", "weights_bytes", "threads"),
    "run_limits",  # address of int64 [numbers of RUN, 2]
    *("found", "expected"),  # numbers that the text of a fault names
    *(f"{section.name.lower()}_at" for section in Section),  # addresses; 0: missing
    *(f"{section.name.lower()}_bytes" for section in Section),
    *("header", "digest", "table", "moves", "places", "names"),  # of PLAN: addresses
    "name_count",
    *(f"{segment.name.lower()}_memory" for segment in Segment),  # KERNELS: int64 [name_count]
    *("team", "programs", "instructions", "host", "ropes", "rows"),  # addresses of tables
    *("tokens", "positions", "logits"),  # addresses of a step's inputs and result
)
O_FILE, O_FILE_BYTES = OPENED.index("file"), OPENED.index("file_bytes")
O_WEIGHTS_BYTES, O_THREADS = OPENED.index("weights_bytes"), OPENED.index("threads")
O_RUN_LIMITS = OPENED.index("run_limits")
O_FOUND, O_EXPECTED = OPENED.index("found"), OPENED.index("expected")
O_SECTIONS, O_BYTES = OPENED.index("plan_at"), OPENED.index("plan_bytes")  # and a section's number
O_HEADER, O_DIGEST = OPENED.index("header"), OPENED.index("digest")
O_TABLE, O_MOVES = OPENED.index("table"), OPENED.index("moves")
O_PLACES, O_NAMES = OPENED.index("places"), OPENED.index("names")
O_NAME_COUNT = OPENED.index("name_count")
O_MEMORY = OPENED.index("kernels_memory") - 1  # and a segment's number
O_TEAM, O_PROGRAMS = OPENED.index("team"), OPENED.index("programs")
O_INSTRUCTIONS, O_HOST = OPENED.index("instructions"), OPENED.index("host")
O_ROPES, O_ROWS = OPENED.index("ropes"), OPENED.index("rows")
O_TOKENS, O_POSITIONS = OPENED.index("tokens"), OPENED.index("positions")
O_LOGITS = OPENED.index("logits")

# The kernels' slots; results: `plan_place` the bytes of memory, the others the number of a fault.
OPEN_PLAN = 2  # address of OPENED
OPEN_MEMORY = 3  # address of memory; of `plan_read`: HASH_BYTES for its own use
OPEN_RESULT = 4

# The kernel `sha256`.
HASH_DATA, HASH_COUNT, HASH_OUT = range(2, 5)  # HASH_OUT: address of HASH_BYTES, the hash first
HASH_BYTES = 32 + 128

# The kernel `tokenizer_check`.
(
    CHECK_LIST,  # address of the tokenizer's list (kernels_cpu/text/launch.py), which it fills
    CHECK_DATA,  # address of the section TOKENIZER
    CHECK_BYTES,
    CHECK_SHAPES,  # address of int32 [tables, SHAPE_NUMBERS]: which number counts rows (-1: none),
    # more rows, columns, limits of each column
    CHECK_VOCAB,
    CHECK_RESULT,  # 1: all of it can be
) = range(2, 8)
SHAPE_NUMBERS = 8

PLAN_FAULTS = (
    "",
    "model.plan: not a plan file",
    f"model.plan: version %lld, this library reads {VERSION}; export again",
    "model.plan: ends too soon; export again",
    "model.plan: damaged; export again",
    "model.plan: a section lies outside of the file",
    "model.plan: section %lld is missing",
    "model.plan: the model's numbers contradict each other",
    "model.plan: instructions contradict each other",
    "model.plan: a kernel's name is not one",
    "model.onnx.data has %lld bytes, the plan is for %lld; export again",
    "model.plan: the chat template's pieces contradict each other",
)
(
    WHOLE,
    NO_PLAN,
    OTHER_VERSION,
    TOO_SHORT,
    DAMAGED,
    OUTSIDE,
    MISSING,
    WRONG_NUMBERS,
    WRONG_INSTRUCTIONS,
    WRONG_NAME,
    OTHER_WEIGHTS,
    WRONG_PIECES,
) = range(len(PLAN_FAULTS))

H_VERSION, H_BLOCK = HEADER.index("version"), HEADER.index("block_tokens")
H_HEAD, H_INSTRUCTIONS = HEADER.index("head_tokens"), HEADER.index("instructions")
H_BODY, H_TRUNK = HEADER.index("body"), HEADER.index("trunk")
H_RELOCATIONS, H_PLACES = HEADER.index("relocations"), HEADER.index("places")
H_KERNEL_BYTES = HEADER.index("kernel_bytes")
H_NAMES, H_WEIGHTS = HEADER.index("kernels_bytes"), HEADER.index("weights_bytes")
H_SIZES = H_NAMES - 1  # and a segment's number
