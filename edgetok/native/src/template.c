/* Conversations as text: the pieces that the chat template writes around messages, found and
   checked by native/template.py. Every turn is rendered and tokenised as a whole, as in Python. */
#include "internal.h"

#include <stdlib.h>

enum { FIRST, SYSTEM_TO_USER, USER_TO_ASSISTANT, ASSISTANT_TO_USER, GENERATE, PIECES };

typedef struct { const char *text; size_t bytes; } piece;

/* numbers: which messages are stripped (STRIPS); then without and with a system message: whether there is
   such a conversation, and the bytes of each piece; then the pieces. */
static bool read_pieces(const edgetok_model *m, int with_system, piece found[PIECES]) {
    const int64_t *numbers = pointer(m->file.template_at), bytes = m->file.template_bytes;
    const char *data = (const char *)numbers;
    int64_t at = 8 * (1 + 2 * (1 + PIECES));
    if (bytes < at) return false;
    for (int s = 0; s < 2; s++)
        for (int i = 0; i < PIECES; i++) {
            int64_t size = numbers[2 + s * (1 + PIECES) + i];
            if (size < 0 || size > bytes - at) return false;
            if (s == with_system) found[i] = (piece){data + at, (size_t)size};
            at += size;
        }
    return numbers[1 + with_system * (1 + PIECES)] != 0;
}

int et_template_check(const edgetok_model *m, char *error) {
    piece found[PIECES];
    if (!m->file.template_bytes || read_pieces(m, 0, found)) return 0;
    return et_fail(error, "model.plan: the chat template's pieces contradict each other");
}

/* What the template writes of a message. */
static piece message(const edgetok_model *m, const char *text, size_t bytes, bool strips) {
    instruction one = {{[STRIP_TEXT] = address(text), [STRIP_BYTES] = (int64_t)bytes}};
    if (strips) et_do(m, OWN_STRIP_TEXT, &one);
    return (piece){pointer(one.slots[STRIP_TEXT]), (size_t)one.slots[STRIP_BYTES]};
}

static bool add(edgetok_chat *chat, piece p, char *error) {
    if (!chat->said || chat->said_capacity - chat->said_bytes < p.bytes) {
        size_t wanted = 2 * (chat->said_bytes + p.bytes) + 1024;
        char *more = realloc(chat->said, wanted);
        if (!more) return et_fail(error, "no memory for the conversation"), false;
        chat->said = more;
        chat->said_capacity = wanted;
    }
    memcpy(chat->said + chat->said_bytes, p.text, p.bytes);
    chat->said_bytes += p.bytes;
    return true;
}

/* Ids of the conversation so far; the caller frees them. */
static int32_t *ids_of(const edgetok_chat *chat, int64_t *count, char *error) {
    int64_t most = edgetok_encode(chat->m, chat->said, chat->said_bytes, 0, NULL, 0, error);
    int32_t *ids = most < 0 ? NULL : malloc(4 * (size_t)most + 4);
    if (ids) *count = edgetok_encode(chat->m, chat->said, chat->said_bytes, 0, ids, (size_t)most, error);
    else if (most >= 0) et_fail(error, "no memory for %lld tokens", (long long)most);
    return ids;
}

/* How many first tokens all conversations with this system message share. */
static bool pin(edgetok_chat *chat, const piece pieces[PIECES], char *error) {
    int32_t *ids[2] = {NULL, NULL};
    int64_t counts[2] = {0, 0}, same = 0;
    size_t before = chat->said_bytes;
    bool good = true;
    for (int i = 0; i < 2 && good; i++) {
        good = add(chat, (piece){i ? "1" : "a", 1}, error) && add(chat, pieces[GENERATE], error) &&
               (ids[i] = ids_of(chat, &counts[i], error));
        chat->said_bytes = before;
    }
    while (good && same < counts[0] && same < counts[1] && ids[0][same] == ids[1][same]) same++;
    free(ids[0]);
    free(ids[1]);
    if (good && same > chat->cache.slots / 2)
        return et_fail(error, "a system message of %lld tokens, expected at most %lld, half of the cache",
                       (long long)same, (long long)chat->cache.slots / 2), false;
    chat->cache.pinned = same;
    return good;
}

/* How many first tokens of a prompt come before what later turns do not have; 0: they have all. -1: an error. */
static int64_t shared(edgetok_chat *chat, const piece pieces[PIECES], const int32_t *ids, int64_t count,
                      char *error) {
    const piece later[] = {pieces[USER_TO_ASSISTANT], {"x", 1}, pieces[ASSISTANT_TO_USER], {"x", 1},
                           pieces[GENERATE]};
    size_t before = chat->said_bytes;
    int64_t others = 0, same = 0;
    bool good = true;
    for (size_t i = 0; i < sizeof later / sizeof *later; i++) good = good && add(chat, later[i], error);
    int32_t *other = good ? ids_of(chat, &others, error) : NULL;
    chat->said_bytes = before;
    if (!other) return -1;
    while (same < count && same < others && ids[same] == other[same]) same++;
    free(other);
    return same < count - 1 ? same : 0;
}

static int say(edgetok_chat *chat, const char *system, const char *text, char *error) {
    const int64_t *numbers = pointer(chat->m->file.template_at);
    piece pieces[PIECES];
    int64_t count = 0;
    bool first = chat->turns == 0, silent = chat->answer_bytes == 0;
    if (first) chat->with_system = system && *system;
    else if (system) return et_fail(error, "the system message belongs to the first turn");
    if (!chat->m->tokens.there || !chat->m->file.template_bytes)
        return et_fail(error, "this folder has no chat template; use edgetok_prefill");
    if (!read_pieces(chat->m, chat->with_system, pieces))
        return et_fail(error, "this model's template takes no system message");
    piece said = message(chat->m, text, strlen(text), numbers[0] & STRIPS);
    piece answer = message(chat->m, chat->answer.data, chat->answer_bytes, numbers[0] & STRIPS);
    bool good = true;
    if (first) {
        chat->said_bytes = 0, chat->cache.pinned = 0;
        good = add(chat, pieces[FIRST], error);
        if (good && chat->with_system) {
            piece told = message(chat->m, system, strlen(system), numbers[0] & STRIPS_SYSTEM);
            good = add(chat, told, error) && add(chat, pieces[SYSTEM_TO_USER], error) &&
                   (!chat->cache.policy || pin(chat, pieces, error));
        }
    } else if (silent) { /* a message without any answer is replaced */
        chat->said_bytes = chat->asked;
    } else {
        good = add(chat, pieces[USER_TO_ASSISTANT], error) && add(chat, answer, error) &&
               add(chat, pieces[ASSISTANT_TO_USER], error);
    }
    size_t asked = chat->said_bytes;
    if (!good || !add(chat, said, error)) return -1;
    size_t after = chat->said_bytes;
    if (!add(chat, pieces[GENERATE], error)) return -1;
    int32_t *ids = ids_of(chat, &count, error);
    chat->said_bytes = after;
    if (!ids) return -1;
    int64_t kept = chat->cache.past.count ? shared(chat, pieces, ids, count, error) : 0;
    if (kept < 0) return free(ids), -1;
    /* Room for the answer, so that no step allocates. */
    int64_t tokens = chat->cache.policy ? chat->cache.answer : chat->capacity - chat->cache.length;
    if (chat->next_sampling.max_tokens > tokens) tokens = chat->next_sampling.max_tokens;
    if (tokens > MOST_CHAT_TOKENS) tokens = MOST_CHAT_TOKENS;
    et_drop(&chat->answer);
    size_t room = (size_t)(tokens + 1) * (3 * (size_t)chat->m->tokens.list[TOK_LONGEST] + 8);
    int failed = et_grab(&chat->answer, room) ? et_prefill(chat, ids, (size_t)count, kept, error)
                                              : et_fail(error, "no memory for an answer");
    free(ids);
    chat->asked = asked;
    chat->turns++;
    return failed;
}

int edgetok_say(edgetok_chat *chat, const char *system, const char *text, char *error) {
    size_t before = chat->said_bytes, asked = chat->asked;
    int64_t turns = chat->turns;
    int failed = say(chat, system, text, error);
    if (failed && chat->finish != EDGETOK_CANCELLED) {
        chat->said_bytes = before;
        chat->asked = asked;
        chat->turns = turns;
    }
    return failed;
}

void et_note_answer(edgetok_chat *chat, const edgetok_output *output) {
    if (chat->answer.data && output->bytes < chat->answer.bytes - chat->answer_bytes) {
        memcpy((char *)chat->answer.data + chat->answer_bytes, output->text, output->bytes);
        chat->answer_bytes += output->bytes;
    }
}
