/* Texts and tokens: tables of a tokenizer (native/tokenizer.py), which are checked, and the kernels
   that work with them (kernels_cpu/text). */
#include "internal.h"

typedef struct { int rows, more, columns, limits[5]; } table_shape; /* rows: index of a number, or -1 */
static const table_shape SHAPES[] = {TABLE_SHAPES};
enum { TABLES = sizeof SHAPES / sizeof *SHAPES };

static bool holds(int limit, int32_t value, int32_t before, int64_t vocab, int64_t text) {
    bool ascends = limit == LIMIT_PLACES || limit == LIMIT_CHARACTERS, places = limit <= LIMIT_PLACES;
    int64_t most = places ? text : limit == LIMIT_BYTE ? 255 : 0x10FFFF;
    if (limit == LIMIT_TOKEN || limit == LIMIT_TOKEN_OR_NONE) most = vocab - 1;
    int32_t least = limit == LIMIT_TOKEN_OR_NONE ? -1 : ascends ? before : 0;
    return limit == LIMIT_ANY || (value >= least && value <= most);
}

static bool table_holds(const table_shape *shape, const int32_t *values, int64_t rows, int64_t vocab,
                        int64_t text) {
    for (int64_t i = 0; i < rows * shape->columns; i++)
        if (!holds(shape->limits[i % shape->columns], values[i], i ? values[i - 1] : 0, vocab, text))
            return false;
    return true;
}

int et_tokenizer_open(edgetok_model *m, const uint8_t *data, size_t bytes, char *error) {
    static const char *const broken = "model.plan: the tokenizer's tables contradict each other";
    tokenizer *t = &m->tokens;
    const int32_t *all = (const void *)data;
    int64_t *n = t->list, vocab = m->run[RUN_VOCAB], rows[TABLES], at = 2 * TOK_COUNT;
    if (bytes < 8 * TOK_COUNT) return et_fail(error, "%s", broken);
    memcpy(n, data, 8 * TOK_COUNT);
    for (int i = 0; i < TOK_COUNT; i++)
        if (n[i] < (i == TOK_UNKNOWN || i == TOK_SPACE ? -1 : 0) || n[i] > 1 << 28)
            return et_fail(error, "%s", broken);
    for (int i = 0; i < TABLES; i++) {
        rows[i] = SHAPES[i].more + (SHAPES[i].rows < 0 ? 0 : n[SHAPES[i].rows]);
        n[TOK_COUNT + i] = address(all + at);
        if (rows[i] * SHAPES[i].columns > (int64_t)bytes / 4 - at) return et_fail(error, "%s", broken);
        at += rows[i] * SHAPES[i].columns;
    }
    int64_t text = (int64_t)bytes - 4 * at - vocab;
    t->offsets = (const void *)(intptr_t)n[TAB_OFFSETS];
    t->flags = data + 4 * at;
    t->text = t->flags + vocab;
    n[TAB_FLAGS] = address(t->flags);
    n[TAB_TEXT] = address(t->text);
    bool good = n[TOK_TOKENS] == vocab && text >= 0 && n[TOK_UNKNOWN] < vocab && n[TOK_SPACE] < vocab &&
                (n[TOK_KIND] != KIND_UNIGRAM || n[TOK_UNKNOWN] >= 0);
    for (int i = 0; good && i < TABLES; i++)
        good = table_holds(&SHAPES[i], (const void *)(intptr_t)n[TOK_COUNT + i], rows[i], vocab, text);
    for (int64_t i = 0; good && i < vocab; i++)
        good = t->offsets[i + 1] - t->offsets[i] <= n[TOK_LONGEST];
    if (!good) return et_fail(error, "%s", broken);
    t->encode = et_kernel(m, "encode", 64);
    t->write = et_kernel(m, "write_token", 64);
    t->strip = et_kernel(m, "strip_text", 64);
    t->there = t->encode && t->write && t->strip;
    return t->there ? 0 : et_fail(error, "the library has no kernels for texts");
}

const char *edgetok_piece(const edgetok_model *m, int32_t token, size_t *bytes) {
    const tokenizer *t = &m->tokens;
    *bytes = 0;
    if (!t->there || token < 0 || token >= t->list[TOK_TOKENS]) return NULL;
    *bytes = (size_t)(t->offsets[token + 1] - t->offsets[token]);
    return (const char *)t->text + t->offsets[token];
}

int64_t edgetok_encode(const edgetok_model *m, const char *text, size_t bytes, int special,
                       int32_t *ids, size_t capacity, char *error) {
    const tokenizer *t = &m->tokens;
    block scratch = {0};
    if (!t->there) return et_fail(error, "this folder has no tokenizer; use token ids");
    if (bytes > 1 << 28) return et_fail(error, "the text has %zu bytes, expected at most 2^28", bytes);
    instruction one = {{0}};
    one.slots[ENCODE_TABLES] = address(t->list);
    one.slots[ENCODE_TEXT] = address(text);
    one.slots[ENCODE_BYTES] = (int64_t)bytes;
    one.slots[ENCODE_SPECIAL] = special;
    one.slots[ENCODE_IDS] = address(ids);
    one.slots[ENCODE_CAPACITY] = (int64_t)capacity;
    t->encode(address(&one), 0, 0, 1); /* says how much memory it needs */
    if (one.slots[ENCODE_COUNT] < 0) return et_fail(error, "the text is not valid UTF-8");
    int64_t needed = one.slots[ENCODE_NEEDED];
    if ((uint64_t)needed > SIZE_MAX / 4 || !et_grab(&scratch, (size_t)needed))
        return et_fail(error, "no memory to tokenise %zu bytes", bytes);
    one.slots[ENCODE_SCRATCH] = address(scratch.data);
    t->encode(address(&one), 0, 0, 1);
    et_drop(&scratch);
    return one.slots[ENCODE_COUNT];
}
