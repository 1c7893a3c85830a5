/* Included once for each LEVEL. */

#include "dense_body.h"

/* LOUD_PER_OCTAVE log2(1 + |x|) with the sign of x, from the float's own bits. */
INLINE int16_t NAME(loud)(float x) {
    union {
        float real;
        int32_t bits;
    } one = {__builtin_fabsf(x) + 1.0f}, given = {x};
    int32_t octaves = (one.bits >> 15) - (127 << 8), rest = octaves & 255;
    octaves += rest * (256 - rest) * 88 >> 16;
    octaves = (octaves * LOUD_PER_OCTAVE + 128) >> 8;
    octaves = octaves > SEEN_LIMIT ? SEEN_LIMIT : octaves;
    const int32_t sign = given.bits >> 31;
    return (int16_t)((octaves ^ sign) - sign);
}

/* SOFT_UNITS x / (1 + |x| / 64), to the nearest, ties to even. */
INLINE int16_t NAME(soft)(float x) {
    const float magic = 12582912.0f;
    float soft = x / (1.0f + __builtin_fabsf(x) * 0.015625f) * (float)SOFT_UNITS;
    return (int16_t)(int32_t)((soft + magic) - magic);
}

/* What is seen of a row of a plane: pairs of channels in words. */
static void NAME(look)(const Corrected *t, const Room *r, int plane, int row) {
    const size_t fields = (size_t)t->height * (size_t)t->width, wide = (size_t)t->width, stride = (size_t)r->stride;
    const float *own = t->values + (size_t)plane * CHANNELS * fields + (size_t)row * wide;
    int16_t *to = r->heard;
    for (int c = 0; c < CHANNELS; c++, to += stride) {
        const float *from = own + (size_t)c * fields;
        for (size_t i = 0; i < wide; i++) to[i] = NAME(loud)(from[i]);
    }
    for (int c = 0; c < CHANNELS; c++, to += stride) {
        const float *from = own + ((size_t)c - (plane ? CHANNELS : 0)) * fields;
        if (plane)
            for (size_t i = 0; i < wide; i++) to[i] = NAME(loud)(from[i]);
        else
            memset(to, 0, wide * sizeof *to);
    }
    for (int c = 0; c < CHANNELS; c++, to += stride) {
        const float *from = own + (size_t)c * fields;
        for (size_t i = 0; i < wide; i++) to[i] = NAME(soft)(from[i]);
    }
    for (int k = 0; k < SUBBANDS; k++, to += stride)
        for (size_t i = 0; i < wide; i++) to[i] = t->levels[plane * SUBBANDS + k];
    const float *beside[2] = {row ? own - wide : own, row < t->height - 1 ? own + wide : own};
    for (int k = 0; k < 2; k++, to += stride)
        for (size_t i = 0; i < wide; i++) to[i] = NAME(soft)(beside[k][i] - own[i]);
    for (size_t i = 0; i < wide; i++) {
        to[i] = NAME(soft)((i ? own[i - 1] : own[0]) - own[i]);
        to[stride + i] = NAME(soft)((i < wide - 1 ? own[i + 1] : own[i]) - own[i]);
    }
    for (int pair = 0; pair < SEEN / 2; pair++) {
        const int16_t *one = r->heard + 2 * (size_t)pair * stride, *two = one + stride;
        uint32_t *word = r->seen + (size_t)pair * stride;
        for (size_t i = 0; i < wide; i++) word[i] = (uint32_t)(uint16_t)one[i] | (uint32_t)(uint16_t)two[i] << 16;
    }
}

/* The trunk's upper bytes, rounded down, OFFSET higher, of `count` fields of four channels: into words. */
INLINE void NAME(upper)(const int16_t *trunk, size_t channel, int count, uint32_t *to) {
    for (int i = 0; i < count; i++) {
        uint32_t word = 0;
        for (int k = 0; k < 4; k++) word |= (uint32_t)((trunk[(size_t)k * channel + (size_t)i] >> TRUNK_SHIFT) + OFFSET) << 8 * k;
        to[i] = word;
    }
}

static void NAME(enter)(const Corrected *t, const Room *r, int row) {
    const Synthesis *n = t->net;
    int32_t out[BLOCK_OUTPUTS][FIELDS];
    for (int first = 0; first < t->width; first += FIELDS) {
        const int count = t->width - first < FIELDS ? t->width - first : FIELDS;
        const size_t at = (size_t)row * (size_t)r->stride + (size_t)first;
        for (int block = 0; block < n->enter.blocks; block++) {
            NAME(wide_sums)(&n->enter, block, r->seen + first, (size_t)r->stride, out);
            int16_t *trunk = r->trunk + (size_t)(block * BLOCK_OUTPUTS) * r->field + at;
            for (int o = 0; o < BLOCK_OUTPUTS; o++)
                for (int f = 0; f < FIELDS; f++)
                    trunk[(size_t)o * r->field + (size_t)f] = (int16_t)NAME(bounded)(out[o][f] >> n->enter_shift, TRUNK_LEAST, TRUNK_MOST);
            for (int q = 0; q < BLOCK_OUTPUTS / 4; q++)
                NAME(upper)(trunk + 4 * (size_t)q * r->field, r->field, count,
                            r->now + (size_t)(block * 2 + q) * r->quad + (size_t)(row + 1) * (size_t)r->stride + (size_t)(first + 1));
        }
    }
}

static void NAME(residual)(const Corrected *t, const Room *r, int number, const int32_t *near, const int32_t *straight) {
    const Synthesis *n = t->net;
    const Dense *see = &n->see[number], *mix = &n->mix[number];
    int32_t out[BLOCK_OUTPUTS][FIELDS];
    uint32_t hidden[WIDTH_MOST / 4 * FIELDS];
    for (int row = 0; row < t->height; row++)
        for (int first = 0; first < t->width; first += FIELDS) {
            const int count = t->width - first < FIELDS ? t->width - first : FIELDS;
            const uint32_t *x = r->now + (size_t)row * (size_t)r->stride + (size_t)first;
            for (int block = 0; block < see->blocks; block++) {
                NAME(all_sums)(see, block, x, near, see->bias + block * BLOCK_OUTPUTS, out);
                for (int quad = 0; quad < BLOCK_OUTPUTS; quad += 4) {
                    uint32_t *to = hidden + (block * BLOCK_OUTPUTS + quad) / 4 * FIELDS;
                    for (int f = 0; f < FIELDS; f++) {
                        uint32_t word = 0;
                        for (int o = 0; o < 4; o++)
                            word |= (uint32_t)NAME(bounded)(out[quad + o][f] >> n->see_shift[number], 0, 255) << 8 * o;
                        to[f] = word;
                    }
                }
            }
            const size_t at = (size_t)row * (size_t)r->stride + (size_t)first;
            for (int block = 0; block < mix->blocks; block++) {
                NAME(all_sums)(mix, block, hidden, straight, mix->bias + block * BLOCK_OUTPUTS, out);
                int16_t *trunk = r->trunk + (size_t)(block * BLOCK_OUTPUTS) * r->field + at;
                for (int o = 0; o < BLOCK_OUTPUTS; o++) {
                    int16_t *channel = trunk + (size_t)o * r->field;
                    for (int f = 0; f < FIELDS; f++)
                        channel[f] = (int16_t)NAME(bounded)(channel[f] + (out[o][f] >> n->mix_shift[number]), TRUNK_LEAST, TRUNK_MOST);
                }
                for (int q = 0; q < BLOCK_OUTPUTS / 4; q++)
                    NAME(upper)(trunk + 4 * (size_t)q * r->field, r->field, count,
                                r->next + (size_t)(block * 2 + q) * r->quad + (size_t)(row + 1) * (size_t)r->stride + (size_t)(first + 1));
            }
        }
}

static void NAME(leave)(const Corrected *t, const Room *r, int plane, const int32_t *quads) {
    const Synthesis *n = t->net;
    static const int ends[SUBBANDS] = {1, 4, 16, 64};
    const size_t fields = (size_t)t->height * (size_t)t->width;
    int32_t out[BLOCK_OUTPUTS][FIELDS];
    for (int row = 0; row < t->height; row++)
        for (int first = 0; first < t->width; first += FIELDS) {
            const int count = t->width - first < FIELDS ? t->width - first : FIELDS;
            const uint32_t *x = r->now + (size_t)(row + 1) * (size_t)r->stride + (size_t)(first + 1);
            for (int block = 0; block < n->last.blocks; block++) {
                NAME(all_sums)(&n->last, block, x, quads, n->last.bias + block * BLOCK_OUTPUTS, out);
                for (int o = 0; o < BLOCK_OUTPUTS; o++) {
                    const int c = block * BLOCK_OUTPUTS + o, subband = (c >= ends[0]) + (c >= ends[1]) + (c >= ends[2]);
                    const size_t place = ((size_t)plane * CHANNELS + (size_t)c) * fields + (size_t)row * (size_t)t->width + (size_t)first;
                    const float size = t->levels[plane * SUBBANDS + subband] ? n->size[c] : 0.0f;
                    for (int f = 0; f < count; f++) t->out[place + (size_t)f] = t->values[place + (size_t)f] + (float)out[o][f] * size;
                }
            }
        }
}

static void NAME(synthesis)(const Corrected *t, Room *r) {
    const Synthesis *n = t->net;
    const int quads = n->width / 4;
    const size_t fields = (size_t)t->height * (size_t)t->width;
    int32_t near[TAPS * WIDTH_MOST / 4], straight[WIDTH_MOST / 4], quad[WIDTH_MOST / 4];
    for (int i = 0; i < TAPS * quads; i++)
        near[i] = (int32_t)((size_t)(i % quads) * r->quad) + i / quads / 3 * r->stride + i / quads % 3;
    for (int q = 0; q < quads; q++) {
        straight[q] = q * FIELDS;
        quad[q] = (int32_t)((size_t)q * r->quad);
    }
    for (size_t i = 0; i < (size_t)quads * r->quad + 2 * FIELDS; i++) r->now[i] = r->next[i] = 0x01010101u * OFFSET;
    for (int plane = 0; plane < t->planes; plane++) {
        if (!t->chosen[plane]) {
            memcpy(t->out + (size_t)plane * CHANNELS * fields, t->values + (size_t)plane * CHANNELS * fields, CHANNELS * fields * sizeof *t->out);
            continue;
        }
        for (int row = 0; row < t->height; row++) {
            NAME(look)(t, r, plane, row);
            NAME(enter)(t, r, row);
        }
        for (int number = 0; number < n->residuals; number++) {
            NAME(residual)(t, r, number, near, straight);
            uint32_t *swap = r->now;
            r->now = r->next;
            r->next = swap;
        }
        NAME(leave)(t, r, plane, quad);
    }
}
