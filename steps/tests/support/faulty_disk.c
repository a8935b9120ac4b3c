/* Stands before the C library and does to files what a failing or slow disk does.
 *
 * LIFEBOAT_FAULTY_DISK names a file of rules, `CALL WHAT PATTERN` each, read anew at every call, so that a test changes them
 * while the program runs:
 *   CALL     read, write, sync (of a file or directory), syncfs
 *   WHAT     EIO        the call fails
 *            EIO-once   the first one fails, for a kernel tells of an error of writing back only once
 *            ENOSPC     it fails as on a disk that is full
 *            slow:N     it takes N milliseconds more
 *            hold       it waits until the rule is gone
 *   PATTERN  the path of the file, in which * stands for anything
 * What meets a rule is a line `CALL PATH PATTERN` in the file of the same name with `.hit`.
 *
 * Code that makes its system calls without the C library is caught for syncfs alone, by a filter of the kernel, if
 * LIFEBOAT_FAULTY_SYNCFS is set: the filter stays with all children, and those without this library die of it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static char rules[1024];

static long load(char *text, size_t room) {
    int fd = syscall(SYS_openat, AT_FDCWD, rules, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) return -1;
    long got = syscall(SYS_read, fd, text, room - 1);
    syscall(SYS_close, fd);
    text[got < 0 ? 0 : got] = 0;
    return got;
}

static void note(const char *call, const char *path, const char *pattern) {
    char name[1100], line[8300];
    snprintf(name, sizeof name, "%s.hit", rules);
    int fd = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_APPEND | O_CLOEXEC, 0);
    if (fd < 0) return;
    int length = snprintf(line, sizeof line, "%s %s %s\n", call, path, pattern);
    syscall(SYS_write, fd, line, length);
    syscall(SYS_close, fd);
}

static void pause_for(long milliseconds) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    syscall(SYS_nanosleep, &time, NULL);
}

/* True for who comes first to this rule. */
static int first(const char *pattern) {
    char name[1200];
    unsigned long sum = 5381;
    for (const char *c = pattern; *c; c++) sum = sum * 33 + (unsigned char)*c;
    snprintf(name, sizeof name, "%s.%lx", rules, sum);
    int fd = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd >= 0) syscall(SYS_close, fd);
    return fd >= 0;
}

static int still_there(const char *rule) {
    char text[8192];
    return load(text, sizeof text) > 0 && strstr(text, rule);
}

/* Does what the rules say; -1 with errno if the call is to fail. */
static int verdict(const char *call, int fd) {
    char text[8192], link[64], path[4096];
    int before = errno;
    if (!*rules || load(text, sizeof text) <= 0) {
        errno = before;
        return 0;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    char *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char on[16], what[32], pattern[2048], rule[2200];
        if (sscanf(line, "%15s %31s %2047s", on, what, pattern) != 3) continue;
        if (strcmp(on, call) || fnmatch(pattern, path, 0)) continue;
        if (!strcmp(what, "EIO-once") && !first(pattern)) continue;
        note(call, path, pattern);
        if (*what == 'E') {
            errno = strcmp(what, "ENOSPC") ? EIO : ENOSPC;
            return -1;
        }
        if (!strncmp(what, "slow:", 5)) pause_for(atol(what + 5));
        snprintf(rule, sizeof rule, "%s", line);
        while (!strcmp(what, "hold") && still_there(rule)) pause_for(10);
    }
    errno = before;
    return 0;
}

ssize_t read(int fd, void *to, size_t count) {
    return verdict("read", fd) ? -1 : syscall(SYS_read, fd, to, count);
}
ssize_t readv(int fd, const struct iovec *to, int count) {
    return verdict("read", fd) ? -1 : syscall(SYS_readv, fd, to, count);
}
ssize_t pread64(int fd, void *to, size_t count, off64_t at) {
    return verdict("read", fd) ? -1 : syscall(SYS_pread64, fd, to, count, at);
}
ssize_t pread(int fd, void *to, size_t count, off_t at) { return pread64(fd, to, count, at); }
ssize_t preadv64(int fd, const struct iovec *to, int count, off64_t at) {
    return verdict("read", fd) ? -1 : syscall(SYS_preadv, fd, to, count, at, 0);
}
ssize_t preadv(int fd, const struct iovec *to, int count, off_t at) { return preadv64(fd, to, count, at); }

ssize_t write(int fd, const void *from, size_t count) {
    return verdict("write", fd) ? -1 : syscall(SYS_write, fd, from, count);
}
ssize_t writev(int fd, const struct iovec *from, int count) {
    return verdict("write", fd) ? -1 : syscall(SYS_writev, fd, from, count);
}
ssize_t pwrite64(int fd, const void *from, size_t count, off64_t at) {
    return verdict("write", fd) ? -1 : syscall(SYS_pwrite64, fd, from, count, at);
}
ssize_t pwrite(int fd, const void *from, size_t count, off_t at) { return pwrite64(fd, from, count, at); }
ssize_t pwritev64(int fd, const struct iovec *from, int count, off64_t at) {
    return verdict("write", fd) ? -1 : syscall(SYS_pwritev, fd, from, count, at, 0);
}
ssize_t pwritev(int fd, const struct iovec *from, int count, off_t at) { return pwritev64(fd, from, count, at); }
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t count, unsigned flags) {
    return verdict("write", out) ? -1 : syscall(SYS_copy_file_range, in, from, out, to, count, flags);
}
/* What the library writes from buffers of its own does not come by `write`. */
size_t fwrite(const void *from, size_t size, size_t count, FILE *to) {
    if (verdict("write", fileno(to))) return 0;
    flockfile(to);
    size_t written = fwrite_unlocked(from, size, count, to);
    funlockfile(to);
    return written;
}

int fsync(int fd) { return verdict("sync", fd) ? -1 : syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return verdict("sync", fd) ? -1 : syscall(SYS_fdatasync, fd); }

/* Behind the only argument of syncfs, where the kernel looks for nothing, it tells the filter who asks. */
#define OURS 0x11FEB0A7u

int syncfs(int fd) { return verdict("syncfs", fd) ? -1 : syscall(SYS_syncfs, fd, OURS); }

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#define ARGUMENT(context) ((context)->uc_mcontext.gregs[REG_RDI])
#define RESULT(context) ((context)->uc_mcontext.gregs[REG_RAX])
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#define ARGUMENT(context) ((context)->uc_mcontext.regs[0])
#define RESULT(context) ((context)->uc_mcontext.regs[0])
#endif

#ifdef ARCHITECTURE
static void trapped(int signal, siginfo_t *info, void *context) {
    int before = errno;
    (void)signal, (void)info;
    int result = syncfs((int)ARGUMENT((ucontext_t *)context));
    RESULT((ucontext_t *)context) = result ? -errno : 0;
    errno = before;
}

static void catch_syncfs(void) {
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 0, 5),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_syncfs, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OURS, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof program / sizeof *program, program};
    struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSYS, &action, NULL);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter))
        note("no", "filter", "the kernel takes none");
}
#else
static void catch_syncfs(void) { note("no", "filter", "the processor is not known"); }
#endif

__attribute__((constructor)) static void begin(void) {
    const char *named = getenv("LIFEBOAT_FAULTY_DISK");
    if (!named || strlen(named) >= sizeof rules) return;
    strcpy(rules, named);
    if (getenv("LIFEBOAT_FAULTY_SYNCFS")) catch_syncfs();
}
