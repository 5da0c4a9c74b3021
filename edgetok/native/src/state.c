/* A cache as a block of bytes, as edgetok/cache/state.py and saved.py write and read it. */
#include "internal.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

enum { SHAPE = 1, COUNTERS = 2, TABLE = 3, ROWS_ = 4, MASS = 5, SNAPSHOT = 16, FIXED_COUNTERS = 7 };

static void say(cache *c, const char *format, ...) {
    va_list list;
    va_start(list, format);
    int64_t room = c->shape_room - c->shape_bytes;
    c->shape_bytes += vsnprintf(c->shape + c->shape_bytes, room > 0 ? (size_t)room : 0, format, list);
    va_end(list);
}

/* Two numbers of a list. */
static void say_pair(cache *c, int64_t a, int64_t b) {
    say(c, "%s[%d,%d]", c->shape[c->shape_bytes - 1] == '[' ? "" : ",", (int)a, (int)b);
}

void et_cache_shape(cache *c) {
    const int64_t *run = c->m->run;
    bool longrope = false;
    for (int64_t i = 0; i < run[RUN_ROPES]; i++) longrope = longrope || c->m->ropes[i].original;
    say(c, "{\"block_tokens\":%d,", (int)c->block_tokens);
    if (longrope && !c->policy) say(c, "\"context\":%d,", (int)c->capacity);
    say(c, "\"kind\":\"cpu\",\"kv_bits\":%d,", (int)run[RUN_KV_BITS]);
    if (c->policy) say(c, "\"policy\":\"%s\",", c->policy->name);
    say(c, "\"rings\":[");
    for (const group *g = c->groups; g < c->groups + c->n_groups; g++)
        if (g->window) say_pair(c, g->window, g->limit);
    say(c, c->policy ? "],\"slots\":%d" : "]", (int)c->slots);
    if (c->tiers[1]) say(c, ",\"wide\":[");
    for (int64_t i = 0; c->tiers[1] && i < c->groups[1].heads; i++)
        say_pair(c, c->groups[1].head[i] / run[RUN_KV_HEADS], c->groups[1].head[i] % run[RUN_KV_HEADS]);
    say(c, c->tiers[1] ? "]}" : "}");
}

static int64_t held_of(const group *g) {
    int64_t held = 0;
    for (int64_t r = 0; r < g->rows; r++) held += g->held[r];
    return held;
}

/* Copies one slot's key, value and scales between a page and rows; see page_layout.py. */
static void copy_slot(const cache *c, const group *g, int64_t head, int64_t slot, uint8_t *rows[4],
                      bool to_page) {
    const int64_t *entry = g->entries + (head * (g->pages + 1) + slot / PAGE_SLOTS) * PAGE_FIELDS;
    int64_t bits = c->m->run[RUN_KV_BITS], s = slot % PAGE_SLOTS;
    int64_t key_unit = bits <= 8 ? 4 : bits / 8, value_unit = bits <= 8 ? 1 : bits / 8;
    int64_t value_tile = bits <= 8 ? VALUE_TILE : 1;
    const int64_t units[4] = {key_unit, value_unit, 4, 4}, tiles[4] = {KEY_TILE, value_tile, 1, 1};
    for (int i = 0; i < 4; i++) {
        uint8_t *page = (uint8_t *)(intptr_t)entry[i] + s / tiles[i] * tiles[i] * g->sizes[i];
        for (int64_t u = 0; u < g->sizes[i] / units[i]; u++) {
            uint8_t *there = page + (u * tiles[i] + s % tiles[i]) * units[i], *here = rows[i] + u * units[i];
            if (to_page) memcpy(there, here, (size_t)units[i]);
            else memcpy(here, there, (size_t)units[i]);
        }
        rows[i] += g->sizes[i];
    }
}

/* All slots of a group, head by head: of each its keys, values, key scales and value scales. */
static void copy_rows(const cache *c, const group *g, uint8_t *at, bool to_page) {
    for (int64_t h = 0; h < g->heads; h++) {
        int64_t list = g->rows == 1 ? 0 : h, n = g->held[list];
        uint8_t *rows[4];
        for (int i = 0; i < 4; at += n * g->sizes[i++]) rows[i] = at;
        for (int64_t s = 0; s < g->used[list]; s++)
            if (g->positions[list * g->limit + s] != EMPTY) copy_slot(c, g, h, s, rows, to_page);
    }
}

typedef struct { uint32_t kind, group; uint64_t offset, bytes, zero; } entry;

int64_t et_cache_save(cache *c, uint8_t *data, int64_t capacity) {
    entry entries[2 + 3 * 64];
    int64_t counters[FIXED_COUNTERS + 64] = {c->length, c->shift, c->pinned};
    memcpy(&counters[3], &c->dropped, 8);
    int64_t n = 0, snapshot_bytes, snapshots = et_history_sections(&c->history, c->length, &snapshot_bytes);
    if (c->n_groups > 32) return -1;
    for (group *g = c->groups; g < c->groups + c->n_groups && g->chosen; g++) et_list_free(c, g);
    entries[n++] = (entry){SHAPE, 0, 0, (uint64_t)c->shape_bytes, 0};
    entries[n++] = (entry){COUNTERS, 0, 0, 8 * (uint64_t)(FIXED_COUNTERS + c->n_groups), 0};
    for (int64_t i = 0; i < c->n_groups; i++) {
        const group *g = &c->groups[i];
        int64_t held = held_of(g), slots = g->rows == 1 ? held * g->heads : held;
        counters[FIXED_COUNTERS + i] = g->mark;
        entries[n++] = (entry){TABLE, (uint32_t)i, 0, 4 * (uint64_t)(g->rows + 3 * held), 0};
        entries[n++] = (entry){ROWS_, (uint32_t)i, 0, (uint64_t)(slots * g->slot_bytes), 0};
        if (g->chosen) entries[n++] = (entry){MASS, (uint32_t)i, 0, 4 * (uint64_t)held, 0};
    }
    for (int64_t i = 0; i < snapshots; i++)
        entries[n++] = (entry){SNAPSHOT, (uint32_t)i, 0, (uint64_t)snapshot_bytes, 0};
    int64_t at = 24 + n * (int64_t)sizeof(entry);
    for (int64_t i = 0; i < n; i++) {
        entries[i].offset = (uint64_t)up(at, 64);
        at = up(at, 64) + (int64_t)entries[i].bytes;
    }
    if (!data || at > capacity) return at;
    memset(data, 0, (size_t)at);
    uint32_t head[2] = {STATE_VERSION, (uint32_t)n};
    memcpy(data, STATE_MAGIC, 8);
    memcpy(data + 8, head, 8);
    memcpy(data + 16, &at, 8);
    memcpy(data + 24, entries, (size_t)n * sizeof(entry));
    for (int64_t i = 0; i < n; i++) {
        uint8_t *to = data + entries[i].offset;
        const group *g = &c->groups[entries[i].kind == SNAPSHOT ? 0 : entries[i].group];
        if (entries[i].kind == SNAPSHOT) et_history_write(&c->history, c->length, entries[i].group, to);
        if (entries[i].kind == SHAPE) memcpy(to, c->shape, entries[i].bytes);
        if (entries[i].kind == COUNTERS) memcpy(to, counters, entries[i].bytes);
        if (entries[i].kind == ROWS_) copy_rows(c, g, to, false);
        if (entries[i].kind != TABLE) continue;
        int64_t held = held_of(g), k = g->rows;
        int32_t *numbers = (int32_t *)(void *)to;
        uint8_t *mass = g->chosen ? data + entries[i + 2].offset : NULL; /* after the rows */
        for (int64_t r = 0; r < g->rows; r++) {
            numbers[r] = (int32_t)g->held[r];
            for (int64_t s = 0; s < g->used[r]; s++) {
                if (g->positions[r * g->limit + s] == EMPTY) continue;
                numbers[k] = (int32_t)s;
                numbers[k + held] = g->tokens[r * g->limit + s];
                numbers[k + 2 * held] = g->positions[r * g->limit + s];
                if (g->chosen) memcpy(mass + 4 * (k - g->rows), g->mass + r * g->limit + s, 4);
                k++;
            }
        }
    }
    return at;
}

typedef struct { const uint8_t *data; int64_t bytes; } found;

static found section_of(const uint8_t *data, int64_t bytes, uint32_t kind, uint32_t group) {
    uint32_t count;
    memcpy(&count, data + 12, 4);
    for (uint32_t i = 0; i < count; i++) {
        entry e;
        memcpy(&e, data + 24 + i * sizeof e, sizeof e);
        if (e.kind == kind && e.group == group && e.offset % 64 == 0 && e.offset <= (uint64_t)bytes &&
            e.bytes <= (uint64_t)bytes - e.offset)
            return (found){data + e.offset, (int64_t)e.bytes};
    }
    return (found){NULL, -1};
}

/* Whether a table's numbers can be: slots and tokens of each list ascend, in place. */
static bool table_holds(const cache *c, const group *g, found t, int64_t length, int64_t next) {
    const int32_t *n = (const void *)t.data;
    int64_t held = 0;
    if (t.bytes < 4 * g->rows) return false;
    for (int64_t r = 0; r < g->rows; r++) {
        if (n[r] < 0 || n[r] > g->limit) return false;
        held += n[r];
    }
    if (t.bytes != 4 * (g->rows + 3 * held)) return false;
    const int32_t *slots = n + g->rows, *tokens = slots + held, *positions = tokens + held;
    for (int64_t r = 0; r < g->rows; slots += n[r], tokens += n[r], positions += n[r], r++)
        for (int32_t i = 0; i < n[r]; i++)
            if (slots[i] < 0 || slots[i] >= g->limit || (i && slots[i] <= slots[i - 1]) || tokens[i] < 0 ||
                tokens[i] >= length || positions[i] < 0 || positions[i] >= next ||
                (!g->chosen && slots[i] != tokens[i] % g->limit))
                return false;
    int64_t least = g->window && g->window - 1 < length ? g->window - 1 : length;
    return g->chosen || (held >= least && held <= c->capacity);
}

int et_cache_restore(cache *c, const uint8_t *data, int64_t bytes, int64_t tokens, char *error) {
    int64_t total, counters[FIXED_COUNTERS + 64];
    double dropped;
    found tables[32], rows[32], masses[32];
    uint32_t head[2];
    if (bytes < 24 || memcmp(data, STATE_MAGIC, 8)) return et_fail(error, "this is not a saved cache");
    memcpy(head, data + 8, 8);
    memcpy(&total, data + 16, 8);
    if (head[0] != STATE_VERSION || total != bytes || head[1] > 1024 ||
        bytes < 24 + (int64_t)head[1] * (int64_t)sizeof(entry))
        return et_fail(error, "the saved cache is damaged, or of another version");
    found wanted = section_of(data, bytes, SHAPE, 0), numbers = section_of(data, bytes, COUNTERS, 0);
    if (wanted.bytes != c->shape_bytes || memcmp(wanted.data, c->shape, (size_t)wanted.bytes))
        return et_fail(error, "the saved cache is of another shape; use the options it was saved with");
    if (c->n_groups > 32 || numbers.bytes != 8 * (FIXED_COUNTERS + c->n_groups))
        return et_fail(error, "the saved cache's counters cannot be; it is damaged");
    memcpy(counters, numbers.data, (size_t)numbers.bytes);
    memcpy(&dropped, &counters[3], 8);
    int64_t most = c->policy ? MOST_CHAT_TOKENS : c->capacity;
    if (counters[0] != tokens || tokens > most || counters[1] < 0 || counters[1] > tokens ||
        tokens - counters[1] > c->capacity || counters[2] < 0 ||
        counters[2] > (c->policy ? c->slots / 2 : 0))
        return et_fail(error, "the saved cache is of %lld tokens, not of these %lld, or damaged",
                       (long long)counters[0], (long long)tokens);
    for (int64_t i = 0; i < c->n_groups; i++) {
        const group *g = &c->groups[i];
        found table = tables[i] = section_of(data, bytes, TABLE, (uint32_t)i);
        found mass = masses[i] = section_of(data, bytes, MASS, (uint32_t)i);
        rows[i] = section_of(data, bytes, ROWS_, (uint32_t)i);
        if (!table_holds(c, g, table, tokens, tokens - counters[1]) ||
            counters[FIXED_COUNTERS + i] < 0 || counters[FIXED_COUNTERS + i] > tokens)
            return et_fail(error, "the saved cache holds tokens that cannot be; it is damaged");
        int64_t held = (table.bytes / 4 - g->rows) / 3;
        if (rows[i].bytes != (g->rows == 1 ? held * g->heads : held) * g->slot_bytes)
            return et_fail(error, "the saved cache's sections do not add up; it is damaged");
        bool counted = !g->chosen || mass.bytes == 4 * held;
        for (int64_t k = 0; g->chosen && counted && k < held; k++) {
            float one;
            memcpy(&one, mass.data + 4 * k, 4);
            counted = one >= 0 && one < HUGE_VALF;
        }
        if (!counted || !(dropped >= 0 && dropped < HUGE_VAL))
            return et_fail(error, "the saved cache's attention mass cannot be; it is damaged");
    }
    int64_t snapshots = 0, latest = 0;
    for (found s; c->history.count; snapshots++) {
        s = section_of(data, bytes, SNAPSHOT, (uint32_t)snapshots);
        if (s.bytes < 0) break;
        if (snapshots > c->history.most || !et_history_holds(&c->history, s.data, s.bytes, &latest))
            return et_fail(error, "the saved cache's snapshots cannot be; it is damaged");
    }
    if (c->history.count && latest != tokens)
        return et_fail(error, "the saved cache's snapshots end before its tokens; it is damaged");
    et_history_clear(&c->history);
    for (int64_t i = 0; i < snapshots; i++)
        et_history_read(&c->history, section_of(data, bytes, SNAPSHOT, (uint32_t)i).data,
                        i == snapshots - 1);
    c->length = tokens;
    c->shift = counters[1];
    c->pinned = counters[2];
    c->dropped = dropped;
    for (int64_t i = 0; i < c->n_groups; i++) {
        group *g = &c->groups[i];
        const int32_t *n = (const void *)tables[i].data;
        int64_t held = (tables[i].bytes / 4 - g->rows) / 3, k = g->rows;
        for (int64_t s = 0; s < g->rows * g->limit; s++) g->positions[s] = EMPTY;
        if (g->chosen) memset(g->mass, 0, 4 * (size_t)(g->rows * g->limit));
        for (int64_t r = 0; r < g->rows; r++) {
            g->held[r] = n[r];
            g->used[r] = 0;
            for (int32_t j = 0; j < n[r]; j++, k++) {
                g->positions[r * g->limit + n[k]] = n[k + 2 * held];
                g->tokens[r * g->limit + n[k]] = n[k + held];
                g->used[r] = n[k] + 1;
                if (g->chosen) memcpy(g->mass + r * g->limit + n[k], masses[i].data + 4 * (k - g->rows), 4);
            }
        }
        copy_rows(c, g, (uint8_t *)(intptr_t)rows[i].data, true);
        g->mark = counters[FIXED_COUNTERS + i];
        if (g->chosen) et_list_free(c, g);
    }
    return 0;
}
