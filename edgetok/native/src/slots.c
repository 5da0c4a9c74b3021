/* What a step does to a cache: kernels keep its tables and its states (kernels_cpu/cache), others score
   what is evicted and rotate keys (kernels_cpu/eviction), on all threads. */
#include "internal.h"

static const char *const KEEPER_NAMES[KEEPERS] = {
    "cache_check", "cache_size", "cache_place", "cache_begin", "cache_list_free", "cache_append", "cache_advance",
    "cache_evict", "cache_lower", "cache_truncate", "cache_save", "cache_restore"};

int et_keepers(edgetok_model *m, char *error) {
    for (int i = 0; i < KEEPERS; i++)
        if (!(m->keepers[i] = et_kernel(m, KEEPER_NAMES[i], 64)))
            return et_fail(error, "the library has no kernel %s", KEEPER_NAMES[i]);
    return 0;
}

int64_t et_keep(cache *c, keeper which, int64_t tokens, int64_t data, int64_t bytes) {
    instruction one = {{0}};
    one.slots[KEEP_CACHE] = address(c);
    one.slots[KEEP_TOKENS] = tokens;
    one.slots[KEEP_DATA] = data;
    one.slots[KEEP_BYTES] = bytes;
    one.slots[KEEP_GROUP] = address(c->group);
    one.slots[KEEP_COUNTS] = c->counts;
    c->m->keepers[which](address(&one), 0, 0, 1);
    return one.slots[KEEP_RESULT];
}

static int64_t longest_held(const group *g) {
    const int64_t *held = (const void *)(intptr_t)g->held;
    int64_t found = 0;
    for (int64_t i = 0; i < g->rows; i++) found = most(found, held[i]);
    return found;
}

/* An instruction on all heads of a group. */
static instruction on_heads(const cache *c, const group *g, const instruction *what) {
    instruction one = *what;
    one.slots[EV_HEADS] = g->heads;
    one.slots[EV_RECORDS] = g->evicts;
    one.slots[EV_SLOTS] = g->limit;
    one.slots[EV_SCRATCH] = c->scratch;
    one.slots[EV_SCRATCH_BYTES] = c->m->run[RUN_EVICT_SCRATCH] + 8 * g->limit;
    return one;
}

static void evict(cache *c, group *g) { /* eviction.py */
    instruction score = on_heads(c, g, &c->m->scores[c->policy->scores]);
    instruction choose = on_heads(c, g, &c->m->choose);
    score.slots[SCORE_OUT] = choose.slots[CHOOSE_SCORES] = c->scores;
    choose.slots[CHOOSE_ROOM] = g->limit - c->block_tokens;
    choose.slots[CHOOSE_FRONT] = most(SINKS, c->pinned);
    choose.slots[CHOOSE_RECENT] = c->length - c->recent;
    choose.slots[CHOOSE_OUT] = c->evicted;
    choose.slots[CHOOSE_COUNTS] = c->counts;
    et_call(c->m, &score);
    et_call(c->m, &choose);
    c->group = g;
    et_keep(c, EVICT, 0, c->evicted, 0);
}

static void rotate(cache *c, const group *g) {
    instruction one = on_heads(c, g, &c->m->rotate);
    const layer_size *size = (const void *)(intptr_t)g->size;
    one.slots[ROTATE_BY] = c->by;
    one.slots[ROTATE_DIMS] = size->dims;
    memcpy(one.slots + ROTATE_PADDED, size->rotation, sizeof size->rotation);
    et_call(c->m, &one);
}

/* Lower the positions of all windows and of the next token by `by`, keys rotated along. */
static void lower(cache *c, int64_t by) {
    for (int64_t i = c->evicting; by && i < c->group_count; i++) {
        c->group = &c->list[i];
        et_keep(c, LOWER, by, c->by, 0);
        rotate(c, c->group);
    }
    c->shift += by;
}

static void renumber(cache *c, int64_t tokens) {
    int64_t held = 0, window = 0;
    for (group *g = c->list; g < c->list + c->group_count; g++) {
        if (g->chosen) held = most(held, longest_held(g));
        window = most(window, g->window);
    }
    int64_t next = most(held, least(window, c->capacity - tokens));
    for (group *g = c->list; g < c->list + c->evicting; g++) {
        instruction one = on_heads(c, g, &c->m->renumber);
        one.slots[RENUMBER_NEW] = next;
        one.slots[RENUMBER_FRONT] = most(SINKS, c->pinned);
        one.slots[RENUMBER_POSITIONS] = c->moved;
        one.slots[RENUMBER_BY] = c->by;
        et_call(c->m, &one);
        rotate(c, g);
        memcpy((void *)(intptr_t)g->positions, (void *)(intptr_t)c->moved, 4 * (size_t)(g->rows * g->limit));
    }
    lower(c, c->length - c->shift - next);
}

int64_t et_cache_begin(cache *c, int64_t tokens) {
    et_keep(c, BEGIN, tokens, 0, 0);
    c->part[PART_SEEN] = c->length;
    for (group *g = c->list; g < c->list + c->evicting; g++) {
        if (g->taken + tokens <= g->free_count) continue;
        if (g->limit - longest_held(g) < tokens) evict(c, g);
        c->group = g;
        et_keep(c, LIST_FREE, 0, 0, 0);
    }
    if (c->policy && c->length - c->shift + tokens > c->capacity) renumber(c, tokens);
    return et_keep(c, APPEND, tokens, 0, 0);
}

int64_t et_cache_truncate(cache *c, int64_t length) {
    lower(c, et_keep(c, TRUNCATE, length, 0, 0));
    return c->length;
}
