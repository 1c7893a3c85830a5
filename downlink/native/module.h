/* What the files that know of Python share: module.c and module_*.c. Every size, range and type of what they are given is
 * checked there, before anything runs; while it runs, other threads do, too.
 *
 * Arrays are contiguous buffers in native byte order; downlink/accelerator.py sees to their types. ValueError where sizes
 * or ranges do not fit: a mistake of the caller, or a bundle that no program of this project exports.
 */
#ifndef DOWNLINK_MODULE_H
#define DOWNLINK_MODULE_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "codec.h"

#define CAPSULE "downlink._native.model"
#define SYNTHESIS_CAPSULE "downlink._native.synthesis_model"
#define HYPER_CAPSULE "downlink._native.hyper_model"

enum { HYPER_MOST = 127, BUFFERS_MOST = 32, PLANES_MOST = 1 << 10, TURN_MOST = 1 << 20 };

/* Buffers that are held during a call. */
typedef struct {
    Py_buffer views[BUFFERS_MOST];
    int count;
} Held;

void release(Held *held);
/* A contiguous buffer of just so many bytes; NULL with an exception set if it is none. */
void *hold(Held *held, PyObject *object, size_t bytes, int writable, const char *what);
/* ValueError; -1. */
int refuse(const char *why);

PyObject *make_model(PyObject *self, PyObject *args);
PyObject *make_hyper_model(PyObject *self, PyObject *args);
PyObject *make_synthesis_model(PyObject *self, PyObject *args);
PyObject *encode(PyObject *self, PyObject *args);
PyObject *decode(PyObject *self, PyObject *args);
PyObject *follow(PyObject *self, PyObject *args);
PyObject *hear(PyObject *self, PyObject *args);
PyObject *correct(PyObject *self, PyObject *args);
PyObject *forwards(PyObject *self, PyObject *args);
PyObject *mixes(PyObject *self, PyObject *args);
PyObject *backs(PyObject *self, PyObject *args);
PyObject *fronts(PyObject *self, PyObject *args);

#endif
