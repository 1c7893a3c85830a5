/* Dense layers of 8-bit integers. Included once for each LEVEL.
 *
 * `sums` adds what `count` groups of inputs, four to a word, contribute to eight outputs at FIELDS fields: group list[i],
 * whose words lie at x + at[i]. */

#if LEVEL == LEVEL_AVX512

INLINE void NAME(sums)(const Dense *d, int block, const uint32_t *x, const int32_t *at, const uint16_t *list,
                       int count, const int32_t *bias, int32_t out[BLOCK_OUTPUTS][FIELDS]) {
    __m512i sum[BLOCK_OUTPUTS][2];
    const uint32_t *weights = d->quads + (size_t)block * (size_t)d->groups * BLOCK_OUTPUTS;
    for (int o = 0; o < BLOCK_OUTPUTS; o++) sum[o][0] = sum[o][1] = _mm512_set1_epi32(bias[o]);
    for (int i = 0; i < count; i++) {
        const uint32_t *fields = x + at[i], *w = weights + list[i] * BLOCK_OUTPUTS;
        __m512i one = _mm512_loadu_si512(fields), two = _mm512_loadu_si512(fields + 16);
        for (int o = 0; o < BLOCK_OUTPUTS; o++) {
            __m512i each = _mm512_set1_epi32((int)w[o]);
            sum[o][0] = _mm512_dpbusd_epi32(sum[o][0], one, each);
            sum[o][1] = _mm512_dpbusd_epi32(sum[o][1], two, each);
        }
    }
    for (int o = 0; o < BLOCK_OUTPUTS; o++) {
        _mm512_storeu_si512(out[o], sum[o][0]);
        _mm512_storeu_si512(out[o] + 16, sum[o][1]);
    }
}


/* The same for all groups, 0 … count - 1. */
INLINE void NAME(all_sums)(const Dense *d, int block, const uint32_t *x, const int32_t *at, const int32_t *bias,
                           int32_t out[BLOCK_OUTPUTS][FIELDS]) {
    __m512i sum[BLOCK_OUTPUTS][2];
    const uint32_t *w = d->quads + (size_t)block * (size_t)d->groups * BLOCK_OUTPUTS, *end = w + (size_t)d->groups * BLOCK_OUTPUTS;
    for (int o = 0; o < BLOCK_OUTPUTS; o++) sum[o][0] = sum[o][1] = _mm512_set1_epi32(bias[o]);
    for (; w < end; w += BLOCK_OUTPUTS, at++) {
        const uint32_t *fields = x + *at;
        __m512i one = _mm512_loadu_si512(fields), two = _mm512_loadu_si512(fields + 16);
        for (int o = 0; o < BLOCK_OUTPUTS; o++) {
            __m512i each = _mm512_set1_epi32((int)w[o]);
            sum[o][0] = _mm512_dpbusd_epi32(sum[o][0], one, each);
            sum[o][1] = _mm512_dpbusd_epi32(sum[o][1], two, each);
        }
    }
    for (int o = 0; o < BLOCK_OUTPUTS; o++) {
        _mm512_storeu_si512(out[o], sum[o][0]);
        _mm512_storeu_si512(out[o] + 16, sum[o][1]);
    }
}

#elif LEVEL == LEVEL_AVX2

INLINE void NAME(sums)(const Dense *d, int block, const uint32_t *x, const int32_t *at, const uint16_t *list,
                       int count, const int32_t *bias, int32_t out[BLOCK_OUTPUTS][FIELDS]) {
    const uint32_t *weights = d->pairs + (size_t)block * (size_t)d->groups * BLOCK_OUTPUTS * 2;
    const __m256i low = _mm256_set1_epi32(0x00FF00FF);
    for (int part = 0; part < FIELDS; part += 16)
        for (int half = 0; half < BLOCK_OUTPUTS; half += 4) {
            __m256i sum[4][2];
            for (int o = 0; o < 4; o++) sum[o][0] = sum[o][1] = _mm256_set1_epi32(bias[half + o]);
            for (int i = 0; i < count; i++) {
                const uint32_t *fields = x + at[i] + part;
                const uint32_t *w = weights + (list[i] * BLOCK_OUTPUTS + (size_t)half) * 2;
                __m256i one = _mm256_loadu_si256((const __m256i *)fields);
                __m256i two = _mm256_loadu_si256((const __m256i *)(fields + 8));
                __m256i even[2] = {_mm256_and_si256(one, low), _mm256_and_si256(two, low)};
                __m256i odd[2] = {_mm256_srli_epi16(one, 8), _mm256_srli_epi16(two, 8)};
                for (int o = 0; o < 4; o++) {
                    __m256i first = _mm256_set1_epi32((int)w[2 * o]), second = _mm256_set1_epi32((int)w[2 * o + 1]);
                    for (int k = 0; k < 2; k++)
                        sum[o][k] = _mm256_add_epi32(sum[o][k], _mm256_add_epi32(_mm256_madd_epi16(even[k], first),
                                                                                 _mm256_madd_epi16(odd[k], second)));
                }
            }
            for (int o = 0; o < 4; o++)
                for (int k = 0; k < 2; k++)
                    _mm256_storeu_si256((__m256i *)(out[half + o] + part + 8 * k), sum[o][k]);
        }
}

#else

INLINE void NAME(sums)(const Dense *d, int block, const uint32_t *x, const int32_t *at, const uint16_t *list,
                       int count, const int32_t *bias, int32_t out[BLOCK_OUTPUTS][FIELDS]) {
    const uint32_t *weights = d->quads + (size_t)block * (size_t)d->groups * BLOCK_OUTPUTS;
    for (int o = 0; o < BLOCK_OUTPUTS; o++)
        for (int f = 0; f < FIELDS; f++) out[o][f] = bias[o];
    for (int i = 0; i < count; i++) {
        const uint32_t *fields = x + at[i], *w = weights + list[i] * BLOCK_OUTPUTS;
        for (int o = 0; o < BLOCK_OUTPUTS; o++) {
            int32_t one = (int8_t)w[o], two = (int8_t)(w[o] >> 8), three = (int8_t)(w[o] >> 16),
                    four = (int8_t)(w[o] >> 24);
            for (int f = 0; f < FIELDS; f++)
                out[o][f] += (int32_t)(fields[f] & 255) * one + (int32_t)(fields[f] >> 8 & 255) * two +
                             (int32_t)(fields[f] >> 16 & 255) * three + (int32_t)(fields[f] >> 24) * four;
        }
    }
}

#endif

INLINE int32_t NAME(bounded)(int32_t x, int32_t low, int32_t high) { return x < low ? low : x > high ? high : x; }

#if LEVEL != LEVEL_AVX512

/* The same for all groups, 0 … count - 1. */
INLINE void NAME(all_sums)(const Dense *d, int block, const uint32_t *x, const int32_t *at, const int32_t *bias,
                           int32_t out[BLOCK_OUTPUTS][FIELDS]) {
    uint16_t every[TAPS * ENTRIES];
    for (int g = 0; g < d->groups; g++) every[g] = (uint16_t)g;
    NAME(sums)(d, block, x, at, every, d->groups, bias, out);
}

#endif

/* The same for groups of two inputs, of 16 bits each, to a word. */
INLINE void NAME(wide_sums)(const Wide *d, int block, const uint32_t *x, size_t stride, int32_t out[BLOCK_OUTPUTS][FIELDS]) {
    const uint32_t *weights = d->pairs + (size_t)block * (size_t)d->groups * BLOCK_OUTPUTS;
    const int32_t *bias = d->bias + block * BLOCK_OUTPUTS;
#if LEVEL == LEVEL_AVX512
    __m512i sum[BLOCK_OUTPUTS][2];
    for (int o = 0; o < BLOCK_OUTPUTS; o++) sum[o][0] = sum[o][1] = _mm512_set1_epi32(bias[o]);
    for (int i = 0; i < d->groups; i++, x += stride, weights += BLOCK_OUTPUTS) {
        __m512i one = _mm512_loadu_si512(x), two = _mm512_loadu_si512(x + 16);
        for (int o = 0; o < BLOCK_OUTPUTS; o++) {
            __m512i each = _mm512_set1_epi32((int)weights[o]);
            sum[o][0] = _mm512_dpwssd_epi32(sum[o][0], one, each);
            sum[o][1] = _mm512_dpwssd_epi32(sum[o][1], two, each);
        }
    }
    for (int o = 0; o < BLOCK_OUTPUTS; o++) {
        _mm512_storeu_si512(out[o], sum[o][0]);
        _mm512_storeu_si512(out[o] + 16, sum[o][1]);
    }
#elif LEVEL == LEVEL_AVX2
    for (int part = 0; part < FIELDS; part += 8) {
        __m256i sum[BLOCK_OUTPUTS];
        for (int o = 0; o < BLOCK_OUTPUTS; o++) sum[o] = _mm256_set1_epi32(bias[o]);
        for (int i = 0; i < d->groups; i++) {
            __m256i fields = _mm256_loadu_si256((const __m256i *)(x + (size_t)i * stride + part));
            for (int o = 0; o < BLOCK_OUTPUTS; o++)
                sum[o] = _mm256_add_epi32(sum[o], _mm256_madd_epi16(fields, _mm256_set1_epi32((int)weights[i * BLOCK_OUTPUTS + o])));
        }
        for (int o = 0; o < BLOCK_OUTPUTS; o++) _mm256_storeu_si256((__m256i *)(out[o] + part), sum[o]);
    }
#else
    for (int o = 0; o < BLOCK_OUTPUTS; o++)
        for (int f = 0; f < FIELDS; f++) out[o][f] = bias[o];
    for (int i = 0; i < d->groups; i++, x += stride, weights += BLOCK_OUTPUTS)
        for (int o = 0; o < BLOCK_OUTPUTS; o++) {
            const int32_t one = (int16_t)(weights[o] & 0xFFFF), two = (int16_t)(weights[o] >> 16);
            for (int f = 0; f < FIELDS; f++)
                out[o][f] += (int16_t)(x[f] & 0xFFFF) * one + (int16_t)(x[f] >> 16) * two;
        }
#endif
}
