/* Put in front of a server by LD_PRELOAD: its clock of the day is off by what the file $PINION_CLOCK says (microseconds, 8 bytes), which a
   test changes while the server runs. The clock that only counts (CLOCK_MONOTONIC) and the waits of the kernel go on as ever, as they do
   where somebody sets the clock of a machine. See clock.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *off;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("PINION_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *shared = mmap(NULL, sizeof *off, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (shared != MAP_FAILED) off = shared;
}

static void shift(struct timespec *time) {
    int64_t ns = time->tv_nsec + (off ? *off : 0) % 1000000 * 1000;
    time->tv_sec += (off ? *off : 0) / 1000000;
    if (ns < 0) { ns += 1000000000; time->tv_sec--; }
    if (ns >= 1000000000) { ns -= 1000000000; time->tv_sec++; }
    time->tv_nsec = ns;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real ? real(clock, time) : (int)syscall(SYS_clock_gettime, clock, time);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) shift(time);
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec time;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &time)) return -1;
    now->tv_sec = time.tv_sec;
    now->tv_usec = time.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
