/* Kills a chosen process by SIGKILL just before its Nth call that changes something outside it: a write, a sync, a rename, a
   removal, a link, a fork, an exec. Loaded by LD_PRELOAD into everything a test starts; it acts only where it is meant to.

   FI_TARGET  the first argument of the processes meant ("serve", "supervise")
   FI_IN      a text that one of their arguments contains; may be absent
   FI_AT      N, from 1; absent or 0: only count
   FI_DONE    created exclusively, with the pid in it, by the one process that dies: nobody dies after it
   FI_COUNT   a file of eight bytes that holds the highest count any process has reached
   FI_LIES    first arguments of processes, separated by commas, whose syncs do nothing and say that all is well: a planted bug
   FI_ABOUT   texts, separated by commas: only syncs of a file with one of them in its path do nothing

   Children between fork and exec are not counted: they have crash points of their own. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static pid_t target;
static unsigned long at;
static const char *done;
static unsigned long calls;
static unsigned long *most;
static int lies;

static int is_lied_about(int fd)
{
    const char *texts = getenv("FI_ABOUT");
    char link[64], path[4096], text[256];
    if (!lies || !texts) return lies;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    for (const char *at = texts; *at; at += strcspn(at, ","), at += *at == ',') {
        snprintf(text, sizeof text, "%.*s", (int)strcspn(at, ","), at);
        if (strstr(path, text)) return 1;
    }
    return 0;
}

static int is_listed(const char *list, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = list; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (!strncmp(at, word, length) && (at[length] == ',' || !at[length])) return 1;
    return 0;
}

__attribute__((constructor)) static void decide(void)
{
    const char *wanted = getenv("FI_TARGET"), *in = getenv("FI_IN");
    char line[8192];
    int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    ssize_t length = read(fd, line, sizeof line - 1);
    close(fd);
    if (length <= 0) return;
    line[length] = 0;
    const char *verb = line + strlen(line) + 1, *end = line + length;
    if (verb >= end) return;
    lies = is_listed(getenv("FI_LIES"), verb);
    if (!wanted || strcmp(verb, wanted)) return;
    int found = !in;
    for (const char *word = verb; word < end; word += strlen(word) + 1)
        found |= in && strstr(word, in) != NULL;
    if (!found) return;
    at = getenv("FI_AT") ? strtoul(getenv("FI_AT"), NULL, 10) : 0;
    done = getenv("FI_DONE");
    const char *count = getenv("FI_COUNT");
    int file = count ? open(count, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (file >= 0 && syscall(SYS_ftruncate, file, (off_t)sizeof *most) == 0) {
        void *map = mmap(NULL, sizeof *most, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        most = map == MAP_FAILED ? NULL : map;
    }
    if (file >= 0) close(file);
    target = getpid();
}

/* Raw calls only, so that nothing here counts itself. */
static void die(void)
{
    int fd = done ? open(done, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : -1;
    if (fd < 0) return;
    char text[32];
    int length = snprintf(text, sizeof text, "%d", (int)target);
    syscall(SYS_write, fd, text, (size_t)length);
    syscall(SYS_kill, target, SIGKILL);
    for (;;) pause();
}

static void passing(void)
{
    if (!target || getpid() != target) return;
    unsigned long now = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    if (most) {
        unsigned long before = __atomic_load_n(most, __ATOMIC_SEQ_CST);
        while (before < now &&
               !__atomic_compare_exchange_n(most, &before, now, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) { }
    }
    if (at && now == at) { int kept = errno; die(); errno = kept; }
}

/* What a thread tells another by an eventfd is nobody's business outside. */
static void passing_into(int fd)
{
    struct stat status;
    if (target && fstat(fd, &status) == 0 && (status.st_mode & S_IFMT) != 0) passing();
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OF_FILE(type, name, params, args) \
    type name params { REAL(name); passing_into(fd); return real args; }
#define ANY(type, name, params, args) \
    type name params { REAL(name); passing(); return real args; }

OF_FILE(ssize_t, write, (int fd, const void *b, size_t n), (fd, b, n))
OF_FILE(ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n))
OF_FILE(ssize_t, pwrite, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o))
OF_FILE(ssize_t, pwrite64, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o))
#define SYNC(name) \
    int name(int fd) { if (is_lied_about(fd)) return 0; REAL(name); passing(); return real(fd); }

SYNC(fsync)
SYNC(fdatasync)
SYNC(syncfs)
ANY(int, rename, (const char *a, const char *b), (a, b))
ANY(int, renameat, (int d, const char *a, int e, const char *b), (d, a, e, b))
ANY(int, renameat2, (int d, const char *a, int e, const char *b, unsigned f), (d, a, e, b, f))
ANY(int, unlink, (const char *a), (a))
ANY(int, unlinkat, (int d, const char *a, int f), (d, a, f))
ANY(int, link, (const char *a, const char *b), (a, b))
ANY(int, linkat, (int d, const char *a, int e, const char *b, int f), (d, a, e, b, f))
ANY(pid_t, fork, (void), ())
ANY(int, execve, (const char *p, char *const v[], char *const e[]), (p, v, e))
ANY(int, execv, (const char *p, char *const v[]), (p, v))
ANY(int, execvp, (const char *p, char *const v[]), (p, v))
ANY(int, execvpe, (const char *p, char *const v[], char *const e[]), (p, v, e))
ANY(int, posix_spawn, (pid_t *i, const char *p, const posix_spawn_file_actions_t *f, const posix_spawnattr_t *a,
    char *const v[], char *const e[]), (i, p, f, a, v, e))
ANY(int, posix_spawnp, (pid_t *i, const char *p, const posix_spawn_file_actions_t *f, const posix_spawnattr_t *a,
    char *const v[], char *const e[]), (i, p, f, a, v, e))
