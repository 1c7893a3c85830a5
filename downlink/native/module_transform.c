/* Transforms, from Python and back. */
#include "module.h"
#include "transform.h"

#include <string.h>

/* Whether `kind` of blocks and their neighbours fit `pixels` (bands, rows, columns), of any strides but the last. */
static int pixels_of(Forward *f, Held *held, PyObject *pixels, int bands_out) {
    Py_buffer *view = &held->views[held->count];
    if (PyObject_GetBuffer(pixels, view, PyBUF_STRIDED_RO | PyBUF_FORMAT)) return -1;
    held->count++;
    const char *format = view->format ? view->format : "B";
    static const char kinds[] = "BHhf";
    const char *kind = format[0] && !format[1] ? strchr(kinds, format[0]) : NULL;
    if ((f->size != 4 && f->size != 8) || f->height < 1 || f->width < 1 || f->height > 1 << 12 || f->width > 1 << 12 ||
        bands_out < 1 || bands_out > 1 << 12 || view->ndim != 3 || !kind || view->strides[2] != view->itemsize)
        return refuse("pixels of a kind or size that cannot be");
    f->kind = (Kind)(kind - kinds);
    const int half = f->size / 2, high = f->height * f->size + half * (f->above + f->below);
    const int wide = f->width * f->size + half * (f->left + f->right);
    if (view->shape[0] > bands_out || view->shape[1] != high || view->shape[2] != wide)
        return refuse("pixels do not fit the blocks");
    f->pixels = view->buf;
    f->bands = (int)view->shape[0];
    f->band = view->strides[0];
    f->row = view->strides[1];
    return 0;
}

static int basis_of(Forward *f, Held *held, PyObject *bases, PyObject *order, PyObject *places, int bands_out) {
    size_t square = (size_t)(f->size * f->size);
    if (!(f->bases = hold(held, bases, 8 * square * sizeof(float), 0, "bases"))) return -1;
    if (!(f->order = hold(held, order, square, 0, "order"))) return -1;
    if (!(f->places = hold(held, places, (size_t)f->bands * 4, 0, "places"))) return -1;
    for (size_t i = 0; i < square; i++)
        if (f->order[i] >= CHANNELS) return refuse("a channel is out of range");
    for (int i = 0; i < f->bands; i++)
        if (f->places[i] < 0 || f->places[i] >= bands_out) return refuse("a band is out of range");
    return 0;
}

/* forward(size, pixels, (above, left, below, right), (bands, height, width), bases, order, places, out): bands of pixels,
 * of any strides but the last, into out[places[i]], which is [bands][64][height][width]. */
PyObject *forwards(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *pixels, *bases, *order, *places, *out;
    Forward f;
    memset(&f, 0, sizeof f);
    int done = 0, bands_out;
    if (!PyArg_ParseTuple(args, "iO(pppp)(iii)OOOO", &f.size, &pixels, &f.above, &f.left, &f.below, &f.right, &bands_out,
                          &f.height, &f.width, &bases, &order, &places, &out))
        return NULL;
    Held held = {.count = 0};
    if (pixels_of(&f, &held, pixels, bands_out) || basis_of(&f, &held, bases, order, places, bands_out)) goto end;
    if (!(f.out = hold(&held, out, (size_t)bands_out * CHANNELS * (size_t)f.height * (size_t)f.width * 4, 1, "out")))
        goto end;
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

static int part_of(Front *r, Held *held, PyObject *given, int height, int width) {
    PyObject *pixels, *bases, *order, *places;
    Forward *f = &r->parts[r->part_count++];
    if (!PyTuple_Check(given)) return refuse("a part is no tuple");
    if (!PyArg_ParseTuple(given, "iO(pppp)OOO", &f->size, &pixels, &f->above, &f->left, &f->below, &f->right, &bases, &order,
                          &places))
        return -1;
    f->height = height;
    f->width = width;
    return pixels_of(f, held, pixels, r->bands) || basis_of(f, held, bases, order, places, r->bands) ? -1 : 0;
}

static int mix_of(Front *r, Held *held, PyObject *given) {
    PyObject *matrix, *offset, *columns;
    Mix *m = &r->mixes[r->mix_count++];
    if (!PyTuple_Check(given)) return refuse("a mix is no tuple");
    if (!PyArg_ParseTuple(given, "OO(ii)O", &matrix, &offset, &m->rows, &m->columns, &columns)) return -1;
    if (m->rows < 0 || m->rows > r->planes || m->columns < 0 || m->columns > r->bands) return refuse("a mix of a size that cannot be");
    if (!(m->matrix = hold(held, matrix, (size_t)m->rows * (size_t)m->columns * 4, 0, "matrix"))) return -1;
    if (!(m->offset = hold(held, offset, (size_t)m->rows * 4, 0, "offset"))) return -1;
    if (!(m->from_places = hold(held, columns, (size_t)m->columns * 4, 0, "columns"))) return -1;
    for (int i = 0; i < m->columns; i++)
        if (m->from_places[i] < 0 || m->from_places[i] >= r->bands) return refuse("a column is out of range");
    return 0;
}

/* front((part, …), (bands, height, width), (mix, mix, mix, mix), first channels of subbands, planes, rows, limit, out): parts
 * are (size, pixels, (above, left, below, right), bases, order, places), mixes (matrix, offset, (rows, columns), columns);
 * `rows` counts the planes, 0 … planes - 1, as int32. */
PyObject *fronts(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *parts, *given, *rows, *out;
    Front r;
    memset(&r, 0, sizeof r);
    int height, width, done = 0;
    double limit;
    if (!PyArg_ParseTuple(args, "O(iii)O(iiiii)iOdO", &parts, &r.bands, &height, &width, &given, &r.channels[0],
                          &r.channels[1], &r.channels[2], &r.channels[3], &r.channels[4], &r.planes, &rows, &limit, &out))
        return NULL;
    Held held = {.count = 0};
    r.limit = (float)limit;
    if (!PyTuple_Check(parts) || !PyTuple_Check(given) || PyTuple_Size(parts) < 1 || PyTuple_Size(parts) > 2 ||
        PyTuple_Size(given) != SUBBANDS || r.planes < 1 || r.planes > PLANES_MOST || r.channels[0] != 0 ||
        r.channels[SUBBANDS] != CHANNELS) {
        refuse("a front of a shape that cannot be");
        goto end;
    }
    for (int s = 0; s < SUBBANDS; s++)
        if (r.channels[s + 1] <= r.channels[s]) {
            refuse("subbands do not follow each other");
            goto end;
        }
    for (Py_ssize_t i = 0; i < PyTuple_Size(parts); i++)
        if (part_of(&r, &held, PyTuple_GetItem(parts, i), height, width)) goto end;
    const int32_t *numbers = hold(&held, rows, (size_t)r.planes * 4, 0, "rows");
    if (!numbers) goto end;
    for (int i = 0; i < r.planes; i++)
        if (numbers[i] != i) {
            refuse("rows do not count");
            goto end;
        }
    for (int s = 0; s < SUBBANDS; s++) {
        if (mix_of(&r, &held, PyTuple_GetItem(given, s))) goto end;
        r.mixes[s].out_places = numbers;
    }
    if (!(r.out = hold(&held, out, (size_t)r.planes * CHANNELS * (size_t)height * (size_t)width * 4, 1, "out"))) goto end;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = front(&r);
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
PyObject *mixes(PyObject *self, PyObject *args) {
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

/* back(size, from, (bands, height, width), places, bases, order, (down, across), (row, rows, col, columns), format, (low,
 * high), out): pixels of bands `places` of coefficients [bands][64][height][width]. */
PyObject *backs(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *from, *places, *bases, *order, *out;
    Back b;
    memset(&b, 0, sizeof b);
    int bands, done = 0;
    const char *format;
    double low, high;
    if (!PyArg_ParseTuple(args, "iO(iii)OOO(ii)(iiii)s(dd)O", &b.size, &from, &bands, &b.height, &b.width, &places, &bases,
                          &order, &b.down, &b.across, &b.row, &b.rows, &b.col, &b.columns, &format, &low, &high, &out))
        return NULL;
    Held held = {.count = 0};
    static const char kinds[] = "BHh";
    const char *kind = format[0] && !format[1] ? strchr(kinds, format[0]) : NULL;
    const int most = 1 << 12;
    if ((b.size != 4 && b.size != 8) || b.height < 1 || b.width < 1 || b.height > most || b.width > most || bands < 1 ||
        bands > most || !kind || b.down < 1 || b.across < 1 || b.down > b.height || b.across > b.width || b.row < 0 ||
        b.rows < 0 || b.col < 0 || b.columns < 0 || b.row > most * 8 || b.col > most * 8 ||
        b.rows > b.height * b.size - b.row || b.columns > b.width * b.size - b.col) {
        refuse("coefficients or pixels of a size that cannot be");
        goto end;
    }
    b.kind = (Kind)(kind - kinds);
    b.low = (float)low;
    b.high = (float)high;
    Py_buffer *view = &held.views[held.count];
    if (PyObject_GetBuffer(places, view, PyBUF_SIMPLE)) goto end;
    held.count++;
    b.bands = (int)(view->len / 4);
    b.places = view->buf;
    const size_t square = (size_t)(b.size * b.size), each = b.kind == U8 ? 1 : 2;
    if (view->len % 4 || b.bands > bands) {
        refuse("more places than bands");
        goto end;
    }
    for (int i = 0; i < b.bands; i++)
        if (b.places[i] < 0 || b.places[i] >= bands) {
            refuse("a band is out of range");
            goto end;
        }
    if (!(b.from = hold(&held, from, (size_t)bands * CHANNELS * (size_t)b.height * (size_t)b.width * 4, 0, "coefficients"))) goto end;
    if (!(b.bases = hold(&held, bases, 8 * square * sizeof(float), 0, "bases"))) goto end;
    if (!(b.order = hold(&held, order, square, 0, "order"))) goto end;
    for (size_t i = 0; i < square; i++)
        if (b.order[i] >= CHANNELS) {
            refuse("a channel is out of range");
            goto end;
        }
    if (!(b.out = hold(&held, out, (size_t)b.bands * (size_t)b.rows * (size_t)b.columns * each, 1, "out"))) goto end;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = back(&b);
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
