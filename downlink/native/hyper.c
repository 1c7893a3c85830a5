/* The hyper-latents' network, compiled once for each kind of processor. */

#include "hyper.h"
#include "processor.h"

#include <stdlib.h>
#include <string.h>

enum { LEVEL_ZERO = 32, LOUD_PER_OCTAVE = 12, GROUPS_MOST = TAPS * ENTRIES / 2 };

/* Quads of channels in rows with a border of one field: row 0 and column 0 stand before the first. */
typedef struct {
    uint32_t *quads; /* [channels / 4][rows][stride] */
    int stride;
    size_t size; /* of one quad's rows */
} Bordered;

#define BODY "hyper_body.h"
#include "levels.h"

int hyper_make(Hyper *h, int latents, int middle, int wide, const int8_t *const weights[3], const int32_t *const bias[3]) {
    if (taps_make(&h->first, wide, HEARD, TAPS, CHANNELS, weights[0], bias[0]) ||
        taps_make(&h->second, middle, wide, TAPS, wide, weights[1], bias[1]))
        return NO_MEMORY;
    return taps_make(&h->last, latents, middle, 1, middle, weights[2], bias[2]);
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
