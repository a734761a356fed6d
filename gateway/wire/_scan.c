/* The C twin of gateway.wire.scan.scan_python. */
#include "_scan.h"

static PyObject *text(const struct span *word)
{
    if (word->start == NULL)
        Py_RETURN_NONE;
    return PyUnicode_DecodeASCII(word->start, word->end - word->start, NULL);
}

static PyObject *scan(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "scan(data: bytes, pos: int, max_frame: int)");
        return NULL;
    }
    Py_ssize_t pos = start_of(args);
    if (pos < 0)
        return NULL;
    Py_ssize_t max_frame = PyLong_AsSsize_t(args[2]);
    if (max_frame == -1 && PyErr_Occurred())
        return NULL;
    const char *base = PyBytes_AS_STRING(args[0]);
    struct span body, method = {NULL, NULL}, session_id = {NULL, NULL};
    if (!find_body(base + pos, base + PyBytes_GET_SIZE(args[0]), &body) ||
        body.end - body.start > max_frame)
        Py_RETURN_NONE;
    struct scanner s;
    s.p = body.start;
    s.end = body.end;
    s.key_count = 0;
    PyObject *id = NULL;
    if (!scan_message(&s, &id, &method, &session_id)) {
        Py_XDECREF(id);
        if (PyErr_Occurred())
            return NULL;
        Py_RETURN_NONE;
    }
    if (id == NULL)
        id = Py_NewRef(Py_None);
    PyObject *found = PyTuple_New(5);
    if (found == NULL) {
        Py_DECREF(id);
        return NULL;
    }
    PyTuple_SET_ITEM(found, 0, PyLong_FromSsize_t(body.start - base));
    PyTuple_SET_ITEM(found, 1, PyLong_FromSsize_t(body.end - base));
    PyTuple_SET_ITEM(found, 2, id);
    PyTuple_SET_ITEM(found, 3, text(&method));
    PyTuple_SET_ITEM(found, 4, text(&session_id));
    for (int i = 0; i < 5; i++) {
        if (PyTuple_GET_ITEM(found, i) == NULL) {
            Py_DECREF(found);
            return NULL;
        }
    }
    return found;
}

static PyMethodDef methods[] = {
    {"scan", (PyCFunction)(void (*)(void))scan, METH_FASTCALL,
     "scan(data, pos, max_frame) -> (body, end, id, method, session_id) | None: read a request in "
     "canonical form."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_scan", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__scan(void) { return PyModule_Create(&module); }
