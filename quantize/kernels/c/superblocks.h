/* Types of super-blocks of 256 weights: LANES super-blocks at once, the search in lanes, codes one by one.
 *
 * A sub-block's scale goes through a few bits and the super-block's through half precision; the codes are
 * then made again from those, except where such a scale is 0: there ggml keeps the codes of its search. */

#ifndef QUANTWRIGHT_SUPERBLOCKS_H
#define QUANTWRIGHT_SUPERBLOCKS_H

#include "across.h"
#include "search.h"

#define QK 256

/* What LANES super-blocks hold, in lanes. */
typedef struct {
    vf x[QK], w[QK]; /* values; importances, or their products with something of x */
    vf scale[16], offset[16], inverse[16], lowest[16]; /* of each sub-block */
    vf total[16];                                      /* sum of the weights of each sub-block */
    const float *from[LANES];
    int count; /* lanes that are written; the others repeat the last */
} Batch;

INLINE void load_batch(Batch *batch, const float *x, int64_t first, int64_t blocks, int64_t per_row,
                       const float *importance)
{
    const float *weights[LANES];
    batch->count = blocks - first < LANES ? (int)(blocks - first) : LANES;
    for (int lane = 0; lane < LANES; lane++) {
        int64_t block = first + (lane < batch->count ? lane : batch->count - 1);
        batch->from[lane] = x + QK * block;
        weights[lane] = importance ? importance + QK * (block % per_row) : 0;
    }
    across(QK, batch->from, batch->x);
    if (importance) across(QK, weights, batch->w);
}

INLINE vf sum_of_squares(int count, const vf *x)
{
    vf sum = vf_of(0);
    for (int i = 0; i < count; i++) sum += x[i] * x[i];
    return sum;
}

/* importance * sqrt(spread + x^2), and its sums by sub-block */
INLINE void weigh_batch(Batch *batch, int n, vf spread)
{
    for (int j = 0; j < QK / n; j++) {
        vf total = vf_of(0);
        for (int i = j * n; i < (j + 1) * n; i++) {
            batch->w[i] = batch->w[i] * root(spread + batch->x[i] * batch->x[i]);
            total += batch->w[i];
        }
        batch->total[j] = total;
    }
}

INLINE void store_halves(vf values, uint16_t *halves)
{
    for (int lane = 0; lane < LANES; lane++) halves[lane] = half_of(values[lane]);
}

/* Four codes of two bits in a byte, 32 apart. */
INLINE void pack_pairs(const uint8_t *codes, uint8_t *out)
{
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < 32; i++) {
            const uint8_t *c = codes + 128 * half + i;
            out[32 * half + i] =
                (uint8_t)((c[0] & 3) | (c[32] & 3) << 2 | (c[64] & 3) << 4 | (c[96] & 3) << 6);
        }
}

#endif
