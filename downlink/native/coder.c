/* Chunks of symbols <-> payload bytes: downlink/symbol.py and downlink/rans.py. */

#include "codec.h"

#include <stdlib.h>
#include <string.h>

enum { LANE_BITS = 20, OVERHEAD = 7, OVERHEAD_OF = 1000, NOTHING_CODED = 11, RECIPROCAL_BITS = 46 };
#define START 65536u

static int grow(void **array, size_t *space, size_t needed, size_t item) {
    if (needed <= *space) return FINE;
    size_t more = *space ? *space : 256;
    while (more < needed) more *= 2;
    void *found = realloc(*array, more * item);
    if (!found) return NO_MEMORY;
    *array = found;
    *space = more;
    return FINE;
}

int bytes_put(Bytes *b, const void *from, size_t size) {
    if (grow((void **)&b->bytes, &b->space, b->size + size, 1)) return NO_MEMORY;
    if (size) memcpy(b->bytes + b->size, from, size);
    b->size += size;
    return FINE;
}

static int put_varint(Bytes *b, uint64_t number) {
    uint8_t out[10];
    size_t n = 0;
    while (number > 0x7F) {
        out[n++] = (uint8_t)(number & 0x7F) | 0x80;
        number >>= 7;
    }
    out[n++] = (uint8_t)number;
    return bytes_put(b, out, n);
}

/* ---- bit strings, most significant bit first */

typedef struct {
    Bytes *out;
    uint64_t held;
    int bits, failed;
} BitWriter;

static void put_bits(BitWriter *b, uint32_t number, int width) {
    b->held = b->held << width | (width < 32 ? number & ((1u << width) - 1) : number);
    b->bits += width;
    while (b->bits >= 8) {
        b->bits -= 8;
        uint8_t one = (uint8_t)(b->held >> b->bits);
        if (bytes_put(b->out, &one, 1)) b->failed = 1;
    }
}

static void end_bits(BitWriter *b) {
    if (b->bits) put_bits(b, 0, 8 - b->bits);
}

/* ---- writing */

void writer_start(Writer *w, const Model *model, int measures) {
    w->model = model;
    w->measures = measures;
    w->count = w->segment_count = 0;
    w->exceptions.size = w->rest.size = w->ranks.size = 0;
    w->excepted = 0;
    w->bits = 0;
    w->certain = w->excepted_here = 0;
    w->last_rank = -1;
    w->segment_start = 0;
    w->raw_count = 0;
}

void writer_free(Writer *w) {
    free(w->entries);
    free(w->segments);
    free(w->exceptions.bytes);
    free(w->rest.bytes);
    free(w->ranks.bytes);
    free(w->raws);
    free(w->widths);
}

/* What a rare symbol says beside its entry; the entry, or CERTAIN. */
static int rare(Writer *w, int32_t value, int index, int32_t mean, uint16_t *code) {
    const Model *m = w->model;
    if (index == 0) {
        int64_t off = (int64_t)value - ((mean + 4) >> 3);
        *code = CERTAIN;
        if (off == 0) return FINE;
        uint64_t zigzag = off < 0 ? (uint64_t)(-2 * off - 1) : (uint64_t)(2 * off);
        int64_t rank = w->certain;
        if (put_varint(&w->ranks, (uint64_t)(rank - w->last_rank - 1)) || put_varint(&w->ranks, zigzag - 1))
            return NO_MEMORY;
        w->last_rank = rank;
        w->excepted_here++;
        return FINE;
    }
    int route = index << 3 | (mean & 7);
    int shift = m->shift_of[route];
    int64_t v = (int64_t)value - (mean >> 3);
    if (shift) {
        if (w->raw_count == w->raw_space) {
            size_t space = w->raw_space;
            if (grow((void **)&w->raws, &space, w->raw_count + 1, sizeof *w->raws)) return NO_MEMORY;
            space = w->raw_space;
            if (grow((void **)&w->widths, &space, w->raw_count + 1, 1)) return NO_MEMORY;
            w->raw_space = space;
        }
        w->raws[w->raw_count] = (uint32_t)(v & ((1 << shift) - 1));
        w->widths[w->raw_count++] = (uint8_t)shift;
        v >>= shift;
    }
    v -= m->low_of[route];
    int64_t escape = m->escape_of[route], entry = v;
    if (v < 0 || v >= escape) {
        entry = escape;
        if (put_varint(&w->rest, v < 0 ? (uint64_t)(-2 * v - 1) : (uint64_t)(2 * (v - escape)))) return NO_MEMORY;
    }
    *code = (uint16_t)(m->table_of[route] << 8 | entry);
    return FINE;
}

int writer_room(Writer *w, int count) {
    return grow((void **)&w->entries, &w->space, w->count + (size_t)count + 16, sizeof *w->entries);
}

static int column(int64_t v) { return v > -128 && v < 128 ? (int)(v & 255) : 128; }

int writer_put(Writer *w, const int32_t *values, const uint8_t *index, const int32_t *mean, int count) {
    const Model *m = w->model;
    if (writer_room(w, count)) return NO_MEMORY;
    uint16_t *out = w->entries + w->count;
    if (mean) {
        for (int i = 0; i < count; i++) {
            int32_t value = values ? values[i] : 0;
            uint16_t code = m->codes[(size_t)(index[i] << 3 | (mean[i] & 7)) << 8 |
                                     (size_t)column((int64_t)value - (mean[i] >> 3))];
            if (code == RARE && rare(w, value, index[i], mean[i], &code)) return NO_MEMORY;
            w->certain += index[i] == 0;
            *out = code;
            out += code != CERTAIN;
        }
    } else
        for (int first = 0; first < count; first += 8) {
            const int last = first + 8 < count ? first + 8 : count;
            if (last == first + 8) { /* most symbols of high channels are certain zeros */
                uint64_t some;
                memcpy(&some, index + first, 8);
                if (values)
                    for (int i = 0; i < 8; i++) some |= (uint64_t)(uint32_t)values[first + i];
                if (!some) {
                    w->certain += 8;
                    continue;
                }
            }
            uint32_t certain = w->certain;
            for (int i = first; i < last; i++) {
                int32_t value = values ? values[i] : 0;
                uint16_t code = m->plain[(size_t)index[i] << 8 | (size_t)column(value)];
                if (code == RARE) {
                    w->certain = certain;
                    if (rare(w, value, index[i], 0, &code)) return NO_MEMORY;
                }
                certain += index[i] == 0;
                *out = code;
                out += code != CERTAIN;
            }
            w->certain = certain;
        }
    uint64_t bits = 0;
    for (const uint16_t *entry = w->entries + w->count; w->measures && entry < out; entry++) bits += m->entry_bits[*entry];
    w->count = (size_t)(out - w->entries);
    w->bits += bits;
    return FINE;
}

int writer_end_segment(Writer *w) {
    if (grow((void **)&w->segments, &w->segment_space, w->segment_count + 1, sizeof *w->segments)) return NO_MEMORY;
    if (w->certain) {
        if (put_varint(&w->exceptions, w->excepted_here) || bytes_put(&w->exceptions, w->ranks.bytes, w->ranks.size))
            return NO_MEMORY;
        w->excepted |= w->excepted_here > 0;
    }
    if (w->raw_count) {
        BitWriter b = {&w->rest, 0, 0, 0};
        for (size_t i = 0; i < w->raw_count; i++) put_bits(&b, w->raws[i], w->widths[i]);
        end_bits(&b);
        if (b.failed) return NO_MEMORY;
    }
    w->segments[w->segment_count++] =
        (Segment){(uint32_t)(w->count - w->segment_start), w->certain, w->exceptions.size, w->rest.size};
    w->segment_start = w->count;
    w->certain = w->excepted_here = 0;
    w->last_rank = -1;
    w->ranks.size = 0;
    w->raw_count = 0;
    return FINE;
}

/* rANS over all segments, the last symbol first: words fill `words` from its end. Returns where they begin. */
static size_t encode(const Writer *w, uint32_t *state, int lanes, uint16_t *words, size_t at) {
    const Stepping *steps = w->model->stepping;
    const uint32_t mask = (uint32_t)lanes - 1;
    for (int lane = 0; lane < lanes; lane++) state[lane] = START;
    const uint16_t *end = w->entries + w->count;
    for (size_t s = w->segment_count; s-- > 0;) {
        const uint16_t *first = end - w->segments[s].entries;
        for (uint32_t i = w->segments[s].entries; i-- > 0;) {
            const Stepping *step = steps + first[i];
            uint32_t x = state[i & mask];
            uint32_t leaves = x >= step->limit;
            words[at - 1] = (uint16_t)x; /* a word of room stays free in front */
            at -= leaves;
            x = leaves ? x >> 16 : x;
            uint64_t quotient = (uint64_t)x * step->reciprocal >> RECIPROCAL_BITS;
            state[i & mask] = (uint32_t)(x + quotient * step->gap + step->start);
        }
        end = first;
    }
    return at;
}

static int reversed_side(const Writer *w, Bytes *out, size_t *length) {
    size_t exceptions = 0, rest = 0, total = w->rest.size + (w->excepted ? w->exceptions.size : 0);
    *length = total;
    if (grow((void **)&out->bytes, &out->space, out->size + total, 1)) return NO_MEMORY;
    uint8_t *at = out->bytes + out->size + total;
    for (size_t s = 0; s < w->segment_count; s++) {
        if (w->excepted)
            for (size_t i = exceptions; i < w->segments[s].exceptions; i++) *--at = w->exceptions.bytes[i];
        for (size_t i = rest; i < w->segments[s].rest; i++) *--at = w->rest.bytes[i];
        exceptions = w->segments[s].exceptions;
        rest = w->segments[s].rest;
    }
    out->size += total;
    return FINE;
}

int writer_finish(Writer *w, Bytes *out, double *bits) {
    size_t side;
    if (w->count == 0) {
        const uint8_t head = NOTHING_CODED << 4 | 1 << 3;
        if (w->excepted && bytes_put(out, &head, 1)) return NO_MEMORY;
        if (w->excepted || w->rest.size) {
            if (reversed_side(w, out, &side)) return NO_MEMORY;
        } else
            side = 0;
        *bits = 8.0 * (double)side;
        return FINE;
    }
    uint64_t affordable = (w->bits >> 16) * OVERHEAD / (OVERHEAD_OF * LANE_BITS);
    int code = 0;
    while (code < 10 && (2ull << code) <= affordable) code++;
    int lanes = 1 << code;
    uint16_t *words = malloc((w->count + 2) * sizeof *words);
    if (!words) return NO_MEMORY;
    uint32_t state[LANES_MOST];
    size_t end = w->count + 2, at = encode(w, state, lanes, words, end);
    BitWriter b = {out, 0, 0, 0};
    put_bits(&b, (uint32_t)code, 4);
    put_bits(&b, (uint32_t)w->excepted, 1);
    int extra[LANES_MOST];
    for (int lane = 0; lane < lanes; lane++) {
        extra[lane] = 0;
        while (extra[lane] < 15 && state[lane] >> (17 + extra[lane])) extra[lane]++;
        put_bits(&b, (uint32_t)extra[lane], 4);
    }
    for (int lane = 0; lane < lanes; lane++) put_bits(&b, state[lane], 16 + extra[lane]);
    end_bits(&b);
    int failed = b.failed || grow((void **)&out->bytes, &out->space, out->size + 2 * (end - at), 1);
    if (!failed) {
        uint8_t *to = out->bytes + out->size;
        for (size_t i = at; i < end; i++) {
            *to++ = (uint8_t)words[i];
            *to++ = (uint8_t)(words[i] >> 8);
        }
        out->size += 2 * (end - at);
        failed = reversed_side(w, out, &side);
    }
    free(words);
    if (failed) return NO_MEMORY;
    *bits = (double)w->bits / 65536.0 + 8.0 * (double)side;
    return FINE;
}

/* ---- reading: whatever is not as it must be is REFUSED */

static uint32_t get_bits(const uint8_t *bytes, size_t size, size_t at, int width) {
    uint64_t window = 0;
    size_t first = at >> 3;
    for (size_t i = 0; i < 5; i++) window = window << 8 | (first + i < size ? bytes[first + i] : 0);
    return (uint32_t)(window >> (40 - (at & 7) - (size_t)width) & ((1ull << width) - 1));
}

int reader_open(Reader *r, const Model *model, const uint8_t *payload, size_t size) {
    r->model = model;
    r->payload = payload;
    r->size = size;
    r->head = r->side = r->word_count = r->position = 0;
    r->lanes = r->flagged = r->excepted = 0;
    r->coded = 0;
    r->words = payload;
    if (!size) return FINE;
    int code = payload[0] >> 4;
    r->flagged = payload[0] >> 3 & 1;
    if (code > NOTHING_CODED) return REFUSED;
    size_t lanes = code < NOTHING_CODED ? (size_t)1 << code : 0, bits = 5 + 4 * lanes;
    if (bits > 8 * size) return REFUSED;
    for (size_t lane = 0; lane < lanes; lane++) {
        int extra = (int)get_bits(payload, size, 5 + 4 * lane, 4);
        if (bits + 16 + (size_t)extra > 8 * size) return REFUSED;
        r->state[lane] = (1u << (16 + extra)) + get_bits(payload, size, bits, 16 + extra);
        bits += 16 + (size_t)extra;
    }
    r->head = (bits + 7) / 8;
    if (r->head > size) return REFUSED;
    if (bits % 8 && payload[r->head - 1] & (0xFF >> bits % 8)) return REFUSED;
    r->lanes = (int)lanes;
    r->words = payload + r->head;
    r->word_count = (size - r->head) / 2;
    return FINE;
}

void reader_free(Reader *r) { free(r->escaped); }

static int side_byte(Reader *r, uint8_t *byte) {
    if (r->side >= r->size - r->head) return REFUSED;
    *byte = r->payload[r->size - ++r->side];
    return FINE;
}

static int take_varint(Reader *r, uint32_t *number) {
    *number = 0;
    for (int i = 0; i < 4; i++) {
        uint8_t byte;
        if (side_byte(r, &byte)) return REFUSED;
        *number |= (uint32_t)(byte & 0x7F) << 7 * i;
        if (byte < 0x80) return byte == 0 && i ? REFUSED : FINE;
    }
    return REFUSED;
}

static int take_exceptions(Reader *r, const uint8_t *index, int rows, int count, int stride, int32_t *values) {
    uint32_t certain = 0, wanted;
    for (int row = 0; row < rows; row++)
        for (int i = 0; i < count; i++) certain += index[row * stride + i] == 0;
    if (!certain) return FINE;
    if (take_varint(r, &wanted) || wanted > certain) return REFUSED;
    r->excepted |= wanted > 0;
    int row = 0, at = -1; /* the certain symbol that was excepted last */
    uint32_t left = certain;
    for (; wanted; wanted--) {
        uint32_t gap, zigzag;
        if (take_varint(r, &gap) || take_varint(r, &zigzag)) return REFUSED;
        if (gap >= left) return REFUSED;
        left -= gap + 1;
        for (uint64_t steps = (uint64_t)gap + 1; steps;) {
            if (++at == count) at = 0, row++;
            steps -= index[row * stride + at] == 0;
        }
        zigzag++;
        int64_t off = zigzag & 1 ? -(int64_t)(zigzag >> 1) - 1 : (int64_t)(zigzag >> 1);
        int64_t value = values[row * stride + at] + off;
        if (value > VALUE_MOST || value < -VALUE_MOST) return REFUSED;
        values[row * stride + at] = (int32_t)value;
    }
    return FINE;
}

int reader_take(Reader *r, const uint8_t *index, const int32_t *mean, int means, int rows, int count, int stride,
                int32_t *values) {
    const Model *m = r->model;
    const uint32_t mask = (uint32_t)r->lanes - 1;
    uint32_t number = 0;
    size_t escapes = 0, shifted = 0, most = (size_t)rows * (size_t)count;
    uint64_t raw_bits = 0;
    if (grow((void **)&r->escaped, &r->escaped_space, 2 * most + 2, sizeof *r->escaped)) return NO_MEMORY;
    uint32_t *escaped = r->escaped, *raws = r->escaped + most + 1;
    size_t position = r->position;
    const size_t available = r->word_count;
    for (int row = 0; row < rows; row++) {
        const uint8_t *scale = index + (size_t)row * (size_t)stride;
        const int32_t *centre = row < means ? mean + (size_t)row * (size_t)stride : NULL;
        int32_t *out = values + (size_t)row * (size_t)stride;
        for (int i = 0; i < count; i++) {
            if (!centre && !(i & 7) && i + 8 <= count) {
                uint64_t eight;
                memcpy(&eight, scale + i, 8);
                if (!eight) {
                    memset(out + i, 0, 8 * sizeof *out);
                    i += 7;
                    continue;
                }
            }
            int32_t middle = centre ? centre[i] : 0;
            if (!scale[i]) {
                out[i] = (middle + 4) >> 3;
                continue;
            }
            if (!r->lanes) return REFUSED;
            int route = scale[i] << 3 | (middle & 7);
            uint32_t table = m->table_of[route];
            uint32_t x = r->state[number & mask], slot = x & ((1u << PRECISION) - 1);
            uint32_t entry = m->slots[table << 8 | slot >> 6], step = m->decoding[table << 8 | entry];
            uint32_t within = slot - (step & ((1u << PRECISION) - 1));
            while (within >= step >> PRECISION) { /* frequencies sum to 2^14: an entry is found */
                within -= step >> PRECISION;
                step = m->decoding[table << 8 | ++entry];
            }
            x = (step >> PRECISION) * (x >> PRECISION) + within;
            if (x < START) {
                if (position >= available) return REFUSED;
                x = x << 16 | r->words[2 * position] | (uint32_t)r->words[2 * position + 1] << 8;
                position++;
            }
            r->state[number++ & mask] = x;
            out[i] = (int32_t)entry + m->low_of[route];
            uint32_t place = (uint32_t)(row * stride + i);
            if ((int32_t)entry == m->escape_of[route]) escaped[escapes++] = place;
            if (scale[i] >= m->first_shifted && m->shift_of[route]) {
                raws[shifted++] = place;
                raw_bits += m->shift_of[route];
            }
        }
    }
    r->position = position;
    r->coded += number;
    if (r->flagged) {
        int failed = take_exceptions(r, index, rows, count, stride, values);
        if (failed) return failed;
    }
#define MIDDLE(place) ((int)(place) / stride < means ? mean[place] : 0)
    for (size_t i = 0; i < escapes; i++) {
        uint32_t over, place = escaped[i];
        if (take_varint(r, &over)) return REFUSED;
        int route = index[place] << 3 | (MIDDLE(place) & 7);
        int64_t half = over >> 1;
        int64_t entry = over & 1 ? (int64_t)m->low_of[route] - 1 - half : (int64_t)values[place] + half;
        int64_t reach = (entry < 0 ? -entry : entry) << m->shift_of[route];
        if (reach > 4ll * VALUE_MOST) return REFUSED;
        values[place] = (int32_t)entry;
    }
    if (shifted) {
        size_t size = (size_t)((raw_bits + 7) / 8), at = 0;
        if (size > r->size - r->head - r->side) return REFUSED;
        const uint8_t *last = r->payload + r->size - r->side; /* read backwards */
        r->side += size;
        if (raw_bits % 8 && *(last - size) & (0xFF >> raw_bits % 8)) return REFUSED;
        for (size_t i = 0; i < shifted; i++) {
            uint32_t place = raws[i], raw = 0;
            int width = m->shift_of[index[place] << 3 | (MIDDLE(place) & 7)];
            for (int bit = 0; bit < width; bit++, at++) raw = raw << 1 | (*(last - 1 - (at >> 3)) >> (7 - (at & 7)) & 1);
            values[place] = (int32_t)((uint32_t)values[place] << width | raw);
        }
    }
    for (int row = 0; row < means; row++)
        for (int i = 0; i < count; i++) {
            size_t place = (size_t)row * (size_t)stride + (size_t)i;
            if (index[place]) values[place] += mean[place] >> 3;
        }
    int32_t over = 0;
    for (int row = 0; row < rows; row++)
        for (int i = 0; i < count; i++) {
            int32_t v = values[(size_t)row * (size_t)stride + (size_t)i];
            over |= (v > VALUE_MOST) | (v < -VALUE_MOST);
        }
    return over ? REFUSED : FINE;
}

int reader_close(const Reader *r) {
    if (r->head + r->side + 2 * r->position != r->size) return REFUSED;
    for (int lane = 0; lane < r->lanes; lane++)
        if (r->state[lane] != START) return REFUSED;
    if (r->lanes && !r->coded) return REFUSED;
    if (r->flagged != r->excepted) return REFUSED;
    if (r->size && !r->lanes && !r->excepted) return REFUSED;
    return FINE;
}
