/* Passing over quiet events; shared by _stream.c and gateway/core/_lane.c. Each has a copy of the
 * table of loud events, filled by its set_loud(). */
#ifndef GATEWAY_WIRE_STREAM_H
#define GATEWAY_WIRE_STREAM_H

#include "_frame.h"

#define MAX_LOUD 64
#define MAX_NAME 64
#define MAX_SESSION_ID 250

static struct {
    char text[MAX_NAME];
    size_t length;
} loud[MAX_LOUD];
static size_t loud_count = 0;

static const char PREFIX[] =
    "{\"jsonrpc\":\"2.0\",\"method\":\"session.event\",\"params\":{\"sessionId\":\"";
static const char MIDDLE[] = "\",\"event\":{\"type\":\"";
static const char ID[] = "{\"jsonrpc\":\"2.0\",\"id\":";

static int is_id_char(unsigned char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           c == '-';
}

static int is_name_char(unsigned char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || c == '_' || c == '.';
}

static int is_loud(const char *name, size_t length)
{
    for (size_t i = 0; i < loud_count; i++)
        if (loud[i].length == length && memcmp(loud[i].text, name, length) == 0)
            return 1;
    return 0;
}

/* Pass over `"PREFIX" id "MIDDLE" name`, which starts an event or lifecycle notification (whose
 * order is the other way round); *name ends before its closing quote. */
static int read_event(const char *p, const char *end, struct span *session_id, struct span *name)
{
    if (!SKIP(&p, end, PREFIX))
        return 0;
    session_id->start = p;
    while (p < end && is_id_char((unsigned char)*p))
        p++;
    session_id->end = p;
    if (p == session_id->start || p - session_id->start > MAX_SESSION_ID || !SKIP(&p, end, MIDDLE))
        return 0;
    name->start = p;
    while (p < end && is_name_char((unsigned char)*p))
        p++;
    name->end = p;
    return p != name->start && p != end && *p == '"' && p - name->start <= MAX_NAME;
}

/* Whether the body is a quiet event. Most are of the session and type of the one before, whose
 * start *known spans and then says all; begin with {NULL, NULL}. */
static int is_quiet(const struct span *body, struct span *known)
{
    struct span session_id, name;
    size_t size = (size_t)(known->end - known->start);
    if (size != 0 && (size_t)(body->end - body->start) >= size &&
        memcmp(body->start, known->start, size) == 0)
        return 1;
    if (!read_event(body->start, body->end, &session_id, &name) ||
        is_loud(name.start, (size_t)(name.end - name.start)))
        return 0;
    known->start = body->start;
    known->end = name.end + 1; /* with its closing quote */
    return 1;
}

static PyObject *set_loud(PyObject *self, PyObject *names)
{
    (void)self;
    if (!PyTuple_Check(names) || PyTuple_GET_SIZE(names) > MAX_LOUD) {
        PyErr_SetString(PyExc_ValueError, "set_loud(names: tuple of at most 64 bytes objects)");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        if (!PyBytes_Check(name) || PyBytes_GET_SIZE(name) > MAX_NAME) {
            PyErr_SetString(PyExc_ValueError, "an event name is at most 64 bytes");
            return NULL;
        }
        loud[i].length = (size_t)PyBytes_GET_SIZE(name);
        memcpy(loud[i].text, PyBytes_AS_STRING(name), loud[i].length);
    }
    loud_count = (size_t)PyTuple_GET_SIZE(names);
    Py_RETURN_NONE;
}

#endif
