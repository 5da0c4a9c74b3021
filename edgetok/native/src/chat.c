/* A chat: prompts in, tokens and text out (engine/sequence.py, runtime/cpu/step_tables.py). */
#include "internal.h"

#include <stdlib.h>

enum { MORE_TEXT = 64 };
static const char *const RESTORE_FAULTS[] = {RESTORE_ERRORS};

/* Most bytes of text that one token gives: held bytes become U+FFFD, and so may each of its own. */
static size_t piece_room(const edgetok_model *m) {
    return m->tokens.there ? 3 * (size_t)m->tokens.list[TOK_LONGEST] + MORE_TEXT : MORE_TEXT;
}

edgetok_chat *edgetok_chat_new(edgetok_model *m, const edgetok_cache *options, char *error) {
    edgetok_chat *chat = calloc(1, sizeof *chat);
    if (!chat) return et_fail(error, "no memory"), NULL;
    chat->m = m;
    int64_t vocab = m->run[RUN_VOCAB];
    if (et_cache_new(&chat->cache, m, options, error)) return edgetok_chat_free(chat), NULL;
    chat->capacity = chat->cache.policy ? MOST_CHAT_TOKENS : chat->cache.capacity;
    size_t logits = 4 * (size_t)vocab, tokens = 4 * (size_t)chat->capacity;
    size_t scratch = ((size_t)m->run[RUN_SAMPLE_SCRATCH] + 63) / 64 * 64;
    uint8_t *at = et_grab(&chat->memory, 4 * (logits + 64) + tokens + scratch + 64);
    if (!at) return et_fail(error, "no memory for a chat"), edgetok_chat_free(chat), NULL;
    chat->choose = m->host[HOST_SAMPLE];
    chat->choose.slots[SAMPLE_SCRATCH] = address(at), at += scratch;
    chat->logits = (float *)(void *)at, at += (logits + 63) / 64 * 64;
    chat->seen = (int32_t *)(void *)at, at += 2 * logits;
    chat->seen_row = (int32_t *)(void *)at, at += logits;
    chat->tokens = (int32_t *)(void *)at;
    chat->choose.slots[SAMPLE_LOGITS] = address(chat->logits);
    chat->choose.slots[SAMPLE_SIZE] = vocab;
    chat->choose.slots[SAMPLE_OPTIONS] = address(chat->options);
    chat->choose.slots[SAMPLE_SEEN] = address(chat->seen);
    chat->choose.slots[SAMPLE_OUT] = address(&chat->chosen);
    if (edgetok_sample(chat, &(edgetok_sampling){0}, error)) return edgetok_chat_free(chat), NULL;
    return chat;
}

void edgetok_chat_free(edgetok_chat *chat) {
    if (!chat) return;
    et_drop(&chat->cache.memory);
    free(chat->cache.list);
    et_drop(&chat->memory);
    et_drop(&chat->text_memory);
    et_drop(&chat->next_memory);
    et_drop(&chat->answer);
    free(chat->messages);
    free(chat->said);
    free(chat);
}

static bool number_in(double value, double low, double high) { return low <= value && value <= high; }

int edgetok_sample(edgetok_chat *chat, const edgetok_sampling *given, char *error) {
    edgetok_sampling s = *given;
    if (s.top_p == 0) s.top_p = 1;
    if (s.repetition_penalty == 0) s.repetition_penalty = 1;
    if (!number_in(s.temperature, 0, 100) || !number_in(s.top_p, 0, 1) || !number_in(s.min_p, 0, 1) ||
        !number_in(s.repetition_penalty, 0.01, 100) || !number_in(s.presence_penalty, -100, 100) ||
        !number_in(s.frequency_penalty, -100, 100) || s.top_k < 0 || s.top_k > 1 << 24 ||
        s.max_tokens < 0 || s.stops > 64)
        return et_fail(error, "a sampling option is out of range");
    if (s.stops && !chat->m->tokens.there)
        return et_fail(error, "this folder has no tokenizer, so there is no text to stop at");
    size_t texts = 0, longest = 0, room = piece_room(chat->m);
    for (size_t i = 0; i < s.stops; i++) {
        size_t size = strlen(s.stop[i]);
        if (!size || size > 4096) return et_fail(error, "a stop text has %zu bytes, expected 1 to 4096", size);
        texts += size + 1;
        longest = size > longest ? size : longest;
    }
    /* Pointers to the texts, addresses and sizes of them, what may be held back, the texts. */
    size_t held = longest + 2 * room, pointers = s.stops * (sizeof(char *) + 16) + 8;
    et_drop(&chat->next_memory);
    int64_t *numbers = et_grab(&chat->next_memory, pointers + texts + 4 * held + 8);
    if (!numbers) return et_fail(error, "no memory for stop texts");
    const char **list = (const char **)(void *)(numbers + 2 * s.stops);
    char *at = (char *)numbers + pointers + 4 * held + 8;
    chat->held_bytes = held;
    for (size_t i = 0; i < s.stops; i++) {
        list[i] = strcpy(at, s.stop[i]);
        numbers[2 * i] = address(at);
        numbers[2 * i + 1] = (int64_t)strlen(at);
        at += strlen(at) + 1;
    }
    s.stop = list;
    chat->next_sampling = s;
    return 0;
}

static void float_option(int64_t *slot, double value) {
    *slot = 0;
    memcpy(slot, &(float){(float)value}, 4);
}

static void count_seen(edgetok_chat *chat, int32_t token, int32_t more) {
    if (!chat->seen_row[token]) {
        chat->seen[2 * chat->seen_count] = token;
        chat->seen[2 * chat->seen_count + 1] = 0;
        chat->seen_row[token] = (int32_t)++chat->seen_count;
    }
    chat->seen[2 * (chat->seen_row[token] - 1) + 1] += more;
}

/* Takes over the sampling that was set, and forgets the answer before. */
static int begin_answer(edgetok_chat *chat, char *error) {
    block before = chat->text_memory;
    chat->text_memory = chat->next_memory;
    chat->next_memory = before;
    chat->sampling = chat->next_sampling;
    /* The next answer has the same options until others are set. */
    if (edgetok_sample(chat, &chat->sampling, error)) return -1;
    const edgetok_sampling *s = &chat->sampling;
    char *buffer = (char *)chat->text_memory.data + s->stops * (sizeof(char *) + 16) + 8;
    chat->write = (instruction){{0}};
    chat->write.slots[WRITE_STOPS] = address(chat->text_memory.data);
    chat->write.slots[WRITE_STOP_COUNT] = (int64_t)s->stops;
    chat->write.slots[WRITE_BUFFER] = address(buffer);
    chat->write.slots[WRITE_ROOM] = (int64_t)chat->held_bytes;
    chat->output = buffer + 3 * chat->held_bytes;
    memcpy(chat->options + OPTION_TEMPERATURE, &s->temperature, 8);
    memcpy(chat->options + OPTION_TOP_P, &s->top_p, 8);
    memcpy(chat->options + OPTION_MIN_P, &s->min_p, 8);
    chat->options[OPTION_TOP_K] = s->top_k;
    float_option(chat->options + OPTION_REPETITION, s->repetition_penalty);
    float_option(chat->options + OPTION_PRESENCE, s->presence_penalty);
    float_option(chat->options + OPTION_FREQUENCY, s->frequency_penalty);
    for (int64_t i = 0; i < chat->seen_count; i++) chat->seen_row[chat->seen[2 * i]] = 0;
    chat->seen_count = 0;
    chat->finish = EDGETOK_GOING;
    chat->pending = false;
    chat->opened = true;
    chat->answer_bytes = 0;
    chat->stats = (edgetok_stats_t){0};
    return 0;
}

static bool penalises(const edgetok_sampling *s) {
    return s->repetition_penalty != 1 || s->presence_penalty != 0 || s->frequency_penalty != 0;
}

/* On this thread alone. */
static void call_here(const edgetok_model *m, instruction *one) {
    ((kernel *)(intptr_t)one->slots[0])(address(one), address(m->ctx), 0, 1);
}

/* Computes `count` tokens; logits of the last where they are wanted. */
static void step(edgetok_chat *chat, const int32_t *ids, int64_t count, bool wanted) {
    edgetok_model *m = chat->m;
    cache *c = &chat->cache;
    et_lock(&m->turn);
    int64_t first = et_cache_begin(c, count), *ctx = m->ctx;
    int32_t *tokens = pointer(m->file.tokens), *positions = pointer(m->file.positions);
    int64_t on = c->policy ? count : wanted; /* rows beyond the last keys: mass counts every one */
    for (int64_t i = 0; i < count; i++) tokens[i] = ids[i], positions[i] = (int32_t)(first + i);
    int64_t *body = m->parts[0], *tail = m->parts[1];
    memcpy(body, c->part, sizeof m->parts[0]);
    body[PART_ROWS] = count;
    if (count == 1 || on == 1) body[PART_CHUNKS] = c->chunks, body[PART_PARTIALS] = c->partials;
    memcpy(tail, body, sizeof m->parts[1]);
    tail[PART_ROWS] = on;
    ctx[CTX_TOKENS] = count;
    ctx[CTX_PARTS] = 1;
    ctx[CTX_PART_TABLE] = address(body);
    ctx[CTX_TAIL + LIST_ROWS] = m->file.rows + 4 * (count - on);
    ctx[CTX_TAIL + LIST_COUNT] = on;
    ctx[CTX_TAIL + LIST_PARTS] = address(tail);
    ctx[CTX_HEAD + LIST_ROWS] = m->file.rows + 4 * (on - wanted);
    ctx[CTX_HEAD + LIST_COUNT] = wanted;
    for (int64_t i = 0; i < m->run[RUN_ROPES]; i++) {
        instruction *angles = &m->host[HOST_ANGLES + i];
        angles->slots[ANGLES_FREQUENCIES] = c->rope_frequencies[i];
        call_here(m, angles);
    }
    et_run(m, wanted ? PROGRAM_ALL : on ? PROGRAM_BODY : PROGRAM_TRUNK);
    if (wanted) memcpy(chat->logits, pointer(m->file.logits), 4 * (size_t)m->run[RUN_VOCAB]);
    et_unlock(&m->turn);
    memcpy(chat->tokens + c->length, ids, 4 * (size_t)count);
    et_keep(c, OWN_CACHE_ADVANCE, count, 0, 0);
    chat->has_logits = wanted;
}

static int read_tokens(edgetok_chat *chat, const int32_t *ids, int64_t count, char *error) {
    double began = et_seconds();
    for (int64_t at = 0; at < count;) {
        int64_t n = least(count - at, chat->cache.block_tokens);
        int64_t ends[] = {chat->question, chat->cache.past.marked};
        for (int i = 0; i < 2; i++)
            if (ends[i] > chat->cache.length) n = least(n, ends[i] - chat->cache.length);
        if (atomic_load(&chat->cancelled)) return chat->finish = EDGETOK_CANCELLED, et_fail(error, "cancelled");
        step(chat, ids + at, n, at + n == count);
        at += n;
    }
    chat->stats.prefill_s += et_seconds() - began;
    return 0;
}

static int check_ids(const edgetok_chat *chat, const int32_t *ids, size_t count, char *error) {
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= chat->m->run[RUN_VOCAB])
            return et_fail(error, "token %d, expected 0 to %lld", (int)ids[i],
                           (long long)chat->m->run[RUN_VOCAB] - 1);
    return 0;
}

/* Later prompts part from this one behind `question` or `shared` tokens (engine/cached_tokens.py); 0: nowhere. */
int et_prefill(edgetok_chat *chat, const int32_t *ids, size_t count, int64_t question, int64_t shared, char *error) {
    cache *c = &chat->cache;
    if (!count) return et_fail(error, "the prompt is empty");
    if (count > (size_t)chat->capacity)
        return et_fail(error, "the prompt has %zu tokens, the context holds %lld", count,
                       (long long)chat->capacity);
    if (check_ids(chat, ids, count, error)) return -1;
    atomic_store(&chat->cancelled, false);
    if (begin_answer(chat, error)) return -1;
    int64_t same = 0, most_same = least((int64_t)count - 1, c->length);
    while (same < most_same && chat->tokens[same] == ids[same]) same++;
    if (same < c->length) same = et_cache_truncate(c, same);
    c->past.marked = shared;
    chat->question = question - same < SNAPSHOT_GAP_TOKENS ? 0 : question;
    chat->stats.prompt_tokens = (int64_t)count;
    chat->stats.cached_tokens = same;
    if (chat->sampling.repetition_penalty != 1)
        for (size_t i = 0; i < count; i++) count_seen(chat, ids[i], 0);
    const tokenizer *t = &chat->m->tokens;
    bool visible = false; /* edgetok/text/detokenizer.py: whether a first space is the answer's */
    for (size_t i = count > 16 ? count - 16 : 0; t->there && i < count; i++)
        visible = visible || !(t->flags[ids[i]] & TOKEN_SPECIAL);
    if (t->there && t->flags[ids[count - 1]] & TOKEN_STARTS) visible = false;
    chat->write.slots[WRITE_STRIP] = t->there && t->list[TOK_STRIP] && !visible;
    return read_tokens(chat, ids + same, (int64_t)count - same, error);
}

int edgetok_prefill(edgetok_chat *chat, const int32_t *ids, size_t count, char *error) {
    return et_prefill(chat, ids, count, 0, 0, error);
}

/* Appends the text of a token to the output; without one, `rest`: what was held back. */
static void put_text(edgetok_chat *chat, int32_t token, bool ends, bool rest) {
    const tokenizer *t = &chat->m->tokens;
    int64_t *slots = chat->write.slots, flags = rest ? 0 : t->flags[token];
    bool nothing = rest || (ends && !(flags & TOKEN_SPECIAL));
    slots[WRITE_PIECE] = rest ? 0 : address(t->text + t->offsets[token]);
    slots[WRITE_BYTES] = nothing ? 0 : t->offsets[token + 1] - t->offsets[token];
    slots[WRITE_FLAGS] = nothing ? 0 : flags;
    slots[WRITE_REST] = rest;
    et_do(chat->m, OWN_WRITE_TOKEN, &chat->write);
}

int edgetok_next(edgetok_chat *chat, edgetok_output *output, char *error) {
    edgetok_model *m = chat->m;
    cache *c = &chat->cache;
    *output = (edgetok_output){.text = "", .finish = chat->finish};
    if (chat->finish != EDGETOK_GOING) return 0;
    if (!chat->opened || (!chat->pending && !chat->has_logits))
        return et_fail(error, "nothing to continue: call edgetok_prefill or edgetok_say first");
    double began = et_seconds();
    if (atomic_load(&chat->cancelled)) {
        chat->finish = output->finish = EDGETOK_CANCELLED;
        return 0;
    }
    if (chat->pending) step(chat, &chat->last, 1, true);
    chat->pending = false;
    chat->choose.slots[SAMPLE_SEEN_COUNT] = penalises(&chat->sampling) ? chat->seen_count : 0;
    memcpy(chat->choose.slots + SAMPLE_SEED, &chat->sampling.seed, 8);
    chat->choose.slots[SAMPLE_INDEX] = chat->stats.answer_tokens;
    call_here(m, &chat->choose);
    if (chat->chosen < 0 || chat->chosen >= m->run[RUN_VOCAB])
        return et_fail(error, "the logits are not numbers; the weights are damaged");
    int32_t token = (int32_t)chat->chosen;
    output->token = chat->last = token;
    chat->stats.answer_tokens++;
    if (penalises(&chat->sampling)) count_seen(chat, token, 1);
    bool ends = false;
    const int32_t *eos = pointer(m->file.eos_at);
    for (int64_t i = 0; i < m->run[RUN_EOS]; i++) ends = ends || eos[i] == token;
    int64_t limit = chat->sampling.max_tokens;
    if (!limit) limit = c->policy ? c->answer : INT64_MAX;
    int64_t *made = &chat->write.slots[WRITE_MADE];
    *made = 0;
    if (m->tokens.there) put_text(chat, token, ends, false);
    if (chat->write.slots[WRITE_FOUND] || ends) chat->finish = EDGETOK_STOP;
    else if (chat->stats.answer_tokens >= limit) chat->finish = EDGETOK_LENGTH;
    else if (c->length >= chat->capacity) chat->finish = EDGETOK_CONTEXT;
    else chat->pending = true;
    if (chat->finish != EDGETOK_GOING && m->tokens.there) put_text(chat, 0, false, true);
    chat->output[*made] = 0;
    output->finish = chat->finish;
    output->text = chat->output;
    output->bytes = (size_t)*made;
    chat->stats.decode_s += et_seconds() - began;
    if (chat->answer.data && output->bytes < chat->answer.bytes - chat->answer_bytes) { /* for the next turn */
        memcpy((char *)chat->answer.data + chat->answer_bytes, output->text, output->bytes);
        chat->answer_bytes += output->bytes;
    }
    return 1;
}

void edgetok_cancel(edgetok_chat *chat) { atomic_store(&chat->cancelled, true); }

int64_t edgetok_truncate(edgetok_chat *chat, int64_t tokens, char *error) {
    if (tokens < 0 || tokens > chat->cache.length)
        return et_fail(error, "cannot keep %lld of %lld tokens", (long long)tokens,
                       (long long)chat->cache.length);
    et_lock(&chat->m->turn);
    int64_t left = et_cache_truncate(&chat->cache, tokens);
    et_unlock(&chat->m->turn);
    chat->has_logits = chat->pending = chat->opened = false;
    chat->finish = EDGETOK_GOING;
    return left;
}

int64_t edgetok_tokens(const edgetok_chat *chat, int32_t *ids, size_t capacity) {
    int64_t count = chat->cache.length;
    if (capacity) memcpy(ids, chat->tokens, 4 * (size_t)least(count, (int64_t)capacity));
    return count;
}

const float *edgetok_logits(const edgetok_chat *chat) { return chat->has_logits ? chat->logits : NULL; }

void edgetok_stats(const edgetok_chat *chat, edgetok_stats_t *stats) {
    *stats = chat->stats;
    stats->tokens = chat->cache.length;
    stats->position = chat->cache.length - chat->cache.shift;
    stats->slots = chat->cache.slots;
    stats->cache_bytes = chat->cache.nbytes;
}

int64_t edgetok_save(edgetok_chat *chat, void *data, size_t capacity, char *error) {
    int64_t bytes = et_keep(&chat->cache, OWN_CACHE_SAVE, 0, 0, 0);
    if ((uint64_t)capacity > INT64_MAX) return et_fail(error, "too large");
    if (!data || bytes > (int64_t)capacity) return bytes;
    memset(data, 0, (size_t)bytes);
    return et_keep(&chat->cache, OWN_CACHE_SAVE, 0, address(data), bytes);
}

int edgetok_restore(edgetok_chat *chat, const void *data, size_t bytes, const int32_t *ids,
                    size_t count, char *error) {
    if ((uint64_t)bytes > INT64_MAX || count > (size_t)chat->capacity) return et_fail(error, "too large");
    if (check_ids(chat, ids, count, error)) return -1;
    int64_t fault = et_keep(&chat->cache, OWN_CACHE_RESTORE, (int64_t)count, address(data), (int64_t)bytes);
    if (fault < 0)
        return et_fail(error, "the saved cache is of %lld tokens, not of these %lld",
                       (long long)(-1 - fault), (long long)count);
    if (fault) return et_fail(error, "%s", RESTORE_FAULTS[fault]);
    memcpy(chat->tokens, ids, 4 * count);
    chat->count = 0;
    chat->has_logits = chat->pending = chat->opened = false;
    chat->finish = EDGETOK_GOING;
    return 0;
}
