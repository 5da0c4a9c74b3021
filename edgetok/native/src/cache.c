/* The KV cache of a chat: what edgetok/cache/ does in Python (slot_cache.py, groups.py, table.py,
   eviction.py), over memory that is allocated once and zeroed by the system as it is first used. */
#include "internal.h"

#include <stdlib.h>

const char *const et_policies[POLICY_COUNT] = {"none", "retain", "window", "content"};

static int64_t up(int64_t value, int64_t by) { return (value + by - 1) / by * by; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t address(const void *p) { return (int64_t)(intptr_t)p; }

int64_t et_chunk_count(int64_t slots) { /* attention/launch.py */
    int64_t count = 0, begin = 0, size = BLOCK;
    while (begin < slots) {
        if (begin >= FIRST_CHUNKS * size) size *= 2;
        begin += size;
        count++;
    }
    return count;
}

static int64_t slot_bytes(const edgetok_model *m) {
    return 2 * (m->run[RUN_ROW_BYTES] + m->run[RUN_SCALE_BYTES]);
}

/* Memory is laid out twice: once to count, with base NULL, and once to place. */
typedef struct { uint8_t *base; size_t at; } layout;

static void *place(layout *l, int64_t count, size_t each) {
    uint8_t *found = l->base ? l->base + l->at : NULL;
    l->at += ((size_t)count * each + 127) / 64 * 64;
    return found;
}

static void sizes(cache *c, int64_t slots) { /* bounds.py, of_slots */
    c->slots = slots;
    c->block_tokens = least(c->m->run[RUN_BLOCK], most(8, slots / 8));
    const int64_t recent[] = {WINDOW_RECENT, RETAIN_RECENT, WINDOW_RECENT, CONTENT_RECENT};
    c->recent = most(8, slots / recent[c->policy]);
}

/* Python's `nbytes` (cache_memory.py, group_memory.py), so that one budget gives the same slots. */
static int64_t python_bytes(const cache *c, int64_t threads) {
    const int64_t *run = c->m->run;
    int64_t slots = up(c->slots, BLOCK), total = 8 * RECORD_SLOTS * run[RUN_LAYERS] * run[RUN_KV_HEADS];
    total += c->history.nbytes;
    for (int64_t i = 0; i < c->n_groups; i++) {
        const group *g = &c->groups[i];
        total += g->rows * g->limit * (g->chosen ? 12 : 8) + g->heads * (g->pages + 1) * 8 * PAGE_FIELDS;
        total += g->heads * g->limit * slot_bytes(c->m) + 4 * g->rows * c->block_tokens;
    }
    if (!c->policy) return total;
    int64_t row = slots + (slots + BLOCK * DIM_TILE - 1) / (BLOCK * DIM_TILE) * DIM_TILE;
    int64_t rows = most(run[RUN_HEADS], threads * ROWS);
    return total + 4 * (rows * row + run[RUN_KV_HEADS] * MASS_LANES * slots);
}

/* The groups of layers that look equally far back, the one that evicts first. */
static void shape_groups(cache *c) {
    const edgetok_model *m = c->m;
    int64_t kv = m->run[RUN_KV_HEADS], count = 0;
    for (int64_t l = 0; l < m->run[RUN_LAYERS]; l++) {
        int64_t window = m->layers[l].window, i = 0;
        if (window < 0) continue; /* a recurrent layer */
        while (i < count && c->groups[i].window != window) i++;
        if (i == count) {
            bool chosen = c->policy && window == 0;
            int64_t wanted = window ? least(c->capacity, window + c->block_tokens - 1) : c->capacity;
            if (chosen && count) memmove(c->groups + 1, c->groups, (size_t)count * sizeof *c->groups);
            i = chosen ? 0 : count;
            c->groups[i] = (group){.window = window, .chosen = chosen,
                                   .limit = chosen ? c->slots : up(wanted, SLOT_TILE)};
            count++;
        }
        group *g = &c->groups[i];
        g->layers++;
        g->heads += kv;
        g->rows = g->chosen ? g->heads : 1;
        g->pages = (g->limit + PAGE_SLOTS - 1) / PAGE_SLOTS;
    }
    c->n_groups = count;
}

static void place_page(const cache *c, group *g, int64_t page) {
    int64_t row = c->m->run[RUN_ROW_BYTES], scale = c->m->run[RUN_SCALE_BYTES];
    int64_t slots = least(PAGE_SLOTS, g->limit - page * PAGE_SLOTS), each = slots * slot_bytes(c->m);
    uint8_t *at = g->memory + g->heads * page * PAGE_SLOTS * slot_bytes(c->m);
    for (int64_t h = 0; h < g->heads; h++, at += each) {
        int64_t *entry = g->entries + (h * (g->pages + 1) + page) * PAGE_FIELDS;
        entry[PAGE_KEYS] = address(at);
        entry[PAGE_VALUES] = address(at + slots * row);
        entry[PAGE_KEY_SCALES] = address(at + 2 * slots * row);
        entry[PAGE_VALUE_SCALES] = address(at + slots * (2 * row + scale));
    }
}

static void place_group(cache *c, group *g, layout *l) {
    int64_t slots = g->rows * g->limit;
    g->layer = place(l, g->layers, 8);
    g->positions = place(l, slots, 4);
    g->tokens = place(l, slots, 4);
    g->held = place(l, g->rows, 8);
    g->used = place(l, g->rows, 8);
    g->append = place(l, g->rows * c->block_tokens, 4);
    g->free_slots = place(l, g->chosen ? 2 * g->rows * c->block_tokens : 0, 4);
    g->entries = place(l, g->heads * (g->pages + 1) * PAGE_FIELDS, 8);
    g->records = place(l, g->heads * EV_RECORD_SLOTS, 8);
    g->memory = place(l, g->heads * g->limit, (size_t)slot_bytes(c->m));
    if (!l->base) return;
    for (int64_t i = 0; i < slots; i++) g->positions[i] = EMPTY;
    for (int64_t p = 0; p < g->pages; p++) place_page(c, g, p);
    int64_t kv = c->m->run[RUN_KV_HEADS], at = 0;
    for (int64_t i = 0; i < c->m->run[RUN_LAYERS]; i++) {
        if (c->m->layers[i].window != g->window) continue;
        int64_t turned = c->m->layers[i].rope;
        g->layer[at] = i;
        for (int64_t h = 0; h < kv; h++) {
            int64_t head = at * kv + h, list = g->chosen ? head : 0;
            int64_t *record = c->records + RECORD_SLOTS * (i * kv + h);
            int64_t *evicts = g->records + EV_RECORD_SLOTS * head;
            record[REC_PAGES] = address(g->entries + head * (g->pages + 1) * PAGE_FIELDS);
            record[REC_POSITIONS] = address(g->positions + list * g->limit);
            record[REC_APPEND] = address(g->append + list * c->block_tokens);
            evicts[EV_PAGES] = record[REC_PAGES];
            evicts[EV_POSITIONS] = record[REC_POSITIONS];
            evicts[EV_TOKENS] = address(g->tokens + list * g->limit);
            evicts[EV_FREQUENCIES] = turned < 0 ? 0 : address(c->frequencies[turned]);
            evicts[EV_PAIRS] = turned < 0 ? 0 : c->m->ropes[turned].half;
            const layer *shape = &c->m->layers[i];
            if (shape->centre < 0) continue;
            int64_t constants = address(c->m->weights.data) + 4 * h * c->m->run[RUN_HEAD_DIM];
            evicts[EV_CENTRE] = constants + shape->centre;
            evicts[EV_FACTOR] = constants + shape->factor;
        }
        at++;
    }
}

static size_t place_all(cache *c, uint8_t *base) {
    const int64_t *run = c->m->run;
    layout l = {base, 0};
    int64_t longest = 0, heads = 0;
    c->records = place(&l, RECORD_SLOTS * run[RUN_LAYERS] * run[RUN_KV_HEADS], 8);
    for (int64_t i = 0; i < c->n_groups; i++) {
        place_group(c, &c->groups[i], &l);
        longest = most(longest, c->groups[i].limit);
        heads = most(heads, c->groups[i].heads);
    }
    c->partials = place(&l, et_chunk_count(longest), (size_t)run[RUN_PARTIAL_BYTES]);
    c->nbytes = (int64_t)l.at;
    if (c->policy) {
        c->scores = place(&l, heads * longest, 4);
        c->evicted = place(&l, heads * longest, 4);
        c->by = place(&l, heads * longest, 4);
        c->moved = place(&l, heads * longest, 4);
        c->counts = place(&l, heads, 8);
        c->scratch = place(&l, c->m->threads * (run[RUN_EVICT_SCRATCH] + 8 * longest), 1);
    }
    return l.at;
}

static bool fits(cache *c, int64_t slots, int64_t budget) {
    sizes(c, slots);
    shape_groups(c);
    return python_bytes(c, c->m->threads) <= budget;
}

static int bound(cache *c, const edgetok_cache *o, char *error) { /* bounds.py */
    int64_t high = c->m->run[RUN_CONTEXT] / SLOT_TILE * SLOT_TILE, low = SLOT_TILE;
    int64_t slots = least(o->context_tokens / SLOT_TILE * SLOT_TILE, high);
    c->capacity = c->m->run[RUN_CONTEXT];
    if (high < low || (slots < low && !o->budget_bytes))
        return et_fail(error, "a cache that evicts needs room for %d tokens", SLOT_TILE);
    if (o->budget_bytes) {
        if (!fits(c, low, o->budget_bytes))
            return et_fail(error, "a cache of %lld bytes is too small, this model needs %lld",
                           (long long)o->budget_bytes, (long long)python_bytes(c, c->m->threads));
        while (high - low > SLOT_TILE) {
            int64_t middle = (low + high) / 2 / SLOT_TILE * SLOT_TILE;
            if (fits(c, middle, o->budget_bytes)) low = middle;
            else high = middle;
        }
        slots = fits(c, high, o->budget_bytes) ? high : low;
    }
    sizes(c, slots);
    return 0;
}

int et_cache_new(cache *c, edgetok_model *m, const edgetok_cache *options, char *error) {
    edgetok_cache o = options ? *options : (edgetok_cache){0};
    const int64_t *run = m->run;
    c->m = m;
    c->policy = 0;
    while (o.policy && (!c->policy || strcmp(o.policy, et_policies[c->policy])))
        if (++c->policy == POLICY_COUNT)
            return et_fail(error, "cache policy %.40s, expected content, retain or window", o.policy);
    if (!o.context_tokens) o.context_tokens = least(run[RUN_CONTEXT], DEFAULT_CONTEXT_TOKENS);
    if (o.context_tokens < 1 || o.context_tokens > run[RUN_CONTEXT])
        return et_fail(error, "a context of %lld tokens, expected 1 to %lld, the length that the model "
                       "was trained for", (long long)o.context_tokens, (long long)run[RUN_CONTEXT]);
    if (o.budget_bytes < 0 || (o.budget_bytes && !c->policy))
        return et_fail(error, "a cache with a budget needs a policy: content, retain or window");
    c->capacity = c->answer = o.context_tokens;
    c->block_tokens = least(run[RUN_BLOCK], c->capacity);
    c->groups = calloc((size_t)run[RUN_LAYERS] + 1, sizeof *c->groups);
    if (!c->groups) return et_fail(error, "no memory for a cache");
    if (et_history_new(&c->history, m, error)) return -1;
    if (c->policy && bound(c, &o, error)) return -1;
    if (!c->policy) c->slots = c->capacity;
    c->block_tokens = least(c->block_tokens, c->capacity);
    for (int64_t i = 0; i < run[RUN_ROPES]; i++) {
        const rope *r = &m->ropes[i];
        c->frequencies[i] = r->original && c->capacity > r->original ? r->far_ : r->near_;
    }
    shape_groups(c);
    double all = (double)slot_bytes(m) * (double)run[RUN_LAYERS] * (double)run[RUN_KV_HEADS];
    size_t bytes = all * (double)(c->capacity + 4096) < 1e14 ? place_all(c, NULL) : SIZE_MAX;
    if (bytes > SIZE_MAX / 4 || !et_grab(&c->memory, bytes))
        return et_fail(error, "no memory for a cache of %lld tokens", (long long)c->slots);
    place_all(c, c->memory.data);
    c->part[PART_RECORDS] = address(c->records);
    c->part[PART_STATES] = address(c->history.table);
    c->nbytes += c->history.nbytes;
    return 0;
}

/* Slots: table.py. */

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
    instruction score = m->scores[c->policy - 1], choose = m->choose;
    set_common(c, &score, g);
    score.slots[SCORE_OUT] = address(c->scores);
    et_call(m, &score);
    set_common(c, &choose, g);
    choose.slots[CHOOSE_SCORES] = address(c->scores);
    choose.slots[CHOOSE_ROOM] = c->slots - c->block_tokens;
    choose.slots[CHOOSE_FRONT] = most(SINKS, c->pinned);
    choose.slots[CHOOSE_RECENT] = c->length - c->recent;
    choose.slots[CHOOSE_OUT] = address(c->evicted);
    choose.slots[CHOOSE_COUNTS] = address(c->counts);
    et_call(m, &choose);
    for (int64_t r = 0; r < g->rows; r++)
        for (int64_t i = 0; i < c->counts[r]; i++) {
            int64_t slot = c->evicted[r * g->limit + i];
            g->mark = most(g->mark, g->tokens[r * g->limit + slot] + 1);
            clear_slot(g, r, slot);
        }
}

static void rotate(cache *c, const group *g) {
    instruction one = c->m->rotate;
    set_common(c, &one, g);
    one.slots[ROTATE_BY] = address(c->by);
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
    group *g = c->groups[0].chosen ? &c->groups[0] : NULL;
    int64_t held = g ? longest(g->held, g->rows) : 0, window = 0;
    for (int64_t i = 0; i < c->n_groups; i++) window = most(window, c->groups[i].window);
    int64_t next = most(held, least(window, c->capacity - tokens));
    if (g) {
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
    group *chosen = c->groups[0].chosen ? &c->groups[0] : NULL;
    if (chosen && chosen->taken + tokens > chosen->free_count) {
        if (chosen->limit - longest(chosen->held, chosen->rows) < tokens) evict(c, chosen);
        et_list_free(c, chosen);
    }
    if (c->policy && c->length - c->shift + tokens > c->capacity) renumber(c, tokens);
    int64_t first = c->length - c->shift, kv = c->m->run[RUN_KV_HEADS];
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
        for (int64_t l = 0; l < g->layers; l++)
            for (int64_t h = 0; h < kv; h++)
                c->records[RECORD_SLOTS * (g->layer[l] * kv + h) + REC_USED] =
                    g->used[g->chosen ? l * kv + h : 0];
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
    if (!length) c->shift = 0;
    if (length && c->groups[0].chosen) {
        const group *g = &c->groups[0];
        int64_t last = -1;
        for (int64_t s = 0; s < g->rows * g->limit; s++)
            if (g->positions[s] != EMPTY) last = most(last, g->positions[s]);
        lower(c, -most(0, last + 1 - (length - c->shift)));
    }
    return length;
}
