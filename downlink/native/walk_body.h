/* The walk through a tile: downlink/walk.py for one tile, its guides inside. Included once for each LEVEL. */

#include "dense_body.h"

/* ---- layers */

/* Groups of inputs, of `groups`, that are not zero in all of FIELDS fields. */
INLINE int NAME(active)(const uint32_t *x, int groups, size_t stride, uint16_t *list, int32_t *at) {
    int count = 0;
    for (int g = 0; g < groups; g++) {
        const uint32_t *fields = x + (size_t)g * stride;
#if LEVEL == LEVEL_AVX512
        __m512i any = _mm512_or_si512(_mm512_loadu_si512(fields), _mm512_loadu_si512(fields + 16));
        int some = _mm512_test_epi32_mask(any, any) != 0;
#else
        uint32_t any = 0;
        for (int f = 0; f < FIELDS; f++) any |= fields[f];
        int some = any != 0;
#endif
        list[count] = (uint16_t)g;
        at[count] = (int32_t)((size_t)g * stride);
        count += some;
    }
    return count;
}

/* A layer whose outputs, clipped to 0 … 255, are inputs again. */
INLINE void NAME(layer)(const Dense *d, const int32_t *bias, const uint32_t *x, const int32_t *at, const uint16_t *list,
                        int count, uint32_t *to, size_t stride) {
    int32_t out[BLOCK_OUTPUTS][FIELDS];
    for (int block = 0; block < d->blocks; block++) {
        NAME(sums)(d, block, x, at, list, count, bias + block * BLOCK_OUTPUTS, out);
        for (int quad = 0; quad < BLOCK_OUTPUTS; quad += 4, to += stride)
            for (int f = 0; f < FIELDS; f++) {
                uint32_t word = 0;
                for (int o = 0; o < 4; o++)
                    word |= (uint32_t)NAME(bounded)(out[quad + o][f] >> 6, 0, 255) << 8 * o;
                to[f] = word;
            }
    }
}

/* A layer whose first `bytes` outputs are clipped to 0 … `most`, the others to ± MEAN_MOST. */
INLINE void NAME(outputs)(const Dense *d, const int32_t *bias, const uint32_t *x, const int32_t *at, const uint16_t *list,
                          int count, int bytes, int32_t most, uint8_t *to, size_t to_stride, int32_t *rest) {
    int32_t out[BLOCK_OUTPUTS][FIELDS];
    for (int block = 0; block < d->blocks; block++) {
        NAME(sums)(d, block, x, at, list, count, bias + block * BLOCK_OUTPUTS, out);
        for (int o = 0; o < BLOCK_OUTPUTS; o++) {
            int number = block * BLOCK_OUTPUTS + o;
            if (number >= d->outputs) return;
            if (number < bytes) {
                uint8_t *row = to + (size_t)number * to_stride;
                for (int f = 0; f < FIELDS; f++) row[f] = (uint8_t)NAME(bounded)(out[o][f] >> 6, 0, most);
            } else {
                int32_t *row = rest + (size_t)(number - bytes) * to_stride;
                for (int f = 0; f < FIELDS; f++) row[f] = NAME(bounded)(out[o][f] >> 6, -MEAN_MOST, MEAN_MOST);
            }
        }
    }
}

/* ---- contexts */

/* 3 x 3 binomial averages of quarters, channel by channel. */
static void NAME(smooth)(const Shape *s, const uint8_t *restrict from, uint8_t *restrict to, int channels) {
    const int size = (int)s->size, stride = s->stride, last = (s->rows + 1) * stride;
    uint16_t across[4][QUARTER_MOST];
    for (int c = 0; c < channels; c++, from += 4 * size, to += 4 * size) {
        int any = 0;
        for (int i = 0; i < 4 * size; i++) any |= from[i];
        if (!any) {
            memset(to, 0, 4 * (size_t)size);
            continue;
        }
        for (int odd_row = 0; odd_row < 2; odd_row++) { /* even rows are A and C0, odd ones C1 and B */
            const uint8_t *even = from + (odd_row ? C1 : A) * size, *odd = from + (odd_row ? B : C0) * size;
            uint16_t *e = across[odd_row ? C1 : A], *o = across[odd_row ? B : C0];
            e[0] = o[0] = 0;
            for (int i = 1; i < last + stride; i++) {
                e[i] = (uint16_t)(odd[i - 1] + 2 * even[i] + odd[i]);
                o[i] = (uint16_t)(even[i] + 2 * odd[i] + even[i + 1]);
            }
        }
        for (int odd_column = 0; odd_column < 2; odd_column++) {
            const uint16_t *even = across[odd_column ? C0 : A], *odd = across[odd_column ? B : C1];
            uint8_t *e = to + (odd_column ? C0 : A) * size, *o = to + (odd_column ? B : C1) * size;
            for (int i = stride; i < last; i++) {
                e[i] = (uint8_t)((odd[i - stride] + 2 * even[i] + odd[i]) >> 4);
                o[i] = (uint8_t)((even[i] + 2 * odd[i] + even[i + stride]) >> 4);
            }
        }
    }
}

INLINE void NAME(average)(const uint8_t *a, const uint8_t *b, const uint8_t *c, const uint8_t *d, uint8_t *restrict to,
                          int count) {
    for (int i = 0; i < count; i++) to[i] = (uint8_t)((a[i] + b[i] + c[i] + d[i]) >> 2);
}

/* What neighbours of earlier phases hold, on average: into the quarters of the phase. */
static void NAME(around)(const Shape *s, const uint8_t *own, uint8_t *to, int channels, int phase) {
    const size_t size = s->size;
    const int stride = s->stride, count = s->rows * stride;
    for (int c = 0; c < channels; c++, own += 4 * size, to += 4 * size) {
        const uint8_t *a = own + A * size + stride, *b = own + B * size + stride;
        if (phase == 1)
            NAME(average)(a, a + 1, a + stride, a + stride + 1, to + B * size + stride, count);
        else {
            NAME(average)(a, a + stride, b - 1, b, to + C1 * size + stride, count);
            NAME(average)(a, a + 1, b - stride, b, to + C0 * size + stride, count);
        }
    }
}

/* Energy of the plane that follows. */
static void NAME(decay)(uint8_t *restrict energy, const uint8_t *restrict own, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint8_t before = energy[i] > DECAY ? (uint8_t)(energy[i] - DECAY) : 0;
        energy[i] = before > own[i] ? before : own[i];
    }
}

/* Four rows of a phase's fields, in words. Rows are quarters, or straight in the order of the fields. */
INLINE void NAME(pack)(const Phase *p, const uint8_t *const *rows, const int *straight, size_t size,
                       uint32_t *restrict to) {
    for (int r = 0; r < p->runs; r++) {
        const Run *run = p->run + r;
        const uint8_t *from[4];
        for (int k = 0; k < 4; k++)
            from[k] = rows[k] + (straight[k] ? (size_t)run->at : (size_t)run->quarter * size + (size_t)run->offset);
        const uint8_t *a = from[0], *b = from[1], *c = from[2], *d = from[3];
        uint32_t *out = to + run->at;
        if (run->length == 16)
            for (int i = 0; i < 16; i++)
                out[i] = a[i] | (uint32_t)b[i] << 8 | (uint32_t)c[i] << 16 | (uint32_t)d[i] << 24;
        else
            for (int i = 0; i < run->length; i++)
                out[i] = a[i] | (uint32_t)b[i] << 8 | (uint32_t)c[i] << 16 | (uint32_t)d[i] << 24;
    }
    for (int f = p->fields; f < p->padded; f++) to[f] = 0;
}

/* Features of the hyper-latents of one plane. */
static void NAME(hear)(Walk *w, int plane) {
    const Model *m = w->m;
    const int high = w->small.height, wide = w->small.width, fields = high * wide, latents = m->hyper_latents;
    const int32_t *hyper = w->t->hyper + (size_t)plane * (size_t)(latents * fields);
    uint8_t *coarse = w->coarse + (size_t)plane * (size_t)m->coarse * 4 * w->small.size;
    uint8_t *fine = w->fine + (size_t)plane * (size_t)m->fine * 4 * w->full.size;
    const int padded = (fields + FIELDS - 1) / FIELDS * FIELDS;
    uint32_t *x = w->packed, *seen = x + (size_t)m->spread.groups * (size_t)padded;
    uint8_t *rows = w->rows; /* neighbours of every field, one row each: hyper-latents are offset by 128 */
    memset(rows, 128, (size_t)m->spread.groups * 4 * (size_t)padded);
    for (int c = 0; c < latents; c++)
        for (int k = 0; k < 9; k++) {
            const int down = k / 3 - 1, right = k % 3 - 1, first = right < 0, last = right > 0 ? wide - 1 : wide;
            uint8_t *out = rows + (size_t)(c * 9 + k) * (size_t)padded;
            for (int row = down < 0; row < (down > 0 ? high - 1 : high); row++) {
                const int32_t *from = hyper + c * fields + (row + down) * wide + right;
                for (int col = first; col < last; col++) out[row * wide + col] = (uint8_t)(128 + from[col]);
            }
        }
    for (int g = 0; g < m->spread.groups; g++) {
        const uint8_t *a = rows + 4 * g * padded, *b = a + padded, *c = b + padded, *d = c + padded;
        for (int f = 0; f < padded; f++)
            x[g * padded + f] = a[f] | (uint32_t)b[f] << 8 | (uint32_t)c[f] << 16 | (uint32_t)d[f] << 24;
    }
    uint16_t list[ENTRIES];
    int32_t at[ENTRIES];
    for (int g = 0; g < ENTRIES; g++) {
        list[g] = (uint16_t)g;
        at[g] = (int32_t)(g * padded);
    }
    int32_t out[BLOCK_OUTPUTS][FIELDS];
    for (int f = 0; f < padded; f += FIELDS)
        for (int block = 0; block < m->spread.blocks; block++) {
            NAME(sums)(&m->spread, block, x + f, at, list, m->spread.groups,
                       m->spread.bias + block * BLOCK_OUTPUTS, out);
            for (int o = 0; o < BLOCK_OUTPUTS; o++) {
                int32_t bias = m->spread_bias[block * BLOCK_OUTPUTS + o];
                uint8_t *to = rows + (size_t)(block * BLOCK_OUTPUTS + o) * (size_t)padded + f;
                for (int i = 0; i < FIELDS; i++) to[i] = (uint8_t)NAME(bounded)((8 * out[o][i] + bias) >> 6, 0, 255);
            }
        }
    for (int o = m->coarse; o < 4 * m->unfold.groups; o++) memset(rows + o * padded, 0, (size_t)padded);
    for (int g = 0; g < m->unfold.groups; g++) {
        const uint8_t *a = rows + 4 * g * padded, *b = a + padded, *c = b + padded, *d = c + padded;
        for (int f = 0; f < padded; f++)
            seen[g * padded + f] = a[f] | (uint32_t)b[f] << 8 | (uint32_t)c[f] << 16 | (uint32_t)d[f] << 24;
    }
    for (int o = 0; o < m->coarse; o++)
        for (int row = 0; row < high; row++)
            for (int col = 0; col < wide; col++) {
                int quarter = (row & 1 ? C1 : A) + (col & 1 ? C0 : 0); /* A + C0 = C0, C1 + C0 = B */
                coarse[((size_t)o * 4 + (size_t)quarter) * w->small.size +
                       (size_t)((row / 2 + 1) * w->small.stride + col / 2)] = rows[o * padded + row * wide + col];
            }
    for (int block = 0; block < m->unfold.blocks; block += 2) {
        /* sixteen outputs, which are a feature's 4 x 4 fields to each coarse one */
        for (int f = 0; f < padded; f += FIELDS)
            for (int half = 0; half < 2; half++) {
                NAME(sums)(&m->unfold, block + half, seen + f, at, list, m->unfold.groups,
                           m->unfold.bias + (block + half) * BLOCK_OUTPUTS, out);
                for (int o = 0; o < BLOCK_OUTPUTS; o++)
                    for (int i = 0; i < FIELDS; i++)
                        rows[(half * BLOCK_OUTPUTS + o) * padded + f + i] =
                            (uint8_t)NAME(bounded)(out[o][i] >> 6, 0, 255);
            }
        uint8_t *quarters = fine + (size_t)(block / 2) * 4 * w->full.size;
        for (int i = 0; i < 4; i++)
            for (int odd = 0; odd < 2; odd++)
                for (int row = 0; row < high; row++) {
                    const uint8_t *left = rows + (4 * i + odd) * padded + row * wide, *right = left + 2 * padded;
                    uint8_t *to = quarters + (size_t)((i & 1 ? C1 : A) + (odd ? C0 : 0)) * w->full.size +
                                  (2 * row + i / 2 + 1) * w->full.stride;
                    if (wide == 8)
                        for (int col = 0; col < 8; col++) to[2 * col] = left[col], to[2 * col + 1] = right[col];
                    else
                        for (int col = 0; col < wide; col++) to[2 * col] = left[col], to[2 * col + 1] = right[col];
                }
    }
}

/* What neighbours predict of the root's first channel: `beside` (two rows) and `predicted`. */
static void NAME(near)(Walk *w, int plane, int phase) {
    const Phase *p = w->phase[0] + phase;
    const int high = w->small.height, wide = w->small.width;
    const int32_t *root = w->root + (size_t)plane * ROOT_CHANNELS * (size_t)(high * wide);
    const int moves[2][4][2] = {{{-1, -1}, {-1, 1}, {1, -1}, {1, 1}}, {{-1, 0}, {1, 0}, {0, -1}, {0, 1}}};
    for (int r = 0; r < p->runs; r++)
        for (int i = 0; i < p->run[r].length; i++) {
            int place = p->run[r].natural + 2 * i, row = place / wide, col = place % wide, at = p->run[r].at + i;
            int64_t total = 0;
            int32_t count = 0, least = NEAR_LIMIT, most = -NEAR_LIMIT;
            for (int k = 0; phase && k < 4; k++) {
                int y = row + moves[phase - 1][k][0], x = col + moves[phase - 1][k][1];
                if (y < 0 || y >= high || x < 0 || x >= wide) continue;
                int32_t value = clip(root[y * wide + x], NEAR_LIMIT / 8);
                total += value;
                least = value < least ? value : least;
                most = value > most ? value : most;
                count++;
            }
            int64_t eighths = 8 * total, average = 0;
            if (count) {
                average = eighths / count;
                if (average * count > eighths) average--; /* floor */
            }
            w->predicted[at] = (int32_t)average;
            w->beside[at] = (uint8_t)(128 + companded(w->m, average >> 3));
            w->beside[p->padded + at] = (uint8_t)(128 + (count ? companded(w->m, (int64_t)most - least) : 0));
        }
}

/* What slopes of block means predict of subband 1. */
static void NAME(slope)(Walk *w, int plane, int phase) {
    const Phase *p = w->phase[1] + phase;
    const size_t fields = (size_t)w->full.height * (size_t)w->full.width;
    for (int k = 0; k < 2; k++) {
        const int32_t *toward = w->toward + ((size_t)plane * 2 + (size_t)k) * fields;
        for (int r = 0; r < p->runs; r++)
            for (int i = 0; i < p->run[r].length; i++) {
                int32_t value = toward[p->run[r].natural + 2 * i];
                int at = k * p->padded + p->run[r].at + i;
                w->predicted[at] = -value;
                w->beside[at] = (uint8_t)(128 + companded(w->m, value >> 3));
            }
    }
}

/* Scale indices, and means where the subband has some, of a stop. */
static void NAME(expect)(Walk *w, int group, int plane, int phase) {
    const Model *m = w->m;
    const Net *net = m->nets + group;
    const Shape *s = group ? &w->full : &w->small;
    const Phase *p = w->phase[group > 0] + phase;
    const int channels = CHANNELS_OF[group], earlier = FIRST_OF[group] * (group > 0);
    const size_t quarters = 4 * s->size, padded = (size_t)p->padded;
    const uint8_t *rows[CHANNELS_MOST * 3 + EARLIER * 2 + 2 + ENTRIES + 8];
    int straight[sizeof rows / sizeof *rows], count = 0;
    memset(straight, 0, sizeof straight);
    if (phase) NAME(around)(s, w->own, w->around, channels, phase);
    for (int c = 0; c < channels; c++) rows[count++] = w->energy + (size_t)c * quarters;
    for (int c = 0; c < channels; c++) rows[count++] = w->smooth + (size_t)c * quarters;
    for (int c = 0; c < channels; c++) rows[count++] = phase ? w->around + (size_t)c * quarters : w->zeros;
    for (int c = 0; c < earlier; c++) rows[count++] = w->earlier + ((size_t)plane * EARLIER + (size_t)c) * quarters;
    for (int c = 0; c < earlier; c++) rows[count++] = w->smoothed + ((size_t)plane * EARLIER + (size_t)c) * quarters;
    while (count % 4) rows[count++] = w->zeros;
    const int front = count / 4;
    if (group < 2)
        for (int k = 0; k < 2; k++) {
            straight[count] = 1;
            rows[count++] = w->beside + (size_t)k * padded;
        }
    const int features = group ? m->fine : m->coarse;
    const uint8_t *feature = group ? w->fine : w->coarse;
    for (int c = 0; c < features; c++) rows[count++] = feature + ((size_t)plane * (size_t)features + (size_t)c) * quarters;
    while (count % 4) rows[count++] = w->zeros;
    const int groups = count / 4; /* = net->first.groups */
    for (int g = 0; g < groups; g++)
        NAME(pack)(p, rows + 4 * g, straight + 4 * g, s->size, w->packed + (size_t)g * padded);

    int32_t first_bias[ENTRIES], head_bias[ENTRIES];
    const uint8_t *levels = w->t->levels + plane * SUBBANDS;
    const int32_t constant[6] = {phase == 1 ? FLAG : 0, phase == 2 ? FLAG : 0, levels[0], levels[1], levels[2], levels[3]};
    for (int o = 0; o < net->first.blocks * BLOCK_OUTPUTS; o++) {
        first_bias[o] = net->first.bias[o];
        for (int k = 0; k < 6; k++) first_bias[o] += net->first_flags[o * 6 + k] * constant[k];
    }
    for (int o = 0; o < net->head.blocks * BLOCK_OUTPUTS; o++) {
        head_bias[o] = net->head.bias[o];
        for (int k = 0; k < 6; k++) head_bias[o] += net->head_flags[o * 6 + k] * constant[k];
    }
    uint16_t list[ENTRIES];
    int32_t at[ENTRIES];
    uint32_t *hidden = w->packed + (size_t)groups * padded, *seen = w->packed + (size_t)front * padded;
    for (int f = 0; f < p->padded; f += FIELDS) {
        int some = NAME(active)(w->packed + f, groups, padded, list, at);
        NAME(layer)(&net->first, first_bias, w->packed + f, at, list, some, hidden + f, padded);
        some = NAME(active)(seen + f, net->head.groups, padded, list, at);
        NAME(outputs)(&net->head, head_bias, seen + f, at, list, some, channels, INDEX_MOST, w->index + f, padded,
                      w->rest + f);
    }
    const int means = MEANS_OF[group], shift = group ? 7 : 4;
    for (int c = 0; c < means; c++)
        for (int f = 0; f < p->fields; f++) {
            int64_t mean = w->rest[(size_t)c * padded + (size_t)f];
            if (c < PREDICTED_OF[group]) {
                int32_t trust = NAME(bounded)(w->rest[(size_t)(means + c) * padded + (size_t)f], 0, TRUST_MOST);
                mean += (int64_t)w->predicted[(size_t)c * padded + (size_t)f] * trust >> shift;
            }
            w->mean[(size_t)c * padded + (size_t)f] = (int32_t)mean;
        }
}

INLINE uint64_t NAME(eight)(const uint8_t *bytes) {
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
    return word;
}

/* ---- guides: who knows the symbols of a stop. They fill `own` (zeros before), and the root. */

/* What becomes of the symbols of a channel that are not zero: magnitudes, and their places in the grid. */
INLINE void NAME(keep)(const Walk *w, uint8_t *own, const Phase *p, int f, int32_t q, int32_t *whole, float *value) {
    own[p->quarters[f]] = (uint8_t)magnitude(w->m, q);
    if (whole) whole[p->natural[f]] = q;
    if (value) value[p->natural[f]] = (float)q;
}

INLINE void NAME(gather)(const Phase *p, const float *from, float *restrict to) {
    for (int r = 0; r < p->runs; r++) {
        const float *row = from + p->run[r].natural;
        float *out = to + p->run[r].at;
        const int length = p->run[r].length;
        if (length == 16)
            for (int i = 0; i < 16; i++) out[i] = row[2 * i];
        else
            for (int i = 0; i < length; i++) out[i] = row[2 * i];
    }
}

/* One step towards zero where that is worth it. */
INLINE int32_t NAME(lowered)(const Walk *w, int32_t q, float exact, int index, const int32_t *mean) {
    const Model *m = w->m;
    const int32_t toward = q < 0 ? -1 : 1;
    const float there = fabsf(exact);
    float bound;
    if (mean) {
        const float *costs = m->costs + ((size_t)(index << 3 | (*mean & 7)) << 8);
        int64_t v = (int64_t)q - (*mean >> 3), next = v - toward;
        float saved = costs[v > -128 && v < 128 ? v & 255 : 128] - costs[next > -128 && next < 128 ? next & 255 : 128];
        bound = (float)(q < 0 ? -q : q) + (saved * w->t->price - 1.0f) / 2.0f;
    } else
        bound = w->t->bounds[(size_t)index << 8 | (size_t)(q > -128 && q < 128 ? q & 255 : 128)];
    return there < bound ? q - toward : q;
}

#if LEVEL == LEVEL_AVX512

/* Decides on and writes the symbols of a channel whose means are zero, sixteen at a time: `decide`, then `writer_put`. */
static int NAME(swift)(Walk *w, const Phase *p, const float *exact, const uint8_t *index, uint8_t *own, int32_t *whole,
                       double *error) {
    const Tile *t = w->t;
    const Model *m = w->m;
    Writer *writer = &w->writer;
    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31);
    const __m512i one = _mm512_set1_epi32(1), all = _mm512_set1_epi32(255), far = _mm512_set1_epi32(128);
    const __m512 limit = _mm512_set1_ps((float)(1 << 20)), magic = _mm512_set1_ps(12582912.0f), zone = _mm512_set1_ps(t->dead_zone);
    __m512 squares = _mm512_setzero_ps();
    __m512i bits = _mm512_setzero_si512();
    if (writer_room(writer, p->fields)) return NO_MEMORY;
    uint16_t *out = writer->entries + writer->count;
    for (int r = 0; r < p->runs; r++) {
        const int at = p->run[r].at;
        const float *row = exact + p->run[r].natural;
        const __m512 x = _mm512_permutex2var_ps(_mm512_loadu_ps(row), evens, _mm512_loadu_ps(row + 15));
        const __m512i scale = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(index + at)));
        const __m512i base = _mm512_slli_epi32(scale, 8);
        /* what is no number counts as the bound; ties to even */
        __m512 value = _mm512_min_ps(_mm512_max_ps(x, _mm512_sub_ps(_mm512_setzero_ps(), limit)), limit);
        __m512i q = _mm512_cvttps_epi32(_mm512_sub_ps(_mm512_add_ps(value, magic), magic));
        q = _mm512_maskz_mov_epi32(_mm512_cmp_ps_mask(_mm512_abs_ps(value), zone, _CMP_GE_OQ), q);
        __mmask16 some = _mm512_test_epi32_mask(q, q);
        __m512i column = _mm512_setzero_si512();
        if (some) {
            if (t->price > 0) {
                __mmask16 near = _mm512_cmplt_epi32_mask(_mm512_abs_epi32(q), far);
                column = _mm512_mask_and_epi32(far, near, q, all);
                __m512 bound = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), some, _mm512_or_si512(base, column), t->bounds, 4);
                __mmask16 lower = _mm512_mask_cmp_ps_mask(some, _mm512_abs_ps(x), bound, _CMP_LT_OQ);
                __mmask16 minus = _mm512_movepi32_mask(q);
                q = _mm512_mask_sub_epi32(q, (__mmask16)(lower & ~minus), q, one);
                q = _mm512_mask_add_epi32(q, lower & minus, q, one);
                some = _mm512_test_epi32_mask(q, q);
            }
            __mmask16 near = _mm512_cmplt_epi32_mask(_mm512_abs_epi32(q), far);
            column = _mm512_mask_and_epi32(far, near, q, all);
            int32_t found[16];
            _mm512_storeu_si512(found, q);
            for (unsigned left = some; left; left &= left - 1) {
                const int i = __builtin_ctz(left);
                NAME(keep)(w, own, p, at + i, found[i], whole, NULL);
            }
        }
        if (t->measures) {
            const __m512 off = _mm512_sub_ps(x, _mm512_cvtepi32_ps(q));
            squares = _mm512_add_ps(squares, _mm512_mul_ps(off, off));
        }
        const __mmask16 certain = _mm512_testn_epi32_mask(scale, scale);
        if (certain == 0xFFFF && !some) {
            writer->certain += 16;
            continue;
        }
        const __m512i code = _mm512_and_si512(_mm512_i32gather_epi32(_mm512_or_si512(base, column), m->plain, 2), _mm512_set1_epi32(0xFFFF));
        if (_mm512_cmpeq_epi32_mask(code, _mm512_set1_epi32(RARE))) {
            int32_t found[16];
            _mm512_storeu_si512(found, q);
            writer->count = (size_t)(out - writer->entries);
            if (writer_put(writer, found, index + at, NULL, 16) || writer_room(writer, p->fields)) return NO_MEMORY;
            out = writer->entries + writer->count;
            continue;
        }
        const __mmask16 sent = _mm512_cmpneq_epi32_mask(code, _mm512_set1_epi32(CERTAIN));
        _mm256_storeu_si256((__m256i *)out, _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(sent, code)));
        out += __builtin_popcount(sent);
        writer->certain += (uint32_t)__builtin_popcount(certain);
        if (!t->measures) continue;
        const __m512i each = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), sent, code, m->entry_bits, 4);
        bits = _mm512_add_epi64(bits, _mm512_add_epi64(_mm512_and_si512(each, _mm512_set1_epi64(0xFFFFFFFF)), _mm512_srli_epi64(each, 32)));
    }
    writer->count = (size_t)(out - writer->entries);
    writer->bits += (uint64_t)_mm512_reduce_add_epi64(bits);
    float lanes[16];
    _mm512_storeu_ps(lanes, squares);
    for (int k = 0; t->measures && k < 16; k++) *error += (double)lanes[k];
    return FINE;
}

#endif

static int NAME(decide)(Walk *w, int group, int plane, int phase) {
    Tile *t = w->t;
    const Shape *s = group ? &w->full : &w->small;
    const Phase *p = w->phase[group > 0] + phase;
    const size_t fields = (size_t)s->height * (size_t)s->width, padded = (size_t)p->padded;
    const int channels = CHANNELS_OF[group], count = p->fields;
    const float *exact = group ? t->exact + ((size_t)plane * CHANNELS + (size_t)FIRST_OF[group]) * fields
                               : t->exact_root + (size_t)plane * ROOT_CHANNELS * fields;
    const float magic = 12582912.0f, zone = t->dead_zone, limit = (float)(1 << 20);
    double error = 0;
    for (int c = 0; c < channels; c++, exact += fields) {
        const uint8_t *index = w->index + (size_t)c * padded;
        const int32_t *mean = c < MEANS_OF[group] ? w->mean + (size_t)c * padded : NULL;
#if LEVEL == LEVEL_AVX512
        if (!mean && p->even) {
            uint8_t *own = w->own + (size_t)c * 4 * s->size;
            int32_t *whole = group ? t->latent_out : w->root;
            if (whole) whole += ((size_t)plane * (group ? CHANNELS : ROOT_CHANNELS) + (size_t)(group ? FIRST_OF[group] + c : c)) * fields;
            if (NAME(swift)(w, p, exact, index, own, whole, &error)) return NO_MEMORY;
            continue;
        }
#endif
        int32_t *restrict q = w->values;
        uint8_t *restrict some = w->some;
        float *x = w->exact;
        NAME(gather)(p, exact, x);
        int32_t any = 0;
        for (int f = 0; f < count; f++) {
            float value = x[f] > -limit ? x[f] : -limit; /* what is no number counts as the bound */
            value = value < limit ? value : limit;
            float nearest = (value + magic) - magic; /* ties to even */
            nearest = fabsf(value) < zone ? 0.0f : nearest;
            q[f] = (int32_t)nearest;
            any |= q[f];
        }
        if (any) {
            for (int f = 0; f < count; f++) some[f] = q[f] != 0;
            memset(some + count, 0, 8);
            uint8_t *own = w->own + (size_t)c * 4 * s->size;
            int32_t *whole = NULL;
            if (!group) whole = w->root + ((size_t)plane * ROOT_CHANNELS + (size_t)c) * fields;
            if (group && t->latent_out)
                whole = t->latent_out + ((size_t)plane * CHANNELS + (size_t)(FIRST_OF[group] + c)) * fields;
            for (int first = 0; first < count; first += 8) {
                if (!NAME(eight)(some + first)) continue;
                for (int f = first; f < first + 8; f++) {
                    if (!some[f]) continue;
                    if (t->price > 0) q[f] = NAME(lowered)(w, q[f], x[f], index[f], mean ? mean + f : NULL);
                    if (q[f]) NAME(keep)(w, own, p, f, q[f], whole, NULL);
                }
            }
        }
        if (t->measures) {
            float squares[16] = {0};
            for (int f = 0; f < count; f++) {
                float off = x[f] - (float)q[f];
                squares[f & 15] += off * off;
            }
            for (int k = 0; k < 16; k++) error += (double)squares[k];
        }
        if (writer_put(&w->writer, any ? q : NULL, index, mean, count)) return NO_MEMORY;
    }
    t->error += error;
    return writer_end_segment(&w->writer);
}

static int NAME(read)(Walk *w, int group, int plane, int phase) {
    Tile *t = w->t;
    const Shape *s = group ? &w->full : &w->small;
    const Phase *p = w->phase[group > 0] + phase;
    const size_t fields = (size_t)s->height * (size_t)s->width, padded = (size_t)p->padded;
    const int channels = CHANNELS_OF[group], means = MEANS_OF[group];
    float *out = group ? t->value + ((size_t)plane * CHANNELS + (size_t)FIRST_OF[group]) * fields
                       : t->root_value + (size_t)plane * ROOT_CHANNELS * fields;
    if (!w->reading) { /* the prior's means stand for what is not there, and contexts see zeros */
        for (int c = 0; c < means; c++)
            for (int f = 0; f < p->fields; f++)
                out[(size_t)c * fields + p->natural[f]] = (float)w->mean[(size_t)c * padded + (size_t)f] * 0.125f;
        return FINE;
    }
    int result = reader_take(&w->reader, w->index, w->mean, means, channels, p->fields, p->padded, w->values);
    if (result) return result;
    for (int c = 0; c < channels; c++) {
        int32_t *values = w->values + (size_t)c * padded;
        int32_t *whole = group ? NULL : w->root + ((size_t)plane * ROOT_CHANNELS + (size_t)c) * fields;
        uint8_t *own = w->own + (size_t)c * 4 * s->size;
        for (int first = 0; first < p->fields; first += 8) {
            int32_t any = 0;
            for (int f = 0; f < 8; f++) any |= values[first + f]; /* there is room beyond the last */
            if (!any) continue;
            for (int f = first; f < first + 8 && f < p->fields; f++)
                if (values[f]) NAME(keep)(w, own, p, f, values[f], whole, out + (size_t)c * fields);
        }
    }
    return FINE;
}

static int NAME(follow)(Walk *w, int group, int plane, int phase) {
    Tile *t = w->t;
    const Shape *s = group ? &w->full : &w->small;
    const Phase *p = w->phase[group > 0] + phase;
    const size_t fields = (size_t)s->height * (size_t)s->width, padded = (size_t)p->padded;
    const int channels = CHANNELS_OF[group];
    const int32_t *from = group ? t->latent_in + ((size_t)plane * CHANNELS + (size_t)FIRST_OF[group]) * fields
                                : t->root_in + (size_t)plane * ROOT_CHANNELS * fields;
    for (int c = 0; c < channels; c++, from += fields) {
        const size_t at = ((size_t)plane * (size_t)channels + (size_t)c) * fields;
        int32_t *whole = group ? NULL : w->root + ((size_t)plane * ROOT_CHANNELS + (size_t)c) * fields;
        for (int f = 0; f < p->fields; f++) {
            const size_t place = p->natural[f];
            t->index_out[group][at + place] = w->index[(size_t)c * padded + (size_t)f];
            if (c < MEANS_OF[group]) t->mean_out[group][at + place] = w->mean[(size_t)c * padded + (size_t)f];
            NAME(keep)(w, w->own + (size_t)c * 4 * s->size, p, f, from[place], whole, NULL);
        }
    }
    return FINE;
}

/* ---- the way */

/* What block means say, once all are there: steepness of all planes, and T. */
static int NAME(means_known)(Walk *w) {
    const Tile *t = w->t;
    const Model *m = w->m;
    const int high = w->full.height, wide = w->full.width, fields = high * wide;
    const int small = w->small.height * w->small.width, known = t->counts[0], turned = t->counts[1];
    int32_t *slopes = calloc((size_t)t->planes * 2 * (size_t)fields + 1, sizeof *slopes);
    int32_t *mean = calloc((size_t)fields + 1, sizeof *mean);
    if (!slopes || !mean) {
        free(slopes);
        free(mean);
        return NO_MEMORY;
    }
    for (int plane = 0; plane < t->planes; plane++) {
        const int32_t *root = w->root + (size_t)plane * ROOT_CHANNELS * (size_t)small;
        int32_t most = 0;
        for (int i = 0; i < ROOT_CHANNELS * small; i++) {
            int32_t size = root[i] < 0 ? -root[i] : root[i];
            most = size > most ? size : most;
        }
        for (int place = 0; place < ROOT * ROOT; place++) {
            const int16_t *weight = m->root_integers + place * ROOT_CHANNELS;
            for (int f = 0; f < small; f++) {
                int32_t *to = mean + (f / w->small.width * ROOT + place / ROOT) * wide + f % w->small.width * ROOT + place % ROOT;
                if (most < 1 << 16) { /* 16 weights below 2^9 */
                    int32_t sum = 0;
                    for (int c = 0; c < ROOT_CHANNELS; c++) sum += weight[c] * root[c * small + f];
                    *to = clip(sum >> 7, NEAR_LIMIT);
                } else {
                    int64_t sum = 0;
                    for (int c = 0; c < ROOT_CHANNELS; c++) sum += (int64_t)weight[c] * root[c * small + f];
                    *to = clip(sum >> 7, NEAR_LIMIT);
                }
            }
        }
        int32_t *across = slopes + (size_t)plane * 2 * (size_t)fields, *down = across + fields;
        for (int row = 0; row < high; row++)
            for (int col = 0; col < wide; col++) {
                int left = col ? col - 1 : 0, right = col < wide - 1 ? col + 1 : col;
                int above = row ? row - 1 : 0, below = row < high - 1 ? row + 1 : row;
                across[row * wide + col] = mean[row * wide + right] - mean[row * wide + left];
                down[row * wide + col] = mean[below * wide + col] - mean[above * wide + col];
            }
    }
    int most = turned;
    for (int g = 2; g < SUBBANDS; g++) most = t->counts[g] > most ? t->counts[g] : most;
    for (int plane = 0; plane < most; plane++) {
        const int32_t *across = slopes + (size_t)plane * 2 * (size_t)fields, *down = across + fields;
        uint8_t *steep = w->earlier + (size_t)plane * EARLIER * 4 * w->full.size;
        for (int row = 0; row < high; row++)
            for (int col = 0; col < wide; col++) {
                int at = row * wide + col, quarter = (row & 1 ? C1 : A) + (col & 1 ? C0 : 0);
                int32_t fall = (across[at] < 0 ? -across[at] : across[at]) + (down[at] < 0 ? -down[at] : down[at]);
                steep[(size_t)quarter * w->full.size + (size_t)((row / 2 + 1) * w->full.stride + col / 2)] =
                    (uint8_t)magnitude(m, fall >> 3);
            }
        NAME(smooth)(&w->full, steep, w->smoothed + (size_t)plane * EARLIER * 4 * w->full.size, 1);
    }
    int32_t steepest = 0;
    for (int i = 0; i < known * 2 * fields; i++) {
        int32_t size = slopes[i] < 0 ? -slopes[i] : slopes[i];
        steepest = size > steepest ? size : steepest;
    }
    for (int plane = 0; plane < turned; plane++) {
        const int64_t *turn = t->turn + plane * known;
        int32_t *toward = w->toward + (size_t)plane * 2 * (size_t)fields;
        int64_t whole = 0;
        for (int other = 0; other < known; other++) whole += turn[other] < 0 ? -turn[other] : turn[other];
        if (whole * steepest < INT32_MAX) {
            for (int other = 0; other < known; other++) {
                const int32_t by = (int32_t)turn[other], *slope = slopes + (size_t)other * 2 * (size_t)fields;
                for (int i = 0; i < 2 * fields; i++) toward[i] += by * slope[i];
            }
            for (int i = 0; i < 2 * fields; i++) toward[i] = NAME(bounded)(toward[i] >> 6, -NEAR_LIMIT, NEAR_LIMIT);
        } else
            for (int i = 0; i < 2 * fields; i++) {
                int64_t sum = 0;
                for (int other = 0; other < known; other++)
                    sum += turn[other] * slopes[(size_t)other * 2 * (size_t)fields + (size_t)i];
                toward[i] = clip(sum >> 6, NEAR_LIMIT);
            }
    }
    free(slopes);
    free(mean);
    return FINE;
}

/* Hyper-latents of a block's planes, the first segment of its chunk. */
static int NAME(hyper)(Walk *w, int first, int last) {
    Tile *t = w->t;
    const int fields = w->small.height * w->small.width, latents = w->m->hyper_latents;
    uint8_t index[SIDE_MOST * SIDE_MOST / 16];
    int32_t *values = t->hyper + (size_t)first * (size_t)(latents * fields);
    size_t count = (size_t)(last - first) * (size_t)(latents * fields);
    if (t->mode == ENCODE) {
        for (int plane = first; plane < last; plane++)
            for (int c = 0; c < latents; c++, values += fields) {
                memset(index, t->hyper_index[t->levels[plane * SUBBANDS + 1] * latents + c], (size_t)fields);
                if (writer_put(&w->writer, values, index, NULL, fields)) return NO_MEMORY;
            }
        return writer_end_segment(&w->writer);
    }
    if (t->mode == FOLLOW || !w->reading) return FINE;
    uint8_t *all = malloc(count + 8);
    if (!all) return NO_MEMORY;
    for (int plane = first; plane < last; plane++)
        for (int c = 0; c < latents; c++)
            memset(all + (size_t)((plane - first) * latents + c) * (size_t)fields,
                   t->hyper_index[t->levels[plane * SUBBANDS + 1] * latents + c], (size_t)fields);
    int result = reader_take(&w->reader, all, NULL, 0, 1, (int)count, (int)count, values);
    free(all);
    if (result) return result;
    for (size_t i = 0; i < count; i++)
        if (values[i] > t->hyper_limit || values[i] < -t->hyper_limit) return REFUSED;
    return FINE;
}

static int NAME(group)(Walk *w, int group) {
    Tile *t = w->t;
    const Shape *s = group ? &w->full : &w->small;
    const int blocks = (t->planes + t->planes_per_chunk - 1) / t->planes_per_chunk, channels = CHANNELS_OF[group];
    const size_t bytes = (size_t)channels * 4 * s->size;
    int result = FINE;
    memset(w->energy, 0, bytes);
    memset(w->smooth, 0, bytes);
    for (int block = 0; block < blocks; block++) {
        const int first = block * t->planes_per_chunk, end = first + t->planes_per_chunk;
        const int last = end < t->counts[group] ? end : t->counts[group];
        const int chunk = group * blocks + block;
        if (t->mode == ENCODE) writer_start(&w->writer, w->m, t->measures);
        if (t->mode == DECODE) {
            if (t->stopped < 0 && !t->chunks[chunk]) t->stopped = chunk;
            w->reading = t->stopped < 0;
            if (w->reading && (result = reader_open(&w->reader, w->m, t->chunks[chunk], t->sizes[chunk]))) return result;
        }
        if (group == 0) {
            const int all = end < t->planes ? end : t->planes;
            if ((result = NAME(hyper)(w, first, all))) return result;
            for (int plane = first; plane < all; plane++) NAME(hear)(w, plane);
        }
        for (int plane = first; plane < last; plane++) {
            if (t->mode == DECODE && !w->reading && group > 1) break; /* nothing follows from these any more */
            memset(w->own, 0, bytes);
            if (plane) NAME(smooth)(s, w->energy, w->smooth, channels);
            for (int phase = 0; phase < 3; phase++) {
                if (!w->phase[group > 0][phase].fields) continue;
                if (group == 0) NAME(near)(w, plane, phase);
                if (group == 1) NAME(slope)(w, plane, phase);
                NAME(expect)(w, group, plane, phase);
                result = t->mode == ENCODE   ? NAME(decide)(w, group, plane, phase)
                         : t->mode == DECODE ? NAME(read)(w, group, plane, phase)
                                             : NAME(follow)(w, group, plane, phase);
                if (result) return result;
            }
            NAME(decay)(w->energy, w->own, bytes);
            if (group == 1 || group == 2) {
                const size_t at = ((size_t)plane * EARLIER + (size_t)FIRST_OF[group]) * 4 * s->size;
                memcpy(w->earlier + at, w->own, bytes);
                NAME(smooth)(s, w->own, w->smoothed + at, channels);
            }
        }
        if (t->mode == ENCODE) {
            t->coded[chunk] = (uint32_t)w->writer.count;
            if (writer_finish(&w->writer, &t->payloads, t->bits + chunk)) return NO_MEMORY;
            t->ends[chunk] = t->payloads.size;
        }
        if (t->mode == DECODE && w->reading && (result = reader_close(&w->reader))) return result;
    }
    return FINE;
}

static int NAME(go)(Walk *w) {
    for (int group = 0; group < SUBBANDS; group++) {
        int result = group == 1 ? NAME(means_known)(w) : FINE;
        if (!result) result = NAME(group)(w, group);
        if (result) return result;
    }
    if (w->t->root_out)
        memcpy(w->t->root_out, w->root,
               (size_t)w->t->planes * ROOT_CHANNELS * (size_t)(w->small.height * w->small.width) * sizeof *w->root);
    return FINE;
}
