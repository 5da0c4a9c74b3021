/* Opens a folder: reads and checks model.plan (native/plan.py, runtime/cpu/plan_file.py) and puts
   real addresses into its instructions. Every number is checked before it is used. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct { const uint8_t *data; size_t bytes, at; bool bad; } reader;

static const void *take(reader *r, int64_t count, size_t each) {
    if (count < 0 || (uint64_t)count > (r->bytes - r->at) / each) {
        r->bad = true;
        return NULL;
    }
    const uint8_t *found = r->data + r->at;
    r->at += (size_t)count * each;
    return found;
}

typedef struct { const uint8_t *data; size_t bytes; } section;

static bool within(int64_t value, int64_t low, int64_t high) { return low <= value && value <= high; }

static int read_sections(const mapping *file, section found[SECTION_COUNT], char *error) {
    reader r = {file->data, file->bytes, 0, false};
    uint8_t digest[32];
    const char *magic = take(&r, 8, 1);
    const int64_t *head = take(&r, 3, 8);
    if (r.bad || memcmp(magic, PLAN_MAGIC, 8)) return et_fail(error, "model.plan: not a plan file");
    if (head[0] != PLAN_VERSION)
        return et_fail(error, "model.plan: version %lld, this library reads %d; export again",
                       (long long)head[0], PLAN_VERSION);
    const int64_t *entries = within(head[1], 0, 64) ? take(&r, 3 * head[1], 8) : NULL;
    int64_t core = head[2];
    if (!entries || !within(core, 0, (int64_t)file->bytes - 32) || (size_t)core < r.at)
        return et_fail(error, "model.plan: ends too soon; export again");
    et_sha256(file->data, (size_t)core, digest);
    if (memcmp(digest, file->data + core, 32))
        return et_fail(error, "model.plan: damaged; export again");
    for (int64_t i = 0; i < head[1]; i++, entries += 3) {
        int64_t kind = entries[0], at = entries[1], bytes = entries[2];
        if (!within(kind, 0, SECTION_COUNT - 1) || at % 8 || at < (int64_t)r.at || bytes < 0 ||
            at > (int64_t)file->bytes || bytes > (int64_t)file->bytes - at ||
            found[kind].data || (kind < SECTION_TOKENIZER && at + bytes > core))
            return et_fail(error, "model.plan: a section lies outside of the file");
        found[kind] = (section){file->data + at, (size_t)bytes};
    }
    for (int kind = 0; kind < SECTION_TOKENIZER; kind++)
        if (!found[kind].data || (kind == SECTION_PLAN && found[kind].bytes < 8))
            return et_fail(error, "model.plan: section %d is missing", kind);
    return 0;
}

kernel *et_kernel(const edgetok_model *m, const char *name, size_t most) {
    for (size_t i = 0; i < m->kernels->count; i++) {
        const char *known = m->kernels->kernels[i].name;
        if (strlen(known) < most && !strncmp(known, name, most)) return m->kernels->kernels[i].call;
    }
    return NULL;
}

static int no_kernel(const edgetok_model *m, const char *name, char *error) {
    for (const char *c = name; *c && c < name + 64; c++)
        if (*c < '0' || *c > 'z') return et_fail(error, "model.plan: a kernel's name is not one");
    return et_fail(error, "the library has no kernel %.64s for %s: build it for this model",
                   name, m->kernels->isa);
}

static int set_program(program *p, instruction *first, int64_t count) {
    int64_t *starts = et_grab(&p->starts, 8 * (size_t)(count + 2)), phases = 0;
    if (!starts) return -1;
    starts[phases++] = address(first);
    for (int64_t i = 0; i < count; i++)
        if (first[i].slots[1] || i == count - 1)
            starts[phases++] = address(first + i + 1);
    p->slots[PROGRAM_FIRST] = starts[0];
    p->slots[PROGRAM_STARTS] = address(starts);
    p->slots[PROGRAM_PHASES] = phases - 1;
    return 0;
}

typedef struct { char name[32]; int32_t segment, dtype; int64_t offset, rows, columns; } place;

static void *place_in(edgetok_model *m, const place *places, int64_t count, const int64_t *sizes,
                      const char *name, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < count; i++) {
        const place *p = places + i;
        if (strncmp(p->name, name, sizeof p->name)) continue;
        if (!within(p->segment, SEGMENT_TABLES, SEGMENT_WORKSPACE) || p->offset % 4 ||
            p->rows < rows || p->columns != columns ||
            !within(p->offset, 0, sizes[p->segment] - 4 * p->rows * columns))
            return NULL;
        return m->segments[p->segment] + p->offset;
    }
    return NULL;
}

static int read_plan(edgetok_model *m, section s, char *error) {
    static const char *const broken = "model.plan: instructions contradict each other";
    reader r = {s.data, s.bytes, 8, false}; /* its own magic and hash are part of the core's */
    const int64_t *head = take(&r, HEADER_COUNT, 8), *run = m->run;
    const uint8_t *digest = take(&r, 32, 1);
    if (r.bad || head[HEADER_VERSION] != CORE_VERSION) return et_fail(error, "%s", broken);
    int64_t count = head[HEADER_INSTRUCTIONS], moves = head[HEADER_RELOCATIONS];
    if (!within(count, 1, 1 << 20) || !within(moves, 0, INSTR_SLOTS * count))
        return et_fail(error, "%s", broken);
    const int64_t *table = take(&r, INSTR_SLOTS * count, 8);
    const int32_t *moved = take(&r, moves, 8);
    const place *places = take(&r, head[HEADER_PLACES], sizeof *places);
    const char *names = take(&r, head[HEADER_KERNEL_BYTES], 1);
    int64_t sizes[SEGMENT_LINEAR + 1] = {0}, name_count = head[HEADER_KERNELS_BYTES];
    int64_t block_tokens = head[HEADER_BLOCK_TOKENS];
    memcpy(m->digest, digest ? digest : (const uint8_t *)"", digest ? 32 : 0);
    if (r.bad || !within(name_count, 1, 1024) || head[HEADER_KERNEL_BYTES] < 1 ||
        names[head[HEADER_KERNEL_BYTES] - 1] || !within(block_tokens, 1, 4096) ||
        !within(head[HEADER_TRUNK], 1, head[HEADER_BODY]) ||
        !within(head[HEADER_BODY], 1, count - 1) || !within(head[HEADER_HEAD_TOKENS], 1, 4096))
        return et_fail(error, "%s", broken);
    if (head[HEADER_WEIGHTS_BYTES] != (int64_t)m->weights.bytes)
        return et_fail(error, "%s has %lld bytes, the plan is for %lld; export again", WEIGHTS_FILE,
                       (long long)m->weights.bytes, (long long)head[HEADER_WEIGHTS_BYTES]);
    size_t total = 0, starts[SEGMENT_LINEAR + 1];
    for (int k = SEGMENT_TABLES; k <= SEGMENT_LINEAR; k++) {
        bool each = k == SEGMENT_ATTENTION || k == SEGMENT_LINEAR;
        starts[k] = total;
        sizes[k] = head[HEADER_KERNELS_BYTES + k - SEGMENT_KERNELS];
        if (!within(sizes[k], 0, (int64_t)1 << 40)) return et_fail(error, "%s", broken);
        total += ((size_t)sizes[k] * (size_t)(each ? m->threads : 1) + 127) / 64 * 64;
    }
    size_t at = total, own = sizeof(instruction) * (size_t)count;
    total += own + 4 * (size_t)block_tokens + 64;
    uint8_t *memory = total < SIZE_MAX / 4 ? et_grab(&m->memory, total) : NULL;
    if (!memory) return et_fail(error, "no memory for %zu bytes of buffers", total);
    m->table = (instruction *)(void *)(memory + at);
    m->rows = (int32_t *)(void *)(memory + at + own);
    for (int32_t i = 0; i < block_tokens; i++) m->rows[i] = i;
    for (int k = SEGMENT_TABLES; k <= SEGMENT_LINEAR; k++) m->segments[k] = memory + starts[k];
    et_prefer_huge_pages(&m->weights, run[RUN_ROWS_END]);
    m->segments[SEGMENT_WEIGHTS] = (uint8_t *)(intptr_t)m->weights.data;
    sizes[SEGMENT_WEIGHTS] = (int64_t)m->weights.bytes;
    kernel *calls[1024];
    const char *name = names, *end = names + head[HEADER_KERNEL_BYTES];
    for (int64_t i = 0; i < name_count; i++, name += strlen(name) + 1) {
        if (name >= end) return et_fail(error, "%s", broken);
        if (!(calls[i] = et_kernel(m, name, 64))) return no_kernel(m, name, error);
    }
    memcpy(m->table, table, own);
    int64_t kernels = 0, before = -1;
    for (int64_t i = 0; i < moves; i++) {
        int64_t slot = moved[2 * i], segment = moved[2 * i + 1];
        if (!within(slot, before + 1, INSTR_SLOTS * count - 1) ||
            !within(segment, SEGMENT_KERNELS, SEGMENT_LINEAR) ||
            (slot % INSTR_SLOTS == 0 && segment != SEGMENT_KERNELS) || slot % INSTR_SLOTS == 1)
            return et_fail(error, "%s", broken);
        int64_t *value = &m->table[slot / INSTR_SLOTS].slots[slot % INSTR_SLOTS];
        int64_t most = segment == SEGMENT_KERNELS ? name_count : sizes[segment];
        if (!within(*value, 0, most - 1)) return et_fail(error, "%s", broken);
        if (segment == SEGMENT_KERNELS) {
            *value = (int64_t)(intptr_t)calls[*value]; /* experts name one that another calls */
            kernels += slot % INSTR_SLOTS == 0;
        } else {
            *value += address(m->segments[segment]);
        }
        before = slot;
    }
    if (kernels != count) return et_fail(error, "%s", broken);
    int64_t n = head[HEADER_PLACES];
    m->step_tokens = place_in(m, places, n, sizes, "tokens", 1, block_tokens);
    m->step_positions = place_in(m, places, n, sizes, "positions", 1, block_tokens);
    m->step_logits = place_in(m, places, n, sizes, "logits", 1, run[RUN_VOCAB]);
    bool whole = m->step_tokens && m->step_positions && m->step_logits;
    for (int64_t i = 0; i < run[RUN_ROPES]; i++) {
        int64_t *slots = m->angles[i].slots;
        char cos[16], sin[16];
        snprintf(cos, sizeof cos, "cos.%d", (int)i);
        snprintf(sin, sizeof sin, "sin.%d", (int)i);
        slots[ANGLES_POSITIONS] = address(m->step_positions);
        void *c = place_in(m, places, n, sizes, cos, block_tokens, m->ropes[i].half);
        void *d = place_in(m, places, n, sizes, sin, block_tokens, m->ropes[i].half);
        slots[ANGLES_COS] = address(c);
        slots[ANGLES_SIN] = address(d);
        whole = whole && c && d;
    }
    if (!whole || run[RUN_BLOCK] != block_tokens) return et_fail(error, "%s", broken);
    if (set_program(&m->step, m->table, count) || set_program(&m->body, m->table, head[HEADER_BODY]) ||
        set_program(&m->trunk, m->table, head[HEADER_TRUNK]))
        return et_fail(error, "no memory for tables");
    return 0;
}

static int read_run(edgetok_model *m, section *s, char *error) {
    static const char *const broken = "model.plan: the model's numbers contradict each other";
    static const int64_t LIMITS[RUN_COUNT][2] = {RUN_LIMITS};
    const int64_t *run = (const void *)s[SECTION_RUN].data;
    if (s[SECTION_RUN].bytes != 8 * RUN_COUNT) return et_fail(error, "%s", broken);
    m->run = run;
    for (int i = 0; i < RUN_COUNT; i++)
        if (!within(run[i], LIMITS[i][0], LIMITS[i][1])) return et_fail(error, "%s", broken);
    m->layers = (const void *)s[SECTION_LAYERS].data;
    m->sizes = (const void *)s[SECTION_SIZES].data;
    m->states = (const void *)s[SECTION_STATES].data;
    m->eos = (const void *)s[SECTION_EOS].data;
    m->family = (const char *)s[SECTION_FAMILY].data;
    if (s[SECTION_LAYERS].bytes != sizeof(layer) * (size_t)run[RUN_LAYERS] ||
        s[SECTION_SIZES].bytes != sizeof(layer_size) * (size_t)run[RUN_LAYERS] ||
        s[SECTION_STATES].bytes != sizeof(state) * (size_t)run[RUN_STATES] ||
        s[SECTION_EOS].bytes != 4 * (size_t)run[RUN_EOS] ||
        s[SECTION_FAMILY].bytes < 1 || m->family[s[SECTION_FAMILY].bytes - 1])
        return et_fail(error, "%s", broken);
    reader r = {s[SECTION_ROPES].data, s[SECTION_ROPES].bytes, 0, false};
    for (int64_t i = 0; i < run[RUN_ROPES]; i++) {
        const int64_t *numbers = take(&r, 2, 8);
        if (r.bad || !within(numbers[0], 1, 4096)) return et_fail(error, "%s", broken);
        m->ropes[i] = (rope){numbers[0], numbers[1], take(&r, numbers[0], 8), take(&r, numbers[0], 8)};
        if (r.bad) return et_fail(error, "%s", broken);
    }
    size_t wide = s[SECTION_WIDE].bytes;
    if (wide && wide != (size_t)(run[RUN_KV_HEADS] * run[RUN_LAYERS])) return et_fail(error, "%s", broken);
    m->wide = wide ? s[SECTION_WIDE].data : NULL;
    if (et_keepers(m, error)) return -1;
    if (!et_cache_check(m)) return et_fail(error, "%s", broken);
    reader h = {s[SECTION_HOST].data, s[SECTION_HOST].bytes, 0, false};
    instruction *fixed[] = {&m->sample, &m->scores[0], &m->scores[1], &m->scores[2],
                            &m->choose, &m->renumber, &m->rotate};
    for (int64_t i = 0; i < 7 + run[RUN_ROPES]; i++) {
        instruction *one = i < 7 ? fixed[i] : &m->angles[i - 7];
        const char *name = take(&h, 64, 1);
        const int64_t *slots = take(&h, INSTR_SLOTS, 8);
        if (h.bad || name[63]) return et_fail(error, "%s", broken);
        memcpy(one->slots, slots, sizeof one->slots);
        kernel *call = et_kernel(m, name, 64);
        if (!call) return no_kernel(m, name, error);
        one->slots[0] = (int64_t)(intptr_t)call;
    }
    return 0;
}

static void help(void *argument) {
    edgetok_model *m = argument;
    kernel *work = et_kernel(m, "team_work", 64);
    work(address(m->team), 0, 1, m->threads);
}

static int start_team(edgetok_model *m, char *error) {
    m->alone = et_kernel(m, "run_program", 64);
    m->lead = et_kernel(m, "team_lead", 64);
    m->close = et_kernel(m, "team_close", 64);
    if (!m->alone || !m->lead || !m->close || !et_kernel(m, "team_work", 64))
        return no_kernel(m, "run_program", error);
    m->team = et_grab(&m->team_memory, 8 * (INSTR_SLOTS + 3 * LINE));
    m->workers = calloc((size_t)m->threads, sizeof *m->workers);
    if (!m->team || !m->workers) return et_fail(error, "no memory for threads");
    const int counters[] = {TEAM_STEP, TEAM_NEXT, TEAM_DONE};
    for (int i = 0; i < 3; i++)
        m->team[counters[i]] = address(m->team + INSTR_SLOTS + LINE * i);
    for (int i = 1; i < m->threads; i++)
        if (!(m->workers[i] = et_thread(help, m)))
            return et_fail(error, "cannot start %d threads; use fewer", m->threads);
    return 0;
}

static int open_model(edgetok_model *m, const char *folder, int threads, int verify, char *error) {
    section sections[SECTION_COUNT] = {{0}};
    uint8_t digest[32];
    for (size_t i = 0; i < et_kernel_set_count && !m->kernels; i++)
        if (et_isa_runs(et_kernel_sets[i].isa)) m->kernels = &et_kernel_sets[i];
    if (!m->kernels)
        return et_fail(error, "this processor runs none of the library's kernels; build it for %s",
                       "another instruction set, such as portable");
    if (et_map(&m->plan, folder, PLAN_FILE, error) || et_map(&m->weights, folder, WEIGHTS_FILE, error) ||
        read_sections(&m->plan, sections, error) || read_run(m, sections, error))
        return -1;
    m->threads = threads > 0 ? threads : m->run[RUN_SMALL] ? 1 : et_cores();
    if (m->threads > 1024) return et_fail(error, "%d threads, expected at most 1024", m->threads);
#if defined(__wasm__)
    m->threads = 1;
#endif
    if (read_plan(m, sections[SECTION_PLAN], error)) return -1;
    if (verify) {
        et_sha256(m->weights.data, m->weights.bytes, digest);
        if (memcmp(digest, m->digest, 32))
            return et_fail(error, "%s: damaged, or of another model", WEIGHTS_FILE);
    }
    if (sections[SECTION_TOKENIZER].bytes &&
        et_tokenizer_open(m, sections[SECTION_TOKENIZER].data, sections[SECTION_TOKENIZER].bytes, error))
        return -1;
    m->template_ = sections[SECTION_TEMPLATE].data;
    m->template_bytes = sections[SECTION_TEMPLATE].bytes;
    if (m->template_bytes && et_template_check(m->template_, m->template_bytes, error)) return -1;
    return start_team(m, error);
}

edgetok_model *edgetok_open(const char *folder, int threads, int verify, char *error) {
    edgetok_model *m = calloc(1, sizeof *m);
    if (!m) return et_fail(error, "no memory"), NULL;
    if (!open_model(m, folder, threads, verify, error)) return m;
    edgetok_close(m);
    return NULL;
}

void edgetok_close(edgetok_model *m) {
    if (!m) return;
    if (m->workers && m->threads > 1 && m->workers[1]) m->close(address(m->team), 0, 0, 0);
    for (int i = 1; m->workers && i < m->threads; i++)
        if (m->workers[i]) et_join(m->workers[i]);
    free(m->workers);
    et_drop(&m->team_memory);
    et_drop(&m->step.starts);
    et_drop(&m->body.starts);
    et_drop(&m->trunk.starts);
    et_drop(&m->memory);
    et_unmap(&m->plan);
    et_unmap(&m->weights);
    free(m);
}

void edgetok_describe(const edgetok_model *m, edgetok_info *info) {
    *info = (edgetok_info){
        .vocab_size = m->run[RUN_VOCAB], .context_tokens = m->run[RUN_CONTEXT],
        .layers = m->run[RUN_LAYERS], .kv_bits = m->run[RUN_KV_BITS],
        .block_tokens = m->run[RUN_BLOCK], .weight_bytes = (int64_t)m->weights.bytes,
        .buffer_bytes = (int64_t)m->memory.bytes, .threads = m->threads,
        .tokenizes = m->tokens.there, .chats = m->tokens.there && m->template_bytes > 0,
        .isa = m->kernels->isa, .family = m->family};
    for (int i = 0; i < 32; i++) snprintf(info->weights_sha256 + 2 * i, 3, "%02x", m->digest[i]);
}

void et_run(edgetok_model *m, program *p) {
    int64_t at = address(p->slots), ctx = address(m->ctx);
    if (m->threads == 1) {
        m->alone(at, ctx, 0, 1);
        return;
    }
    m->team[TEAM_PROGRAM] = at;
    m->team[TEAM_CTX] = ctx;
    m->lead(address(m->team), ctx, 0, m->threads);
}

void et_call(edgetok_model *m, instruction *one) {
    int64_t starts[2] = {address(one), address(one + 1)};
    program p = {0};
    p.slots[PROGRAM_FIRST] = starts[0];
    p.slots[PROGRAM_STARTS] = address(starts);
    p.slots[PROGRAM_PHASES] = 1;
    et_run(m, &p);
}
