/* Prints N greedy tokens after a prompt: ./a.out FOLDER "prompt" N [--ids] */
#include <edgetok.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    char error[EDGETOK_ERROR_BYTES] = "the prompt has more than 65536 tokens";
    static int32_t ids[65536];
    if (argc < 4) return fprintf(stderr, "usage: %s FOLDER PROMPT N [--ids]\n", argv[0]), 2;
    int show_ids = argc > 4 && !strcmp(argv[4], "--ids");
    edgetok_model *model = edgetok_open(argv[1], 0, 0, error);
    edgetok_chat *chat = model ? edgetok_chat_new(model, NULL, error) : NULL;
    edgetok_sampling greedy = {.max_tokens = atol(argv[3])};
    int64_t count = chat ? edgetok_encode(model, argv[2], strlen(argv[2]), 1, ids, 65536, error) : -1;
    int going = count < 0 || count > 65536 || edgetok_sample(chat, &greedy, error) < 0 ||
                        edgetok_prefill(chat, ids, (size_t)count, error) < 0 ? -1 : 1;
    for (edgetok_output output; going > 0;) {
        going = edgetok_next(chat, &output, error);
        if (going > 0 && show_ids) printf("%d ", (int)output.token);
        else if (going > 0) printf("%s", output.text);
        fflush(stdout);
    }
    if (going < 0) fprintf(stderr, "%s\n", error);
    else printf("\n");
    edgetok_chat_free(chat);
    edgetok_close(model);
    return going < 0;
}
