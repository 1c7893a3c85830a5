/* Coefficients of planes -> hyper-latents: encoder_node.encoder.loudness and the graph of training/hyper.py, in integers.
 */
#ifndef DOWNLINK_HYPER_H
#define DOWNLINK_HYPER_H

#include "codec.h"

enum { HEARD = CHANNELS + 4 + SUBBANDS, SHIFT_MOST = 24 }; /* loudness, four with their signs, levels */

typedef struct {
    Dense first, second, last; /* 3 x 3 with stride 2, twice; 1 x 1 */
    int shift[3], most;        /* of the results: +-most */
} Hyper;

/* planes [count][64][height][width], levels [count][4] -> out [count][latents][height / 4][width / 4] */
typedef struct {
    const Hyper *net;
    const float *planes;
    const uint8_t *levels;
    int count, height, width;
    int32_t *out;
} Heard;

int hyper_make(Hyper *h, int latents, int middle, int wide, const int8_t *const weights[3], const int32_t *const bias[3]);
void hyper_free(Hyper *h);
int hyper_run(const Heard *t);

#endif
