/* What the parts of libedgetok know of each other. abi.h is made from Python's constants
   (abi_header.py), so that slots, limits and layouts stand once. */
#ifndef EDGETOK_INTERNAL_H
#define EDGETOK_INTERNAL_H

#include "edgetok.h"

#include "abi.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t up(int64_t value, int64_t by) { return (value + by - 1) / by * by; }
static inline int64_t address(const volatile void *p) { return (int64_t)(uintptr_t)p; }
static inline void *pointer(int64_t address) { return (void *)(intptr_t)address; }

typedef void kernel(int64_t instr, int64_t ctx, int64_t tid, int64_t threads);

/* platform.c: what systems do differently. */
typedef struct { void *data; size_t bytes; } block;
typedef struct { const uint8_t *data; size_t bytes; void *handle; block copy; } mapping; /* copy: wasm */

void *et_grab(block *memory, size_t bytes); /* zeroed, 64-byte aligned; NULL: none left */
void et_drop(block *memory);
int et_map(mapping *file, const char *folder, const char *name, char *error);
void et_unmap(mapping *file);
void et_prefer_huge_pages(const mapping *file, int64_t from);
double et_seconds(void);
int et_cores(void);
bool et_isa_runs(const char *isa);
void et_lock(atomic_int *lock); /* of zero at first */
void et_unlock(atomic_int *lock);
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

/* Tables that kernels know are theirs: kernels_cpu/plan, kernels_cpu/cache. */
typedef struct { OPENED_FIELDS } opened; /* a plan; NAME_at: address of a section */
typedef struct { HISTORY_FIELDS } history;
typedef struct { GROUP_FIELDS } group;
typedef struct { ROPE_FIELDS } rope;
typedef struct { int64_t kv_heads, key_bytes, value_bytes, rotation[4]; } layer_size; /* dims first */
typedef struct { SESSION_FIELDS } session;
typedef struct { int64_t at, bytes; } message; /* counted from an address; -1 bytes: there is none */
typedef struct { int64_t slots[INSTR_SLOTS]; } instruction;

/* tokenizer.c: tables of the file, checked when it is opened, and what C looks at of them. */
typedef struct {
    bool there;
    int64_t list[TAB_END]; /* numbers, then addresses of tables: kernels_cpu/text/launch.py */
    const uint8_t *flags, *text;
    const int32_t *offsets;
} tokenizer;

struct edgetok_model {
    mapping plan, weights;
    opened file;
    const int64_t *run;       /* RUN_* */
    int64_t n_wide, n_seeing; /* heads: of more slots by `recall`; those that see every token */
    const rope *ropes;
    tokenizer tokens;
    const kernel_set *kernels;
    kernel *own[OWN_COUNT];   /* OWN_*: those that C calls by name */
    int threads;
    block memory;             /* all that `file` has addresses of */
    instruction *host;        /* HOST_* */
    int64_t ctx[CTX_SLOTS];
    int64_t parts[2][PART_SLOTS];
    void **workers;
    atomic_int turn;
};

/* A kernel of OWN_*, on this thread. */
static inline void et_do(const edgetok_model *m, int own, instruction *one) { m->own[own](address(one), 0, 0, 1); }

/* run.c */
enum { PROGRAM_ALL, PROGRAM_BODY, PROGRAM_TRUNK };
int et_start_team(edgetok_model *m, char *error);
void et_end_team(edgetok_model *m);
void et_run(const edgetok_model *m, int program);
void et_call(const edgetok_model *m, instruction *one); /* on all threads */

int et_tokenizer_open(edgetok_model *m, char *error);

/* cache.c, slots.c: see edgetok/cache/groups.py. */
typedef struct { const char *name; int scores, recent, around, unequal; } policy; /* scores: of a model's */

typedef struct {
    CACHE_FIELDS
    edgetok_model *m;
    const policy *policy; /* NULL: nothing is evicted */
    group *list, *group;  /* all, those that evict first; the one that a kernel is told of */
    int64_t answer, rope_frequencies[MOST_ROPES], rope_pairs[MOST_ROPES], part[PART_SLOTS];
    history past;
    block memory;
} cache;

int64_t et_keep(cache *c, int own, int64_t tokens, int64_t data, int64_t bytes);
bool et_cache_check(edgetok_model *m); /* whether what a plan says of layers can be */
int et_cache_new(cache *c, edgetok_model *m, const edgetok_cache *options, char *error);
int64_t et_cache_begin(cache *c, int64_t tokens); /* position of the first */
int64_t et_cache_truncate(cache *c, int64_t length);

struct edgetok_chat {
    edgetok_model *m;
    cache cache;
    int32_t *tokens; /* in the cache */
    float *logits;
    bool has_logits, pending, opened; /* opened: an answer has begun */
    int32_t last;
    atomic_bool cancelled;
    edgetok_sampling sampling, next_sampling;
    block text_memory, next_memory, memory;
    size_t held_bytes; /* room for text that is held back */
    instruction choose, write;
    int64_t options[OPTIONS], chosen;
    int32_t *seen, *seen_row; /* tokens and counts; row of each token + 1 */
    int64_t seen_count, capacity;
    char *output;
    int finish;
    edgetok_stats_t stats;
    message *messages, kept_options; /* the system's first, without the last answer; sampling of a session */
    char *said;                      /* what they are counted from */
    size_t said_bytes, answer_bytes;
    int64_t count, question; /* question: a step ends there, so that the cache can go back */
    block answer; /* text of the answer, for the next turn */
};

int et_prefill(edgetok_chat *chat, const int32_t *ids, size_t count, int64_t question, int64_t shared, char *error);

/* template.c */
bool et_add_message(edgetok_chat *chat, const void *text, int64_t bytes, char *error);
bool et_add_answer(edgetok_chat *chat, char *error); /* to the messages, if one is under way */

#endif
