"""Tables of a cache, its groups and its history, and slots of the kernels that keep them. No numba.

What they do is `edgetok/cache`: a table of slots is `SlotTable`, groups are `InOrder` and `Chosen`,
histories `recurrent.History`, a block `CacheState`. Each table is int64, one for each name; C gets
them as structs of these names (`native/abi_header.py`).
"""

from __future__ import annotations

MODULES = ("cache.check", "cache.keep", "cache.make")

# Numbers of a model, as a plan's section RUN has them, and their limits.
RUN_LIMITS = {
    "vocab": (1, 1 << 24),
    "layers": (1, 4096),
    "ropes": (0, 8),
    "heads": (1, 65536),
    "kv_heads": (1, 4096),  # records of a layer: `DecoderSpec.most_kv_heads`
    "context": (1, 1 << 28),
    "block": (1, 4096),
    "kv_bits": (4, 32),
    "scale_bytes": (0, 4),
    "partial_bytes": (64, 1 << 28),  # of a chunk of slots, all heads
    "sample_scratch": (64, 1 << 32),
    "evict_scratch": (64, 1 << 28),  # and 8 for each slot
    "eos": (0, 1024),
    "small": (0, 1),  # 1: one thread is enough
    "states": (0, 8192),
    "bulky": (0, 1),  # 1: a snapshot of them serves one length alone
    "rows_end": (0, 1 << 48),  # where in the weights tables end of which rows are read
}
RUN = tuple(RUN_LIMITS)
LAYER = ("window", "rope", "centre", "factor")
# No KV heads: it stores nothing. The last four as in an instruction that rotates its keys.
SIZE = ("kv_heads", "key_bytes", "value_bytes", "dims", "padded", "hadamard", "scale")
STATE = ("index", "rows", "columns", "needed")

CACHE = (
    "groups",  # address of them, those that evict first
    "group_count",
    "evicting",  # how many evict
    "history",  # address
    "records",  # address, as PART_RECORDS
    "kv_bits",
    "bounded",  # 1: heads that see every token evict
    "capacity",  # positions; most tokens where nothing is evicted
    "most_tokens",
    "block_tokens",
    "slots",  # of a head, on average
    "length",  # tokens seen
    "shift",  # tokens seen less the position of the next one
    "pinned",
    "dropped",  # float64 bits: attention mass of what was evicted
    "used",  # slots of the longest head, up to the last that holds a token
    "chunks",  # of these slots, whose results attention merges
    "shape",  # address of JSON
    "shape_bytes",
    # Of the model: addresses of RUN, of LAYER and SIZE of each layer, of STATE of each state, of a
    # byte for each head, not 0 where it is wide; how many are wide and how many see every token.
    "run",
    "layers",
    "sizes",
    "states",
    "wide",
    "wide_heads",
    "seeing_heads",
    "weights",  # address
    "weights_bytes",
    "threads",
    "frequencies",  # address of int64 [ropes], each the address of float64 [pairs]
    "pairs",  # address of int64 [ropes]
    "longrope",  # 1: some frequencies depend on the capacity
    # Of the policy: its name and what it says of heads.
    "policy_name",  # address of a text that ends with 0
    "recent_share",  # one of so many slots is for the latest tokens
    "unequal",  # 1: heads differ
    "recent",  # latest tokens that are kept
    "narrow",  # slots of heads, of wide ones if there are any; 0: none of these
    "broad",
    "apart",  # 1: there are wide heads, and fewer than narrow ones: `Bounds.apart`
    # Memory besides that of groups: addresses, as in PART_STATES, PART_MASS and PART_PARTIALS.
    "state_table",
    "mass",
    "mass_slots",
    "partials",
    "scores",  # float32 [slots of all heads of a group]
    "evicted",  # int32, likewise; also the next two
    "by",
    "moved",
    "counts",  # int64 [heads]
    "scratch",
    "nbytes",  # when all slots are used
    "history_bytes",
    "python_bytes",  # what Python counts, so that one budget gives the same slots
)

GROUP = (
    "window",
    "chosen",  # 1: heads have tokens of their own, and evict
    "wide",  # 1: its heads have more slots than others
    "heads",
    "rows",  # lists of slots: one a head, or one
    "limit",  # slots of each
    "pages",
    "mark",  # as `Group.mark`
    "key_bytes",  # of a slot, likewise the next three
    "value_bytes",
    "key_scale_bytes",
    "value_scale_bytes",
    "slot_bytes",  # all four
    "head",  # address of int64 [heads]: layer * records of a layer + KV head
    "positions",  # address of int32 [rows, limit], EMPTY where a slot holds nothing
    "tokens",  # address of int32 [rows, limit]
    "mass",  # address of float32 [rows, limit], of heads that evict
    "rests",  # address of float32 [rows, rest_floats], where heads are apart
    "rest_bytes",  # of a row
    "held",  # address of int64 [rows]
    "used",  # address of int64 [rows]: slots from this one on hold nothing
    "append",  # address of int32 [rows, block_tokens]
    "free_slots",  # address of int32 [rows, 2 * block_tokens]
    "free_count",
    "taken",  # of them
    "entries",  # address of int64 [heads, pages + 1, PAGE_FIELDS]
    "memory",
    "evicts",  # address of int64 [heads, EV_RECORD_SLOTS]
    "size",  # address of the sizes of its layers
)

HISTORY = (
    "count",  # of rings
    "states",  # address of int64 [count, 4]: index, rows, columns, how many the next token needs
    "rings",  # address of int64 [count, 2]: values, the oldest token
    "snapshots",  # address of int64 [most + 1, 3]: length, least length that it serves, values
    "taken",
    "most",
    "bytes",  # of a snapshot
    "bulky",  # 1: a snapshot serves one length alone
    "several",  # 1: the latest step had several tokens
    "marked",  # the length that is gone back to next, whose snapshot stays
)

R_LAYERS, R_HEADS, R_KV_HEADS = RUN.index("layers"), RUN.index("heads"), RUN.index("kv_heads")
R_CONTEXT, R_BLOCK, R_KV_BITS = RUN.index("context"), RUN.index("block"), RUN.index("kv_bits")
R_SCALE_BYTES, R_PARTIAL_BYTES = RUN.index("scale_bytes"), RUN.index("partial_bytes")
R_EVICT_SCRATCH, R_STATES = RUN.index("evict_scratch"), RUN.index("states")
R_BULKY, R_ROPES = RUN.index("bulky"), RUN.index("ropes")
L_WINDOW, L_ROPE, L_CENTRE, L_FACTOR = range(4)  # of LAYER
S_KV_HEADS, S_KEY_BYTES, S_VALUE_BYTES, S_DIMS, S_PADDED = range(5)  # of SIZE

# The kernels' slots.
(
    KEEP_CACHE,  # address of CACHE
    KEEP_GROUP,  # address of a group
    KEEP_TOKENS,
    KEEP_DATA,  # address
    KEEP_BYTES,
    KEEP_COUNTS,  # address
    KEEP_RESULT,
) = range(2, 9)

# Results of `cache_size` that are no size.
NO_ROOM, NO_BUDGET, NO_MEMORY = -1, -2, -3

# As in edgetok/cache: of snapshots and of a saved block.
SNAPSHOT_TOKENS = 512
SNAPSHOT_GAP_TOKENS = 16
MOST_SNAPSHOTS, FEWEST_SNAPSHOTS, SNAPSHOTS_BYTES = 32, 3, 128 << 20
STATES = 2  # of a layer, at most
BLOCK_VERSION = 3
BLOCK_MAGIC = int.from_bytes(b"edgetokS", "little")
SHAPE, COUNTERS, TABLE, ROWS, MASS, REST, SNAPSHOT = 1, 2, 3, 4, 5, 7, 16
FIXED_COUNTERS = 7

RESTORE_ERRORS = (
    "",
    "this is not a saved cache",
    "the saved cache is damaged, or of another version",
    "the saved cache is of another shape; use the options it was saved with",
    "the saved cache's counters cannot be; it is damaged",
    "the saved cache holds tokens that cannot be; it is damaged",
    "the saved cache's sections do not add up; it is damaged",
    "the saved cache's attention mass cannot be; it is damaged",
    "the saved cache's rests of evicted tokens cannot be; it is damaged",
    "the saved cache's snapshots cannot be; it is damaged",
    "the saved cache's snapshots end before its tokens; it is damaged",
)
(
    FITS,
    FOREIGN,
    OTHER_VERSION,
    OTHER_SHAPE,
    WRONG_COUNTERS,
    WRONG_TABLE,
    WRONG_SECTIONS,
    WRONG_MASS,
    WRONG_RESTS,
    WRONG_SNAPSHOTS,
    FEW_SNAPSHOTS,
) = range(len(RESTORE_ERRORS))

C_GROUPS, C_GROUP_COUNT = CACHE.index("groups"), CACHE.index("group_count")
C_EVICTING, C_HISTORY = CACHE.index("evicting"), CACHE.index("history")
C_RECORDS, C_KV_BITS = CACHE.index("records"), CACHE.index("kv_bits")
C_BOUNDED = CACHE.index("bounded")
C_CAPACITY, C_MOST_TOKENS = CACHE.index("capacity"), CACHE.index("most_tokens")
C_BLOCK_TOKENS, C_SLOTS = CACHE.index("block_tokens"), CACHE.index("slots")
C_LENGTH, C_SHIFT = CACHE.index("length"), CACHE.index("shift")
C_PINNED, C_DROPPED = CACHE.index("pinned"), CACHE.index("dropped")
C_CHUNKS = CACHE.index("chunks")
C_USED, C_SHAPE = CACHE.index("used"), CACHE.index("shape")
C_SHAPE_BYTES = CACHE.index("shape_bytes")
C_RUN, C_LAYERS, C_SIZES = CACHE.index("run"), CACHE.index("layers"), CACHE.index("sizes")
C_STATES, C_WIDE = CACHE.index("states"), CACHE.index("wide")
C_WIDE_HEADS, C_SEEING_HEADS = CACHE.index("wide_heads"), CACHE.index("seeing_heads")
C_WEIGHTS_BYTES = CACHE.index("weights_bytes")
C_WEIGHTS, C_THREADS = CACHE.index("weights"), CACHE.index("threads")
C_FREQUENCIES, C_PAIRS = CACHE.index("frequencies"), CACHE.index("pairs")
C_LONGROPE, C_POLICY_NAME = CACHE.index("longrope"), CACHE.index("policy_name")
C_RECENT_SHARE, C_UNEQUAL = CACHE.index("recent_share"), CACHE.index("unequal")
C_RECENT, C_NARROW, C_BROAD = CACHE.index("recent"), CACHE.index("narrow"), CACHE.index("broad")
C_APART = CACHE.index("apart")
C_STATE_TABLE, C_MASS = CACHE.index("state_table"), CACHE.index("mass")
C_MASS_SLOTS, C_PARTIALS = CACHE.index("mass_slots"), CACHE.index("partials")
C_SCORES, C_EVICTED = CACHE.index("scores"), CACHE.index("evicted")
C_BY, C_MOVED, C_COUNTS = CACHE.index("by"), CACHE.index("moved"), CACHE.index("counts")
C_SCRATCH, C_NBYTES = CACHE.index("scratch"), CACHE.index("nbytes")
C_HISTORY_BYTES, C_PYTHON_BYTES = CACHE.index("history_bytes"), CACHE.index("python_bytes")

G_WINDOW, G_CHOSEN = GROUP.index("window"), GROUP.index("chosen")
G_WIDE, G_KEY_SCALE_BYTES = GROUP.index("wide"), GROUP.index("key_scale_bytes")
G_VALUE_BYTES, G_VALUE_SCALE_BYTES = GROUP.index("value_bytes"), GROUP.index("value_scale_bytes")
G_MEMORY, G_EVICTS, G_SIZE = GROUP.index("memory"), GROUP.index("evicts"), GROUP.index("size")
G_HEADS, G_ROWS = GROUP.index("heads"), GROUP.index("rows")
G_LIMIT, G_PAGES = GROUP.index("limit"), GROUP.index("pages")
G_MARK, G_KEY_BYTES = GROUP.index("mark"), GROUP.index("key_bytes")
G_SLOT_BYTES, G_HEAD = GROUP.index("slot_bytes"), GROUP.index("head")
G_POSITIONS, G_TOKENS = GROUP.index("positions"), GROUP.index("tokens")
G_MASS, G_HELD = GROUP.index("mass"), GROUP.index("held")
G_RESTS, G_REST_BYTES = GROUP.index("rests"), GROUP.index("rest_bytes")
G_USED, G_APPEND = GROUP.index("used"), GROUP.index("append")
G_FREE_SLOTS, G_FREE_COUNT = GROUP.index("free_slots"), GROUP.index("free_count")
G_TAKEN, G_ENTRIES = GROUP.index("taken"), GROUP.index("entries")

H_COUNT, H_STATES = HISTORY.index("count"), HISTORY.index("states")
H_RINGS, H_SNAPSHOTS = HISTORY.index("rings"), HISTORY.index("snapshots")
H_TAKEN, H_MOST = HISTORY.index("taken"), HISTORY.index("most")
H_BYTES, H_BULKY = HISTORY.index("bytes"), HISTORY.index("bulky")
H_SEVERAL, H_MARKED = HISTORY.index("several"), HISTORY.index("marked")
