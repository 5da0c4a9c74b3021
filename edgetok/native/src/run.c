/* Runs a plan's programs, or one instruction, on a team of threads. */
#include "internal.h"

#include <stdlib.h>

static void help(void *argument) {
    const edgetok_model *m = argument;
    m->own[OWN_TEAM_WORK](m->file.team, 0, 1, m->threads);
}

int et_start_team(edgetok_model *m, char *error) {
    m->workers = calloc((size_t)m->threads, sizeof *m->workers);
    if (!m->workers) return et_fail(error, "no memory for threads");
    for (int i = 1; i < m->threads; i++)
        if (!(m->workers[i] = et_thread(help, m)))
            return et_fail(error, "cannot start %d threads; use fewer", m->threads);
    return 0;
}

void et_end_team(edgetok_model *m) {
    if (m->workers && m->threads > 1 && m->workers[1]) m->own[OWN_TEAM_CLOSE](m->file.team, 0, 0, 0);
    for (int i = 1; m->workers && i < m->threads; i++)
        if (m->workers[i]) et_join(m->workers[i]);
    free(m->workers);
}

static void run(const edgetok_model *m, int64_t program) {
    int64_t ctx = address(m->ctx), *team = pointer(m->file.team);
    team[TEAM_PROGRAM] = program;
    team[TEAM_CTX] = ctx;
    if (m->threads == 1) m->own[OWN_RUN_PROGRAM](program, ctx, 0, 1);
    else m->own[OWN_TEAM_LEAD](address(team), ctx, 0, m->threads);
}

void et_run(const edgetok_model *m, int number) { run(m, m->file.programs + (int64_t)sizeof(instruction) * number); }

void et_call(const edgetok_model *m, instruction *one) {
    int64_t starts[2] = {address(one), address(one + 1)};
    instruction program = {{[PROGRAM_FIRST] = starts[0], [PROGRAM_STARTS] = address(starts),
                            [PROGRAM_PHASES] = 1}};
    run(m, address(&program));
}
