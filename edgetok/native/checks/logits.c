/* Writes the logits after prompts: ./a.out FOLDER CONTEXT OUT ID ... [, ID ...]
   Prints that it began, then the instruction set. See native/elsewhere.py. */
#include <edgetok.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    char error[EDGETOK_ERROR_BYTES] = "the file cannot be written";
    static int32_t ids[4096];
    size_t count = 0;
    if (argc < 5 || argc > 4096) return 2;
    printf("began\n");
    fflush(stdout);
    edgetok_model *model = edgetok_open(argv[1], 1, 0, error);
    edgetok_cache cache = {.context_tokens = atol(argv[2])};
    edgetok_chat *chat = model ? edgetok_chat_new(model, &cache, error) : NULL;
    FILE *out = chat ? fopen(argv[3], "wb") : NULL;
    if (!out) return fprintf(stderr, "%s\n", error), 1;
    edgetok_info info;
    edgetok_describe(model, &info);
    for (int i = 4; i <= argc; i++) {
        if (i < argc && strcmp(argv[i], ",")) ids[count++] = atoi(argv[i]);
        else if (edgetok_prefill(chat, ids, count, error) < 0) return fprintf(stderr, "%s\n", error), 1;
        else fwrite(edgetok_logits(chat), 4, (size_t)info.vocab_size, out), count = 0;
    }
    if (fclose(out)) return fprintf(stderr, "the file cannot be written\n"), 1;
    printf("%s\n", info.isa);
    edgetok_chat_free(chat);
    edgetok_close(model);
    return 0;
}
