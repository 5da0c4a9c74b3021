/* Conversations: messages as they were said, which a kernel writes out by the chat template's pieces
   (kernels_cpu/text/template.py). Every turn is rendered and tokenised as a whole, as in Python. */
#include "internal.h"

#include <stdlib.h>

bool et_add_message(edgetok_chat *chat, const void *text, int64_t bytes, char *error) {
    size_t size = (size_t)most(bytes, 0);
    char *said = realloc(chat->said, chat->said_bytes + size + 1);
    if (said) chat->said = said;
    message *messages = realloc(chat->messages, (size_t)(chat->count + 1) * sizeof *messages);
    if (messages) chat->messages = messages;
    if (!said || !messages) return et_fail(error, "no memory for the conversation"), false;
    chat->messages[chat->count++] = (message){(int64_t)chat->said_bytes, bytes};
    if (size) memcpy(chat->said + chat->said_bytes, text, size);
    chat->said_bytes += size;
    return true;
}

bool et_add_answer(edgetok_chat *chat, char *error) {
    if (!chat->count || chat->count % 2 || !chat->answer_bytes) return true;
    return et_add_message(chat, chat->answer.data, (int64_t)chat->answer_bytes, error);
}

/* Ids of a conversation, up to where the answer begins; the caller frees them. */
static int32_t *ids_of(const edgetok_chat *chat, const message *list, int64_t count, int64_t *made, char *error) {
    block text = {0};
    int32_t *ids = NULL;
    instruction one = {{[RENDER_TEMPLATE] = chat->m->file.template_at, [RENDER_TEXTS] = address(chat->said),
                        [RENDER_MESSAGES] = address(list), [RENDER_COUNT] = count}};
    et_do(chat->m, OWN_RENDER, &one);
    int64_t bytes = one.slots[RENDER_RESULT];
    if (bytes < 0) return et_fail(error, "this model's template takes no system message"), NULL;
    if ((uint64_t)bytes > SIZE_MAX / 4 || !et_grab(&text, (size_t)bytes + 1))
        return et_fail(error, "no memory for the conversation"), NULL;
    one.slots[RENDER_OUT] = address(text.data);
    et_do(chat->m, OWN_RENDER, &one);
    int64_t most = edgetok_encode(chat->m, text.data, (size_t)bytes, 0, NULL, 0, error);
    if (most >= 0 && !(ids = malloc(4 * (size_t)most + 4)))
        et_fail(error, "no memory for %lld tokens", (long long)most);
    if (ids) *made = edgetok_encode(chat->m, text.data, (size_t)bytes, 0, ids, (size_t)most, error);
    et_drop(&text);
    return ids;
}

/* How many first tokens are those of another conversation, too; -1: an error. */
static int64_t shared(const edgetok_chat *chat, const message *messages, int64_t count, const int32_t *ids,
                      int64_t ids_count, char *error) {
    int64_t others = 0, same = 0;
    int32_t *other = ids_of(chat, messages, count, &others, error);
    if (!other) return -1;
    while (same < ids_count && same < others && ids[same] == other[same]) same++;
    free(other);
    return same;
}

/* Keeps the first tokens that all conversations with this system message share. */
static bool pin(edgetok_chat *chat, char *error) {
    int64_t count = 0, same = -1;
    const message *system = chat->messages;
    message a[] = {*system, {address("a") - address(chat->said), 1}};
    message b[] = {*system, {address("1") - address(chat->said), 1}};
    int32_t *ids = ids_of(chat, a, 2, &count, error);
    if (ids) same = shared(chat, b, 2, ids, count, error);
    free(ids);
    if (same > chat->cache.slots / 2)
        return et_fail(error, "a system message of %lld tokens, expected at most %lld, half of the cache",
                       (long long)same, (long long)chat->cache.slots / 2), false;
    chat->cache.pinned = most(same, 0);
    return same >= 0;
}

/* How many first tokens a prompt shares with the next turn's, or with one that asks something else; -1: an error. */
static int64_t parts(edgetok_chat *chat, bool next, const int32_t *ids, int64_t count, char *error) {
    const size_t said = chat->said_bytes;
    const int64_t messages = chat->count;
    const message last = chat->messages[messages - 1];
    const char *other = !next && last.bytes > 0 && chat->said[last.at] == 'x' ? "1" : "x";
    int64_t same = -1;
    if (!next) chat->count--;
    if (et_add_message(chat, other, 1, error) && (!next || et_add_message(chat, other, 1, error)))
        same = shared(chat, chat->messages, chat->count, ids, count, error);
    chat->said_bytes = said;
    chat->messages[messages - 1] = last;
    chat->count = messages;
    return same;
}

/* The answer to the messages so far. */
static int answer(edgetok_chat *chat, char *error) {
    int64_t count = 0;
    int32_t *ids = ids_of(chat, chat->messages, chat->count, &count, error);
    if (!ids) return -1;
    int64_t question = 0, same = 0;
    if (chat->cache.past.count) {
        question = parts(chat, false, ids, count, error);
        same = question < 0 ? -1 : parts(chat, true, ids, count, error);
        if (same >= count - 1) same = count;
    }
    /* Room for the answer, so that no step allocates. */
    int64_t tokens = chat->cache.policy ? chat->cache.answer : chat->capacity - chat->cache.length;
    tokens = least(most(tokens, chat->next_sampling.max_tokens), MOST_CHAT_TOKENS);
    size_t room = (size_t)(tokens + 1) * (3 * (size_t)chat->m->tokens.list[TOK_LONGEST] + 8);
    et_drop(&chat->answer);
    chat->answer_bytes = 0;
    int failed = -1;
    if (!et_grab(&chat->answer, room)) et_fail(error, "no memory for an answer");
    else if (same >= 0) failed = et_prefill(chat, ids, (size_t)count, question, same, error);
    free(ids);
    return failed;
}

int edgetok_say(edgetok_chat *chat, const char *system, const char *text, char *error) {
    const bool first = chat->count < 1 + (chat->count && chat->messages->bytes < 0), with_system = system && *system;
    if (!first && system) return et_fail(error, "the system message belongs to the first turn");
    if (!chat->m->tokens.there || !chat->m->file.template_bytes)
        return et_fail(error, "this folder has no chat template; use edgetok_prefill");
    if (!et_add_answer(chat, error)) return -1;
    if (first) {
        chat->said_bytes = 0, chat->count = chat->cache.pinned = chat->kept_options.bytes = 0;
        if (!et_add_message(chat, system, with_system ? (int64_t)strlen(system) : -1, error)) return -1;
    }
    if (chat->count % 2 == 0) /* a message without any answer is replaced */
        chat->said_bytes = (size_t)chat->messages[--chat->count].at;
    size_t said = chat->said_bytes;
    const int64_t count = chat->count;
    bool pins = chat->cache.policy && !chat->cache.pinned && chat->messages->bytes >= 0;
    int failed = et_add_message(chat, text, (int64_t)strlen(text), error) && (!pins || pin(chat, error))
                     ? answer(chat, error) : -1;
    if (failed && chat->finish != EDGETOK_CANCELLED) chat->said_bytes = said, chat->count = first ? 0 : count;
    return failed;
}
