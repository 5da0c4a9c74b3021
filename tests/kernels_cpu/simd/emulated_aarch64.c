/* Runs kernels on another architecture, over memory that the tests share with this process.
 *
 *     driver FILE ADDRESS BYTES
 *
 * FILE is mapped at ADDRESS. First every kernel's name and address are printed; then each line
 * "kernel instr ctx tid threads" of the input is one call, answered by "done". */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

typedef void kernel(int64_t, int64_t, int64_t, int64_t);
#define JOINED(isa, name) edgetok_##isa##_##name
#define SYMBOL(isa, name) JOINED(isa, name) /* ISA is replaced by its value */
#define KERNEL(name) kernel SYMBOL(ISA, name);
#include "kernels.h"
#undef KERNEL

/* What kernels leave to their host: one thread calls here, so nobody ever has to wait. */
void edgetok_wait(int64_t address, int64_t value) { (void)address, (void)value; abort(); }
void edgetok_wake(int64_t address) { (void)address; }
void edgetok_yield(void) {}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    void *address = (void *)strtoull(argv[2], 0, 10);
    int file = open(argv[1], O_RDWR);
    void *area = mmap(address, strtoull(argv[3], 0, 10), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_FIXED, file, 0);
    if (file < 0 || area != address) return 3;
#define KERNEL(name) printf(#name " %lld\n", (long long)(intptr_t)SYMBOL(ISA, name));
#include "kernels.h"
    puts("");
    fflush(stdout);
    long long call[5];
    while (scanf("%lld %lld %lld %lld %lld", call, call + 1, call + 2, call + 3, call + 4) == 5) {
        ((kernel *)(intptr_t)call[0])(call[1], call[2], call[3], call[4]);
        puts("done");
        fflush(stdout);
    }
    return 0;
}
