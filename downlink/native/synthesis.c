/* The synthesis, compiled once for each kind of processor. */

#include "synthesis.h"
#include "processor.h"

#include <stdlib.h>
#include <string.h>

enum { LOUD_PER_OCTAVE = 48, SOFT_UNITS = 15, SEEN_LIMIT = 1023, TRUNK_LEAST = -2048, TRUNK_MOST = 2047, TRUNK_SHIFT = 4 };

/* Room for one plane. The trunk's upper bytes, OFFSET higher, stand in quads of channels with a border of one field. */
typedef struct {
    int stride;         /* of rows, with the border and room for a whole run of FIELDS */
    size_t quad, field; /* of one quad's rows, of one channel's rows */
    uint32_t *now, *next; /* [width / 4][height + 2][stride] */
    int16_t *trunk;       /* [width][height][stride] */
    uint32_t *seen;       /* [SEEN / 2][stride] */
    int16_t *heard;       /* [SEEN][stride] */
} Room;

#define BODY "synthesis_body.h"
#include "levels.h"

int wide_make(Wide *d, int outputs, int inputs, const int8_t *weights, const int32_t *bias) {
    d->groups = inputs / 2;
    d->blocks = (outputs + BLOCK_OUTPUTS - 1) / BLOCK_OUTPUTS;
    d->pairs = calloc((size_t)d->blocks * (size_t)d->groups * BLOCK_OUTPUTS + 1, sizeof *d->pairs);
    d->bias = calloc((size_t)d->blocks * BLOCK_OUTPUTS, sizeof *d->bias);
    if (!d->pairs || !d->bias) return NO_MEMORY;
    for (int o = 0; o < outputs; o++) {
        d->bias[o] = bias[o];
        for (int g = 0; g < d->groups; g++) {
            const int8_t *two = weights + (size_t)o * (size_t)inputs + 2 * (size_t)g;
            d->pairs[((size_t)(o / BLOCK_OUTPUTS) * (size_t)d->groups + (size_t)g) * BLOCK_OUTPUTS + (size_t)(o % BLOCK_OUTPUTS)] =
                (uint32_t)(uint16_t)two[0] | (uint32_t)(uint16_t)two[1] << 16;
        }
    }
    return FINE;
}

void synthesis_free(Synthesis *s) {
    if (!s) return;
    free(s->enter.pairs);
    free(s->enter.bias);
    for (int i = 0; i < RESIDUALS_MOST; i++) {
        dense_free(&s->see[i]);
        dense_free(&s->mix[i]);
    }
    dense_free(&s->last);
    free(s);
}

int synthesis_run(const Corrected *t) {
    const Synthesis *n = t->net;
    Room r;
    r.stride = (t->width + 2 + FIELDS + 15) / 16 * 16;
    r.quad = (size_t)(t->height + 2) * (size_t)r.stride;
    r.field = (size_t)t->height * (size_t)r.stride;
    const size_t quads = (size_t)n->width / 4 * r.quad + 2 * FIELDS;
    r.now = malloc(quads * sizeof *r.now);
    r.next = malloc(quads * sizeof *r.next);
    r.trunk = malloc(((size_t)n->width * r.field + FIELDS) * sizeof *r.trunk);
    r.seen = malloc((SEEN / 2 * (size_t)r.stride + FIELDS) * sizeof *r.seen);
    r.heard = calloc(SEEN * (size_t)r.stride + FIELDS, sizeof *r.heard);
    const int failed = !r.now || !r.next || !r.trunk || !r.seen || !r.heard;
    if (!failed) {
#ifdef DOWNLINK_X86
        int found = processor();
        (found == LEVEL_AVX512 ? synthesis_avx512 : found == LEVEL_AVX2 ? synthesis_avx2 : synthesis_plain)(t, &r);
#else
        synthesis_plain(t, &r);
#endif
    }
    free(r.now);
    free(r.next);
    free(r.trunk);
    free(r.seen);
    free(r.heard);
    return failed ? NO_MEMORY : FINE;
}
