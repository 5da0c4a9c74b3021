/* Opens a folder: model.plan and the weights beside it. Kernels check all numbers and put real addresses
   into instructions (kernels_cpu/plan); C gives them files, memory and the kernels that they name. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>

static const int64_t LIMITS[RUN_COUNT][2] = {RUN_LIMITS};
static const char *const FAULTS[] = {PLAN_FAULTS}; /* texts with up to two numbers */
static const char *const OWN[OWN_COUNT] = {OWN_KERNELS};

static kernel *find_kernel(const edgetok_model *m, const char *name) {
    for (size_t i = 0; i < m->kernels->count; i++)
        if (!strcmp(m->kernels->kernels[i].name, name)) return m->kernels->kernels[i].call;
    return NULL;
}

static int no_kernel(const edgetok_model *m, const char *name, char *error) {
    return et_fail(error, "the library has no kernel %s for %s: build it for this model", name, m->kernels->isa);
}

static int choose_kernels(edgetok_model *m, char *error) {
    for (size_t i = 0; i < et_kernel_set_count && !m->kernels; i++)
        if (et_isa_runs(et_kernel_sets[i].isa)) m->kernels = &et_kernel_sets[i];
    if (!m->kernels)
        return et_fail(error, "this processor runs none of the library's kernels; build it for portable");
    for (int i = 0; i < OWN_COUNT; i++)
        if (!(m->own[i] = find_kernel(m, OWN[i]))) return no_kernel(m, OWN[i], error);
    return 0;
}

static int64_t ask(edgetok_model *m, int own, int64_t memory) {
    instruction one = {{[OPEN_PLAN] = address(&m->file), [OPEN_MEMORY] = memory}};
    et_do(m, own, &one);
    return one.slots[OPEN_RESULT];
}

static int fault_in(edgetok_model *m, int own, int64_t memory, char *error) {
    int64_t fault = ask(m, own, memory);
    return fault ? et_fail(error, FAULTS[fault], (long long)m->file.found, (long long)m->file.expected) : 0;
}

static int check_weights(const edgetok_model *m, char *error) {
    uint8_t hash[HASH_BYTES];
    instruction one = {{[HASH_DATA] = address(m->weights.data),
                        [HASH_COUNT] = (int64_t)m->weights.bytes, [HASH_OUT] = address(hash)}};
    et_do(m, OWN_SHA256, &one);
    if (!memcmp(hash, pointer(m->file.digest), 32)) return 0;
    return et_fail(error, "%s: damaged, or of another model", WEIGHTS_FILE);
}

/* Writes the addresses of the kernels that a plan names where `plan_link` looks for them. */
static int name_kernels(edgetok_model *m, char *error) {
    const char *name = pointer(m->file.names), *told = pointer(m->file.host_at);
    int64_t *found = pointer(m->file.kernels_memory);
    for (int64_t i = 0; i < m->file.name_count; i++, name += strlen(name) + 1) {
        kernel *call = find_kernel(m, name);
        if (!call) return no_kernel(m, name, error);
        found[i] = (int64_t)(intptr_t)call;
    }
    for (int64_t i = 0; i < HOST_ANGLES + m->run[RUN_ROPES]; i++, told += NAME_BYTES + sizeof *m->host) {
        kernel *call = find_kernel(m, told);
        if (!call) return no_kernel(m, told, error);
        m->host[i].slots[0] = (int64_t)(intptr_t)call;
    }
    return 0;
}

static int read_plan(edgetok_model *m, int threads, char *error) {
    uint8_t scratch[HASH_BYTES];
    opened *file = &m->file;
    file->file = address(m->plan.data);
    file->file_bytes = (int64_t)m->plan.bytes;
    file->weights_memory = address(m->weights.data);
    file->weights_bytes = (int64_t)m->weights.bytes;
    file->run_limits = address(LIMITS);
    if (fault_in(m, OWN_PLAN_READ, address(scratch), error)) return -1;
    m->run = pointer(file->run_at);
    if (threads < 0 || threads > 1024)
        return et_fail(error, "%d threads, expected 0 to 1024", threads);
    m->threads = threads ? threads : m->run[RUN_SMALL] ? 1 : et_cores();
#if defined(__wasm__)
    m->threads = 1;
#endif
    file->threads = m->threads;
    int64_t bytes = ask(m, OWN_PLAN_PLACE, 0);
    if ((uint64_t)bytes > SIZE_MAX / 4 || !et_grab(&m->memory, (size_t)bytes))
        return et_fail(error, "no memory for %lld bytes of buffers", (long long)bytes);
    ask(m, OWN_PLAN_PLACE, address(m->memory.data));
    m->host = pointer(file->host);
    m->ropes = pointer(file->ropes);
    if (name_kernels(m, error) || fault_in(m, OWN_PLAN_LINK, 0, error)) return -1;
    et_prefer_huge_pages(&m->weights, m->run[RUN_ROWS_END]);
    return et_cache_check(m) ? 0 : et_fail(error, "%s", FAULTS[WRONG_NUMBERS]);
}

edgetok_model *edgetok_open(const char *folder, int threads, int verify, char *error) {
    edgetok_model *m = calloc(1, sizeof *m);
    if (!m) return et_fail(error, "no memory"), NULL;
    if (!choose_kernels(m, error) && !et_map(&m->plan, folder, PLAN_FILE, error) &&
        !et_map(&m->weights, folder, WEIGHTS_FILE, error) && !read_plan(m, threads, error) &&
        !(verify && check_weights(m, error)) && !et_tokenizer_open(m, error) &&
        !et_start_team(m, error))
        return m;
    edgetok_close(m);
    return NULL;
}

void edgetok_close(edgetok_model *m) {
    if (!m) return;
    et_end_team(m);
    et_drop(&m->memory);
    et_unmap(&m->plan);
    et_unmap(&m->weights);
    free(m);
}

void edgetok_describe(const edgetok_model *m, edgetok_info *info) {
    const uint8_t *digest = pointer(m->file.digest);
    *info = (edgetok_info){
        .vocab_size = m->run[RUN_VOCAB], .context_tokens = m->run[RUN_CONTEXT],
        .layers = m->run[RUN_LAYERS], .kv_bits = m->run[RUN_KV_BITS],
        .block_tokens = m->run[RUN_BLOCK], .weight_bytes = (int64_t)m->weights.bytes,
        .buffer_bytes = (int64_t)m->memory.bytes, .threads = m->threads,
        .tokenizes = m->tokens.there, .chats = m->tokens.there && m->file.template_bytes > 0,
        .isa = m->kernels->isa, .family = pointer(m->file.family_at)};
    for (int i = 0; i < 32; i++) snprintf(info->weights_sha256 + 2 * i, 3, "%02x", digest[i]);
}
