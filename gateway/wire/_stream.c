/* The C twins of gateway.wire.stream: skim() passes over runs of whole, quiet session.event frames
 * in the CLI's fixed form, look() tells what the frame behind them is. Anything unusual stops both;
 * the caller then looks for itself. */
#include "_stream.h"

static const char LIFECYCLE_PREFIX[] =
    "{\"jsonrpc\":\"2.0\",\"method\":\"session.lifecycle\",\"params\":{\"type\":\"";
static const char LIFECYCLE_MIDDLE[] = "\",\"sessionId\":\"";
/* gateway.wire.stream.Kind */
enum { EVENT, LIFECYCLE, RESPONSE, REQUEST };

static PyObject *result_name, *error_name;

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
    struct span body, known = {NULL, NULL};
    Py_ssize_t frames = 0;
    while (find_body(p, end, &body) && is_quiet(&body, &known)) {
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
