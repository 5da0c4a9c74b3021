/* Conversations as session files, which `edgetok chat --session` reads and writes; kernels know how they
   are laid out (kernels_cpu/session). */
#include "internal.h"

static const char *const FAULTS[] = {SESSION_FAULTS};

static int64_t ask(const edgetok_chat *chat, int own, session *s) {
    instruction one = {{[SESSION_TABLE] = address(s)}};
    et_do(chat->m, own, &one);
    return one.slots[SESSION_RESULT];
}

/* Gives the kernels the memory that they ask for. */
static int give(const edgetok_chat *chat, int own, session *s, block *memory, char *error) {
    int64_t bytes = ask(chat, own, s);
    if ((uint64_t)bytes > SIZE_MAX / 4 || !et_grab(memory, (size_t)bytes))
        return et_fail(error, "no memory for a session of %lld bytes", (long long)bytes);
    s->memory = address(memory->data);
    return 0;
}

int64_t edgetok_session_save(edgetok_chat *chat, void *file, size_t capacity, char *error) {
    block memory = {0};
    const int64_t count = chat->count;
    const size_t said = chat->said_bytes;
    if ((!count && !et_add_message(chat, NULL, -1, error)) || !et_add_answer(chat, error)) return -1;
    session s = {.identity = chat->m->file.identity_at, .texts = address(chat->said),
                 .messages = address(chat->messages), .message_count = chat->count,
                 .sampling = address(chat->said) + chat->kept_options.at,
                 .sampling_bytes = chat->kept_options.bytes,
                 .tokens = address(chat->tokens), .token_count = -1, .file = address(file)};
    if (chat->cache.policy) {
        s.token_count = chat->cache.length;
        s.block_bytes = et_keep(&chat->cache, OWN_CACHE_SAVE, 0, 0, 0);
    }
    chat->count = count; /* the answer goes on */
    chat->said_bytes = said;
    if (give(chat, OWN_SESSION_TEXT, &s, &memory, error)) return -1;
    int64_t bytes = ask(chat, OWN_SESSION_TEXT, &s), at = bytes - s.block_bytes - (s.block_bytes ? SESSION_DIGEST_BYTES : 0);
    if (file && (uint64_t)bytes <= (uint64_t)capacity) {
        memset((char *)file + at, 0, (size_t)s.block_bytes);
        if (s.block_bytes) et_keep(&chat->cache, OWN_CACHE_SAVE, 0, address(file) + at, s.block_bytes);
        ask(chat, OWN_SESSION_WRITE, &s);
    }
    et_drop(&memory);
    return bytes;
}

static int take(edgetok_chat *chat, const session *s, block *ids, char *error) {
    const int64_t *list = pointer(s->messages), tokens = s->token_count;
    if (tokens > chat->capacity)
        return et_fail(error, "the session has %lld tokens, the context holds %lld; use a cache that evicts",
                       (long long)tokens, (long long)chat->capacity);
    if (tokens >= 0 && chat->cache.policy) {
        if (!et_grab(ids, 4 * (size_t)tokens + 4)) return et_fail(error, "no memory for a session");
        memcpy(ids->data, pointer(s->tokens), 4 * (size_t)tokens);
        if (edgetok_restore(chat, pointer(s->block), (size_t)s->block_bytes, ids->data, (size_t)tokens, error))
            return -1;
    } else edgetok_truncate(chat, chat->cache.length, error), chat->cache.pinned = 0;
    chat->count = 0, chat->said_bytes = chat->answer_bytes = 0;
    bool good = et_add_message(chat, pointer(s->sampling), s->sampling_bytes, error);
    if (good) chat->kept_options = chat->messages[--chat->count];
    for (int64_t i = 0; i < s->message_count && good; i++)
        good = et_add_message(chat, pointer(list[2 * i]), list[2 * i + 1], error);
    return good ? 0 : (chat->count = 0, -1);
}

int edgetok_session_load(edgetok_chat *chat, const void *file, size_t bytes, char *error) {
    block memory = {0}, ids = {0};
    session s = {.identity = chat->m->file.identity_at, .file = address(file), .file_bytes = (int64_t)bytes};
    if (give(chat, OWN_SESSION_READ, &s, &memory, error)) return -1;
    int64_t fault = ask(chat, OWN_SESSION_READ, &s);
    int failed = fault ? et_fail(error, "%s", FAULTS[fault]) : take(chat, &s, &ids, error);
    et_drop(&memory);
    et_drop(&ids);
    return failed;
}
