/* The walk through a tile, compiled once for each kind of processor and chosen when it runs. */

#include "codec.h"
#include "processor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS_MOST = SIDE_MOST, QUARTER_MOST = (SIDE_MOST / 2 + 2) * (SIDE_MOST / 2 + 1) + 128 };

/* Fields of a grid in quarters by the parity of rows and columns, as downlink/quarter.py has them: a border of zeros
 * above, below and at the right, so that neighbours are a fixed distance away. */
typedef struct {
    int height, width, rows, columns, stride;
    size_t size; /* of a quarter with its border and some room beyond */
} Shape;

enum { A, C1, C0, B };

/* Fields of a phase that stand side by side in their quarter: the stream's order is that of the runs. */
typedef struct {
    int quarter, offset, natural, length, at;
} Run;

typedef struct {
    int runs, fields, padded;
    int even; /* whether all runs are of sixteen fields */
    Run run[RUNS_MOST];
    uint16_t *quarters, *natural; /* of each field: its place in the quarters, and in the grid */
} Phase;

static Shape shape_of(int height, int width) {
    Shape s = {height, width, (height + 1) / 2, (width + 1) / 2, (width + 1) / 2 + 1, 0};
    s.size = ((size_t)(s.rows + 2) * (size_t)s.stride + 127) & ~(size_t)63;
    return s;
}

static void phases_of(const Shape *s, Phase *phase, uint16_t *places) {
    for (int number = 0; number < 3; number++) {
        Phase *p = phase + number;
        p->runs = p->fields = 0;
        p->quarters = places + 2 * number * SIDE_MOST * SIDE_MOST;
        p->natural = p->quarters + SIDE_MOST * SIDE_MOST;
        for (int row = number == 1; row < s->height; row += number == 2 ? 1 : 2) {
            int column = number == 0 ? 0 : number == 1 ? 1 : (row + 1) & 1;
            int length = (s->width - column + 1) / 2;
            if (length <= 0) continue;
            int quarter = number == 0 ? A : number == 1 ? B : row & 1 ? C1 : C0;
            p->run[p->runs++] =
                (Run){quarter, (row / 2 + 1) * s->stride, row * s->width + column, length, p->fields};
            for (int i = 0; i < length; i++, p->fields++) {
                p->quarters[p->fields] = (uint16_t)((size_t)quarter * s->size + (size_t)((row / 2 + 1) * s->stride + i));
                p->natural[p->fields] = (uint16_t)(row * s->width + column + 2 * i);
            }
        }
        p->even = p->runs > 0;
        for (int r = 0; r < p->runs; r++) p->even &= p->run[r].length == 16;
        p->padded = (p->fields + FIELDS - 1) / FIELDS * FIELDS;
    }
}

static const int CHANNELS_OF[SUBBANDS] = {16, 3, 12, 48};
static const int FIRST_OF[SUBBANDS] = {0, 1, 4, 16};
static const int MEANS_OF[SUBBANDS] = {1, 3, 0, 0};
static const int PREDICTED_OF[SUBBANDS] = {1, 2, 0, 0};

enum { NEAR_LIMIT = 1 << 17, FLAG = 32, DECAY = 4, INDEX_MOST = 95, MEAN_MOST = 2047, TRUST_MOST = 31 };

static int32_t clip(int64_t x, int32_t limit) {
    return x > limit ? limit : x < -limit ? -limit : (int32_t)x;
}

static int magnitude(const Model *m, int64_t q) {
    if (q < 0) q = -q;
    return m->compand[q < COMPAND_SIZE ? q : COMPAND_SIZE - 1];
}

static int companded(const Model *m, int64_t q) { return q < 0 ? -magnitude(m, q) : magnitude(m, q); }

/* What is in work during a walk. Rows of u8 in quarters: [channel][4][size]. */
typedef struct {
    Tile *t;
    const Model *m;
    Shape full, small;
    Phase phase[2][3]; /* of the root's grid, of the latents' */
    uint8_t *energy, *smooth, *own, *around; /* [48] */
    uint8_t *earlier, *smoothed;             /* [planes][16] */
    uint8_t *coarse, *fine;                  /* [planes][features], quarters of small and full */
    int32_t *root;                           /* [planes][16][h / 4][w / 4] */
    int32_t *toward;                         /* [counts[1]][2][h][w]: T */
    uint32_t *packed;                        /* [groups][padded]: front, tail, hidden */
    uint8_t *beside;                         /* [2][padded] */
    int32_t *predicted;                      /* [2][padded] */
    uint8_t *index;                          /* [48][padded] */
    int32_t *rest;                           /* [8][padded]: what a head says beside indices */
    int32_t *mean;                           /* [3][padded] */
    int32_t *values;                         /* [48][padded] */
    float *exact;                            /* [padded] */
    uint8_t *some;                           /* [padded] */
    uint8_t *rows;                           /* of hyper-latents and features */
    uint8_t *zeros;
    Writer writer;
    Reader reader;
    int reading; /* whether the chunk is there */
    int chunk;
} Walk;

#define BODY "walk_body.h"
#include "levels.h"

static void *room(size_t count, size_t item, int *failed) {
    void *found = calloc(count + 64, item); /* some room beyond: whole vectors are read and written */
    if (!found) *failed = 1;
    return found;
}

static size_t largest(size_t a, size_t b) { return a > b ? a : b; }

int walk_tile(Tile *t) {
    Walk w;
    memset(&w, 0, sizeof w);
    const Model *m = t->model;
    w.t = t;
    w.m = m;
    w.full = shape_of(t->height, t->width);
    w.small = shape_of(t->height / ROOT, t->width / ROOT);
    int failed = 0;
    uint16_t *places = room(12 * SIDE_MOST * SIDE_MOST, sizeof *places, &failed);
    if (failed) return NO_MEMORY;
    phases_of(&w.small, w.phase[0], places);
    phases_of(&w.full, w.phase[1], places + 6 * SIDE_MOST * SIDE_MOST);
    size_t planes = (size_t)t->planes, quarters = 4 * w.full.size, padded = 0, groups = 0, tail = 0;
    for (int i = 0; i < 6; i++) padded = largest(padded, (size_t)w.phase[i / 3][i % 3].padded);
    for (int g = 0; g < SUBBANDS; g++) {
        const Net *n = m->nets + g;
        groups = largest(groups, (size_t)(n->first.groups + n->first.blocks * (BLOCK_OUTPUTS / 4)));
        tail = largest(tail, (size_t)n->first.groups);
    }
    size_t fields = (size_t)t->height * (size_t)t->width;
    int most = t->counts[1];
    for (int g = 2; g < SUBBANDS; g++) most = t->counts[g] > most ? t->counts[g] : most;
    w.energy = room(CHANNELS_MOST * quarters, 1, &failed);
    w.smooth = room(CHANNELS_MOST * quarters, 1, &failed);
    w.own = room(CHANNELS_MOST * quarters, 1, &failed);
    w.around = room(CHANNELS_MOST * quarters, 1, &failed);
    w.earlier = room((size_t)most * EARLIER * quarters, 1, &failed);
    w.smoothed = room((size_t)most * EARLIER * quarters, 1, &failed);
    w.coarse = room(planes * (size_t)m->coarse * 4 * w.small.size, 1, &failed);
    w.fine = room(planes * (size_t)m->fine * quarters, 1, &failed);
    w.root = room(planes * ROOT_CHANNELS * fields / (ROOT * ROOT), sizeof *w.root, &failed);
    w.toward = room((size_t)t->counts[1] * 2 * fields, sizeof *w.toward, &failed);
    w.packed = room(groups * padded, sizeof *w.packed, &failed);
    w.beside = room(2 * padded, 1, &failed);
    w.predicted = room(2 * padded, sizeof *w.predicted, &failed);
    w.index = room(CHANNELS_MOST * padded, 1, &failed);
    w.rest = room(8 * padded, sizeof *w.rest, &failed);
    w.mean = room(3 * padded, sizeof *w.mean, &failed);
    w.values = room(CHANNELS_MOST * padded, sizeof *w.values, &failed);
    w.exact = room(padded, sizeof *w.exact, &failed);
    w.some = room(padded, 1, &failed);
    const size_t coarse_fields = (fields / (ROOT * ROOT) + FIELDS - 1) / FIELDS * FIELDS;
    const size_t words = (size_t)(m->spread.groups + m->unfold.groups);
    if (words * coarse_fields > groups * padded) {
        free(w.packed);
        w.packed = room(words * coarse_fields, sizeof *w.packed, &failed);
    }
    w.rows = room((4 * words + 16 + BLOCK_OUTPUTS) * coarse_fields, 1, &failed);
    w.zeros = room(largest(padded, quarters), 1, &failed);
    int result = NO_MEMORY;
    if (!failed) {
#ifdef DOWNLINK_X86
        int found = processor();
        result = found == LEVEL_AVX512 ? go_avx512(&w) : found == LEVEL_AVX2 ? go_avx2(&w) : go_plain(&w);
#else
        result = go_plain(&w);
#endif
    }
    void *all[] = {w.energy, w.smooth, w.own, w.around, w.earlier, w.smoothed, w.coarse, w.fine, w.root, w.toward,
                   w.packed, w.beside, w.predicted, w.index, w.rest, w.mean, w.values, w.exact, w.some, w.rows, w.zeros, places};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    writer_free(&w.writer);
    reader_free(&w.reader);
    return result;
}
