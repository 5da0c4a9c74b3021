/* Unicode's normal form C of a text, by tables that native/normalizer.py made (UAX 15). */
#include "internal.h"

#include <stdlib.h>

/* Hangul is computed: leading consonants, vowels, trailing consonants (the first stands for none). */
enum { L = 0x1100, V = 0x1161, T = 0x11A7, S = 0xAC00, LS = 19, VS = 21, TS = 28 };
enum { CODE_BITS = 21, CLASS_AT = 56, FEWEST = 0xCC }; /* below U+0300, whose lead byte this is, nothing changes */

static int32_t compose(const tokenizer *t, int32_t a, int32_t b) {
    if (a >= L && a < L + LS && b >= V && b < V + VS) return S + ((a - L) * VS + b - V) * TS;
    if (a >= S && a < S + LS * VS * TS && (a - S) % TS == 0 && b > T && b < T + TS) return a + b - T;
    const int32_t *found = et_pair(t->compositions, t->numbers[TOK_COMPOSITIONS], 3, a, b);
    return found ? found[2] : 0;
}

static uint64_t class_of(const tokenizer *t, int32_t c) { /* its canonical combining class */
    const int32_t *found = et_range(t->classes, t->numbers[TOK_CLASSES], 3, c);
    return found ? (uint64_t)found[2] : 0;
}

/* The characters that one stands for, at most 4. */
static int decompose(const tokenizer *t, int32_t c, int32_t out[4]) {
    if (c >= S && c < S + LS * VS * TS) {
        int32_t i = c - S;
        out[0] = L + i / (VS * TS), out[1] = V + i / TS % VS, out[2] = T + i % TS;
        return i % TS ? 3 : 2;
    }
    int64_t rows = t->numbers[TOK_DECOMPOSITIONS], at = et_row(t->decompositions, rows, 5, c, 0);
    const int32_t *row = t->decompositions + 5 * at;
    int count = 0;
    if (at == rows || row[0] != c) return out[0] = c, 1;
    while (count < 4 && row[1 + count]) out[count] = row[1 + count], count++;
    return count;
}

static int order(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static size_t put_utf8(uint32_t c, uint8_t *out) {
    if (c < 0x80) return out[0] = (uint8_t)c, 1;
    size_t more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    static const uint8_t leads[] = {0, 0xC0, 0xE0, 0xF0};
    for (size_t i = more; i > 0; i--, c >>= 6) out[i] = (uint8_t)(0x80 | (c & 63));
    out[0] = (uint8_t)(leads[more] | c);
    return more + 1;
}

bool et_nfc_changes(const tokenizer *t, const uint8_t *s, size_t n) {
    size_t bytes, high = 0;
    if (!t->numbers[TOK_UNSTABLE]) return false;
    while (high < n && s[high] < FEWEST) high++;
    while (high < n && (s[high] & 0xC0) == 0x80) high++;
    for (size_t at = high; at < n; at += bytes)
        if (et_in_class(t, UNSTABLE, et_character(s + at, &bytes))) return true;
    return false;
}

uint8_t *et_nfc(const tokenizer *t, const uint8_t *s, size_t n, size_t *made) {
    int32_t parts[4];
    size_t count = 0, bytes, kept = 0, starter = SIZE_MAX;
    for (size_t at = 0; at < n; at += bytes) count += (size_t)decompose(t, et_character(s + at, &bytes), parts);
    uint64_t *points = malloc(8 * count + 8), last = 0;
    uint8_t *out = malloc(4 * count + 4);
    *made = count = 0;
    if (!points || !out) return free(points), free(out), NULL;
    /* Class, place and character in one number, so that marks are sorted and equal ones keep their order. */
    for (size_t at = 0, run = 0; at < n; at += bytes) {
        int size = decompose(t, et_character(s + at, &bytes), parts);
        for (int i = 0; i < size; i++, count++) {
            uint64_t own = class_of(t, parts[i]);
            if (!own && count > run + 1) qsort(points + run, count - run, sizeof *points, order);
            if (!own) run = count + 1;
            points[count] = own << CLASS_AT | (uint64_t)count << CODE_BITS | (uint64_t)parts[i];
        }
        if (at + bytes >= n && count > run + 1) qsort(points + run, count - run, sizeof *points, order);
    }
    for (size_t i = 0; i < count; i++) { /* a mark joins its starter unless an equal or higher class is between */
        int32_t c = points[i] & ((1 << CODE_BITS) - 1);
        uint64_t own = points[i] >> CLASS_AT;
        bool next = starter != SIZE_MAX && (kept == starter + 1 || last < own);
        int32_t both = next ? compose(t, (int32_t)points[starter], c) : 0;
        if (both) {
            points[starter] = (uint64_t)both;
            continue;
        }
        if (!own) starter = kept;
        last = own;
        points[kept++] = (uint64_t)c;
    }
    for (size_t i = 0; i < kept; i++) *made += put_utf8((uint32_t)points[i], out + *made);
    free(points);
    return out;
}
