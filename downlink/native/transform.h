/* Pixels <-> coefficients <-> planes: downlink/lap.py and dct.py, and the KLT of plane.py, in floats.
 *
 * Neither the order of additions nor the last bit is numpy's: what is decided here is transmitted as symbols, or is
 * pixels before they are rounded. */
#ifndef DOWNLINK_TRANSFORM_H
#define DOWNLINK_TRANSFORM_H

#include <stddef.h>
#include <stdint.h>

typedef enum { U8, U16, I16, F32 } Kind;

/* Bands of pixels; rows are contiguous. */
typedef struct {
    const uint8_t *pixels;
    Kind kind;
    ptrdiff_t band, row; /* bytes from one to the next */
    int bands;
    int above, left, below, right; /* whether half a block of neighbours lies there, before the first pixel of the tile */
    int height, width;             /* blocks */
    int size;                      /* of a block: 8 or 4 */
    const float *bases;   /* [4][size][2 size]: what half a block, a block and half a block make; bit 0: with the half
                             before, bit 1: with the half after */
    const uint8_t *order; /* [size * size]: the channel of (u, v) */
    float *out;           /* [places][64][height][width] */
    const int32_t *places;
} Forward;

int forward(const Forward *f);

/* out[i] = sum over k of matrix[i][k] from[k] + offset[i], of `count` values each. */
typedef struct {
    int rows, columns;
    const float *matrix, *offset;
    const float *from;
    float *out;
    ptrdiff_t from_stride, out_stride; /* floats */
    const int32_t *from_places, *out_places; /* of each column, each row */
    size_t count;
} Mix;

void mix(const Mix *m);

/* Pixels -> coefficients of planes, clipped to +-limit: what `forward` and four times `mix` do, without going through
 * memory between them. */
typedef struct {
    Forward parts[2]; /* bands of the lattice's resolution, and of half of it; their `out` is not looked at */
    int part_count, bands;
    Mix mixes[4]; /* one for each subband; `from`, `out`, strides and count are not looked at */
    int mix_count;
    int channels[5]; /* where each subband begins */
    int planes;
    float limit;
    float *out; /* [planes][64][height][width] */
} Front;

int front(const Front *r);

/* Coefficients of bands -> pixels, unmixed, rounded to the nearest, clipped: downlink/dct.py's inverse, lap.py's unmix. */
typedef struct {
    int size, height, width; /* of a block; blocks */
    int bands;
    const float *from; /* [...][64][height][width] */
    const int32_t *places; /* of each band in it */
    const float *bases;    /* [4][size][2 size]: what a coefficient makes of half a block, a block and half a block; bit 0:
                              mixed with the block before, bit 1: with that after */
    const uint8_t *order;
    int down, across;            /* blocks beyond these are not mixed */
    int row, rows, col, columns; /* the pixels that are wanted */
    Kind kind;
    float low, high;
    uint8_t *out; /* [bands][rows][columns] */
} Back;

int back(const Back *b);

#endif
