/* Weights and tables of a bundle, from Python. */
#include "module.h"
#include "hyper.h"
#include "synthesis.h"

#include <stdlib.h>
#include <string.h>

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

PyObject *make_model(PyObject *self, PyObject *args) {
    (void)self;
    Model *m = calloc(1, sizeof *m);
    if (!m) return PyErr_NoMemory();
    PyObject *capsule = fill(m, args) ? NULL : PyCapsule_New(m, CAPSULE, destroy);
    if (!capsule) model_free(m);
    return capsule;
}

/* ---- hyper_model(latents, middle, wide, most, (weights, bias, shift), (…), (…)) */

static void destroy_hyper(PyObject *capsule) { hyper_free(PyCapsule_GetPointer(capsule, HYPER_CAPSULE)); }

static int hyper_layers(Hyper *h, PyObject *args) {
    int latents, middle, wide;
    PyObject *weights[3], *biases[3];
    if (!PyArg_ParseTuple(args, "iiii(OOi)(OOi)(OOi)", &latents, &middle, &wide, &h->most, &weights[0], &biases[0],
                          &h->shift[0], &weights[1], &biases[1], &h->shift[1], &weights[2], &biases[2], &h->shift[2]))
        return -1;
    const int sizes[4] = {HEARD, wide, middle, latents};
    for (int i = 0; i < 3; i++)
        if (h->shift[i] < 0 || h->shift[i] > SHIFT_MOST) return refuse("a shift is out of range");
    for (int i = 1; i < 4; i++)
        if (sizes[i] < 1 || sizes[i] > ENTRIES / 2) return refuse("a layer of unknown size");
    if (h->most < 0 || h->most > HYPER_MOST || wide % 4 || middle % 4) return refuse("hyper-latents of unknown shape");
    Held held = {.count = 0};
    const int8_t *weight[3];
    const int32_t *bias[3];
    int result = -1;
    for (int i = 0; i < 3; i++) {
        size_t taps = i < 2 ? 9 : 1;
        weight[i] = hold(&held, weights[i], (size_t)sizes[i] * (size_t)sizes[i + 1] * taps, 0, "weights");
        if (!weight[i] || !(bias[i] = hold(&held, biases[i], (size_t)sizes[i + 1] * 4, 0, "bias"))) goto out;
        for (int o = 0; o < sizes[i + 1]; o++)
            if (bias[i][o] > 1 << 24 || bias[i][o] < -(1 << 24)) {
                refuse("a bias is out of range");
                goto out;
            }
    }
    result = hyper_make(h, latents, middle, wide, weight, bias);
    if (result) PyErr_NoMemory();
out:
    release(&held);
    return result;
}

PyObject *make_hyper_model(PyObject *self, PyObject *args) {
    (void)self;
    Hyper *h = calloc(1, sizeof *h);
    if (!h) return PyErr_NoMemory();
    PyObject *capsule = hyper_layers(h, args) ? NULL : PyCapsule_New(h, HYPER_CAPSULE, destroy_hyper);
    if (!capsule) hyper_free(h);
    return capsule;
}

/* ---- synthesis_model(width, (weights, bias, shift), ((weights, bias, shift, weights, bias, shift), …), (weights, bias), size) */

static void destroy_synthesis(PyObject *capsule) { synthesis_free(PyCapsule_GetPointer(capsule, SYNTHESIS_CAPSULE)); }

/* Weights and bias of a layer, held. */
static const int8_t *weights_of(Held *held, PyObject *weights, PyObject *bias, size_t inputs, size_t outputs, const int32_t **found) {
    const int8_t *w = hold(held, weights, inputs * outputs, 0, "weights");
    if (!w || !(*found = hold(held, bias, outputs * 4, 0, "bias"))) return NULL;
    for (size_t o = 0; o < outputs; o++)
        if ((*found)[o] > 1 << 24 || (*found)[o] < -(1 << 24)) {
            refuse("a bias is out of range");
            return NULL;
        }
    return w;
}

static int shift_of(int shift) { return shift < 0 || shift > 24 ? refuse("a shift is out of range") : 0; }

static int residual(Synthesis *s, PyObject *given, int number) {
    PyObject *o[4];
    Held held = {.count = 0};
    const int32_t *bias;
    const int8_t *weights;
    int result = -1;
    const size_t wide = (size_t)s->width;
    if (!PyTuple_Check(given)) return refuse("a block is no tuple");
    if (!PyArg_ParseTuple(given, "OOiOOi", &o[0], &o[1], &s->see_shift[number], &o[2], &o[3], &s->mix_shift[number])) return -1;
    if (shift_of(s->see_shift[number]) || shift_of(s->mix_shift[number])) return -1;
    if (!(weights = weights_of(&held, o[0], o[1], TAPS * wide, wide, &bias))) goto out;
    if (taps_make(&s->see[number], s->width, s->width, TAPS, 0, weights, bias)) goto memory;
    if (!(weights = weights_of(&held, o[2], o[3], wide, wide, &bias))) goto out;
    if (taps_make(&s->mix[number], s->width, s->width, 1, s->width, weights, bias)) goto memory;
    result = 0;
    goto out;
memory:
    PyErr_NoMemory();
out:
    release(&held);
    return result;
}

static int synthesis_layers(Synthesis *s, PyObject *args) {
    PyObject *o[5], *blocks;
    Held held = {.count = 0};
    const int32_t *bias;
    const int8_t *weights;
    const float *size;
    int result = -1;
    if (!PyArg_ParseTuple(args, "i(OOi)O(OO)O", &s->width, &o[0], &o[1], &s->enter_shift, &blocks, &o[2], &o[3], &o[4])) return -1;
    if (s->width < 8 || s->width > WIDTH_MOST || s->width % BLOCK_OUTPUTS || !PyTuple_Check(blocks) ||
        PyTuple_Size(blocks) > RESIDUALS_MOST)
        return refuse("a synthesis of unknown shape");
    if (shift_of(s->enter_shift)) return -1;
    s->residuals = (int)PyTuple_Size(blocks);
    if (!(weights = weights_of(&held, o[0], o[1], SEEN, (size_t)s->width, &bias))) goto out;
    if (wide_make(&s->enter, s->width, SEEN, weights, bias)) goto memory;
    if (!(weights = weights_of(&held, o[2], o[3], (size_t)s->width, CHANNELS, &bias))) goto out;
    if (taps_make(&s->last, CHANNELS, s->width, 1, 0, weights, bias)) goto memory;
    if (!(size = hold(&held, o[4], sizeof s->size, 0, "size"))) goto out;
    memcpy(s->size, size, sizeof s->size);
    result = 0;
    for (int i = 0; i < s->residuals && !result; i++) result = residual(s, PyTuple_GetItem(blocks, i), i);
    goto out;
memory:
    PyErr_NoMemory();
out:
    release(&held);
    return result;
}

PyObject *make_synthesis_model(PyObject *self, PyObject *args) {
    (void)self;
    Synthesis *s = calloc(1, sizeof *s);
    if (!s) return PyErr_NoMemory();
    PyObject *capsule = synthesis_layers(s, args) ? NULL : PyCapsule_New(s, SYNTHESIS_CAPSULE, destroy_synthesis);
    if (!capsule) synthesis_free(s);
    return capsule;
}
