/* What both scanners need to read: the frame header in the one form that SDKs and CLIs write, ids,
 * and names. A scanner that meets anything else gives up, and the Python form looks for itself. */
#ifndef GATEWAY_WIRE_FRAME_H
#define GATEWAY_WIRE_FRAME_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#define MAX_LENGTH_DIGITS 9
#define MAX_ID_DIGITS 15 /* what a double holds exactly, so every parser reads the same number */
#define MAX_ID_TEXT 128
#define LENGTH(literal) (sizeof(literal) - 1)

struct span {
    const char *start, *end;
};

static inline int is_digit(char c) { return c >= '0' && c <= '9'; }

/* Move *p over a literal if it stands there. */
static inline int skip(const char **p, const char *end, const char *text, size_t size)
{
    if ((size_t)(end - *p) < size || memcmp(*p, text, size) != 0)
        return 0;
    *p += size;
    return 1;
}
#define SKIP(p, end, literal) skip((p), (end), literal, LENGTH(literal))

/* Find the body of the frame at p; false if the frame is not whole or its header is unusual. */
static inline int find_body(const char *p, const char *end, struct span *body)
{
    if (!SKIP(&p, end, "Content-Length: "))
        return 0;
    const char *digits = p, *last = end - p > MAX_LENGTH_DIGITS ? p + MAX_LENGTH_DIGITS : end;
    size_t length = 0, digit;
    while (p < last && (digit = (size_t)((unsigned char)*p - '0')) <= 9) {
        length = length * 10 + digit;
        p++;
    }
    if (p == digits || !SKIP(&p, end, "\r\n\r\n") || (size_t)(end - p) < length)
        return 0;
    body->start = p;
    body->end = p + length;
    return 1;
}

/* Read a request id at *p: an integer, or a string of plain ASCII. NULL without an exception if it
 * is neither. */
static inline PyObject *read_id(const char **p, const char *end)
{
    const char *start = *p;
    if (start < end && *start == '"') {
        const char *q = ++start;
        while (q < end && *q >= 0x20 && *q < 0x7f && *q != '"' && *q != '\\')
            q++;
        if (q == end || *q != '"' || q - start > MAX_ID_TEXT)
            return NULL;
        *p = q + 1;
        return PyUnicode_DecodeASCII(start, q - start, NULL);
    }
    int negative = start < end && *start == '-';
    const char *q = start += negative;
    long long value = 0;
    while (q < end && is_digit(*q)) {
        if (q - start == MAX_ID_DIGITS)
            return NULL;
        value = value * 10 + (*q++ - '0');
    }
    if (q == start || (*start == '0' && (q - start > 1 || negative)))
        return NULL;
    *p = q;
    return PyLong_FromLongLong(negative ? -value : value);
}

/* Check the arguments (data: bytes, pos: int, ...) of a scanner; -1 with an exception set. */
static inline Py_ssize_t start_of(PyObject *const *args)
{
    if (!PyBytes_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "data must be bytes");
        return -1;
    }
    Py_ssize_t pos = PyLong_AsSsize_t(args[1]);
    if (pos == -1 && PyErr_Occurred())
        return -1;
    if (pos < 0 || pos > PyBytes_GET_SIZE(args[0])) {
        PyErr_SetString(PyExc_ValueError, "pos is outside of data");
        return -1;
    }
    return pos;
}

#endif
