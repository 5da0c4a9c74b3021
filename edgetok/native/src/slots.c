/* What a step does to a cache: kernels keep its tables (kernels_cpu/cache), others evict (kernels_cpu/eviction). */
#include "internal.h"

int64_t et_keep(cache *c, int own, int64_t tokens, int64_t data, int64_t bytes) {
    instruction one = {{[KEEP_CACHE] = address(c), [KEEP_TOKENS] = tokens, [KEEP_DATA] = data,
                        [KEEP_BYTES] = bytes, [KEEP_GROUP] = address(c->group),
                        [KEEP_COUNTS] = c->counts}};
    et_do(c->m, own, &one);
    return one.slots[KEEP_RESULT];
}

static int64_t longest_held(const group *g) {
    int64_t found = 0, *held = pointer(g->held);
    for (int64_t i = 0; i < g->rows; i++) found = most(found, held[i]);
    return found;
}

/* An instruction on all heads of a group; `first`: in its first slot of its own. */
static instruction on_heads(const cache *c, const group *g, int64_t host, int64_t first) {
    instruction one = c->m->host[host];
    one.slots[EV_HEADS] = g->heads;
    one.slots[EV_RECORDS] = g->evicts;
    one.slots[EV_SLOTS] = g->limit;
    one.slots[EV_SCRATCH] = c->scratch;
    one.slots[EV_SCRATCH_BYTES] = c->m->run[RUN_EVICT_SCRATCH] + 8 * g->limit;
    one.slots[EV_FIRST] = first;
    return one;
}

static void evict(cache *c, group *g) { /* eviction.py */
    instruction score = on_heads(c, g, HOST_SCORES + c->policy->scores, c->scores);
    instruction share = on_heads(c, g, HOST_SHARE, c->scores), choose = on_heads(c, g, HOST_CHOOSE, c->scores);
    instruction join = on_heads(c, g, HOST_JOIN, c->evicted);
    choose.slots[CHOOSE_ROOM] = g->limit - c->block_tokens;
    choose.slots[CHOOSE_FRONT] = c->broad && !g->wide ? SINKS : most(SINKS, c->pinned);
    choose.slots[CHOOSE_RECENT] = c->length - least(c->recent, choose.slots[CHOOSE_ROOM] - SINKS);
    choose.slots[CHOOSE_FAR] = c->broad ? most(c->shift, c->length - c->slots * (g->wide ? WIDE_SPAN : NARROW_SPAN)) : 0;
    choose.slots[CHOOSE_MOST_FAR] = g->limit / FAR_SHARE;
    choose.slots[CHOOSE_AROUND] = c->apart ? 0 : c->policy->around;
    choose.slots[CHOOSE_OUT] = c->evicted;
    choose.slots[CHOOSE_COUNTS] = join.slots[REST_COUNTS] = c->counts;
    et_call(c->m, &score);
    if (c->apart && g->wide) et_call(c->m, &share);
    et_call(c->m, &choose);
    if (c->apart) et_call(c->m, &join);
    c->group = g;
    et_keep(c, OWN_CACHE_EVICT, 0, c->evicted, 0);
}

static void rotate(cache *c, const group *g, int64_t rest_by) {
    instruction one = on_heads(c, g, HOST_ROTATE, c->by);
    const layer_size *size = pointer(g->size);
    one.slots[ROTATE_REST] = rest_by;
    memcpy(one.slots + ROTATE_DIMS, size->rotation, sizeof size->rotation);
    et_call(c->m, &one);
}

/* Lower the positions of all windows and of the next token by `by`, keys rotated along. */
static void lower(cache *c, int64_t by) {
    for (int64_t i = c->evicting; by && i < c->group_count; i++) {
        c->group = &c->list[i];
        et_keep(c, OWN_CACHE_LOWER, by, c->by, 0);
        rotate(c, c->group, 0);
    }
    c->shift += by;
}

static void renumber(cache *c, int64_t tokens) { /* slot_cache.py */
    int64_t held = 0, window = 0;
    for (group *g = c->list; g < c->list + c->group_count; g++) {
        if (g->chosen) held = most(held, longest_held(g));
        window = most(window, g->window);
    }
    int64_t aim = most(window, c->capacity - c->capacity / FREED_SHARE);
    int64_t shift = c->length - c->shift - most(held, least(aim, c->capacity - tokens));
    for (group *g = c->list; g < c->list + c->evicting; g++) {
        instruction one = on_heads(c, g, HOST_RENUMBER, shift);
        one.slots[RENUMBER_FRONT] = most(SINKS, c->pinned);
        one.slots[RENUMBER_POSITIONS] = c->moved;
        one.slots[RENUMBER_BY] = c->by;
        et_call(c->m, &one);
        rotate(c, g, -shift);
        memcpy(pointer(g->positions), pointer(c->moved), 4 * (size_t)(g->rows * g->limit));
    }
    lower(c, shift);
}

int64_t et_cache_begin(cache *c, int64_t tokens) {
    et_keep(c, OWN_CACHE_BEGIN, tokens, 0, 0);
    c->part[PART_SEEN] = c->length;
    for (group *g = c->list; g < c->list + c->evicting; g++) {
        if (g->taken + tokens <= g->free_count) continue;
        if (g->limit - longest_held(g) < tokens) evict(c, g);
        c->group = g;
        et_keep(c, OWN_CACHE_LIST_FREE, 0, 0, 0);
    }
    if (c->policy && c->length - c->shift + tokens > c->capacity) renumber(c, tokens);
    return et_keep(c, OWN_CACHE_APPEND, tokens, 0, 0);
}

int64_t et_cache_truncate(cache *c, int64_t length) {
    lower(c, et_keep(c, OWN_CACHE_TRUNCATE, length, 0, 0));
    return c->length;
}
