/* Included once for each LEVEL. */

#include "dense_body.h"

/* LOUD_PER_OCTAVE log2(1 + |x|), from the float's own bits. */
INLINE int32_t NAME(loudness)(float x) {
    union {
        float real;
        int32_t bits;
    } one = {__builtin_fabsf(x) + 1.0f};
    int32_t octaves = (one.bits >> 15) - (127 << 8), rest = octaves & 255;
    octaves += rest * (256 - rest) * 88 >> 16;
    return (octaves * LOUD_PER_OCTAVE + 128) >> 8;
}

INLINE uint32_t NAME(turned)(float x) {
    int32_t loud = (NAME(loudness)(x) + 1) >> 1;
    return (uint32_t)(OFFSET + (x < 0 ? -loud : loud));
}

/* What is heard of one plane, channels (64, height, width). */
static void NAME(listen)(const float *plane, const uint8_t *levels, int height, int width, const Bordered *to) {
    const size_t fields = (size_t)height * (size_t)width;
    for (int q = 0; q < CHANNELS / 4; q++) {
        const float *a = plane + 4 * (size_t)q * fields, *b = a + fields, *c = b + fields, *d = c + fields;
        for (int row = 0; row < height; row++, a += width, b += width, c += width, d += width) {
            uint32_t *out = to->quads + (size_t)q * to->size + (size_t)(row + 1) * (size_t)to->stride + 1;
            for (int i = 0; i < width; i++)
                out[i] = (uint32_t)NAME(loudness)(a[i]) | (uint32_t)NAME(loudness)(b[i]) << 8 |
                         (uint32_t)NAME(loudness)(c[i]) << 16 | (uint32_t)NAME(loudness)(d[i]) << 24;
        }
    }
    uint32_t *signs = to->quads + CHANNELS / 4 * to->size, *constant = signs + to->size, word = 0;
    for (int k = 0; k < SUBBANDS; k++) word |= (uint32_t)(OFFSET - LEVEL_ZERO + levels[k]) << 8 * k;
    for (size_t i = 0; i < 2 * to->size; i++) signs[i] = 0x01010101u * OFFSET;
    const float *a = plane, *b = a + fields, *c = b + fields, *d = c + fields;
    for (int row = 0; row < height; row++, a += width, b += width, c += width, d += width) {
        const size_t at = (size_t)(row + 1) * (size_t)to->stride + 1;
        for (int i = 0; i < width; i++) {
            signs[at + (size_t)i] = NAME(turned)(a[i]) | NAME(turned)(b[i]) << 8 | NAME(turned)(c[i]) << 16 | NAME(turned)(d[i]) << 24;
            constant[at + (size_t)i] = word;
        }
    }
}

/* Fields from `first` on of a layer with stride 2, or 1 without neighbours: into words, tap by tap. */
INLINE void NAME(unroll)(const Bordered *from, int words, int taps, int first, int count, int width, uint32_t *packed) {
    const int stride = taps > 1 ? 2 : 1;
    size_t base[FIELDS];
    for (int f = 0; f < FIELDS; f++) { /* those beyond the last repeat it */
        int field = first + (f < count ? f : count - 1), row = field / width, col = field % width;
        base[f] = taps > 1 ? (size_t)(stride * row) * (size_t)from->stride + (size_t)(stride * col)
                           : (size_t)(row + 1) * (size_t)from->stride + (size_t)(col + 1);
    }
    int even = width % 16 == 0 && count == FIELDS;
    for (int k = 0; k < taps; k++) {
        const size_t shift = (size_t)(k / 3) * (size_t)from->stride + (size_t)(k % 3);
        for (int q = 0; q < words; q++, packed += FIELDS) {
            const uint32_t *source = from->quads + (size_t)q * from->size + shift;
            if (even && stride == 2)
                for (int part = 0; part < FIELDS; part += 16) {
                    const uint32_t *run = source + base[part];
                    for (int i = 0; i < 16; i++) packed[part + i] = run[2 * i];
                }
            else
                for (int f = 0; f < FIELDS; f++) packed[f] = source[base[f]];
        }
    }
}

/* A layer of (height, width) results, in quads again. */
static void NAME(hidden)(const Dense *d, int shift, const Bordered *from, int channels, int height, int width,
                         const int32_t *at, uint32_t *packed, const Bordered *to) {
    int32_t out[BLOCK_OUTPUTS][FIELDS];
    const int fields = height * width;
    for (int first = 0; first < fields; first += FIELDS) {
        const int count = fields - first < FIELDS ? fields - first : FIELDS;
        NAME(unroll)(from, (channels + 3) / 4, TAPS, first, count, width, packed);
        for (int block = 0; block < d->blocks; block++) {
            NAME(all_sums)(d, block, packed, at, d->bias + block * BLOCK_OUTPUTS, out);
            for (int quad = 0; quad < BLOCK_OUTPUTS && block * BLOCK_OUTPUTS + quad < d->outputs; quad += 4) {
                uint32_t *into = to->quads + (size_t)(block * BLOCK_OUTPUTS + quad) / 4 * to->size, words[FIELDS];
                for (int f = 0; f < FIELDS; f++) {
                    words[f] = 0;
                    for (int o = 0; o < 4; o++)
                        words[f] |= (uint32_t)NAME(bounded)(out[quad + o][f] >> shift, 0, 255) << 8 * o;
                }
                for (int f = 0; f < count; f++)
                    into[(size_t)((first + f) / width + 1) * (size_t)to->stride + (size_t)((first + f) % width + 1)] = words[f];
            }
        }
    }
}

static void NAME(hyper)(const Heard *t, const Bordered *loud, const Bordered *half, const Bordered *quarter, uint32_t *packed) {
    const Hyper *n = t->net;
    const int high = t->height / 4, wide = t->width / 4, fields = high * wide;
    int32_t at[GROUPS_MOST];
    for (int g = 0; g < GROUPS_MOST; g++) at[g] = g * FIELDS;
    int32_t out[BLOCK_OUTPUTS][FIELDS], *to = t->out;
    for (int plane = 0; plane < t->count; plane++, to += n->last.outputs * fields) {
        NAME(listen)(t->planes + (size_t)plane * CHANNELS * (size_t)(t->height * t->width), t->levels + plane * SUBBANDS,
                     t->height, t->width, loud);
        NAME(hidden)(&n->first, n->shift[0], loud, HEARD, 2 * high, 2 * wide, at, packed, half);
        NAME(hidden)(&n->second, n->shift[1], half, n->first.outputs, high, wide, at, packed, quarter);
        for (int first = 0; first < fields; first += FIELDS) {
            const int count = fields - first < FIELDS ? fields - first : FIELDS;
            NAME(unroll)(quarter, (n->second.outputs + 3) / 4, 1, first, count, wide, packed);
            for (int block = 0; block < n->last.blocks; block++) {
                NAME(all_sums)(&n->last, block, packed, at, n->last.bias + block * BLOCK_OUTPUTS, out);
                for (int o = 0; o < BLOCK_OUTPUTS && block * BLOCK_OUTPUTS + o < n->last.outputs; o++)
                    for (int f = 0; f < count; f++)
                        to[(block * BLOCK_OUTPUTS + o) * fields + first + f] =
                            NAME(bounded)(out[o][f] >> n->shift[2], -n->most, n->most);
            }
        }
    }
}
