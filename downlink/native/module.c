/* downlink._native: the module, and what its functions ask of their arguments. */
#include "module.h"
#include "checksum.h"
#include "processor.h"

void release(Held *held) {
    while (held->count) PyBuffer_Release(&held->views[--held->count]);
}

static int size_error(const char *what, size_t found, size_t wanted) {
    PyErr_Format(PyExc_ValueError, "%s: %zu bytes, %zu expected", what, found, wanted);
    return -1;
}

void *hold(Held *held, PyObject *object, size_t bytes, int writable, const char *what) {
    if (held->count == BUFFERS_MOST) {
        PyErr_SetString(PyExc_ValueError, "too many buffers");
        return NULL;
    }
    Py_buffer *view = &held->views[held->count];
    if (PyObject_GetBuffer(object, view, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE)) return NULL;
    held->count++;
    if ((size_t)view->len != bytes) {
        size_error(what, (size_t)view->len, bytes);
        return NULL;
    }
    static char nothing[16]; /* an empty array may have no address */
    return view->buf ? view->buf : nothing;
}

int refuse(const char *why) {
    PyErr_SetString(PyExc_ValueError, why);
    return -1;
}

/* Of what is exchanged between these files and downlink/accelerator.py: they must be of one build. */
enum { VERSION = 3 };

static PyObject *version(PyObject *self, PyObject *args) {
    (void)self;
    (void)args;
    return PyLong_FromLong(VERSION);
}

static PyObject *level(PyObject *self, PyObject *args) {
    (void)self;
    (void)args;
    return PyUnicode_FromString(processor_name());
}

static PyObject *limit(PyObject *self, PyObject *args) {
    (void)self;
    int most;
    if (!PyArg_ParseTuple(args, "i", &most)) return NULL;
    processor_limit(most);
    Py_RETURN_NONE;
}

/* crc32c(bytes, value) */
static PyObject *checksum(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer view;
    unsigned long value;
    if (!PyArg_ParseTuple(args, "y*k", &view, &value)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    value = crc32c(view.buf, (size_t)view.len, (uint32_t)value);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLong(value);
}

static PyMethodDef methods[] = {
    {"model", make_model, METH_VARARGS, "A bundle's weights and tables, to be given to the others."},
    {"encode", encode, METH_VARARGS, "Coefficients of a tile -> payloads of its chunks."},
    {"hyper_model", make_hyper_model, METH_VARARGS, "A bundle's network of hyper-latents, to be given to hear."},
    {"synthesis_model", make_synthesis_model, METH_VARARGS, "A bundle's synthesis, to be given to correct."},
    {"correct", correct, METH_VARARGS, "Values of symbols -> coefficients."},
    {"hear", hear, METH_VARARGS, "Coefficients of planes -> hyper-latents."},
    {"decode", decode, METH_VARARGS, "Payloads of a tile's chunks -> values."},
    {"follow", follow, METH_VARARGS, "What the prior expects of a tile's symbols."},
    {"forward", forwards, METH_VARARGS, "Pixels -> coefficients of lapped blocks."},
    {"back", backs, METH_VARARGS, "Coefficients of bands -> pixels."},
    {"front", fronts, METH_VARARGS, "Pixels -> coefficients of planes."},
    {"mix", mixes, METH_VARARGS, "Coefficients of bands -> of planes, or back."},
    {"crc32c", checksum, METH_VARARGS, "The CRC-32C of bytes, continuing from a value."},
    {"version", version, METH_NOARGS, "Which downlink/accelerator.py this is for."},
    {"level", level, METH_NOARGS, "The kind of processor that the inner loops are chosen for."},
    {"limit", limit, METH_VARARGS, "Choose inner loops for lesser processors: 0 plain, 1 AVX2, 2 AVX-512 (tests)."},
    {NULL, NULL, 0, NULL},
};

static int prepare(PyObject *module) {
    (void)module;
    crc32c_make();
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)prepare}, {0, NULL}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", "Inner loops of the tile codec.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
