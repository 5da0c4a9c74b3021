/* Text to tokens: byte-level BPE and sentencepiece BPE (unigram.c: its other model), with tables that native/tokenizer.py made
   from a tokenizer.json and compared with the `tokenizers` package. */
#include "internal.h"

#include <stdlib.h>

static const int COUNTS[CLASSES] = {TOK_LETTERS, TOK_NUMBERS, TOK_SPACES, TOK_DIGIT_RANGES, TOK_UNSTABLE};

static bool ascending(const int32_t *values, int64_t count, int64_t low, int64_t high, bool strictly) {
    for (int64_t i = 0; i < count; i++) {
        if (values[i] < low || values[i] > high) return false;
        low = values[i] + (strictly ? 1 : 0);
    }
    return true;
}

static bool ids_in(const int32_t *ids, int64_t count, int64_t vocab, int64_t lowest) {
    for (int64_t i = 0; i < count; i++)
        if (ids[i] < lowest || ids[i] >= vocab) return false;
    return true;
}

int et_tokenizer_open(tokenizer *t, const uint8_t *data, size_t bytes, int64_t vocab, char *error) {
    static const char *const broken = "model.plan: the tokenizer's tables contradict each other";
    if (bytes < 8 * TOK_COUNT) return et_fail(error, "%s", broken);
    memcpy(t->numbers, data, 8 * TOK_COUNT);
    const int64_t *n = t->numbers;
    for (int i = 0; i < TOK_COUNT; i++)
        if (n[i] < (i == TOK_UNKNOWN || i == TOK_SPACE ? -1 : 0) || n[i] > 1 << 28)
            return et_fail(error, "%s", broken);
    int64_t count = n[TOK_TOKENS], at = 8 * TOK_COUNT / 4, words = (int64_t)bytes / 4;
    const int32_t *all = (const void *)data;
    const struct { const int32_t **to; int64_t numbers; } parts[] = {
        {&t->offsets, count + 1}, {&t->bytes, 256}, {&t->merges, 4 * n[TOK_MERGES]},
        {&t->added, 4 * n[TOK_ADDED]}, {&t->before, n[TOK_BEFORE]}, {&t->after, n[TOK_AFTER]},
        {&t->by_text, n[TOK_BY_TEXT]}, {&t->ranges[LETTER], 2 * n[COUNTS[LETTER]]},
        {&t->ranges[NUMBER], 2 * n[COUNTS[NUMBER]]}, {&t->ranges[SPACE], 2 * n[COUNTS[SPACE]]},
        {&t->ranges[DIGIT], 2 * n[COUNTS[DIGIT]]}, {&t->ranges[UNSTABLE], 2 * n[COUNTS[UNSTABLE]]},
        {&t->decompositions, 5 * n[TOK_DECOMPOSITIONS]}, {&t->classes, 3 * n[TOK_CLASSES]},
        {&t->compositions, 3 * n[TOK_COMPOSITIONS]}, {&t->piece_ids, n[TOK_PIECES]},
        {&t->piece_offsets, n[TOK_PIECES] + 1}, {&t->scores, 2 * (n[TOK_PIECES] + 1)}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (parts[i].numbers > words - at) return et_fail(error, "%s", broken);
        *parts[i].to = all + at;
        at += parts[i].numbers;
    }
    if (count != vocab || (int64_t)bytes - 4 * at < count) return et_fail(error, "%s", broken);
    t->flags = data + 4 * at;
    t->text = t->flags + count;
    int64_t text = (int64_t)bytes - 4 * at - count;
    bool good = t->offsets[0] == 0 && ascending(t->offsets, count + 1, 0, text, false) &&
                ids_in(t->bytes, 256, vocab, -1) && ids_in(t->before, n[TOK_BEFORE], vocab, 0) &&
                ids_in(t->after, n[TOK_AFTER], vocab, 0) && n[TOK_UNKNOWN] < vocab &&
                ids_in(t->by_text, n[TOK_BY_TEXT], vocab, 0) && n[TOK_SPACE] < vocab &&
                ids_in(t->decompositions, 5 * n[TOK_DECOMPOSITIONS], 0x110000, 0) &&
                ids_in(t->piece_ids, n[TOK_PIECES], vocab, 0) &&
                ascending(t->piece_offsets, n[TOK_PIECES] + 1, 0, text, false) &&
                (n[TOK_KIND] != KIND_UNIGRAM || n[TOK_UNKNOWN] >= 0) &&
                ids_in(t->compositions, 3 * n[TOK_COMPOSITIONS], 0x110000, 0);
    for (int64_t i = 0; good && i < n[TOK_CLASSES]; i++) good = ids_in(t->classes + 3 * i + 2, 1, 256, 0);
    for (int64_t i = 0; good && i < n[TOK_MERGES]; i++) {
        const int32_t *m = t->merges + 4 * i;
        good = ids_in(m, 2, vocab, 0) && ids_in(m + 3, 1, vocab, 0) &&
               (i == 0 || m[-4] < m[0] || (m[-4] == m[0] && m[-3] < m[1]));
    }
    for (int64_t i = 0; good && i < n[TOK_ADDED]; i++)
        good = ids_in(t->added + 4 * i, 1, vocab, 0) && t->added[4 * i + 2] >= 0 &&
               t->added[4 * i + 2] < t->added[4 * i + 3] && t->added[4 * i + 3] <= text;
    for (int i = 0; good && i < CLASSES; i++)
        good = ascending(t->ranges[i], 2 * n[COUNTS[i]], 0, 0x10FFFF, false);
    for (int64_t i = 0; good && i < count; i++)
        good = t->offsets[i + 1] - t->offsets[i] <= n[TOK_LONGEST];
    if (!good) return et_fail(error, "%s", broken);
    t->there = true;
    return 0;
}

const char *edgetok_piece(const edgetok_model *m, int32_t token, size_t *bytes) {
    const tokenizer *t = &m->tokens;
    *bytes = 0;
    if (!t->there || token < 0 || token >= t->numbers[TOK_TOKENS]) return NULL;
    *bytes = (size_t)(t->offsets[token + 1] - t->offsets[token]);
    return (const char *)t->text + t->offsets[token];
}

int64_t et_row(const int32_t *rows, int64_t count, int width, int32_t a, int32_t b) {
    int64_t low = 0, high = count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        const int32_t *r = rows + width * middle;
        if (r[0] < a || (r[0] == a && r[1] < b)) low = middle + 1;
        else high = middle;
    }
    return low;
}

const int32_t *et_pair(const int32_t *rows, int64_t count, int width, int32_t a, int32_t b) {
    int64_t at = et_row(rows, count, width, a, b);
    const int32_t *r = rows + width * at;
    return at < count && r[0] == a && r[1] == b ? r : NULL;
}

const int32_t *et_range(const int32_t *rows, int64_t count, int width, int32_t c) {
    int64_t at = et_row(rows, count, width, c + 1, 0) - 1; /* the last that begins at c or before */
    return at >= 0 && c <= rows[width * at + 1] ? rows + width * at : NULL;
}

bool et_in_class(const tokenizer *t, int which, int32_t c) {
    return et_range(t->ranges[which], t->numbers[COUNTS[which]], 2, c) != NULL;
}

/* The character at s, valid UTF-8, and its bytes. */
int32_t et_character(const uint8_t *s, size_t *bytes) {
    if (s[0] < 0x80) return *bytes = 1, s[0];
    if (s[0] < 0xE0) return *bytes = 2, (s[0] & 31) << 6 | (s[1] & 63);
    if (s[0] < 0xF0) return *bytes = 3, (s[0] & 15) << 12 | (s[1] & 63) << 6 | (s[2] & 63);
    return *bytes = 4, (s[0] & 7) << 18 | (s[1] & 63) << 12 | (s[2] & 63) << 6 | (s[3] & 63);
}

typedef struct { bool letter, number, space, line; size_t bytes; } kind;

static kind kind_at(const tokenizer *t, const uint8_t *s, size_t at, size_t end) {
    kind k = {0};
    if (at >= end) return k;
    int32_t c = et_character(s + at, &k.bytes);
    k.line = c == '\r' || c == '\n';
    k.letter = et_in_class(t, LETTER, c);
    k.number = !k.letter && et_in_class(t, NUMBER, c);
    k.space = !k.letter && !k.number && et_in_class(t, SPACE, c);
    return k;
}

static bool other(kind k) { return k.bytes && !k.letter && !k.number && !k.space; }

static size_t contraction(const uint8_t *s, size_t n, bool any_case) {
    static const char *const ends[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    if (n < 2 || s[0] != '\'') return 0;
    for (int i = 0; i < 7; i++) {
        size_t size = strlen(ends[i]), at = 0;
        while (at < size && at + 1 < n &&
               (s[at + 1] == ends[i][at] || (any_case && (s[at + 1] | 32) == ends[i][at] && s[at + 1] < 128)))
            at++;
        if (at == size) return size + 1;
    }
    /* Unicode's simple case folding: U+017F, a long s, is an s. */
    return any_case && n > 2 && s[1] == 0xC5 && s[2] == 0xBF ? 3 : 0;
}

/* The spaces at the front: all of them at the end of the text, else all but the last. */
static size_t spaces(const tokenizer *t, const uint8_t *s, size_t n) {
    size_t at = 0, last = 0;
    for (kind k; (k = kind_at(t, s, at, n)).space; at += k.bytes) last = k.bytes;
    return at < n && at > last ? at - last : at;
}

/* Bytes of the first word of a text, by GPT-2's pattern. */
static size_t word_gpt2(const tokenizer *t, const uint8_t *s, size_t n) {
    size_t at = contraction(s, n, false);
    if (at) return at;
    at = s[0] == ' ' && n > 1;
    kind k = kind_at(t, s, at, n), next = k;
    if (k.space || !k.bytes) return spaces(t, s, n);
    do at += next.bytes, next = kind_at(t, s, at, n);
    while (next.bytes && next.letter == k.letter && next.number == k.number && !next.space);
    return at;
}

/* By Llama 3's and Qwen's, which differ in how many digits a number has. */
static size_t word_llama3(const tokenizer *t, const uint8_t *s, size_t n) {
    size_t at = contraction(s, n, true), end = 0;
    if (at) return at;
    kind k = kind_at(t, s, 0, n), next = kind_at(t, s, k.bytes, n);
    if (k.letter || (!k.number && !k.line && next.letter)) {
        at = k.bytes;
        while ((next = kind_at(t, s, at, n)).letter) at += next.bytes;
        return at;
    }
    if (k.number) {
        for (int64_t i = 0; i < t->numbers[TOK_DIGITS]; i++) {
            next = kind_at(t, s, at, n);
            if (!next.number) break;
            at += next.bytes;
        }
        return at;
    }
    at = s[0] == ' ';
    if (other(kind_at(t, s, at, n))) {
        while (other(next = kind_at(t, s, at, n))) at += next.bytes;
        while ((next = kind_at(t, s, at, n)).line) at += next.bytes;
        return at;
    }
    for (at = 0; (next = kind_at(t, s, at, n)).space; at += next.bytes)
        if (next.line) end = at + next.bytes;
    return end ? end : spaces(t, s, n);
}

/* BPE: a list of symbols, and a heap of pairs by rank and place. */
typedef struct { int32_t id, before, after; } symbol;
typedef struct { int32_t rank, at, left, right, made; } pair;
typedef struct { symbol *symbols; pair *heap; size_t pairs, room; } merging;

static bool sooner(const pair *a, const pair *b) {
    return a->rank < b->rank || (a->rank == b->rank && a->at < b->at);
}

static void offer(const tokenizer *t, merging *w, int32_t at) {
    int32_t after = at < 0 ? -1 : w->symbols[at].after;
    if (after < 0) return;
    int32_t left = w->symbols[at].id, right = w->symbols[after].id;
    const int32_t *m = et_pair(t->merges, t->numbers[TOK_MERGES], 4, left, right);
    if (!m) return;
    pair one = {m[2], at, left, right, m[3]};
    size_t i = w->pairs++;
    for (; i && sooner(&one, &w->heap[(i - 1) / 2]); i = (i - 1) / 2) w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = one;
}

static pair next_pair(merging *w) {
    pair first = w->heap[0], last = w->heap[--w->pairs];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < w->pairs; i = child) {
        if (child + 1 < w->pairs && sooner(&w->heap[child + 1], &w->heap[child])) child++;
        if (!sooner(&w->heap[child], &last)) break;
        w->heap[i] = w->heap[child];
    }
    if (w->pairs) w->heap[i] = last;
    return first;
}

void et_emit(encoder *e, int32_t id) {
    if (e->count < e->capacity) e->ids[e->count] = id;
    e->count++;
}

/* The token that is spelled so, of those in by_text (ascending bytes); -1 for none. */
static int32_t token_of(const tokenizer *t, const uint8_t *s, size_t n) {
    int64_t low = 0, high = t->numbers[TOK_BY_TEXT];
    while (low < high) {
        int64_t middle = (low + high) / 2;
        int32_t id = t->by_text[middle];
        size_t size = (size_t)(t->offsets[id + 1] - t->offsets[id]), least = size < n ? size : n;
        int order = memcmp(t->text + t->offsets[id], s, least);
        if (order == 0 && size == n) return id;
        if (order < 0 || (order == 0 && size < n)) low = middle + 1;
        else high = middle;
    }
    return -1;
}

static void merge(encoder *e, merging *w, int32_t count) {
    for (int32_t i = 0; i < count; i++)
        w->symbols[i].before = i - 1, w->symbols[i].after = i + 1 < count ? i + 1 : -1;
    w->pairs = 0;
    for (int32_t i = 0; i + 1 < count; i++) offer(e->t, w, i);
    while (w->pairs) {
        pair p = next_pair(w);
        symbol *left = &w->symbols[p.at];
        if (left->id != p.left || left->after < 0 || w->symbols[left->after].id != p.right) continue;
        symbol *right = &w->symbols[left->after];
        left->id = p.made;
        right->id = -1;
        left->after = right->after;
        if (left->after >= 0) w->symbols[left->after].before = p.at;
        offer(e->t, w, left->before);
        offer(e->t, w, p.at);
    }
    for (int32_t i = 0; i >= 0 && count; i = w->symbols[i].after) et_emit(e, w->symbols[i].id);
}

static void byte_word(encoder *e, merging *w, const uint8_t *s, size_t n) {
    int32_t count = 0, whole = e->t->numbers[TOK_IGNORE_MERGES] ? token_of(e->t, s, n) : -1;
    if (whole >= 0) {
        et_emit(e, whole);
        return;
    }
    for (size_t i = 0; i < n; i++) /* as Hugging Face: what the vocabulary lacks is left out */
        if (e->t->bytes[s[i]] >= 0) w->symbols[count++].id = e->t->bytes[s[i]];
    merge(e, w, count);
}

static void byte_level(encoder *e, merging *w, const uint8_t *s, size_t n) {
    const tokenizer *t = e->t;
    for (size_t at = 0, end; at < n; ) {
        end = n;
        if (t->numbers[TOK_SPLIT_DIGITS]) { /* digits are words by themselves */
            size_t bytes;
            bool digit = et_in_class(t, DIGIT, et_character(s + at, &bytes));
            end = at + bytes;
            while (!digit && end < n && !et_in_class(t, DIGIT, et_character(s + end, &bytes))) end += bytes;
        }
        while (at < end) {
            size_t size = t->numbers[TOK_PATTERN] == PATTERN_GPT2 ? word_gpt2(t, s + at, end - at)
                                                                  : word_llama3(t, s + at, end - at);
            byte_word(e, w, s + at, size);
            at += size;
        }
    }
}

/* One text without added tokens: spaces become U+2581, what has no token its bytes or <unk>. */
static void sentencepiece(encoder *e, merging *w, const uint8_t *s, size_t n) {
    const tokenizer *t = e->t;
    int32_t count = 0;
    bool unknown = false;
    if (t->numbers[TOK_PREPEND]) w->symbols[count++].id = (int32_t)t->numbers[TOK_SPACE];
    for (size_t at = 0, bytes; at < n; at += bytes) {
        int32_t c = et_character(s + at, &bytes);
        bool space = c == ' ' || c == 0x2581;
        int32_t id = space ? (int32_t)t->numbers[TOK_SPACE] : token_of(t, s + at, bytes);
        bool fallback = id < 0 && t->numbers[TOK_FALLBACK];
        for (size_t i = 0; fallback && i < bytes; i++) fallback = t->bytes[s[at + i]] >= 0;
        if (id >= 0) w->symbols[count++].id = id;
        for (size_t i = 0; fallback && i < bytes; i++) w->symbols[count++].id = t->bytes[s[at + i]];
        bool none = id < 0 && !fallback;
        if (none && t->numbers[TOK_UNKNOWN] >= 0 && !(unknown && t->numbers[TOK_FUSE]))
            w->symbols[count++].id = (int32_t)t->numbers[TOK_UNKNOWN];
        unknown = none;
    }
    merge(e, w, count);
}

/* Room for a text of `bytes` bytes: a merge offers two pairs and takes away one symbol. */
static bool make_room(merging *w, size_t bytes) {
    if (bytes < w->room) return true;
    free(w->symbols);
    free(w->heap);
    w->room = bytes + 1;
    w->symbols = malloc((bytes + 2) * sizeof(symbol));
    w->heap = malloc(3 * (bytes + 2) * sizeof(pair));
    return w->symbols && w->heap;
}

static void plain(encoder *e, merging *w, const uint8_t *s, size_t n) {
    uint8_t *normal = NULL;
    if (!n || e->lacking) return;
    if (et_nfc_changes(e->t, s, n)) s = normal = et_nfc(e->t, s, n, &n);
    if (s && e->t->numbers[TOK_KIND] == KIND_UNIGRAM) e->lacking = !et_unigram(e, s, n);
    else if (!s || !make_room(w, n)) e->lacking = true;
    else if (e->t->numbers[TOK_KIND] == KIND_BYTES) byte_level(e, w, s, n);
    else sentencepiece(e, w, s, n);
    free(normal);
}

static bool space_at(const tokenizer *t, const uint8_t *s, size_t *bytes) {
    return et_in_class(t, SPACE, et_character(s, bytes));
}

static void split_added(encoder *e, merging *w) {
    const tokenizer *t = e->t;
    const uint8_t *s = e->text;
    size_t from = 0, bytes;
    for (size_t i = 0; i < e->bytes; i++) {
        for (int64_t a = 0; a < t->numbers[TOK_ADDED]; a++) { /* the longest first */
            const int32_t *one = t->added + 4 * a;
            int32_t id = one[0], flags = one[1];
            const uint8_t *piece = t->text + one[2];
            size_t size = (size_t)(one[3] - one[2]);
            if (size > e->bytes - i || piece[0] != s[i] || memcmp(s + i, piece, size)) continue;
            size_t begin = i, end = i + size;
            while (flags & ADDED_LSTRIP && begin > from) {
                size_t at = begin - 1;
                while (at > from && (s[at] & 0xC0) == 0x80) at--;
                if (!space_at(t, s + at, &bytes)) break;
                begin = at;
            }
            while (flags & ADDED_RSTRIP && end < e->bytes && space_at(t, s + end, &bytes)) end += bytes;
            plain(e, w, s + from, begin - from);
            et_emit(e, id);
            from = end;
            i = end - 1;
            break;
        }
    }
    plain(e, w, s + from, e->bytes - from);
}

int64_t edgetok_encode(const edgetok_model *m, const char *text, size_t bytes, int special,
                       int32_t *ids, size_t capacity, char *error) {
    const tokenizer *t = &m->tokens;
    encoder e = {t, (const uint8_t *)text, bytes, ids, capacity, 0, false};
    merging w = {0};
    if (!t->there) return et_fail(error, "this folder has no tokenizer; use token ids");
    if (bytes > 1 << 28 || !et_utf8_valid(e.text, bytes)) return et_fail(error, "the text is not valid UTF-8");
    for (int64_t i = 0; special && i < t->numbers[TOK_BEFORE]; i++) et_emit(&e, t->before[i]);
    split_added(&e, &w);
    for (int64_t i = 0; special && i < t->numbers[TOK_AFTER]; i++) et_emit(&e, t->after[i]);
    free(w.symbols);
    free(w.heap);
    return e.lacking ? et_fail(error, "no memory to tokenise %zu bytes", bytes) : (int64_t)e.count;
}
