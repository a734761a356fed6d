/*
 * What the stub replica and the load generator share: growing byte buffers, Content-Length
 * framing, and looking up members of a JSON object without building a tree.
 *
 * Both ends of a benchmark are ours, so the framing is read in the one form the CLI writes;
 * anything else is a failure of whatever stands between them and is reported as one.
 */
#ifndef BENCH_WIRE_H
#define BENCH_WIRE_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { READ_CHUNK = 64 * 1024, MAX_HEADER = 64, MAX_TOKEN = 4096 };

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

/* --- slices and buffers --------------------------------------------------------------------- */

struct slice {
    const char *data;
    size_t size;
};

static inline bool slice_is(struct slice s, const char *text) {
    size_t n = strlen(text);
    return s.size == n && memcmp(s.data, text, n) == 0;
}

static inline bool slice_equal(struct slice a, struct slice b) {
    return a.size == b.size && memcmp(a.data, b.data, a.size) == 0;
}

/* Bytes [start, end) of `data` are in use. */
struct buffer {
    char *data;
    size_t start, end, capacity;
};

static inline size_t buffer_used(const struct buffer *b) { return b->end - b->start; }

/* Make room for `size` more bytes after `end`. */
static inline char *buffer_reserve(struct buffer *b, size_t size) {
    if (b->start == b->end) b->start = b->end = 0;
    if (b->capacity - b->end < size && b->start > 0) {
        memmove(b->data, b->data + b->start, buffer_used(b));
        b->end -= b->start;
        b->start = 0;
    }
    if (b->capacity - b->end < size) {
        size_t capacity = b->capacity ? b->capacity : 1024;
        while (capacity - b->end < size) capacity *= 2;
        b->data = realloc(b->data, capacity);
        if (!b->data) die("out of memory");
        b->capacity = capacity;
    }
    return b->data + b->end;
}

static inline void buffer_append(struct buffer *b, const void *data, size_t size) {
    memcpy(buffer_reserve(b, size), data, size);
    b->end += size;
}

static inline void buffer_free(struct buffer *b) {
    free(b->data);
    memset(b, 0, sizeof *b);
}

/* Reads go into one buffer shared by all connections; only a connection in the middle of a frame
 * holds memory of its own. */
static struct buffer shared_input;

static inline struct buffer *input_for(struct buffer *own) {
    return buffer_used(own) > 0 ? own : &shared_input;
}

/* After the complete frames of `input` were taken: keep the rest for this connection. */
static inline void input_keep(struct buffer *own, struct buffer *input) {
    if (input != own) {
        if (buffer_used(input) > 0)
            buffer_append(own, input->data + input->start, buffer_used(input));
        input->start = input->end = 0;
    } else if (buffer_used(own) == 0) {
        buffer_free(own);
    }
}

/* --- frames --------------------------------------------------------------------------------- */

/* Append one frame whose body is printed from `format`; bodies are a few hundred bytes. */
__attribute__((format(printf, 2, 3))) static inline void frame_printf(struct buffer *b,
                                                                      const char *format, ...) {
    char header[MAX_HEADER];
    va_list args;
    va_start(args, format);
    int size = vsnprintf(NULL, 0, format, args);
    va_end(args);
    int header_size = snprintf(header, sizeof header, "Content-Length: %d\r\n\r\n", size);
    buffer_append(b, header, (size_t)header_size);
    va_start(args, format);
    vsnprintf(buffer_reserve(b, (size_t)size + 1), (size_t)size + 1, format, args);
    va_end(args);
    b->end += (size_t)size;
}

enum frame_result { FRAME_BROKEN = -1, FRAME_PARTIAL = 0, FRAME_COMPLETE = 1 };

/* Take the next frame off `b`; its body stays valid until the next read into `b`. When it is
 * incomplete, room for the rest is reserved. */
static inline enum frame_result frame_next(struct buffer *b, struct slice *body) {
    static const char name[] = "Content-Length: ";
    const char *p = b->data + b->start, *limit = b->data + b->end;
    if (p == limit) return FRAME_PARTIAL;
    size_t compared = (size_t)(limit - p) < sizeof name - 1 ? (size_t)(limit - p) : sizeof name - 1;
    if (memcmp(p, name, compared) != 0) return FRAME_BROKEN;
    if (compared < sizeof name - 1) return FRAME_PARTIAL;
    size_t length = 0;
    const char *digit = p + sizeof name - 1;
    for (; digit < limit && *digit >= '0' && *digit <= '9'; digit++)
        length = length * 10 + (size_t)(*digit - '0');
    if (digit - p > MAX_HEADER) return FRAME_BROKEN;
    if (limit - digit < 4) return FRAME_PARTIAL;
    if (memcmp(digit, "\r\n\r\n", 4) != 0) return FRAME_BROKEN;
    const char *start = digit + 4;
    if ((size_t)(limit - start) < length) {
        buffer_reserve(b, length - (size_t)(limit - start));
        return FRAME_PARTIAL;
    }
    body->data = start;
    body->size = length;
    b->start = (size_t)(start + length - b->data);
    return FRAME_COMPLETE;
}

/* --- JSON ----------------------------------------------------------------------------------- */

static inline const char *json_string_end(const char *p, const char *limit) {
    for (p++; p < limit; p++) { /* p is at the opening quote */
        const char *quote = memchr(p, '"', (size_t)(limit - p));
        if (!quote) return limit;
        size_t backslashes = 0;
        while (quote - 1 - backslashes >= p && quote[-1 - (ptrdiff_t)backslashes] == '\\')
            backslashes++;
        if (backslashes % 2 == 0) return quote + 1;
        p = quote;
    }
    return limit;
}

/* The end of the value that starts at `p`: for a scalar, where the next separator stands. */
static inline const char *json_value_end(const char *p, const char *limit) {
    int depth = 0;
    while (p < limit) {
        switch (*p) {
        case '"':
            p = json_string_end(p, limit);
            if (depth == 0) return p;
            continue;
        case '{':
        case '[':
            depth++;
            break;
        case '}':
        case ']':
            if (depth == 0) return p;
            if (--depth == 0) return p + 1;
            break;
        case ',':
            if (depth == 0) return p;
            break;
        default:
            break;
        }
        p++;
    }
    return p;
}

/* The raw value of `key` in the object `object` (written compactly), or an empty slice. */
static inline struct slice json_member(struct slice object, const char *key) {
    const char *p = object.data, *limit = object.data + object.size;
    size_t key_size = strlen(key);
    if (p == limit || *p++ != '{') return (struct slice){0};
    while (p < limit && *p == '"') {
        const char *name = p + 1;
        p = json_string_end(p, limit);
        size_t name_size = (size_t)(p - 1 - name);
        if (p == limit || *p++ != ':') break;
        const char *value = p;
        p = json_value_end(p, limit);
        if (name_size == key_size && memcmp(name, key, key_size) == 0)
            return (struct slice){value, (size_t)(p - value)};
        if (p < limit && *p == ',') p++;
    }
    return (struct slice){0};
}

/* The text of a string member between its quotes, escapes left alone; empty if it is no string. */
static inline struct slice json_text(struct slice object, const char *key) {
    struct slice value = json_member(object, key);
    if (value.size < 2 || value.data[0] != '"') return (struct slice){0};
    return (struct slice){value.data + 1, value.size - 2};
}

/* --- sockets and time ----------------------------------------------------------------------- */

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void set_nodelay(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* Thousands of sockets need more descriptors than the usual soft limit. */
static inline void raise_file_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

#endif
