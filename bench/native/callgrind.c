/*
 * Lets a Python program that runs under `valgrind --tool=callgrind` say where counting begins and
 * ends. Outside of valgrind the calls do nothing.
 */
#include <valgrind/callgrind.h>

int under_valgrind(void);
void count_begin(void);
void count_end(const char *name);

int under_valgrind(void) { return (int)RUNNING_ON_VALGRIND; }

void count_begin(void) {
    CALLGRIND_START_INSTRUMENTATION;
    CALLGRIND_ZERO_STATS;
}

/* Write what was counted since `count_begin` to a file of its own, under this name. */
void count_end(const char *name) {
    CALLGRIND_DUMP_STATS_AT(name);
    CALLGRIND_STOP_INSTRUMENTATION;
}
