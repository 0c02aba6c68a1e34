/* IQ4_NL and IQ4_XS: four bits that name one of 16 unevenly spaced numbers.
 *
 * Source: quantize_row_iq4_nl_impl of llama.cpp's ggml-quants.c, with its 7 tries on either side. */

#ifndef QUANTWRIGHT_CODEBOOK_H
#define QUANTWRIGHT_CODEBOOK_H

#include "superblocks.h"

#define TRIES 15

static const float CODEBOOK[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* Halfway points. ggml compares x - a with b - x, which is x < (a + b) / 2: near such a point both
 * differences are exact. A point itself and NaN belong to the number above. */
static const float HALFWAY[15] = {-115.5f, -93.5f, -74, -57, -42, -28.5f, -16, -4.5f,
                                  7, 19, 31.5f, 45.5f, 61, 79, 101};

INLINE uint8_t closest(float x)
{
    int index = 0;
    for (int i = 0; i < 15; i++) index += !(x < HALFWAY[i]);
    return (uint8_t)index;
}

#if LANES >= 8

/* Halving 15 points four times: the k-th comparison decides bit k, and looks its point up by those before. */
typedef struct {
    vf second, third, fourth, low, high;
} Tree;

INLINE Tree plant(void)
{
    Tree tree;
    for (int lane = 0; lane < LANES; lane++) {
        int a = lane & 1, b = lane >> 1 & 1, c = lane >> 2 & 1;
        tree.second[lane] = HALFWAY[8 * a + 3];
        tree.third[lane] = HALFWAY[8 * a + 4 * b + 1];
        tree.fourth[lane] = HALFWAY[8 * a + 4 * b + 2 * c];
        tree.low[lane] = CODEBOOK[8 * a + 4 * b + 2 * c];
        tree.high[lane] = CODEBOOK[8 * a + 4 * b + 2 * c + 1];
    }
    return tree;
}

INLINE vf look_up(vf table, vi index)
{
#if LANES == 16
    return (vf)_mm512_permutexvar_ps((__m512i)index, (__m512)table);
#else
    return (vf)_mm256_permutevar8x32_ps((__m256)table, (__m256i)index);
#endif
}

INLINE vf closest_number(const Tree *tree, vf x)
{
    vi index = (x >= HALFWAY[7]) & 1;
    index |= (x >= look_up(tree->second, index)) & 2;
    index |= (x >= look_up(tree->third, index)) & 4;
    return choose(x >= look_up(tree->fourth, index), look_up(tree->high, index), look_up(tree->low, index));
}

#else

typedef int Tree;
INLINE Tree plant(void) { return 0; }
INLINE vf closest_number(const Tree *tree, vf x)
{
    vf found = vf_of(CODEBOOK[0]);
    (void)tree;
    for (int i = 0; i < 15; i++)
        found += (vf)((x >= HALFWAY[i]) & (vi)vf_of(CODEBOOK[i + 1] - CODEBOOK[i]));
    return found;
}

#endif

/* The scale of 32 weights a lane, x ~ scale * number. */
INLINE vf codebook_search(const Tree *tree, const vf *x, const vf *w)
{
    vf extreme = vf_of(0), size = vf_of(0), scale = vf_of(0), best = vf_of(0);
    for (int i = 0; i < 32; i++) {
        vi more = magnitude(x[i]) > size;
        size = choose(more, magnitude(x[i]), size);
        extreme = choose(more, x[i], extreme);
    }
    for (int try = -1; try < TRIES; try++) {
        /* first -127 opposite the extreme, then each from 7 below it to 7 above */
        vf inverse = try < 0 ? 1.f / (-extreme / CODEBOOK[0]) : ((float)(try - 7) + CODEBOOK[0]) / extreme;
        vf sum_xq = vf_of(0), sum_q2 = vf_of(0);
        for (int i = 0; i < 32; i++) {
            vf number = closest_number(tree, inverse * x[i]), weighted = w[i] * number;
            sum_xq += weighted * x[i];
            sum_q2 += weighted * number;
        }
        vi valid = sum_q2 > 0;
        vf found = sum_xq / sum_q2;
        if (try < 0) {
            scale = choose(valid, found, vf_of(0));
            best = scale * sum_xq;
        } else {
            vi better = valid & (sum_xq * sum_xq > best * sum_q2);
            scale = choose(better, found, scale);
            best = choose(better, found * sum_xq, best);
        }
    }
    return choose(size < GROUP_MAX_EPS, vf_of(0), scale);
}

INLINE void pack_numbers(float inverse, const float *x, uint8_t *out)
{
    for (int i = 0; i < 16; i++)
        out[i] = (uint8_t)(closest(inverse * x[i]) | closest(inverse * x[i + 16]) << 4);
}

/* IQ4_NL: half d, 16 bytes of codes. */
INLINE int64_t codebook_32(const float *x, int64_t blocks, int64_t per_row, const float *importance,
                           uint8_t *out)
{
    int64_t infinite = 0;
    Tree tree = plant();
    for (int64_t first = 0; first < blocks; first += LANES) {
        int count = blocks - first < LANES ? (int)(blocks - first) : LANES;
        const float *from[LANES], *weights[LANES];
        vf values[32], w[32];
        for (int lane = 0; lane < LANES; lane++) {
            int64_t block = first + (lane < count ? lane : count - 1);
            from[lane] = x + 32 * block;
            weights[lane] = importance ? importance + 32 * (block % per_row) : 0;
        }
        across(32, from, values);
        if (importance) {
            vf spread = sum_of_squares(32, values) * (2.f / 32);
            across(32, weights, w);
            for (int i = 0; i < 32; i++) w[i] = w[i] * root(spread + values[i] * values[i]);
        } else {
            for (int i = 0; i < 32; i++) w[i] = values[i] * values[i];
        }
        vf scale = codebook_search(&tree, values, w);
        for (int lane = 0; lane < count; lane++) {
            uint8_t *block = out + 18 * (first + lane);
            uint16_t half = half_of(scale[lane]);
            infinite += !half_is_finite(half);
            memcpy(block, &half, 2);
            pack_numbers(scale[lane] != 0 ? 1 / scale[lane] : 0, from[lane], block + 2);
        }
    }
    return infinite;
}

/* IQ4_XS: half d, 2 bytes with the upper two bits of 8 scales, 4 with their lower four, 128 of codes. */
INLINE int64_t codebook_256(const float *x, int64_t blocks, int64_t per_row, const float *importance,
                            uint8_t *out)
{
    int64_t infinite = 0;
    Tree tree = plant();
    Batch batch;
    for (int64_t first = 0; first < blocks; first += LANES) {
        vf size = vf_of(0), extreme = vf_of(0);
        load_batch(&batch, x, first, blocks, per_row, importance);
        if (importance)
            weigh_batch(&batch, 32, sum_of_squares(QK, batch.x) * (2.f / QK));
        else
            for (int i = 0; i < QK; i++) batch.w[i] = batch.x[i] * batch.x[i];
        for (int j = 0; j < 8; j++) {
            vf scale = codebook_search(&tree, batch.x + 32 * j, batch.w + 32 * j);
            vi more = magnitude(scale) > size;
            size = choose(more, magnitude(scale), size);
            extreme = choose(more, scale, extreme);
            batch.scale[j] = scale;
        }
        for (int lane = 0; lane < batch.count; lane++) {
            uint8_t *block = out + 136 * (first + lane);
            float d = -extreme[lane] / 32, inverse = d != 0 ? 1 / d : 0;
            uint16_t half = half_of(d);
            infinite += !half_is_finite(half);
            memset(block, 0, 8);
            memcpy(block, &half, 2);
            for (int j = 0; j < 8; j++) {
                int scale = clamp(nearest(inverse * batch.scale[j][lane]), -32, 31);
                float here = d * (float)scale;
                pack_numbers(here != 0 ? 1 / here : 0, batch.from[lane] + 32 * j, block + 8 + 16 * j);
                block[2 + j / 4] |= (uint8_t)((scale + 32) >> 4 << 2 * (j % 4));
                block[4 + j / 2] |= (uint8_t)(((scale + 32) & 15) << 4 * (j % 2));
            }
        }
    }
    return infinite;
}

#endif
