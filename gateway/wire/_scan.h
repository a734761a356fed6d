/* Reading a client's request in canonical form; shared by _scan.c and gateway/core/_lane.c.
 *
 * What it accepts is passed on byte for byte, so it must be certain that every JSON parser reads
 * the same message: strict grammar, valid UTF-8, no white space, no duplicate keys, no escapes but
 * the short ones, no numbers but plain integers. It refuses all else, valid or not. */
#ifndef GATEWAY_WIRE_SCAN_H
#define GATEWAY_WIRE_SCAN_H

#include "_frame.h"
#include <stddef.h>
#include <stdint.h>

#define MAX_DEPTH 64
#define MAX_KEYS 256 /* of all objects that are open at once */

struct scanner {
    const char *p, *end;
    struct span keys[MAX_KEYS];
    int key_count;
    int depth;
};

static int scan_value(struct scanner *s);

/* The length of the UTF-8 sequence at p; 0 if it is not valid (overlong, surrogate, too high). */
static int utf8_length(const char *p, const char *end)
{
    const unsigned char *u = (const unsigned char *)p;
    ptrdiff_t room = end - p;
    int length;
    unsigned char low = 0x80, high = 0xbf; /* bounds of the second byte */
    if (u[0] >= 0xc2 && u[0] <= 0xdf) {
        length = 2;
    } else if (u[0] >= 0xe0 && u[0] <= 0xef) {
        length = 3;
        if (u[0] == 0xe0)
            low = 0xa0;
        else if (u[0] == 0xed)
            high = 0x9f;
    } else if (u[0] >= 0xf0 && u[0] <= 0xf4) {
        length = 4;
        if (u[0] == 0xf0)
            low = 0x90;
        else if (u[0] == 0xf4)
            high = 0x8f;
    } else {
        return 0;
    }
    if (room < length || u[1] < low || u[1] > high)
        return 0;
    for (int i = 2; i < length; i++)
        if (u[i] < 0x80 || u[i] > 0xbf)
            return 0;
    return length;
}

/* The number of bytes of plain text at p, at most 8: up to one below 0x20, a quote, a backslash or
 * one that is not ASCII. The classic "has a byte less than / equal to" arithmetic, whose borrows
 * raise false alarms only behind a true one. */
static inline int plain_bytes(const char *p)
{
    const uint64_t ones = 0x0101010101010101u, tops = 0x8080808080808080u;
    uint64_t word;
    memcpy(&word, p, sizeof word);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word); /* the first byte is to be the lowest */
#endif
    uint64_t quote = word ^ (ones * '"'), backslash = word ^ (ones * '\\');
    uint64_t special = ((word - ones * 0x20) | (quote - ones) | (backslash - ones) | word) & tops;
    return special == 0 ? 8 : __builtin_ctzll(special) / 8;
}

/* Pass over a string; s->p stands behind its opening quote. */
static int scan_string(struct scanner *s, int escapes)
{
    const char *p = s->p, *end = s->end;
    for (;;) {
        int plain = 8;
        while (plain == 8 && end - p >= 8)
            p += plain = plain_bytes(p);
        if (p == end)
            return 0;
        unsigned char c = (unsigned char)*p;
        if (c == '"') {
            s->p = p + 1;
            return 1;
        }
        if (c == '\\') {
            if (!escapes || end - p < 2 || p[1] == 0 || strchr("\"\\bfnrt", p[1]) == NULL)
                return 0;
            p += 2;
        } else if (c < 0x20) {
            return 0;
        } else if (c < 0x80) {
            p++;
        } else {
            int length = utf8_length(p, end);
            if (length == 0)
                return 0;
            p += length;
        }
    }
}

static int scan_number(struct scanner *s)
{
    const char *p = s->p;
    int negative = *p == '-';
    const char *start = p += negative;
    while (p < s->end && is_digit(*p))
        p++;
    if (p == start || p - start > MAX_ID_DIGITS || (*start == '0' && (p - start > 1 || negative)))
        return 0;
    /* A fraction or an exponent is refused by whoever expects the next token. */
    s->p = p;
    return 1;
}

/* Pass over a key and its colon, and note the key; false if the object has it already. */
static int scan_key(struct scanner *s, int first, struct span *key)
{
    if (!SKIP(&s->p, s->end, "\""))
        return 0;
    key->start = s->p;
    if (!scan_string(s, 0))
        return 0;
    key->end = s->p - 1;
    size_t size = (size_t)(key->end - key->start);
    for (int i = first; i < s->key_count; i++)
        if ((size_t)(s->keys[i].end - s->keys[i].start) == size &&
            memcmp(s->keys[i].start, key->start, size) == 0)
            return 0;
    if (s->key_count == MAX_KEYS)
        return 0;
    s->keys[s->key_count++] = *key;
    return SKIP(&s->p, s->end, ":");
}

/* Pass over an object or array; s->p stands behind its bracket. */
static int scan_container(struct scanner *s, char close)
{
    int first = s->key_count;
    struct span key;
    if (++s->depth > MAX_DEPTH)
        return 0;
    if (s->p < s->end && *s->p == close) {
        s->p++;
    } else {
        do {
            if ((close == '}' && !scan_key(s, first, &key)) || !scan_value(s) || s->p == s->end)
                return 0;
        } while (*s->p++ == ',');
        if (s->p[-1] != close)
            return 0;
    }
    s->key_count = first;
    s->depth--;
    return 1;
}

static int scan_value(struct scanner *s)
{
    if (s->p == s->end)
        return 0;
    switch (*s->p) {
    case '"':
        s->p++;
        return scan_string(s, 1);
    case '{':
        s->p++;
        return scan_container(s, '}');
    case '[':
        s->p++;
        return scan_container(s, ']');
    case 't':
        return SKIP(&s->p, s->end, "true");
    case 'f':
        return SKIP(&s->p, s->end, "false");
    case 'n':
        return SKIP(&s->p, s->end, "null");
    default:
        return scan_number(s);
    }
}

static int key_is(const struct span *key, const char *name)
{
    size_t size = (size_t)(key->end - key->start);
    return strlen(name) == size && memcmp(key->start, name, size) == 0;
}

/* Pass over a string of letters, digits and the given other characters. */
static int scan_word(struct scanner *s, const char *others, struct span *word)
{
    if (!SKIP(&s->p, s->end, "\""))
        return 0;
    word->start = s->p;
    while (s->p < s->end && *s->p != '"') {
        char c = *s->p;
        if (!is_digit(c) && !((c | 0x20) >= 'a' && (c | 0x20) <= 'z') &&
            (c == 0 || strchr(others, c) == NULL))
            return 0;
        s->p++;
    }
    word->end = s->p;
    return SKIP(&s->p, s->end, "\"");
}

/* Pass over the params, an object, and note its sessionId. */
static int scan_params(struct scanner *s, struct span *session_id)
{
    int first = s->key_count;
    struct span key;
    if (!SKIP(&s->p, s->end, "{"))
        return 0;
    if (SKIP(&s->p, s->end, "}"))
        return 1;
    s->depth++;
    do {
        if (!scan_key(s, first, &key))
            return 0;
        if (key_is(&key, "sessionId") ? !scan_word(s, "-_", session_id) : !scan_value(s))
            return 0;
        if (s->p == s->end)
            return 0;
    } while (*s->p++ == ',');
    s->key_count = first;
    s->depth--;
    return s->p[-1] == '}';
}

/* Read the whole message; *id is a new reference, or NULL for a notification. */
static int scan_message(struct scanner *s, PyObject **id, struct span *method,
                        struct span *session_id)
{
    struct span key;
    int version = 0;
    if (!SKIP(&s->p, s->end, "{"))
        return 0;
    s->depth = 1;
    do {
        if (!scan_key(s, 0, &key))
            return 0;
        if (key_is(&key, "jsonrpc")) {
            if (!SKIP(&s->p, s->end, "\"2.0\""))
                return 0;
            version = 1;
        } else if (key_is(&key, "id")) {
            *id = read_id(&s->p, s->end);
            if (*id == NULL)
                return 0;
        } else if (key_is(&key, "method")) {
            if (!scan_word(s, "./_$-", method))
                return 0;
        } else if (key_is(&key, "params")) {
            if (!scan_params(s, session_id))
                return 0;
        } else {
            return 0;
        }
        if (s->p == s->end)
            return 0;
    } while (*s->p++ == ',');
    return s->p[-1] == '}' && s->p == s->end && version && method->start != NULL;
}

#endif
