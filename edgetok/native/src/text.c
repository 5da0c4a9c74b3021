/* Text from tokens as it arrives: whole characters, up to the first stop text
   (edgetok/text/detokenizer.py, stop.py). */
#include "internal.h"

static const uint8_t INVALID[3] = {0xEF, 0xBF, 0xBD}; /* U+FFFD */

/* Bytes of the character that `lead` begins; 0 for none. */
static int length_of(uint8_t lead) {
    if (lead < 0x80) return 1;
    if (lead < 0xC2 || lead > 0xF4) return 0;
    return lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

/* Whether `byte` may follow the `held` bytes of a character: no surrogates, nothing overlong. */
static bool may_follow(const uint8_t *state, int held, uint8_t byte) {
    uint8_t low = 0x80, high = 0xBF;
    if (held == 1) {
        if (state[0] == 0xE0) low = 0xA0;
        if (state[0] == 0xED) high = 0x9F;
        if (state[0] == 0xF0) low = 0x90;
        if (state[0] == 0xF4) high = 0x8F;
    }
    return low <= byte && byte <= high;
}

bool et_utf8_valid(const uint8_t *s, size_t n) {
    for (size_t size; n; s += size, n -= size) {
        size = (size_t)length_of(*s);
        if (!size || size > n) return false;
        for (size_t i = 1; i < size; i++)
            if (!may_follow(s, (int)i, s[i])) return false;
    }
    return true;
}

static size_t give(utf8_stream *s, const uint8_t *bytes, size_t count, uint8_t *out) {
    if (s->strip && count) {
        s->strip = false;
        if (*bytes == ' ') bytes++, count--;
    }
    memcpy(out, bytes, count);
    return count;
}

/* `out` has room for 3 bytes for each one that is pushed or held. */
size_t et_utf8_push(utf8_stream *s, const uint8_t *bytes, size_t count, uint8_t *out) {
    size_t made = 0;
    for (size_t i = 0; i < count; i++) {
        if (s->held && !may_follow(s->state, s->held, bytes[i])) made += et_utf8_end(s, out + made);
        if (!s->held && !length_of(bytes[i])) {
            made += give(s, INVALID, 3, out + made);
            continue;
        }
        s->state[s->held++] = bytes[i];
        if (s->held < length_of(s->state[0])) continue;
        made += give(s, s->state, (size_t)s->held, out + made);
        s->held = 0;
    }
    return made;
}

size_t et_utf8_end(utf8_stream *s, uint8_t *out) {
    if (!s->held) return 0;
    s->held = 0;
    return give(s, INVALID, 3, out);
}

static size_t find(const uint8_t *text, size_t bytes, const char *wanted, size_t size) {
    for (size_t i = 0; size && i + size <= bytes; i++)
        if (!memcmp(text + i, wanted, size)) return i;
    return SIZE_MAX;
}

size_t et_stop_take(stop_finder *f, size_t count, uint8_t *out) {
    size_t made = 0;
    for (size_t i = 0; i < count; i++)
        if (!f->hidden[i]) out[made++] = f->held[i];
    f->bytes -= count;
    memmove(f->held, f->held + count, f->bytes);
    memmove(f->hidden, f->hidden + count, f->bytes);
    return made;
}

size_t et_stop_push(stop_finder *f, const edgetok_sampling *s, const uint8_t *text, size_t bytes,
                    bool hidden, uint8_t *out) {
    if (f->found) return 0;
    if (!s->stops) {
        if (!hidden) memcpy(out, text, bytes);
        return hidden ? 0 : bytes;
    }
    if (bytes > f->capacity - f->bytes) bytes = f->capacity - f->bytes; /* cannot be, see sample */
    memcpy(f->held + f->bytes, text, bytes);
    memset(f->hidden + f->bytes, hidden, bytes);
    f->bytes += bytes;
    size_t first = SIZE_MAX, keep = 0;
    for (size_t i = 0; i < s->stops; i++) {
        size_t size = strlen(s->stop[i]), at = find(f->held, f->bytes, s->stop[i], size);
        if (at < first) first = at;
        size_t overlap = size - 1 < f->bytes ? size - 1 : f->bytes;
        while (overlap > keep && memcmp(f->held + f->bytes - overlap, s->stop[i], overlap)) overlap--;
        if (overlap > keep) keep = overlap;
    }
    if (first == SIZE_MAX) return et_stop_take(f, f->bytes - keep, out);
    size_t made = et_stop_take(f, first, out);
    f->bytes = 0;
    f->found = true;
    return made;
}
