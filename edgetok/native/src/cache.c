/* The KV cache of a chat: its sizes and its memory (edgetok/cache/bounds.py, runtime/cpu/cache_memory.py),
   which is allocated once and zeroed by the system as it is first used. */
#include "internal.h"

#include <stdlib.h>

static const policy policies[] = {POLICIES};

int64_t et_chunk_count(int64_t slots) { /* attention/launch.py */
    int64_t count = 0, begin = 0, size = BLOCK;
    while (begin < slots) {
        if (begin >= FIRST_CHUNKS * size) size *= 2;
        begin += size;
        count++;
    }
    return count;
}

bool et_stores(const edgetok_model *m, int64_t head) {
    int64_t kv = m->run[RUN_KV_HEADS];
    return head % kv < m->sizes[head / kv].kv_heads;
}

/* Memory is laid out twice: once to count, with base NULL, and once to place. */
typedef struct { uint8_t *base; size_t at; } layout;

static void *place(layout *l, int64_t count, size_t each) {
    uint8_t *found = l->base ? l->base + l->at : NULL;
    l->at += ((size_t)count * each + 127) / 64 * 64;
    return found;
}

static int64_t tiles(int64_t slots) { return slots / SLOT_TILE * SLOT_TILE; }

static void sizes(cache *c, int64_t slots) { /* bounds.py, of_slots and _tiers */
    const edgetok_model *m = c->m;
    c->slots = c->tiers[0] = slots;
    c->tiers[1] = 0;
    c->block_tokens = least(m->run[RUN_BLOCK], most(8, slots / 8));
    c->recent = most(8, slots / c->policy->recent);
    if (!c->policy->unequal || !m->n_wide) return;
    int64_t narrow = m->n_seeing - m->n_wide, sum = slots * m->n_seeing;
    int64_t few = most(SLOT_TILE, tiles(slots / 2));
    int64_t many = least(tiles(m->run[RUN_CONTEXT]), tiles((sum - few * narrow) / m->n_wide));
    few = tiles((sum - many * m->n_wide) / narrow); /* what wide heads leave */
    if (many <= few) return;
    c->tiers[0] = few;
    c->tiers[1] = many;
    c->recent = least(c->recent, 3 * few / 8);
}

static int64_t mass_slots(const cache *c) { return up(most(c->tiers[0], c->tiers[1]), BLOCK); }

/* Of the workspace of attention mass, attention/launch.py. */
static int64_t mass_floats(const cache *c) {
    int64_t slots = mass_slots(c), row = slots + up(slots, BLOCK * DIM_TILE) / BLOCK;
    return most(c->m->run[RUN_HEADS], c->m->threads * ROWS) * row +
           c->m->run[RUN_KV_HEADS] * MASS_LANES * slots;
}

/* Python's `nbytes` (cache_memory.py, group_memory.py), so that one budget gives the same slots. */
static int64_t python_bytes(const cache *c) {
    const int64_t *run = c->m->run;
    int64_t total = 8 * RECORD_SLOTS * run[RUN_LAYERS] * run[RUN_KV_HEADS];
    total += c->history.nbytes;
    for (int64_t i = 0; i < c->n_groups; i++) {
        const group *g = &c->groups[i];
        total += g->rows * g->limit * (g->chosen ? 12 : 8) + g->heads * (g->pages + 1) * 8 * PAGE_FIELDS;
        total += g->heads * g->limit * g->slot_bytes + 4 * g->rows * c->block_tokens;
    }
    return total + (c->policy ? 4 * mass_floats(c) : 0);
}

/* The group of a head; NULL where there is none yet. */
static group *group_of(const cache *c, int64_t head) {
    int64_t window = c->m->layers[head / c->m->run[RUN_KV_HEADS]].window;
    bool wide = c->tiers[1] && c->m->wide[head];
    for (group *g = c->groups; g < c->groups + c->n_groups; g++)
        if (g->window == window && (!g->chosen || g->wide == wide)) return g;
    return NULL;
}

/* Groups of heads that look equally far back: first those that evict, narrow ones before wide ones. */
static void shape_groups(cache *c) {
    const edgetok_model *m = c->m;
    int64_t kv = m->run[RUN_KV_HEADS];
    c->n_groups = 0;
    for (int i = 0; c->policy && m->n_seeing && i < 2; i++)
        if (c->tiers[i])
            c->groups[c->n_groups++] = (group){.chosen = true, .wide = i, .limit = c->tiers[i]};
    for (int64_t i = 0; i < m->run[RUN_LAYERS] * kv; i++) {
        if (!et_stores(m, i)) continue;
        int64_t window = m->layers[i / kv].window, scale = m->run[RUN_SCALE_BYTES];
        group *g = group_of(c, i);
        if (!g) {
            int64_t wanted = window ? least(c->capacity, window + c->block_tokens - 1) : c->capacity;
            g = &c->groups[c->n_groups++];
            *g = (group){.window = window, .limit = up(wanted, SLOT_TILE)};
        }
        g->size = &m->sizes[i / kv];
        memcpy(g->sizes, (int64_t[]){g->size->key_bytes, g->size->value_bytes, scale, scale}, 32);
        g->slot_bytes = g->sizes[0] + g->sizes[1] + 2 * scale;
        g->heads++;
        g->rows = g->chosen ? g->heads : 1;
        g->pages = (g->limit + PAGE_SLOTS - 1) / PAGE_SLOTS;
    }
}

/* Fields of a page are in the order of its parts. */
static void place_page(group *g, int64_t page) {
    int64_t slots = least(PAGE_SLOTS, g->limit - page * PAGE_SLOTS);
    uint8_t *at = g->memory + g->heads * page * PAGE_SLOTS * g->slot_bytes;
    for (int64_t h = 0; h < g->heads; h++)
        for (int i = 0; i < 4; at += slots * g->sizes[i++])
            g->entries[(h * (g->pages + 1) + page) * PAGE_FIELDS + i] = address(at);
}

static void place_group(cache *c, group *g, layout *l) {
    int64_t slots = g->rows * g->limit;
    g->head = place(l, g->heads, 8);
    g->positions = place(l, slots, 4);
    g->tokens = place(l, slots, 4);
    g->mass = place(l, g->chosen ? slots : 0, 4);
    g->held = place(l, g->rows, 8);
    g->used = place(l, g->rows, 8);
    g->append = place(l, g->rows * c->block_tokens, 4);
    g->free_slots = place(l, g->chosen ? 2 * g->rows * c->block_tokens : 0, 4);
    g->entries = place(l, g->heads * (g->pages + 1) * PAGE_FIELDS, 8);
    g->records = place(l, g->heads * EV_RECORD_SLOTS, 8);
    g->memory = place(l, g->heads * g->limit, (size_t)g->slot_bytes);
    if (!l->base) return;
    for (int64_t i = 0; i < slots; i++) g->positions[i] = EMPTY;
    for (int64_t p = 0; p < g->pages; p++) place_page(g, p);
    int64_t kv = c->m->run[RUN_KV_HEADS], at = 0;
    for (int64_t i = 0; i < c->m->run[RUN_LAYERS] * kv; i++) {
        if (!et_stores(c->m, i) || group_of(c, i) != g) continue;
        const layer *own = &c->m->layers[i / kv];
        int64_t list = g->chosen ? at : 0, turned = own->rope;
        int64_t *record = c->records + RECORD_SLOTS * i, *evicts = g->records + EV_RECORD_SLOTS * at;
        record[REC_PAGES] = address(g->entries + at * (g->pages + 1) * PAGE_FIELDS);
        record[REC_POSITIONS] = address(g->positions + list * g->limit);
        record[REC_APPEND] = address(g->append + list * c->block_tokens);
        record[REC_MASS] = g->chosen ? address(g->mass + list * g->limit) : 0;
        evicts[EV_PAGES] = record[REC_PAGES];
        evicts[EV_POSITIONS] = record[REC_POSITIONS];
        evicts[EV_TOKENS] = address(g->tokens + list * g->limit);
        evicts[EV_FREQUENCIES] = turned < 0 ? 0 : address(c->frequencies[turned]);
        evicts[EV_PAIRS] = turned < 0 ? 0 : c->m->ropes[turned].half;
        if (own->centre >= 0) {
            int64_t constants = address(c->m->weights.data) + 4 * (i % kv) * g->size->dims;
            evicts[EV_CENTRE] = constants + own->centre;
            evicts[EV_FACTOR] = constants + own->factor;
        }
        g->head[at++] = i;
    }
}

static size_t place_all(cache *c, uint8_t *base) {
    const int64_t *run = c->m->run;
    layout l = {base, 0};
    int64_t longest = 0, heads = 0, slots = 0;
    c->records = place(&l, RECORD_SLOTS * run[RUN_LAYERS] * run[RUN_KV_HEADS], 8);
    for (int64_t i = 0; i < c->n_groups; i++) {
        place_group(c, &c->groups[i], &l);
        longest = most(longest, c->groups[i].limit);
        heads = most(heads, c->groups[i].heads);
        slots = most(slots, c->groups[i].heads * c->groups[i].limit);
    }
    c->shape_room = 512 + 48 * c->n_groups + (c->tiers[1] ? 24 * c->m->n_wide : 0);
    c->shape = place(&l, c->shape_room, 1);
    c->partials = place(&l, et_chunk_count(longest), (size_t)run[RUN_PARTIAL_BYTES]);
    c->nbytes = (int64_t)l.at;
    if (c->policy) {
        c->part[PART_MASS] = address(place(&l, mass_floats(c), 4));
        c->part[PART_MASS_SLOTS] = mass_slots(c);
        memcpy(&c->part[PART_MASS_KEEP], &(float){1}, 4); /* a running sum */
        c->scores = place(&l, slots, 4);
        c->evicted = place(&l, slots, 4);
        c->by = place(&l, slots, 4);
        c->moved = place(&l, slots, 4);
        c->counts = place(&l, heads, 8);
        c->scratch = place(&l, c->m->threads * (run[RUN_EVICT_SCRATCH] + 8 * longest), 1);
    }
    return l.at;
}

static bool fits(cache *c, int64_t slots, int64_t budget) {
    sizes(c, slots);
    shape_groups(c);
    return python_bytes(c) <= budget;
}

static int bound(cache *c, const edgetok_cache *o, char *error) { /* bounds.py */
    int64_t high = tiles(c->m->run[RUN_CONTEXT]), low = SLOT_TILE;
    int64_t slots = least(tiles(o->context_tokens), high);
    c->capacity = c->m->run[RUN_CONTEXT];
    if (high < low || (slots < low && !o->budget_bytes))
        return et_fail(error, "a cache that evicts needs room for %d tokens", SLOT_TILE);
    if (o->budget_bytes) {
        if (!fits(c, low, o->budget_bytes))
            return et_fail(error, "a cache of %lld bytes is too small, this model needs %lld",
                           (long long)o->budget_bytes, (long long)python_bytes(c));
        while (high - low > SLOT_TILE) {
            int64_t middle = tiles((low + high) / 2);
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
    if (!o.context_tokens) o.context_tokens = least(run[RUN_CONTEXT], DEFAULT_CONTEXT_TOKENS);
    if (!o.policy) o.policy = o.budget_bytes || o.context_tokens >= SLOT_TILE ? policies->name : "none";
    for (size_t i = 0; i < sizeof policies / sizeof *policies; i++)
        if (!strcmp(o.policy, policies[i].name)) c->policy = &policies[i];
    if (!c->policy && strcmp(o.policy, "none"))
        return et_fail(error, "cache policy %.40s, expected %s or none", o.policy, POLICY_NAMES);
    if (o.context_tokens < 1 || o.context_tokens > run[RUN_CONTEXT])
        return et_fail(error, "a context of %lld tokens, expected 1 to %lld, the length that the model "
                       "was trained for", (long long)o.context_tokens, (long long)run[RUN_CONTEXT]);
    if (o.budget_bytes < 0 || (o.budget_bytes && !c->policy))
        return et_fail(error, "a cache with a budget needs a policy: %s", POLICY_NAMES);
    c->capacity = c->answer = c->slots = o.context_tokens;
    c->block_tokens = least(run[RUN_BLOCK], c->capacity);
    c->groups = calloc((size_t)run[RUN_LAYERS] + 2, sizeof *c->groups);
    if (!c->groups) return et_fail(error, "no memory for a cache");
    if (et_history_new(&c->history, m, error)) return -1;
    if (c->policy && bound(c, &o, error)) return -1;
    for (int64_t i = 0; i < run[RUN_ROPES]; i++) {
        const rope *r = &m->ropes[i];
        c->frequencies[i] = r->original && c->capacity > r->original ? r->far_ : r->near_;
    }
    shape_groups(c);
    double all = 0;
    for (const group *g = c->groups; g < c->groups + c->n_groups; g++)
        all += (double)g->heads * (double)g->slot_bytes * (double)(c->capacity + 4096);
    size_t bytes = all < 1e14 ? place_all(c, NULL) : SIZE_MAX;
    if (bytes > SIZE_MAX / 4 || !et_grab(&c->memory, bytes))
        return et_fail(error, "no memory for a cache of %lld tokens", (long long)c->slots);
    place_all(c, c->memory.data);
    et_cache_shape(c);
    c->part[PART_RECORDS] = address(c->records);
    c->part[PART_STATES] = address(c->history.table);
    c->nbytes += c->history.nbytes;
    return 0;
}
