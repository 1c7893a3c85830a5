/* downlink._native: the only file that knows of Python. Every size, range and type of what it is given is checked here,
 * before anything runs; while it runs, other threads do, too.
 *
 * Arrays are contiguous buffers in native byte order; downlink/native.py sees to their types. ValueError where sizes or
 * ranges do not fit: a mistake of the caller, or a bundle that no program of this project exports.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "codec.h"
#include "processor.h"
#include "transform.h"

#include <stdlib.h>
#include <string.h>

#define CAPSULE "downlink._native.model"

enum { HYPER_MOST = 127, BUFFERS_MOST = 32, PLANES_MOST = 1 << 10, TURN_MOST = 1 << 20 };

/* Buffers that are held during a call. */
typedef struct {
    Py_buffer views[BUFFERS_MOST];
    int count;
} Held;

static void release(Held *held) {
    while (held->count) PyBuffer_Release(&held->views[--held->count]);
}

static int size_error(const char *what, size_t found, size_t wanted) {
    PyErr_Format(PyExc_ValueError, "%s: %zu bytes, %zu expected", what, found, wanted);
    return -1;
}

/* A contiguous buffer of just so many bytes; NULL with an exception set if it is none. */
static void *hold(Held *held, PyObject *object, size_t bytes, int writable, const char *what) {
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

static void *copied(PyObject *object, size_t bytes, const char *what) {
    Held held = {.count = 0};
    const void *from = hold(&held, object, bytes, 0, what);
    void *to = NULL;
    if (from) {
        to = malloc(bytes + 8);
        if (to)
            memcpy(to, from, bytes);
        else
            PyErr_NoMemory();
    }
    release(&held);
    return to;
}

static int refuse(const char *why) {
    PyErr_SetString(PyExc_ValueError, why);
    return -1;
}

/* ---- model(sizes, spread, spread_bias, unfold, unfold_bias, nets, compand, root_integers, codes, plain, costs,
 *            table_of, low_of, escape_of, shift_of, entry_bits, frequencies) */

static void destroy(PyObject *capsule) { model_free(PyCapsule_GetPointer(capsule, CAPSULE)); }

static int network(Net *net, int group, int features, PyObject *given) {
    PyObject *first, *first_bias, *head, *head_bias;
    Weights w;
    if (!PyArg_ParseTuple(given, "iiOOOO", &w.hidden, &w.outputs, &first, &first_bias, &head, &head_bias)) return -1;
    static const int outputs[SUBBANDS] = {18, 8, 12, 48};
    if (w.hidden < 1 || w.hidden > ENTRIES || w.outputs != outputs[group]) return refuse("a network of unknown shape");
    Held held = {.count = 0};
    size_t inputs = (size_t)net_inputs(group, features), seen = (size_t)net_seen(group, features);
    w.first = hold(&held, first, (size_t)w.hidden * inputs, 0, "hidden weights");
    w.first_bias = w.first ? hold(&held, first_bias, (size_t)w.hidden * 4, 0, "hidden bias") : NULL;
    w.head = w.first_bias ? hold(&held, head, (size_t)w.outputs * (seen + (size_t)w.hidden), 0, "head weights") : NULL;
    w.head_bias = w.head ? hold(&held, head_bias, (size_t)w.outputs * 4, 0, "head bias") : NULL;
    int result = w.head_bias ? net_make(net, group, features, &w) : -1;
    if (w.head_bias && result) PyErr_NoMemory();
    release(&held);
    return result ? -1 : 0;
}

static int tables_valid(const Model *m, const uint16_t *frequencies) {
    for (int t = 0; t < m->tables; t++) {
        uint32_t sum = 0;
        for (int e = 0; e < ENTRIES; e++) {
            uint32_t f = frequencies[t * ENTRIES + e];
            if (f >= 1u << PRECISION) return refuse("a frequency is too large");
            sum += f;
        }
        if (sum != 1u << PRECISION) return refuse("frequencies do not sum to 2^14");
    }
    for (int i = 0; i < m->scales * FRACTIONS; i++) {
        if (m->table_of[i] >= m->tables || m->escape_of[i] < 1 || m->escape_of[i] >= ENTRIES || m->shift_of[i] > 24)
            return refuse("a scale has no table");
        if (m->low_of[i] > 1 << 28 || m->low_of[i] < -(1 << 28)) return refuse("a table lies too far off");
        for (int c = 0; c < COLUMNS; c++) {
            uint16_t code = m->codes[i * COLUMNS + c];
            if (code < CERTAIN && code >= m->tables * ENTRIES) return refuse("a code has no entry");
        }
    }
    for (int i = 0; i < m->scales * COLUMNS; i++)
        if (m->plain[i] < CERTAIN && m->plain[i] >= m->tables * ENTRIES) return refuse("a code has no entry");
    return 0;
}

static int fill(Model *m, PyObject *args) {
    PyObject *o[15], *nets[SUBBANDS];
    if (!PyArg_ParseTuple(args, "(iiiiii)OOOO(OOOO)OOOOOOOOOOO", &m->hyper_latents, &m->coarse, &m->fine, &m->scales,
                          &m->tables, &m->first_shifted, &o[0], &o[1], &o[2], &o[3], &nets[0], &nets[1], &nets[2],
                          &nets[3], &o[4], &o[5], &o[6], &o[7], &o[8], &o[9], &o[10], &o[11], &o[12], &o[13], &o[14]))
        return -1;
    if (m->hyper_latents < 1 || m->hyper_latents > ENTRIES || m->coarse < 1 || m->coarse > ENTRIES || m->fine < 1 ||
        m->fine > ENTRIES || m->scales < 96 || m->scales > ENTRIES || m->tables < 1 || m->tables >= ENTRIES)
        return refuse("a model of unknown shape");
    size_t rows = (size_t)m->scales * FRACTIONS, entries = (size_t)m->tables * ENTRIES;
#define COPY(field, number, bytes) \
    if (!(m->field = copied(o[number], bytes, #field))) return -1
    COPY(compand, 4, COMPAND_SIZE);
    COPY(root_integers, 5, ROOT_CHANNELS * ROOT_CHANNELS * 2);
    COPY(codes, 6, rows * COLUMNS * 2);
    COPY(plain, 7, (size_t)m->scales * COLUMNS * 2);
    COPY(costs, 8, rows * COLUMNS * 4);
    COPY(table_of, 9, rows * 2);
    COPY(low_of, 10, rows * 4);
    COPY(escape_of, 11, rows * 4);
    COPY(shift_of, 12, rows);
    COPY(entry_bits, 13, 4 << 16);
#undef COPY
    Held held = {.count = 0};
    int result = -1;
    const int words = (m->coarse + 3) / 4, near = m->hyper_latents * 9, near_words = (near + 3) / 4;
    int8_t *packed = calloc((size_t)m->fine * 16, (size_t)words * 4);
    int8_t *nearby = calloc((size_t)m->coarse, (size_t)near_words * 4);
    int32_t *offset = calloc((size_t)m->coarse, sizeof *offset);
    m->spread_bias = calloc((size_t)m->coarse + BLOCK_OUTPUTS, sizeof *m->spread_bias);
    const uint16_t *frequencies = hold(&held, o[14], entries * 2, 0, "frequencies");
    const int8_t *unfold = frequencies ? hold(&held, o[2], (size_t)m->fine * 16 * (size_t)m->coarse, 0, "unfold") : NULL;
    const int32_t *bias = unfold ? hold(&held, o[3], (size_t)m->fine * 64, 0, "unfold bias") : NULL;
    const int8_t *spread = bias ? hold(&held, o[0], (size_t)m->coarse * (size_t)near, 0, "spread") : NULL;
    const int32_t *spread_bias = spread ? hold(&held, o[1], (size_t)m->coarse * 4, 0, "spread bias") : NULL;
    if (spread_bias && !tables_valid(m, frequencies)) {
        if (packed && nearby && offset && m->spread_bias) {
            for (int row = 0; row < m->fine * 16; row++)
                memcpy(packed + (size_t)row * (size_t)words * 4, unfold + (size_t)row * (size_t)m->coarse, (size_t)m->coarse);
            for (int row = 0; row < m->coarse; row++) {
                memcpy(nearby + (size_t)row * (size_t)near_words * 4, spread + (size_t)row * (size_t)near, (size_t)near);
                for (int k = 0; k < near; k++) offset[row] -= 128 * spread[row * near + k];
                m->spread_bias[row] = spread_bias[row];
            }
        }
        if (!packed || !nearby || !offset || !m->spread_bias || dense_make(&m->unfold, words, m->fine * 16, packed, bias) ||
            dense_make(&m->spread, near_words, m->coarse, nearby, offset) || coder_make(m, frequencies))
            PyErr_NoMemory();
        else
            result = 0;
    }
    free(packed);
    free(nearby);
    free(offset);
    release(&held);
    for (int g = 0; !result && g < SUBBANDS; g++) {
        if (!PyTuple_Check(nets[g])) return refuse("a network is no tuple");
        result = network(m->nets + g, g, g ? m->fine : m->coarse, nets[g]);
    }
    return result;
}

static PyObject *make_model(PyObject *self, PyObject *args) {
    (void)self;
    Model *m = calloc(1, sizeof *m);
    if (!m) return PyErr_NoMemory();
    PyObject *capsule = fill(m, args) ? NULL : PyCapsule_New(m, CAPSULE, destroy);
    if (!capsule) model_free(m);
    return capsule;
}

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
static PyObject *encode(PyObject *self, PyObject *args) {
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
static PyObject *decode(PyObject *self, PyObject *args) {
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
static PyObject *follow(PyObject *self, PyObject *args) {
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

/* ---- transforms */

/* forward(size, pixels, (above, left, below, right), (height, width), bases, order, places, out): bands of pixels, of any
 * strides but the last, into out[places[i]], which is [bands][64][height][width]. */
static PyObject *forwards(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *pixels, *bases, *order, *places, *out;
    Forward f;
    memset(&f, 0, sizeof f);
    int done = 0, bands_out;
    if (!PyArg_ParseTuple(args, "iO(pppp)(iii)OOOO", &f.size, &pixels, &f.above, &f.left, &f.below, &f.right, &bands_out,
                          &f.height, &f.width, &bases, &order, &places, &out))
        return NULL;
    Held held = {.count = 0};
    Py_buffer *view = &held.views[0];
    if (PyObject_GetBuffer(pixels, view, PyBUF_STRIDED_RO | PyBUF_FORMAT)) return NULL;
    held.count = 1;
    const char *format = view->format ? view->format : "B";
    static const char kinds[] = "BHhf";
    const char *kind = format[0] && !format[1] ? strchr(kinds, format[0]) : NULL;
    if ((f.size != 4 && f.size != 8) || f.height < 1 || f.width < 1 || f.height > 1 << 12 || f.width > 1 << 12 ||
        bands_out < 1 || bands_out > 1 << 12 || view->ndim != 3 || !kind || view->strides[2] != view->itemsize) {
        refuse("pixels of a kind or size that cannot be");
        goto end;
    }
    f.kind = (Kind)(kind - kinds);
    const int half = f.size / 2, high = f.height * f.size + half * (f.above + f.below);
    const int wide = f.width * f.size + half * (f.left + f.right);
    if (view->shape[0] > bands_out || view->shape[1] != high || view->shape[2] != wide) {
        refuse("pixels do not fit the blocks");
        goto end;
    }
    f.pixels = view->buf;
    f.bands = (int)view->shape[0];
    f.band = view->strides[0];
    f.row = view->strides[1];
    size_t square = (size_t)(f.size * f.size);
    if (!(f.bases = hold(&held, bases, 8 * square * sizeof(float), 0, "bases"))) goto end;
    if (!(f.order = hold(&held, order, square, 0, "order"))) goto end;
    if (!(f.places = hold(&held, places, (size_t)f.bands * 4, 0, "places"))) goto end;
    if (!(f.out = hold(&held, out, (size_t)bands_out * CHANNELS * (size_t)f.height * (size_t)f.width * 4, 1, "out")))
        goto end;
    for (size_t i = 0; i < square; i++)
        if (f.order[i] >= CHANNELS) {
            refuse("a channel is out of range");
            goto end;
        }
    for (int i = 0; i < f.bands; i++)
        if (f.places[i] < 0 || f.places[i] >= bands_out) {
            refuse("a band is out of range");
            goto end;
        }
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = forward(&f);
    Py_END_ALLOW_THREADS
    if (failed)
        PyErr_NoMemory();
    else
        done = 1;
end:
    release(&held);
    if (!done) return NULL;
    Py_RETURN_NONE;
}

/* mix(matrix, offset, (rows, columns), from, from_places, (bands, from_stride, from_at), out, out_places, (planes,
 * out_stride, out_at), count): floats; `from` is [bands][from_stride], of which `count` from `from_at` are taken. */
static PyObject *mixes(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *matrix, *offset, *from, *from_places, *out, *out_places;
    Mix m;
    Py_ssize_t bands, from_stride, from_at, planes, out_stride, out_at, count;
    int done = 0;
    if (!PyArg_ParseTuple(args, "OO(ii)OO(nnn)OO(nnn)n", &matrix, &offset, &m.rows, &m.columns, &from, &from_places, &bands,
                          &from_stride, &from_at, &out, &out_places, &planes, &out_stride, &out_at, &count))
        return NULL;
    Held held = {.count = 0};
    const Py_ssize_t most = 1 << 24;
    if (m.rows < 0 || m.columns < 0 || m.rows > 1 << 12 || m.columns > 1 << 12 || bands < 0 || planes < 0 || bands > 1 << 12 ||
        planes > 1 << 12 || from_stride > most || out_stride > most || count < 0 || from_at < 0 || out_at < 0 ||
        count > most || from_at > most || out_at > most || from_at + count > from_stride || out_at + count > out_stride) {
        refuse("a mix of a size that cannot be");
        goto end;
    }
    if (!(m.matrix = hold(&held, matrix, (size_t)m.rows * (size_t)m.columns * 4, 0, "matrix"))) goto end;
    if (!(m.offset = hold(&held, offset, (size_t)m.rows * 4, 0, "offset"))) goto end;
    const float *source = hold(&held, from, (size_t)(bands * from_stride) * 4, 0, "from");
    if (!source || !(m.from_places = hold(&held, from_places, (size_t)m.columns * 4, 0, "from_places"))) goto end;
    float *target = hold(&held, out, (size_t)(planes * out_stride) * 4, 1, "out");
    if (!target || !(m.out_places = hold(&held, out_places, (size_t)m.rows * 4, 0, "out_places"))) goto end;
    for (int i = 0; i < m.columns; i++)
        if (m.from_places[i] < 0 || m.from_places[i] >= bands) {
            refuse("a column is out of range");
            goto end;
        }
    for (int i = 0; i < m.rows; i++)
        if (m.out_places[i] < 0 || m.out_places[i] >= planes) {
            refuse("a row is out of range");
            goto end;
        }
    m.from = source + from_at;
    m.out = target + out_at;
    m.from_stride = from_stride;
    m.out_stride = out_stride;
    m.count = (size_t)count;
    Py_BEGIN_ALLOW_THREADS
    mix(&m);
    Py_END_ALLOW_THREADS
    done = 1;
end:
    release(&held);
    if (!done) return NULL;
    Py_RETURN_NONE;
}

/* Of what is exchanged between this file and downlink/accelerator.py: they must be of one build. */
enum { VERSION = 2 };

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

static PyMethodDef methods[] = {
    {"model", make_model, METH_VARARGS, "A bundle's weights and tables, to be given to the others."},
    {"encode", encode, METH_VARARGS, "Coefficients of a tile -> payloads of its chunks."},
    {"decode", decode, METH_VARARGS, "Payloads of a tile's chunks -> values."},
    {"follow", follow, METH_VARARGS, "What the prior expects of a tile's symbols."},
    {"forward", forwards, METH_VARARGS, "Pixels -> coefficients of lapped blocks."},
    {"mix", mixes, METH_VARARGS, "Coefficients of bands -> of planes, or back."},
    {"version", version, METH_NOARGS, "Which downlink/accelerator.py this is for."},
    {"level", level, METH_NOARGS, "The kind of processor that the inner loops are chosen for."},
    {"limit", limit, METH_VARARGS, "Choose inner loops for lesser processors: 0 plain, 1 AVX2, 2 AVX-512 (tests)."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", "Inner loops of the tile codec.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
