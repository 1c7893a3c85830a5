/* Values of symbols -> what the synthesis adds to them: downlink/synthesis.py and the graph of training/synthesis.py, in
 * integers. */
#ifndef DOWNLINK_SYNTHESIS_H
#define DOWNLINK_SYNTHESIS_H

#include "codec.h"

enum { SEEN = 3 * CHANNELS + SUBBANDS + 4, RESIDUALS_MOST = 8, WIDTH_MOST = 128, BLOCKS_MOST = 1 << 12 };

typedef struct {
    int width, residuals;
    Wide enter; /* pointwise */
    Dense see[RESIDUALS_MOST], mix[RESIDUALS_MOST], last; /* 3 x 3, pointwise, pointwise */
    int enter_shift, see_shift[RESIDUALS_MOST], mix_shift[RESIDUALS_MOST];
    float size[CHANNELS]; /* what one of the last layer's integers stands for */
} Synthesis;

/* values [planes][64][height][width], levels [planes][4] -> out; of planes that are not `chosen` a copy. */
typedef struct {
    const Synthesis *net;
    int planes, height, width;
    const float *values;
    const uint8_t *levels, *chosen;
    float *out;
} Corrected;

int wide_make(Wide *d, int outputs, int inputs, const int8_t *weights, const int32_t *bias);
void synthesis_free(Synthesis *s);
int synthesis_run(const Corrected *t);

#endif
