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

int forward(const Forward *f) {
    const size_t stride = (size_t)line_stride(f->width, f->size), size = (size_t)f->size;
    float *lines = calloc(2 * size * stride + 2 * LANES, sizeof *lines);
    float *mid = calloc(size * stride + 2 * LANES, sizeof *mid);
    float *apart = calloc(size * (size_t)(f->width + 2 + LANES) + 2 * LANES, sizeof *apart);
    int failed = !lines || !mid || !apart;
    if (!failed) {
#ifdef DOWNLINK_X86
        int found = processor();
        (found == LEVEL_AVX512 ? forward_avx512 : found == LEVEL_AVX2 ? forward_avx2 : forward_plain)(f, lines, mid, apart);
#else
        forward_plain(f, lines, mid, apart);
#endif
    }
    free(lines);
    free(mid);
    free(apart);
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
