/* What the parts of libedgetok know of each other. abi.h is made from Python's constants
   (abi_header.py), so that slots, limits and layouts stand once. */
#ifndef EDGETOK_INTERNAL_H
#define EDGETOK_INTERNAL_H

#include "abi.h"
#include "edgetok.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t up(int64_t value, int64_t by) { return (value + by - 1) / by * by; }
static inline int64_t address(const void *p) { return (int64_t)(intptr_t)p; }

typedef void kernel(int64_t instr, int64_t ctx, int64_t tid, int64_t threads);

/* platform.c: what systems do differently. */
typedef struct { const uint8_t *data; size_t bytes; void *handle; } mapping;
typedef struct { void *data; size_t bytes; } block;

void *et_grab(block *memory, size_t bytes); /* zeroed, 64-byte aligned; NULL: none left */
void et_drop(block *memory);
int et_map(mapping *file, const char *folder, const char *name, char *error);
void et_unmap(mapping *file);
double et_seconds(void);
int et_cores(void);
bool et_isa_runs(const char *isa);
void *et_lock_new(void);
void et_lock(void *lock);
void et_unlock(void *lock);
void et_lock_free(void *lock);
void *et_thread(void (*work)(void *), void *argument); /* NULL: cannot start */
void et_join(void *thread);
#if defined(__GNUC__) || defined(__clang__)
__attribute__((format(printf, 2, 3)))
#endif
int et_fail(char *error, const char *format, ...); /* always -1 */

/* kernels.c, generated: compiled kernels by instruction set, the fastest first. */
typedef struct { const char *name; kernel *call; } named_kernel;
typedef struct { const char *isa; const named_kernel *kernels; size_t count; } kernel_set;
extern const kernel_set et_kernel_sets[];
extern const size_t et_kernel_set_count;

/* sha256.c */
void et_sha256(const uint8_t *data, size_t bytes, uint8_t digest[32]);

/* plan.c */
typedef struct { int64_t window, rope, centre, factor; } layer; /* offsets in the weights, or -1 */
typedef struct { int64_t kv_heads, key_bytes, value_bytes, dims, rotation[3]; } layer_size;
typedef struct { int64_t half, original; const double *near_, *far_; } rope;
typedef struct { int64_t index, rows, columns, needed; } state;
typedef struct { int64_t slots[INSTR_SLOTS]; } instruction;
typedef struct { int64_t slots[INSTR_SLOTS]; block starts; } program;

/* tokenizer.c: tables of the file, checked when it is opened, and kernels for texts. */
typedef struct {
    bool there;
    int64_t list[TAB_END]; /* numbers, then addresses of tables: kernels_cpu/text/launch.py */
    const uint8_t *flags, *text;
    const int32_t *offsets;
    kernel *encode, *write, *strip;
} tokenizer;

struct edgetok_model {
    mapping plan, weights;
    const int64_t *run;      /* RUN_* */
    const char *family;
    const layer *layers;
    const layer_size *sizes;
    const state *states;     /* of recurrent layers */
    const uint8_t *wide;     /* [layers, KV heads]: 1 where `recall` gives a head more slots */
    int64_t n_wide, n_seeing; /* heads: such ones; those that see every token */
    rope ropes[MOST_ROPES];
    const int32_t *eos;
    tokenizer tokens;
    const uint8_t *template_;
    size_t template_bytes;
    const kernel_set *kernels;
    int threads;
    uint8_t digest[32];
    block memory, team_memory; /* all segments; counters of the team */
    uint8_t *segments[SEGMENT_LINEAR + 1];
    instruction *table;
    instruction angles[MOST_ROPES], sample, scores[3], choose, renumber, rotate;
    program step, body, trunk;
    int32_t *step_tokens, *step_positions;
    float *step_logits;
    int64_t ctx[CTX_SLOTS];
    int64_t parts[2][PART_SLOTS];
    int32_t *rows; /* 0, 1, ... */
    int64_t *team;
    kernel *alone, *lead, *close;
    void **workers;
    void *turn;
    atomic_int chats;
};

kernel *et_kernel(const edgetok_model *m, const char *name, size_t most);
int et_tokenizer_open(edgetok_model *m, const uint8_t *data, size_t bytes, char *error);
int et_template_check(const uint8_t *data, size_t bytes, char *error);
void et_run(edgetok_model *m, program *p);
void et_call(edgetok_model *m, instruction *one); /* one instruction, on all threads */

/* history.c: see edgetok/cache/recurrent.py. */
typedef struct { float *values; int64_t oldest; } ring; /* earlier tokens are not in it */
typedef struct { int64_t length, first; float *values; } snapshot;
typedef struct {
    const state *states;
    int64_t count, *table; /* the table of states, for kernels */
    ring *rings;
    snapshot snapshots[MOST_SNAPSHOTS + 1]; /* ascending; those after `taken` have memory alone */
    int64_t taken, most, bytes, nbytes;     /* bytes of one snapshot; of everything */
    bool bulky, several;                    /* the latest step had several tokens */
    block memory;
} history;

int et_history_new(history *h, const edgetok_model *m, char *error);
void et_history_begin(history *h, int64_t tokens, int64_t length);
void et_history_advance(history *h, int64_t length);
int64_t et_history_reachable(const history *h, int64_t length);
void et_history_truncate(history *h, int64_t length);
int64_t et_history_sections(const history *h, int64_t length, int64_t *bytes);
void et_history_write(const history *h, int64_t length, int64_t i, uint8_t *out);
/* Whether a section can be the one after a snapshot of `length` tokens; its own length replaces it. */
bool et_history_holds(const history *h, const uint8_t *section, int64_t bytes, int64_t *length);
void et_history_clear(history *h);
void et_history_read(history *h, const uint8_t *section, bool now);

/* cache.c, slots.c: see edgetok/cache/groups.py, of which it is the same in C. */
typedef struct { const char *name; int scores, recent, unequal; } policy; /* scores: of a model's */

typedef struct {
    int64_t window, rows, heads, limit, pages, mark, free_count, taken;
    bool chosen, wide;
    int64_t sizes[4], slot_bytes; /* of a slot's key, value and their scales; of all four */
    const layer_size *size;       /* of each of its layers */
    int64_t *head; /* [heads] of layers times KV heads */
    int32_t *positions, *tokens, *append, *free_slots;
    float *mass; /* attention that each slot got, of heads that evict */
    int64_t *held, *used, *entries;
    uint8_t *memory;
    int64_t *records; /* of eviction kernels */
} group;

typedef struct {
    edgetok_model *m;
    int64_t capacity, block_tokens, slots, recent, answer, pinned, length, shift, n_groups;
    int64_t tiers[2];     /* slots of narrow heads and of wide ones; 0: none of these */
    const policy *policy; /* NULL: nothing is evicted */
    group *groups;        /* those that evict first */
    int64_t *records;
    const double *frequencies[MOST_ROPES];
    double dropped; /* attention mass of what was evicted */
    float *scores;
    int32_t *evicted, *by, *moved;
    int64_t *counts;
    uint8_t *scratch;
    int64_t part[PART_SLOTS];
    uint8_t *partials;
    int64_t nbytes;
    history history;
    char *shape; /* JSON */
    int64_t shape_bytes, shape_room;
    block memory;
} cache;

/* Whether one of a layer's RUN_KV_HEADS stores keys and values: some layers have fewer heads. */
bool et_stores(const edgetok_model *m, int64_t head);
int et_cache_new(cache *c, edgetok_model *m, const edgetok_cache *options, char *error);
int64_t et_cache_begin(cache *c, int64_t tokens); /* position of the first */
int64_t et_cache_used(const cache *c);
int64_t et_cache_truncate(cache *c, int64_t length);
void et_cache_shape(cache *c); /* writes what another cache must have in common */
int64_t et_cache_save(cache *c, uint8_t *block, int64_t capacity);
int et_cache_restore(cache *c, const uint8_t *block, int64_t bytes, int64_t tokens, char *error);
void et_list_free(cache *c, group *g);
int64_t et_chunk_count(int64_t slots);

struct edgetok_chat {
    edgetok_model *m;
    cache cache;
    int32_t *tokens; /* in the cache */
    int64_t capacity;
    float *logits;
    bool has_logits, pending;
    int32_t last;
    atomic_bool cancelled;
    edgetok_sampling sampling, next_sampling;
    block text_memory, next_memory, memory;
    size_t held_bytes; /* room for text that is held back */
    instruction choose, write;
    int64_t options[OPTIONS], chosen;
    int32_t *seen, *seen_row; /* tokens and counts; row of each token + 1 */
    int64_t seen_count;
    char *output;
    int finish;
    bool opened;       /* an answer has begun */
    edgetok_stats_t stats;
    char *said;        /* the conversation as text */
    size_t said_bytes, said_capacity;
    int64_t turns;
    size_t asked; /* where the last message begins */
    int with_system;
    block answer;      /* text of the answer, for the next turn */
    size_t answer_bytes;
};

/* template.c */
void et_note_answer(edgetok_chat *chat, const edgetok_output *output);

#endif
