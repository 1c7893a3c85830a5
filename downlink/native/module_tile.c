/* Tiles, from Python and back. */
#include "module.h"
#include "hyper.h"
#include "synthesis.h"

#include <stdlib.h>
#include <string.h>

/* ---- tiles. `code` is (levels, counts, turn, planes_per_chunk, hyper_index, hyper_limit). */

static size_t product(const Tile *t, size_t each) {
    return (size_t)t->planes * each * (size_t)t->height * (size_t)t->width;
}

static int code_of(Tile *t, Held *held, PyObject *model, PyObject *code, int planes, int height, int width) {
    PyObject *levels, *turn, *hyper_index;
    t->model = PyCapsule_GetPointer(model, CAPSULE);
    if (!t->model) return -1;
    if (!PyArg_ParseTuple(code, "O(iiii)OiOi", &levels, &t->counts[0], &t->counts[1], &t->counts[2], &t->counts[3], &turn,
                          &t->planes_per_chunk, &hyper_index, &t->hyper_limit))
        return -1;
    if (t->hyper_limit < 0 || t->hyper_limit > HYPER_MOST) return refuse("hyper-latents are too large");
    t->planes = planes;
    t->height = height;
    t->width = width;
    if (planes < 1 || planes > PLANES_MOST || height < ROOT || width < ROOT || height > SIDE_MOST || width > SIDE_MOST ||
        height % ROOT || width % ROOT || t->planes_per_chunk < 1 || t->planes_per_chunk > PLANES_MOST)
        return refuse("a tile of a size that cannot be");
    for (int g = 0; g < SUBBANDS; g++)
        if (t->counts[g] < 0 || t->counts[g] > planes) return refuse("more planes are sent than there are");
    size_t turns = (size_t)t->counts[0] * (size_t)t->counts[1];
    if (!(t->levels = hold(held, levels, (size_t)planes * SUBBANDS, 0, "levels"))) return -1;
    if (!(t->turn = hold(held, turn, turns * 8, 0, "turn"))) return -1;
    size_t index = (size_t)128 * (size_t)t->model->hyper_latents;
    if (!(t->hyper_index = hold(held, hyper_index, index, 0, "hyper_index"))) return -1;
    for (size_t i = 0; i < turns; i++)
        if (t->turn[i] > TURN_MOST || t->turn[i] < -TURN_MOST) return refuse("planes are turned too far");
    for (size_t i = 0; i < (size_t)planes * SUBBANDS; i++)
        if (t->levels[i] > 127) return refuse("a level is beyond 127");
    for (size_t i = 0; i < index; i++)
        if (t->hyper_index[i] >= t->model->scales) return refuse("a hyper-latent has no scale");
    return 0;
}

static void *maybe(Held *held, PyObject *object, size_t bytes, const char *what, int *failed) {
    if (object == Py_None) return NULL;
    void *found = hold(held, object, bytes, 1, what);
    if (!found) *failed = 1;
    return found;
}

static int chunks_of(const Tile *t) { return SUBBANDS * ((t->planes + t->planes_per_chunk - 1) / t->planes_per_chunk); }

static int walk(Tile *t) {
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = walk_tile(t);
    Py_END_ALLOW_THREADS
    if (result == NO_MEMORY) PyErr_NoMemory();
    return result;
}

/* encode(model, code, (planes, height, width), root, exact, hyper, price, dead_zone, bounds, measures, root_out,
 *        latent_out) -> ([(payload, bits, coded symbols)], squared error) */
PyObject *encode(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *model, *code, *root, *exact, *hyper, *bounds, *root_out, *latent_out, *found = NULL;
    int planes, height, width, measures, failed = 0;
    double price, zone;
    if (!PyArg_ParseTuple(args, "OO(iii)OOOddOpOO", &model, &code, &planes, &height, &width, &root, &exact, &hyper, &price,
                          &zone, &bounds, &measures, &root_out, &latent_out))
        return NULL;
    Tile t;
    memset(&t, 0, sizeof t);
    Held held = {.count = 0};
    t.mode = ENCODE;
    t.price = (float)price;
    t.dead_zone = (float)zone;
    t.measures = measures;
    if (code_of(&t, &held, model, code, planes, height, width)) goto out;
    size_t small = product(&t, 1), large = product(&t, CHANNELS) * 4; /* 16 channels at a sixteenth of the fields */
    if (!(t.exact_root = hold(&held, root, small * 4, 0, "root"))) goto out;
    if (!(t.exact = hold(&held, exact, large, 0, "coefficients"))) goto out;
    if (!(t.hyper = hold(&held, hyper, small / 16 * (size_t)t.model->hyper_latents * 4, 0, "hyper-latents"))) goto out;
    if (!(t.bounds = hold(&held, bounds, (size_t)t.model->scales * COLUMNS * 4, 0, "bounds"))) goto out;
    t.root_out = maybe(&held, root_out, small * 4, "root symbols", &failed);
    t.latent_out = maybe(&held, latent_out, large, "latent symbols", &failed);
    if (failed) goto out;
    for (size_t i = 0; i < small / 16 * (size_t)t.model->hyper_latents; i++)
        if (t.hyper[i] > HYPER_MOST || t.hyper[i] < -HYPER_MOST) {
            refuse("a hyper-latent is out of range");
            goto out;
        }
    int chunks = chunks_of(&t);
    t.ends = calloc((size_t)chunks, sizeof *t.ends);
    t.bits = calloc((size_t)chunks, sizeof *t.bits);
    t.coded = calloc((size_t)chunks, sizeof *t.coded);
    if (!t.ends || !t.bits || !t.coded) {
        PyErr_NoMemory();
        goto out;
    }
    if (walk(&t)) goto out;
    PyObject *list = PyList_New(0);
    size_t at = 0;
    for (int i = 0; list && i < chunks; i++) {
        const char *from = t.payloads.bytes ? (const char *)t.payloads.bytes + at : "";
        PyObject *one = Py_BuildValue("(y#dI)", from, (Py_ssize_t)(t.ends[i] - at), t.bits[i], (unsigned)t.coded[i]);
        if (!one || PyList_Append(list, one)) Py_CLEAR(list);
        Py_XDECREF(one);
        at = t.ends[i];
    }
    if (list) found = Py_BuildValue("(Nd)", list, t.error);
out:
    free(t.payloads.bytes);
    free(t.ends);
    free(t.bits);
    free(t.coded);
    release(&held);
    return found;
}

/* decode(model, code, (planes, height, width), chunks, hyper, root_value, value) -> number of the first chunk that is not
 * there, or -1; None where the reference refuses the stream. Writes hyper, root_value and value, which are zeros before. */
PyObject *decode(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *model, *code, *given, *hyper, *root_value, *value, *found = NULL;
    int planes, height, width;
    if (!PyArg_ParseTuple(args, "OO(iii)OOOO", &model, &code, &planes, &height, &width, &given, &hyper, &root_value,
                          &value))
        return NULL;
    Tile t;
    memset(&t, 0, sizeof t);
    Held held = {.count = 0};
    const uint8_t **chunks = NULL;
    size_t *sizes = NULL;
    t.mode = DECODE;
    t.stopped = -1;
    if (code_of(&t, &held, model, code, planes, height, width)) goto out;
    int count = chunks_of(&t);
    if (!PyTuple_Check(given) || PyTuple_Size(given) != count) {
        refuse("not as many chunks as the tile has");
        goto out;
    }
    size_t small = product(&t, 1);
    if (!(t.hyper = hold(&held, hyper, small / 16 * (size_t)t.model->hyper_latents * 4, 1, "hyper-latents"))) goto out;
    if (!(t.root_value = hold(&held, root_value, small * 4, 1, "root"))) goto out;
    if (!(t.value = hold(&held, value, product(&t, CHANNELS) * 4, 1, "values"))) goto out;
    chunks = calloc((size_t)count, sizeof *chunks);
    sizes = calloc((size_t)count, sizeof *sizes);
    if (!chunks || !sizes) {
        PyErr_NoMemory();
        goto out;
    }
    for (int i = 0; i < count; i++) {
        PyObject *one = PyTuple_GetItem(given, i); /* the tuple holds it, and bytes do not change */
        if (one == Py_None) continue;
        char *bytes;
        Py_ssize_t size;
        if (PyBytes_AsStringAndSize(one, &bytes, &size)) goto out;
        chunks[i] = (const uint8_t *)bytes;
        sizes[i] = (size_t)size;
    }
    t.chunks = chunks;
    t.sizes = sizes;
    int result = walk(&t);
    if (result == REFUSED) {
        Py_INCREF(Py_None);
        found = Py_None;
    } else if (result == FINE)
        found = PyLong_FromLong(t.stopped);
out:
    free(chunks);
    free(sizes);
    release(&held);
    return found;
}

/* follow(model, code, (planes, height, width), root, latent, hyper, (index, …), (mean, …)): scale indices (u8) and means
 * (i32) of all symbols of a tile, into arrays [planes][channels][h][w] of each subband that are zeros before. */
PyObject *follow(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *model, *code, *root, *latent, *hyper, *index[SUBBANDS], *mean[SUBBANDS];
    int planes, height, width, done = 0;
    if (!PyArg_ParseTuple(args, "OO(iii)OOO(OOOO)(OOOO)", &model, &code, &planes, &height, &width, &root, &latent, &hyper,
                          &index[0], &index[1], &index[2], &index[3], &mean[0], &mean[1], &mean[2], &mean[3]))
        return NULL;
    Tile t;
    memset(&t, 0, sizeof t);
    Held held = {.count = 0};
    t.mode = FOLLOW;
    if (code_of(&t, &held, model, code, planes, height, width)) goto out;
    size_t small = product(&t, 1);
    if (!(t.root_in = hold(&held, root, small * 4, 0, "root"))) goto out;
    if (!(t.latent_in = hold(&held, latent, product(&t, CHANNELS) * 4, 0, "latents"))) goto out;
    if (!(t.hyper = hold(&held, hyper, small / 16 * (size_t)t.model->hyper_latents * 4, 0, "hyper-latents"))) goto out;
    for (size_t i = 0; i < small / 16 * (size_t)t.model->hyper_latents; i++)
        if (t.hyper[i] > HYPER_MOST || t.hyper[i] < -HYPER_MOST) {
            refuse("a hyper-latent is out of range");
            goto out;
        }
    static const size_t channels[SUBBANDS] = {1, 3, 12, 48}; /* of the root 16, at a sixteenth of the fields */
    for (int g = 0; g < SUBBANDS; g++) {
        if (!(t.index_out[g] = hold(&held, index[g], product(&t, channels[g]), 1, "indices"))) goto out;
        if (!(t.mean_out[g] = hold(&held, mean[g], product(&t, channels[g]) * 4, 1, "means"))) goto out;
    }
    done = !walk(&t);
out:
    release(&held);
    if (!done) return NULL;
    Py_RETURN_NONE;
}

/* hear(hyper_model, (planes, height, width), planes, levels, out): hyper-latents of planes. */
PyObject *hear(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *model, *planes, *levels, *out;
    Heard t;
    memset(&t, 0, sizeof t);
    if (!PyArg_ParseTuple(args, "O(iii)OOO", &model, &t.count, &t.height, &t.width, &planes, &levels, &out)) return NULL;
    t.net = PyCapsule_GetPointer(model, HYPER_CAPSULE);
    if (!t.net) return NULL;
    Held held = {.count = 0};
    int done = 0, result = 0;
    if (t.count < 0 || t.count > 1 << 16 || t.height < ROOT || t.width < ROOT || t.height > SIDE_MOST || t.width > SIDE_MOST ||
        t.height % ROOT || t.width % ROOT) {
        refuse("a tile of a size that cannot be");
        goto end;
    }
    const size_t fields = (size_t)t.height * (size_t)t.width, count = (size_t)t.count;
    if (!(t.planes = hold(&held, planes, count * CHANNELS * fields * 4, 0, "coefficients"))) goto end;
    if (!(t.levels = hold(&held, levels, count * SUBBANDS, 0, "levels"))) goto end;
    if (!(t.out = hold(&held, out, count * (size_t)t.net->last.outputs * fields / 4, 1, "hyper-latents"))) goto end;
    Py_BEGIN_ALLOW_THREADS
    result = hyper_run(&t);
    Py_END_ALLOW_THREADS
    if (result)
        PyErr_NoMemory();
    else
        done = 1;
end:
    release(&held);
    if (!done) return NULL;
    Py_RETURN_NONE;
}

/* correct(synthesis_model, (planes, height, width), values, levels, chosen, out) */
PyObject *correct(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *model, *values, *levels, *chosen, *out;
    Corrected t;
    memset(&t, 0, sizeof t);
    if (!PyArg_ParseTuple(args, "O(iii)OOOO", &model, &t.planes, &t.height, &t.width, &values, &levels, &chosen, &out)) return NULL;
    t.net = PyCapsule_GetPointer(model, SYNTHESIS_CAPSULE);
    if (!t.net) return NULL;
    Held held = {.count = 0};
    int done = 0, result = 0;
    if (t.planes < 1 || t.planes > 1 << 16 || t.height < 1 || t.width < 1 || t.height > BLOCKS_MOST || t.width > BLOCKS_MOST) {
        refuse("planes of a size that cannot be");
        goto end;
    }
    const size_t all = (size_t)t.planes * CHANNELS * (size_t)t.height * (size_t)t.width * 4;
    if (!(t.values = hold(&held, values, all, 0, "values"))) goto end;
    if (!(t.levels = hold(&held, levels, (size_t)t.planes * SUBBANDS, 0, "levels"))) goto end;
    if (!(t.chosen = hold(&held, chosen, (size_t)t.planes, 0, "chosen"))) goto end;
    if (!(t.out = hold(&held, out, all, 1, "out"))) goto end;
    Py_BEGIN_ALLOW_THREADS
    result = synthesis_run(&t);
    Py_END_ALLOW_THREADS
    if (result)
        PyErr_NoMemory();
    else
        done = 1;
end:
    release(&held);
    if (!done) return NULL;
    Py_RETURN_NONE;
}
