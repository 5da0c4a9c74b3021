/* The KV cache of a chat. Kernels choose its sizes and lay out its memory (kernels_cpu/cache), which is
   allocated once and zeroed by the system as it is first used. */
#include "internal.h"

#include <stdlib.h>

static const policy policies[] = {POLICIES};

/* What kernels want to know of the model. */
static void tell_model(cache *c, edgetok_model *m) {
    const int64_t *run = m->run;
    c->m = m;
    c->groups = address(c->list);
    c->history = address(&c->past);
    c->run = address(run);
    c->layers = m->file.layers_at;
    c->sizes = m->file.sizes_at;
    c->states = m->file.states_at;
    c->wide = m->file.wide_at;
    c->wide_heads = m->n_wide;
    c->seeing_heads = m->n_seeing;
    c->weights = address(m->weights.data);
    c->weights_bytes = (int64_t)m->weights.bytes;
    c->threads = m->threads;
    c->frequencies = address(c->rope_frequencies);
    c->pairs = address(c->rope_pairs);
    c->kv_bits = run[RUN_KV_BITS];
    for (int64_t i = 0; i < run[RUN_ROPES]; i++) {
        c->longrope |= m->ropes[i].original != 0;
        c->rope_pairs[i] = m->ropes[i].pairs;
    }
}

bool et_cache_check(edgetok_model *m) {
    cache c = {0};
    tell_model(&c, m);
    if (!et_keep(&c, OWN_CACHE_CHECK, 0, 0, 0)) return false;
    m->n_wide = c.wide_heads;
    m->n_seeing = c.seeing_heads;
    return true;
}

int et_cache_new(cache *c, edgetok_model *m, const edgetok_cache *options, char *error) {
    edgetok_cache o = options ? *options : (edgetok_cache){0};
    const int64_t *run = m->run;
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
        return et_fail(error, "a budget of %lld bytes, expected 0 or more; it needs a policy: %s",
                       (long long)o.budget_bytes, POLICY_NAMES);
    c->list = calloc((size_t)run[RUN_LAYERS] + 2, sizeof *c->list);
    if (!c->list) return et_fail(error, "no memory for a cache");
    tell_model(c, m);
    c->capacity = c->answer = c->slots = o.context_tokens;
    c->block_tokens = least(run[RUN_BLOCK], c->capacity);
    if (c->policy) {
        c->bounded = 1;
        c->policy_name = address(c->policy->name);
        c->recent_share = c->policy->recent;
        c->unequal = c->policy->unequal;
    }
    int64_t bytes = et_keep(c, OWN_CACHE_SIZE, o.context_tokens, 0, o.budget_bytes);
    if (bytes == NO_ROOM) return et_fail(error, "a cache that evicts needs room for %d tokens", SLOT_TILE);
    if (bytes == NO_BUDGET)
        return et_fail(error, "a cache of %lld bytes is too small, this model needs %lld",
                       (long long)o.budget_bytes, (long long)c->python_bytes);
    if (bytes < 0 || (uint64_t)bytes > SIZE_MAX / 4 || !et_grab(&c->memory, (size_t)bytes))
        return et_fail(error, "no memory for a cache of %lld tokens", (long long)c->slots);
    c->most_tokens = c->policy ? MOST_CHAT_TOKENS : c->capacity;
    for (int64_t i = 0; i < run[RUN_ROPES]; i++) {
        const rope *r = &m->ropes[i];
        c->rope_frequencies[i] = r->original && c->capacity > r->original ? r->long_context : r->short_context;
    }
    et_keep(c, OWN_CACHE_PLACE, 0, address(c->memory.data), 0);
    c->part[PART_RECORDS] = c->records;
    c->part[PART_STATES] = c->state_table;
    c->part[PART_MASS] = c->mass;
    c->part[PART_MASS_SLOTS] = c->mass_slots;
    if (c->policy) memcpy(&c->part[PART_MASS_KEEP], &(float){1}, 4); /* a running sum */
    return 0;
}
