/* SentencePiece's unigram model: the pieces of a text with the greatest sum of scores (Viterbi), as
   the `tokenizers` package finds them. Source: arXiv 1808.06226. */
#include "internal.h"

#include <stdlib.h>

typedef struct { double score; int32_t id; uint32_t from, next; } node; /* of a place between bytes */

static const uint8_t SPACE_MARK[3] = {0xE2, 0x96, 0x81}; /* U+2581 */
enum { NOWHERE = -1 };

static bool space_mark(const uint8_t *s, size_t n) { return n >= 3 && !memcmp(s, SPACE_MARK, 3); }

static int piece_byte(const tokenizer *t, int64_t i, size_t depth) {
    size_t at = (size_t)t->piece_offsets[i] + depth;
    return at < (size_t)t->piece_offsets[i + 1] ? t->text[at] : -1;
}

/* The first of pieces low to high, which agree in `depth` bytes, that has at least `byte` there. */
static int64_t bound(const tokenizer *t, int64_t low, int64_t high, size_t depth, int byte) {
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (piece_byte(t, middle, depth) < byte) low = middle + 1;
        else high = middle;
    }
    return low;
}

static double score_of(const tokenizer *t, int64_t i) {
    double score;
    memcpy(&score, t->scores + 2 * i, 8);
    return score;
}

static void offer(node *nodes, size_t from, size_t to, double score, int32_t id) {
    if (nodes[to].from != (uint32_t)NOWHERE && !(nodes[from].score + score > nodes[to].score)) return;
    nodes[to] = (node){nodes[from].score + score, id, (uint32_t)from, 0};
}

/* What the model has no piece for: the piece that is spelled so, bytes, or <unk>. */
static void unknown(encoder *e, const uint8_t *s, size_t n) {
    const tokenizer *t = e->t;
    int64_t low = 0, high = t->numbers[TOK_PIECES];
    bool bytes = t->numbers[TOK_FALLBACK];
    for (size_t i = 0; i < n && low < high; i++) {
        low = bound(t, low, high, i, s[i]);
        high = bound(t, low, high, i, s[i] + 1);
    }
    if (low < high && piece_byte(t, low, n) < 0) {
        et_emit(e, t->piece_ids[low]);
        return;
    }
    for (size_t i = 0; i < n; i++) bytes = bytes && t->bytes[s[i]] >= 0;
    for (size_t i = 0; i < n && bytes; i++) et_emit(e, t->bytes[s[i]]);
    if (!bytes) et_emit(e, (int32_t)t->numbers[TOK_UNKNOWN]);
}

static void word(encoder *e, node *nodes, const uint8_t *s, size_t n) {
    const tokenizer *t = e->t;
    int32_t none = (int32_t)t->numbers[TOK_UNKNOWN];
    for (size_t i = 0; i <= n; i++) nodes[i] = (node){0, none, (uint32_t)NOWHERE, 0};
    for (size_t at = 0, bytes; at < n; at += bytes) {
        int64_t low = 0, high = t->numbers[TOK_PIECES];
        bool single = false;
        et_character(s + at, &bytes);
        for (size_t depth = 0; at + depth < n; depth++) {
            low = bound(t, low, high, depth, s[at + depth]);
            high = bound(t, low, high, depth, s[at + depth] + 1);
            if (low == high) break;
            if (piece_byte(t, low, depth + 1) >= 0) continue;
            offer(nodes, at, at + depth + 1, score_of(t, low), t->piece_ids[low]);
            single = single || depth + 1 == bytes;
        }
        if (!single) offer(nodes, at, at + bytes, score_of(t, t->numbers[TOK_PIECES]), none);
    }
    for (size_t end = n; end; end = nodes[end].from) nodes[nodes[end].from].next = (uint32_t)end;
    for (size_t at = 0, end; at < n; at = end) {
        end = nodes[at].next;
        int32_t id = nodes[end].id;
        if (id != none) {
            et_emit(e, id);
            continue;
        }
        while (end < n && nodes[nodes[end].next].id == none) end = nodes[end].next; /* fused */
        unknown(e, s + at, end - at);
    }
}

bool et_unigram(encoder *e, const uint8_t *s, size_t n) {
    const int64_t *numbers = e->t->numbers;
    uint8_t *text = malloc(3 * n + 6);
    node *nodes = malloc((3 * n + 7) * sizeof *nodes);
    size_t made = 0;
    if (text && nodes) {
        int64_t scheme = numbers[TOK_METASPACE];
        bool first = scheme == METASPACE_ALWAYS || (scheme == METASPACE_FIRST && s == e->text);
        bool marked = *s == ' ' || space_mark(s, n);
        if (numbers[TOK_PREPEND] || (first && !marked)) memcpy(text, SPACE_MARK, 3), made = 3;
        for (size_t i = 0; i < n; i++) {
            if (s[i] != ' ') text[made++] = s[i];
            else memcpy(text + made, SPACE_MARK, 3), made += 3;
        }
        for (size_t at = 0, end; at < made; at = end) { /* a word begins with its space */
            end = numbers[TOK_SPLIT_WORDS] ? at + 1 : made;
            while (end < made && !space_mark(text + end, made - end)) end++;
            word(e, nodes, text + at, end - at);
        }
    }
    bool done = text && nodes;
    free(text);
    free(nodes);
    return done;
}
