/* What systems do differently: memory, files, threads, waiting, instruction sets. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#define THREAD_RESULT DWORD WINAPI
typedef HANDLE thread_handle;
/* Kernels with floats ask for it, as Microsoft's compiler does; its C library has it, MinGW's not. */
extern int _fltused;
__attribute__((weak)) int _fltused = 1;
#elif defined(__wasm__)
/* The host of a wasm module: edgetok.mjs. */
#define IMPORT(name) __attribute__((import_module("edgetok"), import_name(#name)))
IMPORT(file_bytes) double host_file_bytes(const char *path); /* negative: there is none */
IMPORT(file_read) void host_file_read(const char *path, void *to);
IMPORT(seconds) double host_seconds(void);
#else
#define HAS_POSIX 1
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#define THREAD_RESULT void *
typedef pthread_t thread_handle;
#endif
#if defined(__linux__)
#ifndef DEVICES /* tests have their own */
#define DEVICES "/sys/devices"
#endif
#define CPU DEVICES "/system/cpu/cpu%d/"
#include <sys/auxv.h>
#include <sys/syscall.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
int __ulock_wait(uint32_t operation, void *address, uint64_t value, uint32_t timeout_us);
int __ulock_wake(uint32_t operation, void *address, uint64_t value);
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

/* What compiled kernels want of a host: see simd/threads.py and program/waiting.py. */
#if defined(__linux__)
enum { WAIT_PRIVATE = 128, WAKE_PRIVATE = 129 };
void edgetok_wait(int64_t address, int64_t value) {
    syscall(SYS_futex, address, WAIT_PRIVATE, (uint32_t)value, 0, 0, 0);
}
void edgetok_wake(int64_t address) {
    syscall(SYS_futex, address, WAKE_PRIVATE, INT32_MAX, 0, 0, 0);
}
void edgetok_yield(void) { sched_yield(); }
#elif defined(__APPLE__)
/* XNU, bsd/sys/ulock.h: UL_COMPARE_AND_WAIT, ULF_WAKE_ALL, ULF_NO_ERRNO. */
void edgetok_wait(int64_t address, int64_t value) {
    __ulock_wait(0x01000001, (void *)(intptr_t)address, (uint32_t)value, 0);
}
void edgetok_wake(int64_t address) { __ulock_wake(0x01000101, (void *)(intptr_t)address, 0); }
void edgetok_yield(void) { sched_yield(); }
#elif defined(_WIN32)
void edgetok_wait(int64_t address, int64_t value) {
    int32_t word = (int32_t)value;
    WaitOnAddress((void *)(intptr_t)address, &word, 4, INFINITE);
}
void edgetok_wake(int64_t address) { WakeByAddressAll((void *)(intptr_t)address); }
void edgetok_yield(void) { SwitchToThread(); }
#else
void edgetok_wait(int64_t address, int64_t value) { (void)address, (void)value; }
void edgetok_wake(int64_t address) { (void)address; }
void edgetok_yield(void) {}
#endif

int et_fail(char *error, const char *format, ...) {
    if (error) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(error, EDGETOK_ERROR_BYTES, format, arguments);
        va_end(arguments);
    }
    return -1;
}

#if defined(__wasm__)
/* Pages of the module itself: its C library rounds large blocks up to a power of two, so that two of
   1.1 GB would not fit in 4 GB. What was dropped is kept for blocks of about its size. */
enum { PAGE_BYTES = 1 << 16, LARGE_BYTES = 1 << 20 };
typedef struct dropped { struct dropped *next; size_t bytes; } dropped;
static dropped *all_dropped;

static void *take_pages(block *memory) {
    memory->bytes = (memory->bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    for (dropped **at = &all_dropped; *at; at = &(*at)->next) {
        dropped *found = *at;
        if (found->bytes < memory->bytes || found->bytes / 2 > memory->bytes) continue;
        *at = found->next;
        memory->bytes = found->bytes;
        return memset(found, 0, memory->bytes);
    }
    size_t page = __builtin_wasm_memory_grow(0, memory->bytes / PAGE_BYTES);
    return page == SIZE_MAX ? NULL : (void *)(page * PAGE_BYTES);
}
#endif

/* Large memory comes from the system, which zeroes a page when it is first touched. */
void *et_grab(block *memory, size_t bytes) {
    memory->bytes = (bytes + 4095) / 4096 * 4096 + 4096;
#if defined(_WIN32)
    memory->data = VirtualAlloc(NULL, memory->bytes, MEM_COMMIT | MEM_RESERVE, PAGE_READWRITE);
#elif defined(HAS_POSIX)
    memory->data = mmap(NULL, memory->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (memory->data == MAP_FAILED) memory->data = NULL;
#else
    if (memory->bytes >= LARGE_BYTES) return memory->data = take_pages(memory);
    memory->data = aligned_alloc(4096, memory->bytes);
    if (memory->data) memset(memory->data, 0, memory->bytes);
#endif
    return memory->data;
}

void et_drop(block *memory) {
    if (!memory->data) return;
#if defined(_WIN32)
    VirtualFree(memory->data, 0, MEM_RELEASE);
#elif defined(HAS_POSIX)
    munmap(memory->data, memory->bytes);
#else
    if (memory->bytes >= LARGE_BYTES) {
        dropped *first = memory->data;
        *first = (dropped){all_dropped, memory->bytes};
        all_dropped = first;
    } else {
        free(memory->data);
    }
#endif
    memory->data = NULL;
}

int et_map(mapping *file, const char *folder, const char *name, char *error) {
    char path[4096];
    int length = snprintf(path, sizeof path, "%s/%s", folder, name);
    if (length < 0 || (size_t)length >= sizeof path) return et_fail(error, "the path is too long");
    memset(file, 0, sizeof *file);
#if defined(_WIN32)
    WCHAR wide[4096];
    if (!MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, 4096))
        return et_fail(error, "the path is too long, or not UTF-8");
    HANDLE handle = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING, 0, NULL);
    LARGE_INTEGER size;
    if (handle == INVALID_HANDLE_VALUE) return et_fail(error, "%s: cannot be opened", path);
    if (GetFileSizeEx(handle, &size) && size.QuadPart > 0) {
        HANDLE map = CreateFileMappingA(handle, NULL, PAGE_READONLY, 0, 0, NULL);
        file->data = map ? MapViewOfFile(map, FILE_MAP_READ, 0, 0, 0) : NULL;
        file->bytes = (size_t)size.QuadPart;
        file->handle = map;
    }
    CloseHandle(handle);
#elif defined(__wasm__)
    double bytes = host_file_bytes(path);
    if (bytes < 0) return et_fail(error, "%s: cannot be opened", path);
    if (bytes >= 4e9 || !et_grab(&file->copy, (size_t)bytes))
        return et_fail(error, "%s: no memory for %.0f MB; all that is open has 4 GB", path, bytes / 1e6);
    host_file_read(path, file->copy.data);
    file->bytes = (size_t)bytes;
    file->data = file->copy.data;
#else
    struct stat status;
    int handle = open(path, O_RDONLY);
    if (handle < 0) return et_fail(error, "%s: cannot be opened", path);
    if (fstat(handle, &status) == 0 && status.st_size > 0) {
        file->bytes = (size_t)status.st_size;
        void *data = mmap(NULL, file->bytes, PROT_READ, MAP_SHARED, handle, 0);
        file->data = data == MAP_FAILED ? NULL : data;
    }
    close(handle);
#endif
    return file->data ? 0 : et_fail(error, "%s: cannot be read", path);
}

/* Of 2 MB, where weights are read as a whole, unless they would fill the memory: Artefact.prefer_huge_pages. */
void et_prefer_huge_pages(const mapping *file, int64_t from) {
#if defined(MADV_HUGEPAGE)
    int64_t page = sysconf(_SC_PAGESIZE), begin = up(from, page), bytes = (int64_t)file->bytes;
    if (begin < bytes && bytes / page < sysconf(_SC_PHYS_PAGES) / 2)
        madvise((void *)(intptr_t)(file->data + begin), (size_t)(bytes - begin), MADV_HUGEPAGE);
#else
    (void)file, (void)from;
#endif
}

void et_unmap(mapping *file) {
    if (!file->data) return;
#if defined(_WIN32)
    UnmapViewOfFile(file->data);
    CloseHandle(file->handle);
#elif defined(HAS_POSIX)
    munmap((void *)(intptr_t)file->data, file->bytes);
#else
    et_drop(&file->copy);
#endif
    file->data = NULL;
}

double et_seconds(void) {
#if defined(_WIN32)
    LARGE_INTEGER now, each;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&each);
    return (double)now.QuadPart / (double)each.QuadPart;
#elif defined(__wasm__)
    return host_seconds();
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
#endif
}

#if defined(__linux__)
/* Reads a list such as "0-3,8" into `set`; its first number, 0 where there is no such file. */
static int read_list(cpu_set_t *set, const char *name, int cpu) {
    char path[256], next = ',';
    snprintf(path, sizeof path, name, cpu);
    FILE *file = fopen(path, "r");
    int first = -1, from, to;
    CPU_ZERO(set);
    for (; file && next == ',' && fscanf(file, "%d", &from) == 1; next = (char)fgetc(file)) {
        if (fscanf(file, "-%d", &to) != 1) to = from;
        if (first < 0) first = from;
        for (; from <= to && from < CPU_SETSIZE; from++) CPU_SET(from, set);
    }
    if (file) fclose(file);
    return first < 0 ? 0 : first;
}
#endif

/* Physical performance cores, as edgetok/machine.py: work is shared out evenly, and slow ones make all wait. */
int et_cores(void) {
#if defined(_WIN32)
    SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX *one; /* of a core; a higher class is a faster one */
    DWORD bytes = 0;
    int counts[256] = {0}, fastest = 0;
    GetLogicalProcessorInformationEx(RelationProcessorCore, NULL, &bytes);
    char *list = malloc(bytes);
    if (!list || !GetLogicalProcessorInformationEx(RelationProcessorCore, (void *)list, &bytes)) bytes = 0;
    for (DWORD at = 0; at < bytes; at += one->Size) {
        const uint8_t class = (uint8_t)list[at + 9]; /* EfficiencyClass, which older headers lack */
        one = (void *)(list + at);
        fastest = (int)most(fastest, class);
        counts[class]++;
    }
    free(list);
    return (int)most(counts[fastest], 1);
#elif defined(__linux__)
    cpu_set_t mine, set, slow;
    int count = 0, fastest = 0;
    if (sched_getaffinity(0, sizeof mine, &mine)) return 1;
    read_list(&slow, DEVICES "/cpu_atom/cpus", 0), read_list(&set, DEVICES "/cpu_core/cpus", 0);
    CPU_AND(&set, &set, &mine);
    if (CPU_COUNT(&set) && CPU_COUNT(&slow)) mine = set;
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &mine)) fastest = (int)most(fastest, read_list(&set, CPU "cpu_capacity", i));
    for (int i = 0; i < CPU_SETSIZE; i++) {
        if (!CPU_ISSET(i, &mine) || 2 * read_list(&set, CPU "cpu_capacity", i) < fastest) continue;
        count++, read_list(&set, CPU "topology/thread_siblings_list", i);
        for (int k = i + 1; k < CPU_SETSIZE; k++)
            if (CPU_ISSET(k, &set)) CPU_CLR(k, &mine);
    }
    return (int)most(count, 1);
#elif defined(__APPLE__)
    int count = 0; /* performance cores, where there are two kinds */
    size_t size = sizeof count;
    if (!sysctlbyname("hw.perflevel0.physicalcpu", &count, &size, NULL, 0) && count > 0) return count;
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
#else
    return 1;
#endif
}

#if defined(__x86_64__)
static bool has_x86(const char *isa) {
    uint32_t a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
    const uint32_t plain = 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29; /* fma, osxsave, avx, f16c */
    if ((c & plain) != plain) return false;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    const uint32_t avx2 = 1u << 5 | 1u << 8; /* and bmi2 */
    if ((low & 6) != 6 || (b & avx2) != avx2) return false;
    if (!strcmp(isa, "avx2")) return true;
    if (!strcmp(isa, "avx512")) {
        const uint32_t wide = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* f, dq, bw, vl */
        return (low & 0xE6) == 0xE6 && (b & wide) == wide && c & 1u << 11; /* vnni */
    }
    if (!strcmp(isa, "avxvnni")) return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & 1u << 4;
    return false;
}
#endif

#if defined(__APPLE__) && defined(__aarch64__)
static bool has_feature(const char *name) {
    int found = 0;
    size_t size = sizeof found;
    return sysctlbyname(name, &found, &size, NULL, 0) == 0 && found;
}
#endif

bool et_isa_runs(const char *isa) {
    if (!strcmp(isa, "portable")) return true;
#if defined(__x86_64__)
    return has_x86(isa);
#elif defined(__aarch64__) && (defined(__linux__) || defined(__APPLE__))
    const bool i8mm = !strcmp(isa, "i8mm");
    if (!i8mm && strcmp(isa, "neon")) return false;
#if defined(__linux__)
    const unsigned long wanted = 1ul << 10 | 1ul << 20; /* asimdhp, asimddp */
    if (i8mm && !(getauxval(AT_HWCAP2) & 1ul << 13)) return false;
    return (getauxval(AT_HWCAP) & wanted) == wanted;
#else
    if (i8mm && !has_feature("hw.optional.arm.FEAT_I8MM")) return false;
    return has_feature("hw.optional.arm.FEAT_DotProd") && has_feature("hw.optional.arm.FEAT_FP16");
#endif
#else
    return false;
#endif
}

#if defined(__wasm__)
void *et_thread(void (*work)(void *), void *argument) { return (void)work, (void)argument, NULL; }
void et_join(void *thread) { (void)thread; }
#else
typedef struct { thread_handle thread; void (*work)(void *); void *argument; } started;
static THREAD_RESULT begin_thread(void *argument) {
    ((started *)argument)->work(((started *)argument)->argument);
    return 0;
}

void *et_thread(void (*work)(void *), void *argument) {
    started *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    *s = (started){.work = work, .argument = argument};
#if defined(_WIN32)
    if ((s->thread = CreateThread(NULL, 0, begin_thread, s, 0, NULL))) return s;
#else
    if (!pthread_create(&s->thread, NULL, begin_thread, s)) return s;
#endif
    return free(s), NULL;
}

void et_join(void *thread) {
    started *s = thread;
#if defined(_WIN32)
    WaitForSingleObject(s->thread, INFINITE);
    CloseHandle(s->thread);
#else
    pthread_join(s->thread, NULL);
#endif
    free(s);
}
#endif

/* 0: free, 1: taken, 2: taken, and somebody may sleep. Source: U. Drepper, Futexes Are Tricky, 2011. */
void et_lock(atomic_int *lock) {
    int found = 0;
    if (atomic_compare_exchange_strong(lock, &found, 1)) return;
    while (atomic_exchange(lock, 2)) edgetok_wait(address(lock), 2);
}

void et_unlock(atomic_int *lock) {
    if (atomic_exchange(lock, 0) == 2) edgetok_wake(address(lock));
}
