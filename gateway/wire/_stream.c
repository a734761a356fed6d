/* The C twin of gateway.wire.stream.skim_python: passes over runs of whole, quiet session.event
 * frames in the CLI's fixed form. Anything else stops it; the caller then looks for itself. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#define MAX_LOUD 64
#define MAX_NAME 64
#define MAX_SESSION_ID 250
#define MAX_DIGITS 9

static struct {
    char text[MAX_NAME];
    size_t length;
} loud[MAX_LOUD];
static size_t loud_count = 0;

static const char HEADER[] = "Content-Length: ";
static const char PREFIX[] =
    "{\"jsonrpc\":\"2.0\",\"method\":\"session.event\",\"params\":{\"sessionId\":\"";
static const char MIDDLE[] = "\",\"event\":{\"type\":\"";
#define LENGTH(literal) (sizeof(literal) - 1)

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

/* Return the end of the quiet frame at p, or NULL. */
static const char *quiet_frame(const char *p, const char *end)
{
    if ((size_t)(end - p) < LENGTH(HEADER) || memcmp(p, HEADER, LENGTH(HEADER)) != 0)
        return NULL;
    p += LENGTH(HEADER);
    size_t length = 0;
    int digits = 0;
    while (p < end && *p >= '0' && *p <= '9') {
        if (++digits > MAX_DIGITS)
            return NULL;
        length = length * 10 + (size_t)(*p++ - '0');
    }
    if (digits == 0 || end - p < 4 || memcmp(p, "\r\n\r\n", 4) != 0)
        return NULL;
    p += 4;
    if ((size_t)(end - p) < length)
        return NULL;
    const char *stop = p + length;
    if (length < LENGTH(PREFIX) || memcmp(p, PREFIX, LENGTH(PREFIX)) != 0)
        return NULL;
    p += LENGTH(PREFIX);
    const char *start = p;
    while (p < stop && is_id_char((unsigned char)*p))
        p++;
    if (p == start || p - start > MAX_SESSION_ID)
        return NULL;
    if ((size_t)(stop - p) < LENGTH(MIDDLE) || memcmp(p, MIDDLE, LENGTH(MIDDLE)) != 0)
        return NULL;
    p += LENGTH(MIDDLE);
    start = p;
    while (p < stop && is_name_char((unsigned char)*p))
        p++;
    if (p == start || p == stop || *p != '"' || p - start > MAX_NAME)
        return NULL;
    return is_loud(start, (size_t)(p - start)) ? NULL : stop;
}

static PyObject *skim(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    if (count != 2 || !PyBytes_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "skim(data: bytes, pos: int)");
        return NULL;
    }
    Py_ssize_t pos = PyLong_AsSsize_t(args[1]);
    if (pos == -1 && PyErr_Occurred())
        return NULL;
    const char *base = PyBytes_AS_STRING(args[0]);
    Py_ssize_t size = PyBytes_GET_SIZE(args[0]);
    if (pos < 0 || pos > size) {
        PyErr_SetString(PyExc_ValueError, "pos is outside of data");
        return NULL;
    }
    const char *p = base + pos, *end = base + size, *next;
    Py_ssize_t frames = 0;
    while ((next = quiet_frame(p, end)) != NULL) {
        p = next;
        frames++;
    }
    return Py_BuildValue("nn", (Py_ssize_t)(p - base), frames);
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
    {"set_loud", set_loud, METH_O, "set_loud(names): event types that stop skim()."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_stream", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__stream(void) { return PyModule_Create(&module); }
