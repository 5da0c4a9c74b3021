/* States of layers that keep no keys and values, and snapshots of them further back: what
   edgetok/cache/recurrent.py does, in memory that a chat takes once. */
#include "internal.h"

enum { HEAD_BYTES = 16 }; /* of a saved snapshot: both lengths */

/* Rows of a ring that a snapshot holds. */
static int64_t kept(const history *h, const state *s) { return s->needed + !h->bulky; }

static float *row_of(const history *h, int64_t i, int64_t token) {
    const state *s = &h->states[i];
    int64_t row = token % s->rows;
    return h->rings[i].values + (row < 0 ? row + s->rows : row) * s->columns;
}

/* Whether the rings hold all that the token behind a length needs. */
static bool in_rings(const history *h, int64_t length) {
    for (int64_t i = 0; i < h->count; i++)
        if (most(0, length - h->states[i].needed) < h->rings[i].oldest) return false;
    return true;
}

int et_history_new(history *h, const edgetok_model *m, char *error) {
    *h = (history){.states = m->states, .count = m->run[RUN_STATES], .bulky = m->run[RUN_BULKY] != 0};
    int64_t table = 8 * STATES * m->run[RUN_LAYERS], own = (int64_t)sizeof(ring) * h->count;
    for (int64_t i = 0; i < h->count; i++) {
        h->bytes += 4 * kept(h, &h->states[i]) * h->states[i].columns;
        h->nbytes += 4 * h->states[i].rows * h->states[i].columns;
    }
    if (!h->count) return 0;
    h->most = least(MOST_SNAPSHOTS, most(FEWEST_SNAPSHOTS, SNAPSHOTS_BYTES / h->bytes));
    h->nbytes += (h->most + 1) * h->bytes;
    int64_t total = up(64 + table, 64) + up(64 + own, 64) + h->nbytes + 128 * (h->count + h->most + 1);
    uint8_t *at = (uint64_t)total < SIZE_MAX / 4 ? et_grab(&h->memory, (size_t)total) : NULL;
    if (!at) return et_fail(error, "no memory for states of %lld bytes", (long long)total);
    h->table = (int64_t *)(void *)at, at += up(64 + table, 64);
    h->rings = (ring *)(void *)at, at += up(64 + own, 64);
    for (int64_t i = 0; i < h->count; i++) {
        h->rings[i].values = (float *)(void *)at;
        h->table[h->states[i].index] = (int64_t)(intptr_t)at;
        at += up(64 + 4 * h->states[i].rows * h->states[i].columns, 64);
    }
    for (int64_t i = 0; i <= h->most; i++, at += up(64 + h->bytes, 64))
        h->snapshots[i].values = (float *)(void *)at;
    return 0;
}

static snapshot take(const history *h, int64_t length, float *values) {
    float *to = values;
    for (int64_t i = 0; i < h->count; i++)
        for (int64_t t = length - kept(h, &h->states[i]); t < length; t++) {
            size_t bytes = 4 * (size_t)h->states[i].columns;
            if (t >= h->rings[i].oldest) memcpy(to, row_of(h, i, t), bytes);
            else memset(to, 0, bytes);
            to += h->states[i].columns;
        }
    return (snapshot){length, length - (!h->bulky && in_rings(h, length - 1)), values};
}

/* Writes a snapshot's values into the rings, which then hold no others. */
static void put(history *h, const snapshot *s) {
    const float *from = s->values;
    for (int64_t i = 0; i < h->count; i++) {
        for (int64_t t = s->length - kept(h, &h->states[i]); t < s->length; t++) {
            memcpy(row_of(h, i, t), from, 4 * (size_t)h->states[i].columns);
            from += h->states[i].columns;
        }
        h->rings[i].oldest = most(0, s->first - h->states[i].needed);
    }
}

/* Lets go of the snapshot that is missed least, where there are too many. */
static void thin(history *h, int64_t length) {
    int64_t worst = 0;
    double fewest = 0;
    if (h->taken <= h->most) return;
    for (int64_t i = 0; i + 1 < h->taken; i++) {
        int64_t before = i ? h->snapshots[i - 1].length : 0, own = h->snapshots[i].length;
        double missed = (double)(h->snapshots[i + 1].length - before) /
                        (double)(length - own + SNAPSHOT_TOKENS);
        if (i && missed >= fewest) continue;
        fewest = missed;
        worst = i;
    }
    snapshot gone = h->snapshots[worst];
    h->taken--;
    memmove(h->snapshots + worst, h->snapshots + worst + 1,
            (size_t)(h->taken - worst) * sizeof gone);
    h->snapshots[h->taken] = gone; /* its memory is the next one's */
}

void et_history_begin(history *h, int64_t tokens, int64_t length) {
    bool turns = tokens > 1 || h->several;
    h->several = tokens > 1;
    if (!h->count || !length) return;
    int64_t latest = h->taken ? h->snapshots[h->taken - 1].length : 0;
    if (length - latest < (turns ? SNAPSHOT_GAP_TOKENS : SNAPSHOT_TOKENS)) return;
    int64_t at = length - (h->bulky && in_rings(h, length - 1));
    if (at <= latest) return;
    h->snapshots[h->taken] = take(h, at, h->snapshots[h->taken].values);
    h->taken++;
    thin(h, length);
}

void et_history_advance(history *h, int64_t length) {
    for (int64_t i = 0; i < h->count; i++)
        h->rings[i].oldest = most(h->rings[i].oldest, length - h->states[i].rows);
}

int64_t et_history_reachable(const history *h, int64_t length) {
    if (!h->count || in_rings(h, length)) return length;
    for (int64_t i = h->taken - 1; i >= 0; i--)
        if (h->snapshots[i].first <= length)
            return h->snapshots[i].length < length ? h->snapshots[i].length : length;
    return 0;
}

void et_history_truncate(history *h, int64_t length) {
    for (int64_t i = 0; i < h->taken && !in_rings(h, length); i++)
        if (h->snapshots[i].first <= length && length <= h->snapshots[i].length)
            put(h, &h->snapshots[i]);
    while (h->taken && h->snapshots[h->taken - 1].length > length) h->taken--;
    for (int64_t i = 0; i < h->count && !length; i++) h->rings[i].oldest = 0;
    h->several = true; /* where one goes back to once, one goes back to again */
}

/* In blocks: snapshots that lie behind, then the states now. */

int64_t et_history_sections(const history *h, int64_t length, int64_t *bytes) {
    *bytes = HEAD_BYTES + h->bytes;
    if (!h->count || !length) return 0;
    bool now = h->taken && h->snapshots[h->taken - 1].length == length;
    return h->taken - now + 1;
}

void et_history_write(const history *h, int64_t length, int64_t i, uint8_t *out) {
    int64_t bytes, last = et_history_sections(h, length, &bytes) - 1;
    float *values = (float *)(void *)(out + HEAD_BYTES);
    snapshot s = i < last ? h->snapshots[i] : take(h, length, values);
    if (i < last) memcpy(values, s.values, (size_t)h->bytes);
    memcpy(out, &s.length, 8);
    memcpy(out + 8, &s.first, 8);
}

bool et_history_holds(const history *h, const uint8_t *section, int64_t bytes, int64_t *length) {
    int64_t lengths[2];
    if (bytes != HEAD_BYTES + h->bytes) return false;
    memcpy(lengths, section, sizeof lengths);
    if (lengths[0] <= *length || lengths[1] > lengths[0] || lengths[1] < lengths[0] - 1) return false;
    *length = lengths[0];
    for (int64_t i = HEAD_BYTES; i < bytes; i += 4) {
        uint32_t bits;
        memcpy(&bits, section + i, 4);
        if ((bits & 0x7F800000) == 0x7F800000) return false; /* not finite */
    }
    return true;
}

void et_history_read(history *h, const uint8_t *section, bool now) {
    snapshot *s = &h->snapshots[h->taken];
    memcpy(&s->length, section, 8);
    memcpy(&s->first, section + 8, 8);
    memcpy(s->values, section + HEAD_BYTES, (size_t)h->bytes);
    if (now) put(h, s);
    else h->taken++;
}

void et_history_clear(history *h) {
    h->taken = 0;
    h->several = true;
    for (int64_t i = 0; i < h->count; i++) h->rings[i].oldest = 0;
}
