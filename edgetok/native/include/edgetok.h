/* libedgetok: runs a folder that `edgetok export --format native` wrote. C11, no Python.

   A model is open in one process and shared by its chats; steps of its chats take turns. A chat is
   used by one thread at a time, but for edgetok_cancel, which any thread may call. Functions that
   can fail take room for EDGETOK_ERROR_BYTES of text, or NULL, and return NULL or a negative
   number. Nothing is allocated while tokens are computed. All texts are UTF-8. */
#ifndef EDGETOK_H
#define EDGETOK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#if defined(__GNUC__) && !defined(_WIN32)
#pragma GCC visibility push(default)
#endif

#define EDGETOK_VERSION 1
#define EDGETOK_ERROR_BYTES 256

typedef struct edgetok_model edgetok_model;
typedef struct edgetok_chat edgetok_chat;

/* Opens model.plan and the weights of a folder, which are mapped and not copied.
   threads: how many compute; 0 for one a performance core, or one where the model is too small to gain.
   verify: not 0: compares the weights with their sha256 first, which reads all of them. */
edgetok_model *edgetok_open(const char *folder, int threads, int verify, char *error);

/* Closes a model whose chats are freed. */
void edgetok_close(edgetok_model *model);

typedef struct {
    int64_t vocab_size, context_tokens, layers, kv_bits, block_tokens, weight_bytes, buffer_bytes;
    int threads;
    int tokenizes;           /* whether edgetok_encode and text work */
    int chats;               /* whether edgetok_say works */
    const char *isa;         /* instruction set of the kernels in use */
    const char *family;      /* as the checkpoint's config.json has it */
    char weights_sha256[65];
} edgetok_info;

void edgetok_describe(const edgetok_model *model, edgetok_info *info);

typedef struct {
    int64_t context_tokens; /* most tokens, 0: 4096 or what the model was trained for */
    int64_t budget_bytes;   /* of a cache that evicts; 0: context_tokens slots a head, on average */
    const char *policy;     /* "recall", "content", "retain" or "window" evict; "none" refuses what does
                               not fit; NULL: recall, or none for fewer than 64 context_tokens */
} edgetok_cache;

/* A conversation with memory of its own. cache: NULL for the defaults. */
edgetok_chat *edgetok_chat_new(edgetok_model *model, const edgetok_cache *cache, char *error);
void edgetok_chat_free(edgetok_chat *chat);

/* Text to token ids; returns how many there are, of which at most `capacity` were written.
   special: not 0 adds what the tokenizer adds around a text, such as <s>. */
int64_t edgetok_encode(const edgetok_model *model, const char *text, size_t bytes, int special,
                       int32_t *ids, size_t capacity, char *error);

/* The bytes that a token stands for, and how many; NULL for no such token. */
const char *edgetok_piece(const edgetok_model *model, int32_t token, size_t *bytes);

/* How answers are sampled. {0} takes the most likely token until the model ends its answer. */
typedef struct {
    double temperature, top_p, min_p; /* top_p: 0 or 1 for all */
    double repetition_penalty;        /* 0 or 1 for none */
    double presence_penalty, frequency_penalty;
    int64_t top_k;      /* 0 for all */
    uint64_t seed;      /* equal seeds give the tokens that Python gives */
    int64_t max_tokens; /* 0: what the context holds */
    const char *const *stop; /* texts before which an answer ends */
    size_t stops;
} edgetok_sampling;

/* Sets the sampling of the answers after the next prefill or say. Texts are copied. */
int edgetok_sample(edgetok_chat *chat, const edgetok_sampling *sampling, char *error);

/* Makes `ids` the chat's tokens, keeping what the cache holds of them, and begins an answer. */
int edgetok_prefill(edgetok_chat *chat, const int32_t *ids, size_t count, char *error);

/* Says something by the chat template and begins the answer. system: NULL, or the system message
   of the first turn. The answer so far becomes part of the conversation. */
int edgetok_say(edgetok_chat *chat, const char *system, const char *text, char *error);

enum { EDGETOK_GOING, EDGETOK_STOP, EDGETOK_LENGTH, EDGETOK_CONTEXT, EDGETOK_CANCELLED };

typedef struct {
    int32_t token;
    int finish;       /* EDGETOK_GOING, or why this is the answer's last token */
    const char *text; /* ended by 0; valid until the next call on this chat; may be empty */
    size_t bytes;
} edgetok_output;

/* The next token of the answer: 1, or 0 when it is over, negative on an error. */
int edgetok_next(edgetok_chat *chat, edgetok_output *output, char *error);

/* Ends a prefill or an answer, from any thread. */
void edgetok_cancel(edgetok_chat *chat);

/* Goes back to the first `tokens` tokens, or to fewer, even 0, where evicted ones are missing or a
   recurrent layer has no snapshot of its state: returns how many are left. */
int64_t edgetok_truncate(edgetok_chat *chat, int64_t tokens, char *error);

/* The ids of the chat's tokens, evicted ones included, which edgetok_restore wants with a saved
   cache; returns how many there are, of which at most `capacity` were written. */
int64_t edgetok_tokens(const edgetok_chat *chat, int32_t *ids, size_t capacity);

/* [vocab_size] of the last token computed; NULL before the first. Valid until the next call. */
const float *edgetok_logits(const edgetok_chat *chat);

typedef struct {
    int64_t tokens;         /* in the conversation, evicted ones included */
    int64_t position;       /* of the next token */
    int64_t slots;          /* tokens that a head can hold, on average */
    int64_t cache_bytes;    /* of keys, values and lists when all slots are used */
    int64_t prompt_tokens, cached_tokens, answer_tokens;
    double prefill_s, decode_s; /* spent in steps since the answer began */
} edgetok_stats_t;

void edgetok_stats(const edgetok_chat *chat, edgetok_stats_t *stats);

/* The cache as a block of bytes, which Python's caches of the same shape load, and back. Save
   returns the bytes needed and writes them if they fit. Restore takes the ids that the block was
   computed from as well: keep those that edgetok_tokens gives. */
int64_t edgetok_save(edgetok_chat *chat, void *block, size_t capacity, char *error);
int edgetok_restore(edgetok_chat *chat, const void *block, size_t bytes, const int32_t *ids,
                    size_t count, char *error);

/* The conversation as the content of a session file, which `edgetok chat --session` and Chat.load open,
   and back: messages and, where the cache evicts, the cache. Save returns the bytes needed and writes
   them if they fit. Load takes what Python saved of the same model, too; a cache's options must be those it
   was saved with. The next edgetok_say goes on with the conversation. Sampling options are set by
   edgetok_sample; those of a file are kept for Python. */
int64_t edgetok_session_save(edgetok_chat *chat, void *file, size_t capacity, char *error);
int edgetok_session_load(edgetok_chat *chat, const void *file, size_t bytes, char *error);

#if defined(__GNUC__) && !defined(_WIN32)
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif
#endif
