/* The hyper-latents' network, compiled once for each kind of processor. */

#include "hyper.h"
#include "processor.h"

#include <stdlib.h>
#include <string.h>

enum { LEVEL_ZERO = 32, LOUD_PER_OCTAVE = 12, SYMBOL_LIMIT_BITS = 20, OFFSET = 128, TAPS = 9 };

/* Quads of channels in rows with a border of one field: row 0 and column 0 stand before the first. */
typedef struct {
    uint32_t *quads; /* [channels / 4][rows][stride] */
    int stride;
    size_t size; /* of one quad's rows */
} Bordered;

#define BODY "hyper_body.h"
#include "levels.h"

/* Weights [outputs][channels][taps] as bytes in the order in which fields are packed: tap by tap. `offset` of the first
 * channel whose inputs are 128 higher than what they stand for. */
static int layer_make(Dense *d, int outputs, int channels, int taps, int offset, const int8_t *weights, const int32_t *bias) {
    const int words = (channels + 3) / 4, groups = taps * words;
    int8_t *packed = calloc((size_t)outputs, (size_t)groups * 4);
    int32_t *moved = calloc((size_t)outputs, sizeof *moved);
    int result = NO_MEMORY;
    if (packed && moved) {
        for (int o = 0; o < outputs; o++) {
            moved[o] = bias[o];
            for (int c = 0; c < channels; c++)
                for (int k = 0; k < taps; k++) {
                    int8_t weight = weights[((size_t)o * (size_t)channels + (size_t)c) * (size_t)taps + (size_t)k];
                    packed[((size_t)o * (size_t)groups + (size_t)(k * words + c / 4)) * 4 + (size_t)(c % 4)] = weight;
                    if (c >= offset) moved[o] -= OFFSET * weight;
                }
        }
        result = dense_make(d, groups, outputs, packed, moved);
    }
    free(packed);
    free(moved);
    return result;
}

int hyper_make(Hyper *h, int latents, int middle, int wide, const int8_t *const weights[3], const int32_t *const bias[3]) {
    if (layer_make(&h->first, wide, HEARD, TAPS, CHANNELS, weights[0], bias[0]) ||
        layer_make(&h->second, middle, wide, TAPS, wide, weights[1], bias[1]))
        return NO_MEMORY;
    return layer_make(&h->last, latents, middle, 1, middle, weights[2], bias[2]);
}

void hyper_free(Hyper *h) {
    if (!h) return;
    Dense *all[] = {&h->first, &h->second, &h->last};
    for (int i = 0; i < 3; i++) dense_free(all[i]);
    free(h);
}

static Bordered bordered(int channels, int height, int width, int *failed) {
    Bordered b = {NULL, width + 2, (size_t)(height + 1) * (size_t)(width + 2)};
    b.quads = calloc((size_t)((channels + 3) / 4) * b.size + 64, sizeof *b.quads);
    if (!b.quads) *failed = 1;
    return b;
}

int hyper_run(const Heard *t) {
    int failed = 0;
    const Hyper *n = t->net;
    Bordered loud = bordered(HEARD, t->height, t->width, &failed);
    Bordered half = bordered(n->first.outputs, t->height / 2, t->width / 2, &failed);
    Bordered quarter = bordered(n->second.outputs, t->height / 4, t->width / 4, &failed);
    size_t groups = (size_t)(n->first.groups > n->second.groups ? n->first.groups : n->second.groups);
    uint32_t *packed = calloc(groups * FIELDS, sizeof *packed);
    if (!packed) failed = 1;
    if (!failed) {
#ifdef DOWNLINK_X86
        int found = processor();
        (found == LEVEL_AVX512 ? hyper_avx512 : found == LEVEL_AVX2 ? hyper_avx2 : hyper_plain)(t, &loud, &half, &quarter, packed);
#else
        hyper_plain(t, &loud, &half, &quarter, packed);
#endif
    }
    free(loud.quads);
    free(half.quads);
    free(quarter.quads);
    free(packed);
    return failed ? NO_MEMORY : FINE;
}
