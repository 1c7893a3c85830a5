/* Included once for each LEVEL. */

INLINE void NAME(row)(const uint8_t *from, Kind kind, int count, float *restrict to) {
    if (kind == U16)
        for (int i = 0; i < count; i++) to[i] = (float)((const uint16_t *)(const void *)from)[i];
    else if (kind == I16)
        for (int i = 0; i < count; i++) to[i] = (float)((const int16_t *)(const void *)from)[i];
    else if (kind == U8)
        for (int i = 0; i < count; i++) to[i] = (float)from[i];
    else
        memcpy(to, from, (size_t)count * sizeof *to);
}

/* Values of `across` blocks of `size`, side by side -> [size][across + LANES]: the same place of all blocks together. */
INLINE void NAME(part)(const float *from, const int size, int across, float *restrict apart) {
    const int stride = across + LANES;
#if LEVEL == LEVEL_AVX512
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    for (int b = 0; b < across; b += LANES) { /* there is room beyond the last */
        __m512 now[8], next[8];
        for (int i = 0; i < size; i++) now[i] = _mm512_loadu_ps(from + b * size + i * LANES);
        for (int width = size; width > 1; width /= 2) { /* halves by their last bit, then by the one before … */
            for (int i = 0; i < size / 2; i++) {
                next[i] = _mm512_permutex2var_ps(now[2 * i], even, now[2 * i + 1]);
                next[i + size / 2] = _mm512_permutex2var_ps(now[2 * i], odd, now[2 * i + 1]);
            }
            memcpy(now, next, sizeof now);
        }
        for (int i = 0; i < size; i++) _mm512_storeu_ps(apart + i * stride + b, now[i]);
    }
#else
    for (int b = 0; b < across; b++)
        for (int p = 0; p < size; p++) apart[p * stride + b] = from[b * size + p];
#endif
}

/* One row of blocks of one band: first down, then across. Channel c of it goes to out + c * channel. */
INLINE void NAME(blocks)(const Forward *f, const int size, int by, const uint8_t *pixels, float *out, size_t channel,
                         float *restrict lines, float *restrict mid, float *restrict apart) {
    const int half = size / 2, wide = f->width, inner = wide * size;
    const int before = f->left ? half : 0, whole = before + inner + (f->right ? half : 0);
    const int across = wide + 2, stride = line_stride(wide, size); /* lines begin with the block before the tile */
    const uint8_t *first = pixels + (f->above ? half : 0) * f->row;
    const int up = by > 0 || f->above, down = by < f->height - 1 || f->below;
    const float *basis = f->bases + (up + 2 * down) * size * 2 * size;
    for (int k = 0; k < 2 * size; k++) {
        float *line = lines + k * stride + size - before;
        if ((k < half && !up) || (k >= size + half && !down))
            memset(line, 0, (size_t)whole * sizeof *line);
        else
            NAME(row)(first + (by * size - half + k) * f->row, f->kind, whole, line);
    }
    for (int x = 0; x < stride; x += LANES) {
        Lanes sum[8];
        for (int u = 0; u < size; u++) sum[u] = (Lanes){0};
        for (int k = 0; k < size && up && down; k++) { /* even rows of the basis are symmetric, odd ones turned */
            Lanes line, other;
            memcpy(&line, lines + k * stride + x, sizeof line);
            memcpy(&other, lines + (2 * size - 1 - k) * stride + x, sizeof other);
            const Lanes folded[2] = {line + other, line - other};
            for (int u = 0; u < size; u++) sum[u] += basis[u * 2 * size + k] * folded[u & 1];
        }
        for (int k = 0; k < 2 * size && !(up && down); k++) {
            Lanes line;
            memcpy(&line, lines + k * stride + x, sizeof line);
            for (int u = 0; u < size; u++) sum[u] += basis[u * 2 * size + k] * line;
        }
        for (int u = 0; u < size; u++) memcpy(mid + u * stride + x, &sum[u], sizeof sum[u]);
    }
    for (int u = 0; u < size; u++) {
        const float *from = mid + u * stride;
        NAME(part)(from, size, across, apart);
        const float *inside = f->bases + 3 * size * 2 * size;
        for (int x = 0; x < wide; x += LANES) {
            Lanes sum[8];
            for (int v = 0; v < size; v++) sum[v] = (Lanes){0};
            for (int k = 0; k < size; k++) {
                const int p = (k + half) % size, shift = (k + half) / size, q = (size - 1 - p), beyond = 2 - shift;
                Lanes line, other;
                memcpy(&line, apart + p * (across + LANES) + x + shift, sizeof line);
                memcpy(&other, apart + q * (across + LANES) + x + beyond, sizeof other);
                const Lanes folded[2] = {line + other, line - other};
                for (int v = 0; v < size; v++) sum[v] += inside[v * 2 * size + k] * folded[v & 1];
            }
            const int count = wide - x < LANES ? wide - x : LANES;
            for (int v = 0; v < size; v++) {
                float *to = out + f->order[u * size + v] * channel + x;
                if (count == LANES)
                    memcpy(to, &sum[v], sizeof sum[v]);
                else
                    memcpy(to, &sum[v], (size_t)count * sizeof *to);
            }
        }
        for (int at = 0; at < wide; at = at < wide - 1 ? wide - 1 : wide) { /* blocks without a neighbour */
            const int variant = (at > 0 || f->left) + 2 * (at < wide - 1 || f->right);
            for (int v = 0; v < size && variant < 3; v++) {
                const float *other = f->bases + (variant * size + v) * 2 * size;
                float sum = 0;
                for (int k = 0; k < 2 * size; k++)
                    sum += other[k] * apart[(k + half) % size * (across + LANES) + at + (k + half) / size];
                out[f->order[u * size + v] * channel + (size_t)at] = sum;
            }
        }
    }
}

/* Asks for the pixels that a row of blocks sees first: bands lie far apart in memory. */
INLINE void NAME(fetch)(const Forward *f, int by, const uint8_t *pixels) {
    static const int widths[] = {1, 2, 2, 4};
    const int half = f->size / 2, from = by || f->above ? by * f->size + (f->above ? half : 0) + (by ? half : 0) : 0;
    const ptrdiff_t bytes = (ptrdiff_t)f->width * f->size * widths[f->kind];
    for (int k = 0; k < f->size; k++)
        for (ptrdiff_t at = 0; at < bytes; at += 64) __builtin_prefetch(pixels + (from + k) * f->row + at);
}

/* One row of blocks of all bands: band i's channels to out + places[i] * band. */
INLINE void NAME(bands)(const Forward *f, int by, float *out, size_t band, size_t channel, float *lines, float *mid,
                        float *apart) {
    for (int i = 0; i < f->bands; i++) {
        const uint8_t *pixels = f->pixels + i * f->band;
        if (i + 1 < f->bands) NAME(fetch)(f, by, pixels + f->band);
        float *to = out + (size_t)f->places[i] * band;
        if (f->size == 8)
            NAME(blocks)(f, 8, by, pixels, to, channel, lines, mid, apart);
        else
            NAME(blocks)(f, 4, by, pixels, to, channel, lines, mid, apart);
    }
}

static void NAME(forward)(const Forward *f, float *lines, float *mid, float *apart) {
    const size_t plane = (size_t)f->height * (size_t)f->width;
    for (int by = 0; by < f->height; by++)
        NAME(bands)(f, by, f->out + (size_t)by * (size_t)f->width, 64 * plane, plane, lines, mid, apart);
}

/* `rows` rows of a mix at 2 * LANES values. */
INLINE void NAME(few)(const Mix *m, const int rows, int row, size_t at) {
    Lanes sum[MIXED][2];
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = m->offset[row + r] - (Lanes){0};
    for (int k = 0; k < m->columns; k++) {
        const float *from = m->from + m->from_places[k] * m->from_stride + at;
        Lanes one, two;
        memcpy(&one, from, sizeof one);
        memcpy(&two, from + LANES, sizeof two);
        for (int r = 0; r < rows; r++) {
            const float weight = m->matrix[(row + r) * m->columns + k];
            sum[r][0] += weight * one;
            sum[r][1] += weight * two;
        }
    }
    for (int r = 0; r < rows; r++)
        memcpy(m->out + m->out_places[row + r] * m->out_stride + at, sum[r], sizeof sum[r]);
}

static void NAME(mix)(const Mix *m) {
    size_t at = 0;
    for (; at + 2 * LANES <= m->count; at += 2 * LANES) {
        int row = 0;
        for (; row + MIXED <= m->rows; row += MIXED) NAME(few)(m, MIXED, row, at);
        for (; row < m->rows; row++) NAME(few)(m, 1, row, at);
    }
    for (; at < m->count; at++)
        for (int row = 0; row < m->rows; row++) {
            float sum = m->offset[row];
            for (int k = 0; k < m->columns; k++)
                sum += m->matrix[row * m->columns + k] * m->from[m->from_places[k] * m->from_stride + (ptrdiff_t)at];
            m->out[m->out_places[row] * m->out_stride + (ptrdiff_t)at] = sum;
        }
}

/* Pixels -> planes, one row of blocks after the other while it is in the cache. */
static void NAME(front)(const Front *r, float *row, float *mixed, float *lines, float *mid, float *apart) {
    const int height = r->parts[0].height, wide = r->parts[0].width;
    const size_t whole = (size_t)height * (size_t)wide, band = 64 * (size_t)wide;
    for (int by = 0; by < height; by++) {
        for (int i = 0; i < r->part_count; i++) NAME(bands)(&r->parts[i], by, row, band, (size_t)wide, lines, mid, apart);
        for (int s = 0; s < r->mix_count; s++) {
            Mix m = r->mixes[s];
            const int first = r->channels[s], last = r->channels[s + 1];
            m.from = row + (size_t)first * (size_t)wide;
            m.out = mixed + (size_t)first * (size_t)wide;
            m.from_stride = m.out_stride = (ptrdiff_t)band;
            m.count = (size_t)(last - first) * (size_t)wide;
            NAME(mix)(&m);
            for (int plane = 0; plane < r->planes; plane++)
                for (int c = first; c < last; c++) {
                    float *to = r->out + ((size_t)plane * 64 + (size_t)c) * whole + (size_t)by * (size_t)wide;
                    const float *from = mixed + (size_t)plane * band + (size_t)c * (size_t)wide;
                    if (plane < m.rows)
                        for (int x = 0; x < wide; x++) {
                            float value = from[x] > -r->limit ? from[x] : -r->limit;
                            to[x] = value < r->limit ? value : r->limit;
                        }
                    else
                        memset(to, 0, (size_t)wide * sizeof *to);
                }
        }
    }
}

/* What coefficients `from` (of frequencies that lie `apart` floats apart) make along one side, LANES at a time: `to`
 * [2 size], `between` floats apart, added to what is there. `basis` is that between two mixed borders: symmetric. */
INLINE void NAME(spread)(const float *basis, const int size, const float *const from[8], int x, float *to, size_t between,
                         const int adds) {
    Lanes given[8];
    for (int u = 0; u < size; u++) memcpy(&given[u], from[u] + x, sizeof given[u]);
    for (int k = 0; k < size; k++) {
        Lanes even = {0}, odd = {0};
        for (int u = 0; u < size; u += 2) {
            even += basis[u * 2 * size + k] * given[u];
            odd += basis[(u + 1) * 2 * size + k] * given[u + 1];
        }
        float *one = to + (size_t)k * between + x, *other = to + (size_t)(2 * size - 1 - k) * between + x;
        Lanes sum = even + odd, turned = even - odd;
        if (adds) {
            Lanes was;
            memcpy(&was, one, sizeof was);
            sum += was;
            memcpy(&was, other, sizeof was);
            turned += was;
        }
        memcpy(one, &sum, sizeof sum);
        memcpy(other, &turned, sizeof turned);
    }
}

/* One row of pixels from its horizontal frequencies, `stride` apart; column 0 of them stands at LANES. */
INLINE void NAME(pixels)(const Back *b, const int size, const float *row, int stride, float *parts, float *line, uint8_t *out) {
    const int half = size / 2, wide = b->width;
    const float *const inner = b->bases + 3 * size * 2 * size;
    const float *from[8];
    for (int v = 0; v < size; v++) from[v] = row + v * stride;
    for (int x = 0; x < wide; x += LANES) NAME(spread)(inner, size, from, LANES + x, parts, (size_t)stride, 0);
    for (int k = 0; k < 2 * size; k++) parts[k * stride + LANES - 1] = parts[k * stride + LANES + wide] = 0;
    for (int at = 0; at < wide; at = at == 0 && b->across > 2 ? b->across - 1 : at + 1) { /* blocks without a neighbour */
        const int variant = (at > 0 && at < b->across) + 2 * (at + 1 < b->across);
        for (int k = 0; k < 2 * size && variant < 3; k++) {
            float sum = 0;
            for (int v = 0; v < size; v++) sum += b->bases[(variant * size + v) * 2 * size + k] * from[v][LANES + at];
            parts[k * stride + LANES + at] = sum;
        }
    }
    for (int x = 0; x < wide; x += LANES) {
        Lanes now[8];
        for (int q = 0; q < size; q++) {
            Lanes own, other;
            const float *beside = q < half ? parts + (q + half + size) * stride + LANES + x - 1
                                           : parts + (q + half - size) * stride + LANES + x + 1;
            memcpy(&own, parts + (q + half) * stride + LANES + x, sizeof own);
            memcpy(&other, beside, sizeof other);
            now[q] = own + other;
        }
#if LEVEL == LEVEL_AVX512
        const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
        for (int width = size; width > 1; width /= 2) {
            Lanes next[8];
            for (int i = 0; i < size / 2; i++) {
                next[2 * i] = (Lanes)_mm512_permutex2var_ps((__m512)now[i], low, (__m512)now[i + size / 2]);
                next[2 * i + 1] = (Lanes)_mm512_permutex2var_ps((__m512)now[i], high, (__m512)now[i + size / 2]);
            }
            memcpy(now, next, sizeof now);
        }
        for (int q = 0; q < size; q++) memcpy(line + x * size + q * LANES, &now[q], sizeof now[q]);
#else
        for (int q = 0; q < size; q++)
            for (int i = 0; i < LANES; i++) line[(x + i) * size + q] = now[q][i];
#endif
    }
    const float magic = 12582912.0f;
    const float *source = line + b->col;
#define WRITE(type)                                                 \
    for (int i = 0; i < b->columns; i++) {                          \
        float value = source[i] > b->low ? source[i] : b->low;      \
        value = value < b->high ? value : b->high;                  \
        ((type *)(void *)out)[i] = (type)(int32_t)((value + magic) - magic); \
    }
    if (b->kind == U16) {
        WRITE(uint16_t)
    } else if (b->kind == I16) {
        WRITE(int16_t)
    } else {
        WRITE(uint8_t)
    }
#undef WRITE
}

/* One band: its rows of blocks first spread down, then each row of pixels across. */
INLINE void NAME(band)(const Back *b, const int size, int number, int stride, float *sums, float *parts, float *line) {
    const int half = size / 2, each = b->kind == U8 ? 1 : 2;
    const size_t fields = (size_t)b->height * (size_t)b->width, between = (size_t)(size * stride), whole = size * between;
    const float *from = b->from + (size_t)b->places[number] * 64 * fields;
    uint8_t *out = b->out + (size_t)number * (size_t)b->rows * (size_t)b->columns * (size_t)each;
    memset(sums, 0, 2 * whole * sizeof *sums);
    for (int by = 0; by <= b->height; by++) { /* after the last comes what it has spread beyond its border */
        if (by < b->height) {
            const int variant = (by > 0 && by < b->down) + 2 * (by + 1 < b->down);
            const float *basis = b->bases + variant * size * 2 * size;
            for (int v = 0; v < size; v++) {
                const float *given[8];
                float *to = sums + v * stride + LANES;
                for (int u = 0; u < size; u++)
                    given[u] = from + b->order[u * size + v] * fields + (size_t)by * (size_t)b->width;
                int x = 0;
                for (; variant == 3 && x + LANES <= b->width; x += LANES) NAME(spread)(basis, size, given, x, to, between, 1);
                for (; x < b->width; x++)
                    for (int k = 0; k < 2 * size; k++) {
                        float sum = 0;
                        for (int u = 0; u < size; u++) sum += basis[u * 2 * size + k] * given[u][x];
                        to[(size_t)k * between + (size_t)x] += sum;
                    }
            }
        }
        for (int k = 0; k < size; k++) {
            const int row = by * size - half + k - b->row;
            if (row >= 0 && row < b->rows)
                NAME(pixels)(b, size, sums + (size_t)k * between, stride, parts, line, out + (size_t)row * (size_t)b->columns * (size_t)each);
        }
        memcpy(sums, sums + whole, whole * sizeof *sums);
        memset(sums + whole, 0, whole * sizeof *sums);
    }
}

static void NAME(back)(const Back *b, int stride, float *sums, float *parts, float *line) {
    for (int number = 0; number < b->bands; number++)
        if (b->size == 8)
            NAME(band)(b, 8, number, stride, sums, parts, line);
        else
            NAME(band)(b, 4, number, stride, sums, parts, line);
}
