/* Pixels -> coefficients -> planes, compiled once for each kind of processor. */

#include "transform.h"
#include "processor.h"

#include <stdlib.h>
#include <string.h>

/* Unlike in the rest, a product and a sum may be one instruction here. */
#ifdef __clang__
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif

enum { LANES = 16, MIXED = 8 };
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));

static int line_stride(int wide, int size) { return ((wide + 2) * size + LANES - 1) / LANES * LANES; }

#define BODY "transform_body.h"
#include "levels.h"

/* Room for a row of blocks on its way. */
typedef struct {
    float *lines, *mid, *apart;
} Row;

static int row_make(Row *r, int width, int size) {
    const size_t stride = (size_t)line_stride(width, size), most = (size_t)size;
    r->lines = calloc(2 * most * stride + 2 * LANES, sizeof *r->lines);
    r->mid = calloc(most * (stride + LANES) + 9 * LANES, sizeof *r->mid);
    r->apart = calloc(most * (size_t)(width + 2 + LANES) + 2 * LANES, sizeof *r->apart);
    return !r->lines || !r->mid || !r->apart;
}

static void row_free(Row *r) {
    free(r->lines);
    free(r->mid);
    free(r->apart);
}

int forward(const Forward *f) {
    Row row;
    int failed = row_make(&row, f->width, f->size);
    if (!failed) {
#ifdef DOWNLINK_X86
        int found = processor();
        (found == LEVEL_AVX512 ? forward_avx512 : found == LEVEL_AVX2 ? forward_avx2 : forward_plain)(f, row.lines, row.mid, row.apart);
#else
        forward_plain(f, row.lines, row.mid, row.apart);
#endif
    }
    row_free(&row);
    return failed ? -1 : 0;
}

void mix(const Mix *m) {
#ifdef DOWNLINK_X86
    int found = processor();
    (found == LEVEL_AVX512 ? mix_avx512 : found == LEVEL_AVX2 ? mix_avx2 : mix_plain)(m);
#else
    mix_plain(m);
#endif
}

int front(const Front *r) {
    Row row;
    const size_t wide = (size_t)r->parts[0].width;
    int failed = row_make(&row, r->parts[0].width, 8); /* lines of the larger blocks have room for the smaller */
    float *bands = calloc((size_t)r->bands * 64 * wide + 2 * LANES, sizeof *bands);
    float *mixed = calloc((size_t)(r->planes + 1) * 64 * wide + 2 * LANES, sizeof *mixed);
    failed = failed || !bands || !mixed;
    if (!failed) {
#ifdef DOWNLINK_X86
        int found = processor();
        (found == LEVEL_AVX512 ? front_avx512 : found == LEVEL_AVX2 ? front_avx2 : front_plain)(r, bands, mixed, row.lines, row.mid, row.apart);
#else
        front_plain(r, bands, mixed, row.lines, row.mid, row.apart);
#endif
    }
    free(bands);
    free(mixed);
    row_free(&row);
    return failed ? -1 : 0;
}

int back(const Back *b) {
    const size_t size = (size_t)b->size, stride = ((size_t)b->width + 2 + LANES) / LANES * LANES + LANES;
    float *sums = calloc(2 * size * size * stride + LANES, sizeof *sums);  /* rows around a border, by horizontal frequency */
    float *parts = calloc(2 * size * stride + LANES, sizeof *parts);
    float *line = calloc(size * (stride + LANES), sizeof *line);
    const int failed = !sums || !parts || !line;
    if (!failed) {
#ifdef DOWNLINK_X86
        int found = processor();
        (found == LEVEL_AVX512 ? back_avx512 : found == LEVEL_AVX2 ? back_avx2 : back_plain)(b, (int)stride, sums, parts, line);
#else
        back_plain(b, (int)stride, sums, parts, line);
#endif
    }
    free(sums);
    free(parts);
    free(line);
    return failed ? -1 : 0;
}
