/* Which slots of a cache hold which tokens: appending, evicting, renumbering, going back
   (edgetok/cache/slot_cache.py, groups.py, table.py, eviction.py). */
#include "internal.h"

static void put(group *g, int64_t row, int64_t slot, int64_t token, int64_t position) {
    int32_t *at = g->positions + row * g->limit + slot;
    g->held[row] += *at == EMPTY;
    *at = (int32_t)position;
    g->tokens[row * g->limit + slot] = (int32_t)token;
    g->used[row] = most(g->used[row], slot + 1);
}

static void clear_slot(group *g, int64_t row, int64_t slot) {
    int32_t *positions = g->positions + row * g->limit;
    positions[slot] = EMPTY;
    if (g->chosen) g->mass[row * g->limit + slot] = 0;
    g->held[row]--;
    while (g->used[row] && positions[g->used[row] - 1] == EMPTY) g->used[row]--;
}

static int64_t longest(const int64_t *values, int64_t count) {
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) found = most(found, values[i]);
    return found;
}

void et_list_free(cache *c, group *g) {
    int64_t stride = 2 * c->block_tokens, room = least(g->limit - longest(g->held, g->rows), stride);
    for (int64_t r = 0; r < g->rows; r++) {
        const int32_t *positions = g->positions + r * g->limit;
        for (int64_t s = 0, n = 0; n < room; s++)
            if (positions[s] == EMPTY) g->free_slots[r * stride + n++] = (int32_t)s;
    }
    g->free_count = room;
    g->taken = 0;
}

static void set_common(cache *c, instruction *one, const group *g) {
    one->slots[EV_HEADS] = g->heads;
    one->slots[EV_RECORDS] = address(g->records);
    one->slots[EV_SLOTS] = g->limit;
    one->slots[EV_SCRATCH] = address(c->scratch);
    one->slots[EV_SCRATCH_BYTES] = c->m->run[RUN_EVICT_SCRATCH] + 8 * g->limit;
}

static void evict(cache *c, group *g) { /* eviction.py */
    edgetok_model *m = c->m;
    instruction score = m->scores[c->policy->scores], choose = m->choose;
    set_common(c, &score, g);
    score.slots[SCORE_OUT] = address(c->scores);
    et_call(m, &score);
    set_common(c, &choose, g);
    choose.slots[CHOOSE_SCORES] = address(c->scores);
    choose.slots[CHOOSE_ROOM] = g->limit - c->block_tokens;
    choose.slots[CHOOSE_FRONT] = most(SINKS, c->pinned);
    choose.slots[CHOOSE_RECENT] = c->length - c->recent;
    choose.slots[CHOOSE_OUT] = address(c->evicted);
    choose.slots[CHOOSE_COUNTS] = address(c->counts);
    et_call(m, &choose);
    for (int64_t r = 0; r < g->rows; r++) {
        double gone = 0;
        for (int64_t i = 0; i < c->counts[r]; i++) {
            int64_t slot = c->evicted[r * g->limit + i];
            gone += (double)g->mass[r * g->limit + slot];
            g->mark = most(g->mark, g->tokens[r * g->limit + slot] + 1);
            clear_slot(g, r, slot);
        }
        c->dropped += gone;
    }
}

static void rotate(cache *c, const group *g) {
    instruction one = c->m->rotate;
    set_common(c, &one, g);
    one.slots[ROTATE_BY] = address(c->by);
    one.slots[ROTATE_DIMS] = g->size->dims;
    memcpy(one.slots + ROTATE_PADDED, g->size->rotation, sizeof g->size->rotation);
    et_call(c->m, &one);
}

/* Lower the positions of all windows and of the next token by `by`, keys rotated along. */
static void lower(cache *c, int64_t by) {
    if (!by) return;
    for (int64_t i = 0; i < c->n_groups; i++) {
        group *g = &c->groups[i];
        if (g->chosen) continue;
        int64_t oldest = INT64_MAX;
        for (int64_t s = 0; s < g->limit; s++) {
            bool filled = g->positions[s] != EMPTY;
            if (filled && g->positions[s] < by) {
                clear_slot(g, 0, s);
                filled = false;
            } else if (filled) {
                g->positions[s] -= (int32_t)by;
                oldest = least(oldest, g->tokens[s]);
            }
            for (int64_t h = 0; h < g->heads; h++)
                c->by[h * g->limit + s] = filled ? -(int32_t)by : 0;
        }
        if (oldest < INT64_MAX) g->mark = most(g->mark, oldest);
        rotate(c, g);
    }
    c->shift += by;
}

static void renumber(cache *c, int64_t tokens) {
    int64_t held = 0, window = 0;
    for (group *g = c->groups; g < c->groups + c->n_groups; g++) {
        if (g->chosen) held = most(held, longest(g->held, g->rows));
        window = most(window, g->window);
    }
    int64_t next = most(held, least(window, c->capacity - tokens));
    for (group *g = c->groups; g < c->groups + c->n_groups && g->chosen; g++) {
        instruction one = c->m->renumber;
        set_common(c, &one, g);
        one.slots[RENUMBER_NEW] = next;
        one.slots[RENUMBER_FRONT] = most(SINKS, c->pinned);
        one.slots[RENUMBER_POSITIONS] = address(c->moved);
        one.slots[RENUMBER_BY] = address(c->by);
        et_call(c->m, &one);
        rotate(c, g);
        memcpy(g->positions, c->moved, 4 * (size_t)(g->rows * g->limit));
    }
    lower(c, c->length - c->shift - next);
}

int64_t et_cache_used(const cache *c) {
    int64_t used = 0;
    for (int64_t i = 0; i < c->n_groups; i++)
        used = most(used, longest(c->groups[i].used, c->groups[i].rows));
    return used;
}

int64_t et_cache_begin(cache *c, int64_t tokens) {
    et_history_begin(&c->history, tokens, c->length);
    c->part[PART_SEEN] = c->length;
    for (group *g = c->groups; g < c->groups + c->n_groups && g->chosen; g++) {
        if (g->taken + tokens <= g->free_count) continue;
        if (g->limit - longest(g->held, g->rows) < tokens) evict(c, g);
        et_list_free(c, g);
    }
    if (c->policy && c->length - c->shift + tokens > c->capacity) renumber(c, tokens);
    int64_t first = c->length - c->shift;
    for (int64_t i = 0; i < c->n_groups; i++) {
        group *g = &c->groups[i];
        for (int64_t r = 0; r < g->rows; r++)
            for (int64_t t = 0; t < tokens; t++) {
                int64_t slot = g->chosen ? g->free_slots[2 * r * c->block_tokens + g->taken + t]
                                         : (c->length + t) % g->limit;
                g->append[r * c->block_tokens + t] = (int32_t)slot;
                put(g, r, slot, c->length + t, first + t);
            }
        if (g->chosen) g->taken += tokens;
        else g->mark = most(g->mark, c->length + tokens - g->limit);
        for (int64_t h = 0; h < g->heads; h++)
            c->records[RECORD_SLOTS * g->head[h] + REC_USED] = g->used[g->chosen ? h : 0];
    }
    return first;
}

/* Going back. */

static int64_t in_groups(const cache *c, int64_t length) {
    for (int64_t i = 0; i < c->n_groups; i++) {
        const group *g = &c->groups[i];
        if (!g->chosen) {
            int64_t from = g->window ? most(0, length - g->window + 1) : 0;
            if (g->mark > from) return 0;
        } else if (length < g->mark) {
            int64_t left = 0;
            for (int64_t s = 0; s < g->rows * g->limit; s++)
                left += g->positions[s] != EMPTY && g->tokens[s] < length;
            if ((double)left / (double)g->rows < (double)least(length, g->limit) / 2) return 0;
        }
    }
    return length;
}

int64_t et_cache_truncate(cache *c, int64_t length) {
    for (int64_t found; (found = et_history_reachable(&c->history, in_groups(c, length))) != length;)
        length = found;
    et_history_truncate(&c->history, length);
    for (int64_t i = 0; i < c->n_groups; i++) {
        group *g = &c->groups[i];
        for (int64_t r = 0; r < g->rows; r++)
            for (int64_t s = g->used[r] - 1; s >= 0; s--)
                if (g->positions[r * g->limit + s] != EMPTY && g->tokens[r * g->limit + s] >= length)
                    clear_slot(g, r, s);
        if (g->chosen) g->mark = least(g->mark, length);
        if (!g->chosen && !length) g->mark = 0;
        if (g->chosen) et_list_free(c, g);
    }
    c->length = length;
    if (!length) c->shift = 0, c->dropped = 0;
    int64_t last = -1;
    for (group *g = c->groups; g < c->groups + c->n_groups && g->chosen; g++)
        for (int64_t s = 0; s < g->rows * g->limit; s++)
            if (g->positions[s] != EMPTY) last = most(last, g->positions[s]);
    if (length) lower(c, -most(0, last + 1 - (length - c->shift)));
    return length;
}
