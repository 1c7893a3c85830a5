/* What the parts of the native tile codec share: the model (weights and tables of a bundle) and the coder of a chunk.
 *
 * Everything here restates, in C, what downlink/walk.py, symbol.py and rans.py define; they are the reference, and
 * tests/test_native.py holds that both make the same bytes. Nothing in these files calls Python: module.c, the only one
 * that does, checks every size first and lets other threads run meanwhile.
 */
#ifndef DOWNLINK_CODEC_H
#define DOWNLINK_CODEC_H

#include <stddef.h>
#include <stdint.h>

enum {
    SUBBANDS = 4,
    CHANNELS = 64,
    ROOT = 4,
    ROOT_CHANNELS = 16,
    CHANNELS_MOST = 48, /* of a subband */
    EARLIER = 16,       /* channels that the last subband knows of */
    FRACTIONS = 8,
    COLUMNS = 256,
    ENTRIES = 256,
    PRECISION = 14,
    LANES_MOST = 1024,
    COMPAND_SIZE = 1 << 16,
    BLOCK_OUTPUTS = 8, /* outputs of a dense layer that are computed together */
    FIELDS = 32,       /* fields that pass a dense layer together */
    VALUE_MOST = 1 << 24,
    TAPS = 9,          /* of a 3 x 3 convolution */
    OFFSET = 128,      /* what makes a signed byte one without a sign */
    SIDE_MOST = 64 /* latents along a tile's side; the format allows 32 */
};

/* ---- networks: 8-bit weights, four inputs of a field in one 32-bit word */

typedef struct {
    int groups;      /* words of inputs */
    int blocks;      /* blocks of eight outputs */
    int outputs;
    uint32_t *quads; /* [blocks][groups][8]: four weights of an output, a byte each */
    uint32_t *pairs; /* [blocks][groups][8][2]: the same as 16-bit numbers: inputs 0 and 2, inputs 1 and 3 */
    int32_t *bias;   /* [blocks * 8] */
} Dense;

/* A layer that sees inputs of 16 bits, two in one word. */
typedef struct {
    int groups, blocks;
    uint32_t *pairs; /* [blocks][groups][8] */
    int32_t *bias;   /* [blocks * 8] */
} Wide;

typedef struct {
    Dense first, head;
    int32_t *first_flags, *head_flags; /* [blocks * 8][6]: weights of the phase's two flags and of the four levels */
} Net;

typedef struct {
    uint64_t reciprocal;
    uint32_t limit; /* the state from which on a word leaves first */
    uint16_t gap, start;
} Stepping;

typedef struct {
    int hyper_latents, coarse, fine;
    Dense spread; /* 3 x 3 hyper-latents, offset by 128 -> coarse, without its bias */
    int32_t *spread_bias; /* [blocks * 8] */
    Dense unfold;         /* coarse -> fine * 16 */
    Net nets[SUBBANDS];
    uint8_t *compand;       /* [1 << 16] */
    int16_t *root_integers; /* [4 * 4 blocks][16 channels]: block means of root symbols, in 1/1024 */
    int scales, tables, first_shifted;
    uint16_t *codes, *plain; /* [scales * 8][256], [scales][256]: downlink.lookup */
    float *costs;            /* [scales * 8][256] */
    uint16_t *table_of;      /* [scales * 8] */
    int32_t *low_of, *escape_of;
    uint8_t *shift_of;
    uint32_t *entry_bits; /* [1 << 16], in 1/65536; none of CERTAIN */
    Stepping *stepping;   /* [tables * 256] */
    uint32_t *decoding;   /* [tables * 256]: frequency << 14 | start */
    uint8_t *slots;       /* [tables][256]: the entry at which 64 slots begin. All slots would not fit the cache */
} Model;

enum { RARE = 0xFFFF, CERTAIN = 0xFFFE };
/* Results. REFUSED: the stream is not what it should be; the caller asks the reference why. */
enum { FINE = 0, NO_MEMORY = -1, REFUSED = -2 };

/* ---- writing a chunk */

typedef struct {
    uint8_t *bytes;
    size_t size, space;
} Bytes;

int bytes_put(Bytes *b, const void *from, size_t size);

typedef struct {
    uint32_t entries; /* coded symbols */
    uint32_t certain; /* whether any symbol is certain */
    size_t exceptions, rest; /* where each ends */
} Segment;

typedef struct {
    const Model *model;
    uint16_t *entries;
    size_t count, space;
    Segment *segments;
    size_t segment_count, segment_space;
    Bytes exceptions, rest; /* of all segments */
    int excepted;
    int measures;
    uint64_t bits; /* of the entries, in 1/65536, if it measures */
    /* of the segment that is being written */
    uint32_t certain, excepted_here;
    int64_t last_rank;
    size_t segment_start;
    Bytes ranks;    /* exceptions, before their number is known */
    uint32_t *raws; /* raw bits and widths, which follow the escapes */
    uint8_t *widths;
    size_t raw_count, raw_space;
    int failed;
} Writer;

void writer_start(Writer *w, const Model *model, int measures);
void writer_free(Writer *w);
int writer_room(Writer *w, int count); /* for so many entries, and a few beyond */
/* Symbols of a segment come in runs: values (NULL: zeros) with scale indices, and means in eighths or NULL. */
int writer_put(Writer *w, const int32_t *values, const uint8_t *index, const int32_t *mean, int count);
int writer_end_segment(Writer *w);
/* The payload, appended to `out`. */
int writer_finish(Writer *w, Bytes *out, double *bits);

/* ---- reading a chunk */

typedef struct {
    const Model *model;
    const uint8_t *payload;
    size_t size, head, side; /* side: bytes taken from the end */
    int lanes, flagged, excepted;
    const uint8_t *words;
    size_t word_count, position;
    uint64_t coded;
    uint32_t state[LANES_MOST];
    uint32_t *escaped; /* places of a segment's escapes, then of its raw bits */
    size_t escaped_space;
} Reader;

int reader_open(Reader *r, const Model *model, const uint8_t *payload, size_t size);
void reader_free(Reader *r);
/* A segment of `rows` rows of `count` symbols each, `stride` apart in `index`, `mean` (of the first `means` rows; the
 * others' are zero) and `values`. */
int reader_take(Reader *r, const uint8_t *index, const int32_t *mean, int means, int rows, int count, int stride,
                int32_t *values);
int reader_close(const Reader *r);

/* ---- the walk through a tile */

typedef struct {
    const Model *model;
    int planes, height, width; /* in latents */
    const uint8_t *levels;     /* [planes][4] */
    int counts[SUBBANDS];      /* planes of which a subband is sent */
    const int64_t *turn;       /* [counts[1]][counts[0]], each within +-2^20 */
    int planes_per_chunk;
    const uint8_t *hyper_index; /* [128][hyper_latents] */
    int hyper_limit;
    int32_t *hyper; /* [planes][hyper_latents][height / 4][width / 4] */

    enum { ENCODE, DECODE, FOLLOW } mode;
    /* ENCODE: exact values in, payloads and, if not NULL, symbols out */
    const float *exact_root, *exact; /* [planes][16][h / 4][w / 4], [planes][64][h][w] */
    float price, dead_zone;
    const float *bounds; /* [scales][256] */
    int measures;
    double error;
    Bytes payloads;
    size_t *ends;  /* per chunk (group-major): where its payload ends … */
    double *bits;  /* … what it was estimated at … */
    uint32_t *coded; /* … and its coded symbols */
    int32_t *root_out, *latent_out; /* [planes][16][h / 4][w / 4], [planes][64][h][w], zeros before; or NULL */
    /* DECODE: payloads in (NULL: not there), values out */
    const uint8_t *const *chunks;
    const size_t *sizes;
    float *root_value, *value; /* zeros before */
    int stopped;               /* the first chunk (group-major) that is not there, or -1 */
    /* FOLLOW: symbols in, scale indices and means out, of each subband [planes][channels][h][w] */
    const int32_t *root_in, *latent_in;
    uint8_t *index_out[SUBBANDS];
    int32_t *mean_out[SUBBANDS];
} Tile;

int walk_tile(Tile *tile);

/* ---- models: NULL where memory is short */

typedef struct {
    int hidden, outputs;                /* of this network */
    const int8_t *first, *head;         /* [hidden][inputs], [outputs][hidden + inputs that the head sees] */
    const int32_t *first_bias, *head_bias;
} Weights;

int net_inputs(int group, int features);
int net_seen(int group, int features);
int net_make(Net *net, int group, int features, const Weights *w);
int dense_make(Dense *d, int groups, int outputs, const int8_t *packed, const int32_t *bias);
void dense_free(Dense *d);
/* Weights [outputs][channels][taps] for words that are packed tap by tap; inputs of channels from `offset` on are OFFSET
 * higher than what they stand for. */
int taps_make(Dense *d, int outputs, int channels, int taps, int offset, const int8_t *weights, const int32_t *bias);
int coder_make(Model *m, const uint16_t *frequencies);
void model_free(Model *m);

#endif
