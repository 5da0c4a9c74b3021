/* Texts and tokens: tables of a tokenizer (native/tokenizer.py), and the kernels that check them
   (kernels_cpu/plan/tokenizer.py) and work with them (kernels_cpu/text). */
#include "internal.h"

static const int32_t SHAPES[][SHAPE_NUMBERS] = {TABLE_SHAPES};

int et_tokenizer_open(edgetok_model *m, char *error) {
    tokenizer *t = &m->tokens;
    instruction one = {{[CHECK_LIST] = address(t->list), [CHECK_DATA] = m->file.tokenizer_at,
                        [CHECK_BYTES] = m->file.tokenizer_bytes, [CHECK_SHAPES] = address(SHAPES),
                        [CHECK_VOCAB] = m->run[RUN_VOCAB]}};
    if (!m->file.tokenizer_bytes) return 0;
    et_do(m, OWN_TOKENIZER_CHECK, &one);
    if (!one.slots[CHECK_RESULT])
        return et_fail(error, "model.plan: the tokenizer's tables contradict each other");
    t->offsets = pointer(t->list[TAB_OFFSETS]);
    t->flags = pointer(t->list[TAB_FLAGS]);
    t->text = pointer(t->list[TAB_TEXT]);
    t->there = true;
    return 0;
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
    instruction one = {{[ENCODE_TABLES] = address(t->list), [ENCODE_TEXT] = address(text),
                        [ENCODE_BYTES] = (int64_t)bytes, [ENCODE_SPECIAL] = special,
                        [ENCODE_IDS] = address(ids), [ENCODE_CAPACITY] = (int64_t)capacity}};
    et_do(m, OWN_ENCODE, &one); /* says how much memory it needs */
    if (one.slots[ENCODE_COUNT] < 0) return et_fail(error, "the text is not valid UTF-8");
    int64_t needed = one.slots[ENCODE_NEEDED];
    if ((uint64_t)needed > SIZE_MAX / 4 || !et_grab(&scratch, (size_t)needed))
        return et_fail(error, "no memory to tokenise %zu bytes", bytes);
    one.slots[ENCODE_SCRATCH] = address(scratch.data);
    et_do(m, OWN_ENCODE, &one);
    et_drop(&scratch);
    return one.slots[ENCODE_COUNT];
}
