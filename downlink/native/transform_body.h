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

/* One band: rows of blocks, first down, then across. */
INLINE void NAME(band)(const Forward *f, const int size, const uint8_t *pixels, float *out, float *restrict lines,
                       float *restrict mid, float *restrict apart) {
    const int half = size / 2, wide = f->width, inner = wide * size;
    const int before = f->left ? half : 0, whole = before + inner + (f->right ? half : 0);
    const int across = wide + 2, stride = line_stride(wide, size); /* lines begin with the block before the tile */
    const size_t plane = (size_t)f->height * (size_t)wide;
    const uint8_t *first = pixels + (f->above ? half : 0) * f->row;
    for (int by = 0; by < f->height; by++) {
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
            for (int k = 0; k < 2 * size; k++) {
                Lanes line;
                memcpy(&line, lines + k * stride + x, sizeof line);
                for (int u = 0; u < size; u++) sum[u] += basis[u * 2 * size + k] * line;
            }
            for (int u = 0; u < size; u++) memcpy(mid + u * stride + x, &sum[u], sizeof sum[u]);
        }
        for (int u = 0; u < size; u++) {
            const float *from = mid + u * stride;
            for (int b = 0; b < across; b++)
                for (int p = 0; p < size; p++) apart[p * (across + LANES) + b] = from[b * size + p];
            const float *inside = f->bases + 3 * size * 2 * size;
            for (int x = 0; x < wide; x += LANES) {
                Lanes sum[8];
                for (int v = 0; v < size; v++) sum[v] = (Lanes){0};
                for (int k = 0; k < 2 * size; k++) {
                    const int p = (k + half) % size, shift = (k + half) / size;
                    Lanes line;
                    memcpy(&line, apart + p * (across + LANES) + x + shift, sizeof line);
                    for (int v = 0; v < size; v++) sum[v] += inside[v * 2 * size + k] * line;
                }
                const int count = wide - x < LANES ? wide - x : LANES;
                for (int v = 0; v < size; v++) {
                    float *to = out + f->order[u * size + v] * plane + (size_t)by * (size_t)wide + x;
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
                    out[f->order[u * size + v] * plane + (size_t)by * (size_t)wide + at] = sum;
                }
            }
        }
    }
}

static void NAME(forward)(const Forward *f, float *lines, float *mid, float *apart) {
    const size_t plane = (size_t)f->height * (size_t)f->width;
    for (int band = 0; band < f->bands; band++) {
        const uint8_t *pixels = f->pixels + band * f->band;
        float *out = f->out + (size_t)f->places[band] * 64 * plane;
        if (f->size == 8)
            NAME(band)(f, 8, pixels, out, lines, mid, apart);
        else
            NAME(band)(f, 4, pixels, out, lines, mid, apart);
    }
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
