/* The C twins of gateway.wire.stream: skim() passes over runs of whole, quiet session.event frames
 * in the CLI's fixed form, look() tells what the frame behind them is. Anything unusual stops both;
 * the caller then looks for itself. */
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
static const char LIFECYCLE_PREFIX[] =
    "{\"jsonrpc\":\"2.0\",\"method\":\"session.lifecycle\",\"params\":{\"type\":\"";
static const char LIFECYCLE_MIDDLE[] = "\",\"sessionId\":\"";
static const char ID[] = "{\"jsonrpc\":\"2.0\",\"id\":";

/* gateway.wire.stream.Kind */
enum { EVENT, LIFECYCLE, RESPONSE, REQUEST };

static PyObject *result_name, *error_name;

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

static PyObject *skim(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "skim(data: bytes, pos: int)");
        return NULL;
    }
    Py_ssize_t pos = start_of(args);
    if (pos < 0)
        return NULL;
    const char *base = PyBytes_AS_STRING(args[0]);
    const char *p = base + pos, *end = base + PyBytes_GET_SIZE(args[0]);
    struct span body, session_id, name;
    /* Most events are of the session and type of the one before: its start says all. */
    const char *known = NULL;
    size_t known_size = 0;
    Py_ssize_t frames = 0;
    while (find_body(p, end, &body)) {
        if (known == NULL || (size_t)(body.end - body.start) < known_size ||
            memcmp(body.start, known, known_size) != 0) {
            if (!read_event(body.start, body.end, &session_id, &name) ||
                is_loud(name.start, (size_t)(name.end - name.start)))
                break;
            known = body.start;
            known_size = (size_t)(name.end + 1 - body.start);
        }
        p = body.end;
        frames++;
    }
    return Py_BuildValue("nn", (Py_ssize_t)(p - base), frames);
}

static PyObject *text(const struct span *word)
{
    return PyUnicode_DecodeASCII(word->start, word->end - word->start, NULL);
}

/* Tell the kind of the body; steals nothing, gives new references. -1: unusual, or an exception. */
static int look_at(const struct span *body, PyObject **key, PyObject **name, Py_ssize_t *tail)
{
    const char *p = body->start, *end = body->end;
    struct span session_id, word;
    *tail = 0;
    if (SKIP(&p, end, ID)) {
        if ((*key = read_id(&p, end)) == NULL)
            return -1;
        const char *behind = p;
        if (SKIP(&p, end, ",\"result\"")) {
            *name = Py_NewRef(result_name);
            return RESPONSE;
        }
        if (SKIP(&p, end, ",\"error\"")) {
            *name = Py_NewRef(error_name);
            return RESPONSE;
        }
        if (!SKIP(&p, end, ",\"method\":\""))
            return -1;
        word.start = p;
        while (p < end && (is_name_char((unsigned char)*p) || (*p >= 'A' && *p <= 'Z')))
            p++;
        word.end = p;
        if (p == end || *p != '"' || (*name = text(&word)) == NULL)
            return -1;
        *tail = behind - body->start;
        return REQUEST;
    }
    if (read_event(p, end, &session_id, &word)) {
        *key = text(&session_id);
        *name = text(&word);
        return EVENT;
    }
    if (SKIP(&p, end, LIFECYCLE_PREFIX)) {
        word.start = p;
        while (p < end && is_name_char((unsigned char)*p))
            p++;
        word.end = p;
        if (word.end - word.start > MAX_NAME || !SKIP(&p, end, LIFECYCLE_MIDDLE))
            return -1;
        session_id.start = p;
        while (p < end && is_id_char((unsigned char)*p))
            p++;
        session_id.end = p;
        if (p == end || *p != '"' || p - session_id.start > MAX_SESSION_ID)
            return -1;
        *key = text(&session_id);
        *name = text(&word);
        return LIFECYCLE;
    }
    return -1;
}

static PyObject *look(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "look(data: bytes, pos: int, max_frame: int)");
        return NULL;
    }
    Py_ssize_t pos = start_of(args);
    if (pos < 0)
        return NULL;
    Py_ssize_t max_frame = PyLong_AsSsize_t(args[2]);
    if (max_frame == -1 && PyErr_Occurred())
        return NULL;
    const char *base = PyBytes_AS_STRING(args[0]);
    struct span body;
    if (!find_body(base + pos, base + PyBytes_GET_SIZE(args[0]), &body) ||
        body.end - body.start > max_frame)
        Py_RETURN_NONE;
    PyObject *key = NULL, *name = NULL;
    Py_ssize_t tail;
    int kind = look_at(&body, &key, &name, &tail);
    if (kind < 0 || key == NULL || name == NULL) {
        Py_XDECREF(key);
        Py_XDECREF(name);
        if (PyErr_Occurred())
            return NULL;
        Py_RETURN_NONE;
    }
    Py_ssize_t start = body.start - base;
    return Py_BuildValue("iNNnnn", kind, key, name, tail ? start + tail : 0, start,
                         (Py_ssize_t)(body.end - base));
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

static PyMethodDef methods[] = {
    {"skim", (PyCFunction)(void (*)(void))skim, METH_FASTCALL,
     "skim(data, pos) -> (end, frames): pass over whole quiet event frames."},
    {"look", (PyCFunction)(void (*)(void))look, METH_FASTCALL,
     "look(data, pos, max_frame) -> (kind, key, name, tail, body, end) | None: tell what a frame "
     "is."},
    {"set_loud", set_loud, METH_O, "set_loud(names): event types that stop skim()."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_stream", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__stream(void)
{
    result_name = PyUnicode_InternFromString("result");
    error_name = PyUnicode_InternFromString("error");
    if (result_name == NULL || error_name == NULL)
        return NULL;
    return PyModule_Create(&module);
}
