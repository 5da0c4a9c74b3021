"""Tables and slots of the tokenizer's kernels. No numba here.

A tokenizer is one list of int64: its NUMBERS, then the addresses of its TABLES. Tables are int32
but for the last two, and each row has the width that TABLES says. `native/tokenizer.py` makes them
from a tokenizer.json, and a C program checks what TABLES says of each before a kernel reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

MODULES = ("text.encode", "text.stream", "text.template")

KIND_BYTES, KIND_SENTENCEPIECE, KIND_UNIGRAM = range(3)
PATTERN_GPT2, PATTERN_LLAMA3 = range(2)
# Which texts get a space of their own before them, unless they begin with one.
METASPACE_NEVER, METASPACE_FIRST, METASPACE_ALWAYS = range(3)
# Flags of a token.
TOKEN_SPECIAL = 1  # gives no text
TOKEN_TEXT = 2  # whole characters, which end a character that bytes before left incomplete
TOKEN_STARTS = 4  # the tokenizer puts a space of its own before the text after it
# Flags of an added token.
ADDED_LSTRIP = 1
ADDED_RSTRIP = 2

NUMBERS = (
    "tokens",
    "merges",
    "added",
    "before",
    "after",
    "by_text",
    "letters",
    "numbers",
    "spaces",
    "digit_ranges",
    "unstable",  # none: no normalizer
    "decompositions",
    "classes",
    "compositions",
    "pieces",  # of Unigram
    "kind",
    "pattern",
    "digits",  # most in a number, of PATTERN_LLAMA3
    "split_digits",
    "ignore_merges",
    "prepend",
    "fallback",
    "fuse",
    "unknown",  # -1: none
    "space",  # the token of U+2581; -1: none
    "strip",
    "longest",
    "metaspace",
    "split_words",  # 1: pieces of Unigram do not cross words
)

# Limits of numbers in a table, from 0 on: any, below the vocabulary, or -1 for none besides, a
# place in the text, ascending such places, a character, ascending characters, a byte.
(
    LIMIT_ANY,
    LIMIT_TOKEN,
    LIMIT_TOKEN_OR_NONE,
    LIMIT_PLACE,
    LIMIT_PLACES,
    LIMIT_CHARACTER,
    LIMIT_CHARACTERS,
    LIMIT_BYTE,
) = range(8)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a tokenizer.

    Attributes:
        name: what it is called.
        rows: the number that says how many rows there are; "" for none.
        more: so many rows are there besides.
        columns: limits of each column.
    """

    name: str
    rows: str
    more: int
    columns: tuple[int, ...]


TABLES = (
    Table("offsets", "tokens", 1, (LIMIT_PLACES,)),  # of what each token writes
    Table("bytes", "", 256, (LIMIT_TOKEN_OR_NONE,)),
    # Two tokens, their rank, what they become.
    Table("merges", "merges", 0, (LIMIT_TOKEN, LIMIT_TOKEN, LIMIT_ANY, LIMIT_TOKEN)),
    # A token, its flags, where the text that it matches begins and ends.
    Table("added", "added", 0, (LIMIT_TOKEN, LIMIT_ANY, LIMIT_PLACE, LIMIT_PLACE)),
    Table("before", "before", 0, (LIMIT_TOKEN,)),
    Table("after", "after", 0, (LIMIT_TOKEN,)),
    Table("by_text", "by_text", 0, (LIMIT_TOKEN,)),  # by ascending bytes
    # First and last of each range of characters.
    Table("letters", "letters", 0, (LIMIT_CHARACTERS,) * 2),
    Table("numbers", "numbers", 0, (LIMIT_CHARACTERS,) * 2),
    Table("spaces", "spaces", 0, (LIMIT_CHARACTERS,) * 2),
    Table("digit_ranges", "digit_ranges", 0, (LIMIT_CHARACTERS,) * 2),
    Table("unstable", "unstable", 0, (LIMIT_CHARACTERS,) * 2),
    Table("decompositions", "decompositions", 0, (LIMIT_CHARACTER,) * 5),
    Table("classes", "classes", 0, (LIMIT_CHARACTER, LIMIT_CHARACTER, LIMIT_BYTE)),
    Table("compositions", "compositions", 0, (LIMIT_CHARACTER,) * 3),
    Table("pieces", "pieces", 0, (LIMIT_TOKEN,)),  # of Unigram, in the order of their spellings
    Table("begins", "pieces", 1, (LIMIT_PLACES,)),  # of spellings
    Table("scores", "pieces", 1, (LIMIT_ANY,) * 2),  # float64; the last is of what has no piece
)

TOK_LETTERS, TOK_NUMBERS = NUMBERS.index("letters"), NUMBERS.index("numbers")
TOK_SPACES, TOK_DIGITS = NUMBERS.index("spaces"), NUMBERS.index("digits")
TOK_DIGIT_RANGES, TOK_UNSTABLE = NUMBERS.index("digit_ranges"), NUMBERS.index("unstable")
TOK_MERGES, TOK_ADDED = NUMBERS.index("merges"), NUMBERS.index("added")
TOK_BEFORE, TOK_AFTER = NUMBERS.index("before"), NUMBERS.index("after")
TOK_BY_TEXT, TOK_PIECES = NUMBERS.index("by_text"), NUMBERS.index("pieces")
TOK_DECOMPOSITIONS, TOK_CLASSES = NUMBERS.index("decompositions"), NUMBERS.index("classes")
TOK_COMPOSITIONS, TOK_KIND = NUMBERS.index("compositions"), NUMBERS.index("kind")
TOK_PATTERN, TOK_SPLIT_DIGITS = NUMBERS.index("pattern"), NUMBERS.index("split_digits")
TOK_IGNORE_MERGES, TOK_PREPEND = NUMBERS.index("ignore_merges"), NUMBERS.index("prepend")
TOK_FALLBACK, TOK_FUSE = NUMBERS.index("fallback"), NUMBERS.index("fuse")
TOK_UNKNOWN, TOK_SPACE = NUMBERS.index("unknown"), NUMBERS.index("space")
TOK_METASPACE, TOK_SPLIT_WORDS = NUMBERS.index("metaspace"), NUMBERS.index("split_words")

(
    TAB_OFFSETS,
    TAB_BYTES,
    TAB_MERGES,
    TAB_ADDED,
    TAB_BEFORE,
    TAB_AFTER,
    TAB_BY_TEXT,
    TAB_LETTERS,
    TAB_NUMBERS,
    TAB_SPACES,
    TAB_DIGIT_RANGES,
    TAB_UNSTABLE,
    TAB_DECOMPOSITIONS,
    TAB_CLASSES,
    TAB_COMPOSITIONS,
    TAB_PIECES,
    TAB_BEGINS,
    TAB_SCORES,
    TAB_FLAGS,  # uint8 of each token
    TAB_TEXT,  # bytes
) = range(len(NUMBERS), len(NUMBERS) + len(TABLES) + 2)
TAB_END = TAB_TEXT + 1

# The kernel `encode`.
(
    ENCODE_TABLES,  # address of the list above
    ENCODE_TEXT,  # address of the text
    ENCODE_BYTES,  # of the text
    ENCODE_SPECIAL,  # not 0: with what the tokenizer adds around a text
    ENCODE_IDS,  # address of int32 [capacity]
    ENCODE_CAPACITY,
    ENCODE_SCRATCH,  # address of memory; 0: only say how much
    ENCODE_COUNT,  # result: how many ids there are, also those that did not fit; -1: not UTF-8
    ENCODE_NEEDED,  # result: bytes of scratch memory
    ENCODE_POINTS,  # the kernel's own: where a text in normal form is made
) = range(2, 12)

# The kernel `write_token`: a token's text, of which some may be held back. The table is kept for an
# answer, with zeros where nothing is said; its last slots are the kernel's own.
(
    WRITE_PIECE,  # address of the bytes that the token stands for
    WRITE_BYTES,  # how many; 0 for no token
    WRITE_FLAGS,  # of the token: TOKEN_SPECIAL, TOKEN_TEXT
    WRITE_REST,  # not 0: nothing follows, what was held back is text
    WRITE_STOPS,  # address of int64 [stops, 2]: address and bytes of each stop text
    WRITE_STOP_COUNT,  # stops
    WRITE_BUFFER,  # address of 4 * `room` bytes; the last quarter is the text, the kernel's result
    WRITE_ROOM,  # at least the longest stop text and 6 bytes for each of the longest token
    WRITE_STRIP,  # not 0: a first space is left out
    WRITE_MADE,  # result: bytes of text
    WRITE_FOUND,  # result: not 0: a stop text was found
    WRITE_HELD,  # bytes that are held back as they may begin a stop text
    WRITE_CHARACTER,  # bytes of a character that is not whole
    WRITE_PART,  # how many
) = range(2, 16)

# The kernel `render`: a conversation by the pieces that a template writes around messages. The
# section's numbers: bits of which messages lose the spaces at their ends, as Python's `str.strip`
# removes them; then without and with a system message: 1 where there is such a conversation, and
# the bytes of each piece. The pieces follow.
STRIPS = 1
STRIPS_SYSTEM = 2
(
    PIECE_FIRST,
    PIECE_SYSTEM_TO_USER,
    PIECE_USER_TO_ASSISTANT,
    PIECE_ASSISTANT_TO_USER,
    PIECE_GENERATE,
) = range(5)
PIECES = 5
CONVERSATIONS = 2
PIECES_HEAD_BYTES = 8 * (1 + CONVERSATIONS * (1 + PIECES))
(
    RENDER_TEMPLATE,  # address of the section
    RENDER_TEXTS,  # address that those of messages are counted from
    RENDER_MESSAGES,  # address of int64 [count, 2]: where each begins, and its bytes
    RENDER_COUNT,  # with the system message, the first; its bytes are -1 for none
    RENDER_OUT,  # address of the text; 0: only say how long it is
    RENDER_RESULT,  # bytes of the text; -1: there is no such conversation
) = range(2, 8)
