/* Weights and tables in the forms in which the walk and the coder take them. Sizes and ranges are module.c's to check. */

#include "codec.h"

#include <stdlib.h>
#include <string.h>

static const int CHANNELS_OF[SUBBANDS] = {16, 3, 12, 48};
static const int FIRST_OF[SUBBANDS] = {0, 1, 4, 16};
static const int BESIDE[SUBBANDS] = {2, 2, 0, 0};

enum { FLAGS = 2 };

static int front_of(int group) { return 3 * CHANNELS_OF[group] + (group ? 2 * FIRST_OF[group] : 0); }

/* Inputs of the network, in the order of docs/format.md: front, flags, beside, features, levels … */
int net_inputs(int group, int features) { return front_of(group) + net_seen(group, features); }

/* … of which the head sees all but the front. */
int net_seen(int group, int features) { return FLAGS + BESIDE[group] + features + SUBBANDS; }

int dense_make(Dense *d, int groups, int outputs, const int8_t *packed, const int32_t *bias) {
    d->groups = groups;
    d->outputs = outputs;
    d->blocks = (outputs + BLOCK_OUTPUTS - 1) / BLOCK_OUTPUTS;
    size_t count = (size_t)d->blocks * (size_t)groups * BLOCK_OUTPUTS;
    d->quads = calloc(count + 1, sizeof *d->quads);
    d->pairs = calloc(2 * count + 1, sizeof *d->pairs);
    d->bias = calloc((size_t)d->blocks * BLOCK_OUTPUTS + 1, sizeof *d->bias);
    if (!d->quads || !d->pairs || !d->bias) return NO_MEMORY;
    for (int o = 0; o < outputs; o++) {
        d->bias[o] = bias[o];
        for (int g = 0; g < groups; g++) {
            const int8_t *w = packed + ((size_t)o * (size_t)groups + (size_t)g) * 4;
            size_t at = ((size_t)(o / BLOCK_OUTPUTS) * (size_t)groups + (size_t)g) * BLOCK_OUTPUTS + (size_t)(o % BLOCK_OUTPUTS);
            for (int k = 0; k < 4; k++) d->quads[at] |= (uint32_t)(uint8_t)w[k] << 8 * k;
            d->pairs[2 * at] = (uint32_t)(uint16_t)w[0] | (uint32_t)(uint16_t)w[2] << 16;
            d->pairs[2 * at + 1] = (uint32_t)(uint16_t)w[1] | (uint32_t)(uint16_t)w[3] << 16;
        }
    }
    return FINE;
}

/* Packs rows of weights: what is constant in a phase goes to `flags`, inputs that are offset change the bias. */
static int pack(Dense *d, int32_t **flags, int group, int features, int outputs, int front, int hidden, int hidden_words,
                const int8_t *from, const int32_t *bias) {
    const int seen = net_seen(group, features), beside = BESIDE[group], tail = beside + features;
    const int front_words = (front + 3) / 4, tail_words = (tail + 3) / 4;
    const int groups = front_words + tail_words + hidden_words, blocks = (outputs + BLOCK_OUTPUTS - 1) / BLOCK_OUTPUTS;
    int8_t *packed = calloc((size_t)outputs * (size_t)groups * 4, 1);
    int32_t *moved = malloc((size_t)outputs * sizeof *moved);
    *flags = calloc((size_t)blocks * BLOCK_OUTPUTS * 6, sizeof **flags);
    int result = NO_MEMORY;
    if (packed && moved && *flags) {
        for (int o = 0; o < outputs; o++) {
            const int8_t *row = from + (size_t)o * (size_t)(front + hidden + seen), *rest = row + front + hidden;
            int8_t *to = packed + (size_t)o * (size_t)groups * 4;
            memcpy(to, row, (size_t)front);
            memcpy(to + 4 * front_words, rest + FLAGS, (size_t)tail);
            memcpy(to + 4 * (front_words + tail_words), row + front, (size_t)hidden);
            moved[o] = bias[o];
            for (int k = 0; k < beside; k++) moved[o] -= OFFSET * rest[FLAGS + k];
            for (int k = 0; k < FLAGS; k++) (*flags)[o * 6 + k] = rest[k];
            for (int k = 0; k < SUBBANDS; k++) (*flags)[o * 6 + FLAGS + k] = rest[FLAGS + tail + k];
        }
        result = dense_make(d, groups, outputs, packed, moved);
    }
    free(packed);
    free(moved);
    return result;
}

int net_make(Net *net, int group, int features, const Weights *w) {
    const int words = (w->hidden + BLOCK_OUTPUTS - 1) / BLOCK_OUTPUTS * (BLOCK_OUTPUTS / 4);
    int result = pack(&net->first, &net->first_flags, group, features, w->hidden, front_of(group), 0, 0, w->first,
                      w->first_bias);
    if (!result)
        result = pack(&net->head, &net->head_flags, group, features, w->outputs, 0, w->hidden, words, w->head,
                      w->head_bias);
    return result;
}

int taps_make(Dense *d, int outputs, int channels, int taps, int offset, const int8_t *weights, const int32_t *bias) {
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

int coder_make(Model *m, const uint16_t *frequencies) {
    size_t tables = (size_t)m->tables;
    m->stepping = calloc(tables * ENTRIES, sizeof *m->stepping);
    m->decoding = calloc(tables * ENTRIES, sizeof *m->decoding);
    m->slots = calloc(tables * 256, 1);
    if (!m->stepping || !m->decoding || !m->slots) return NO_MEMORY;
    for (size_t t = 0; t < tables; t++) {
        uint32_t start = 0;
        for (uint32_t e = 0; e < ENTRIES; e++) {
            uint32_t f = frequencies[t * ENTRIES + e], some = f ? f : 1;
            Stepping *step = m->stepping + t * ENTRIES + e;
            step->reciprocal = ((1ull << 46) + some - 1) / some;
            step->limit = some << (32 - PRECISION);
            step->gap = (uint16_t)((1u << PRECISION) - some);
            step->start = (uint16_t)start;
            m->decoding[t * ENTRIES + e] = f << PRECISION | (start & ((1u << PRECISION) - 1));
            for (uint32_t slot = (start + 63) & ~63u; slot < start + f; slot += 64)
                m->slots[t * 256 + (slot >> 6)] = (uint8_t)e;
            start += f;
        }
    }
    return FINE;
}

void dense_free(Dense *d) {
    free(d->quads);
    free(d->pairs);
    free(d->bias);
}

void model_free(Model *m) {
    if (!m) return;
    dense_free(&m->spread);
    dense_free(&m->unfold);
    for (int g = 0; g < SUBBANDS; g++) {
        dense_free(&m->nets[g].first);
        dense_free(&m->nets[g].head);
        free(m->nets[g].first_flags);
        free(m->nets[g].head_flags);
    }
    void *all[] = {m->spread_bias, m->compand, m->root_integers, m->codes, m->plain, m->costs, m->table_of,
                   m->low_of, m->escape_of, m->shift_of, m->entry_bits, m->stepping, m->decoding, m->slots};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    free(m);
}
