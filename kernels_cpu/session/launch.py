"""The table and slots of the kernels that read and write session files for C. No numba here.

`edgetok/session.py` and `edgetok/formats/container.py` say how a file is laid out. The table is
int64, one for each name; C gets it as a struct of these names (`native/abi_header.py`).
"""

from __future__ import annotations

MODULES = ("session.read", "session.write")

FORMAT, VERSION = "edgetok-chat", 1  # of the conversation, and
CONTAINER = b"edgetokC"  # of a file that holds a cache as well
MOST_TEXT_BYTES = 64 << 20  # of a conversation as JSON

SESSION = (
    "identity",  # address of the model's
    "file",  # address
    "file_bytes",
    # Of the kernels' own use. `session_read` and `session_text` say how much they need while it is
    # 0. What the table has addresses of lies here or in the file.
    "memory",
    "texts",  # address that those of messages are counted from
    "messages",  # address of int64 [message_count, 2]: where each begins, and its bytes
    "message_count",  # with the system message, the first; its bytes are -1 for none
    "sampling",  # address of canonical JSON
    "sampling_bytes",  # 0: an empty object
    "tokens",  # address of int32; they need not be aligned
    "token_count",  # -1: there is no cache
    "block",  # address
    "block_bytes",
    "text",  # address of the JSON that `session_text` made
    "text_bytes",
)
# The kernels' slots. Results: `session_read` a fault, `session_text` bytes of the file, while there
# is no memory both bytes of memory.
SESSION_TABLE, SESSION_RESULT = 2, 3
SESSION_DIGEST_BYTES = 32  # of the hash that ends a container
CONTAINER_HEAD_BYTES = 16  # its name, and bytes of its JSON

FAULTS = (
    "",
    "this is not a session file",
    "the session file is damaged, or was edited",
    "the session file belongs to another model; load it with the model that saved it",
    "the session file has another version, or other fields; use the edgetok that saved it",
    "the session file's messages are not those of a conversation",
)
WHOLE, FOREIGN, DAMAGED, OTHER_MODEL, OTHER_FIELDS, WRONG_MESSAGES = range(len(FAULTS))

S_IDENTITY, S_FILE = SESSION.index("identity"), SESSION.index("file")
S_FILE_BYTES, S_MEMORY = SESSION.index("file_bytes"), SESSION.index("memory")
S_TEXTS, S_MESSAGES = SESSION.index("texts"), SESSION.index("messages")
S_MESSAGE_COUNT = SESSION.index("message_count")
S_SAMPLING, S_SAMPLING_BYTES = SESSION.index("sampling"), SESSION.index("sampling_bytes")
S_TOKENS, S_TOKEN_COUNT = SESSION.index("tokens"), SESSION.index("token_count")
S_BLOCK, S_BLOCK_BYTES = SESSION.index("block"), SESSION.index("block_bytes")
S_TEXT, S_TEXT_BYTES = SESSION.index("text"), SESSION.index("text_bytes")
