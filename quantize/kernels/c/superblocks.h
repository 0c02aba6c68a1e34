/* Types of super-blocks of 256 weights: LANES super-blocks at once, the search in lanes, the codes one by one.
 *
 * A sub-block's scale goes through a few bits and the super-block's through half precision; the codes are then
 * made again from those, except where such a scale is 0: there ggml keeps the codes of its search.
 * Source: quantize_row_q*_K_ref (no importance) and quantize_row_q*_K_impl of llama.cpp's ggml-quants.c. */

#ifndef QUANTWRIGHT_SUPERBLOCKS_H
#define QUANTWRIGHT_SUPERBLOCKS_H

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

INLINE void search_affine(Batch *batch, int n, int largest, float from, float step, int steps, int absolute)
{
    for (int j = 0; j < QK / n; j += 2) {
        Affine found[2];
        affine_search(2, n, largest, batch->x + j * n, batch->w + j * n, from, step, steps, absolute, found);
        for (int k = 0; k < 2; k++) {
            batch->scale[j + k] = found[k].scale;
            batch->offset[j + k] = -found[k].minimum;
            batch->inverse[j + k] = found[k].inverse;
            batch->lowest[j + k] = found[k].lowest;
        }
    }
}

/* Codes of a sub-block for x ~ d * code - m, or those of the search where d is 0. */
INLINE void affine_codes(const Batch *batch, int lane, int j, int n, int largest, float d, float m, uint8_t *codes)
{
    const float *x = batch->from[lane] + j * n;
    if (d != 0) {
        for (int i = 0; i < n; i++) codes[i] = (uint8_t)clamp(nearest((x[i] + m) / d), 0, largest);
    } else {
        float inverse = batch->inverse[j][lane], lowest = batch->lowest[j][lane];
        for (int i = 0; i < n; i++) codes[i] = (uint8_t)clamp(nearest(inverse * (x[i] - lowest)), 0, largest);
    }
}

/* Q4_K (bits 4) and Q5_K (bits 5): half d, half dmin, 12 bytes of 6-bit scales and minima, [32 bytes of fifth
 * bits,] 128 bytes of low bits. Returns how many scales are not finite. */
INLINE int64_t affine_32(int bits, const float *x, int64_t blocks, int64_t per_row, const float *importance,
                         uint8_t *out)
{
    int largest = (1 << bits) - 1, size = bits == 4 ? 144 : 176;
    int64_t infinite = 0;
    Batch batch;
    for (int64_t first = 0; first < blocks; first += LANES) {
        vf d, dmin;
        vi scales[8], minima[8];
        uint16_t half_d[LANES], half_dmin[LANES];
        load_batch(&batch, x, first, blocks, per_row, importance);
        if (importance) {
            weigh_batch(&batch, 32, 2.f * sum_of_squares(QK, batch.x) / (float)QK);
            search_affine(&batch, 32, largest, -0.9f, 0.05f, 36, 0);
            d = positive_search(8, 63, batch.scale, batch.total, scales);
            dmin = positive_search(8, 63, batch.offset, batch.total, minima);
        } else {
            vf most = vf_of(0), deepest = vf_of(0);
            for (int j = 0; j < 8; j++) {
                vf mean = root(sum_of_squares(32, batch.x + 32 * j) / 32.f);
                for (int i = 32 * j; i < 32 * j + 32; i++) batch.w[i] = mean + magnitude(batch.x[i]);
            }
            if (bits == 4)
                search_affine(&batch, 32, 15, -1.f, 0.1f, 20, 0);
            else
                search_affine(&batch, 32, 31, -0.5f, 0.1f, 15, 0);
            for (int j = 0; j < 8; j++) {
                most = larger(batch.scale[j], most);
                deepest = larger(batch.offset[j], deepest);
            }
            vf up = choose(most > 0, 63.f / most, vf_of(0)), down = choose(deepest > 0, 63.f / deepest, vf_of(0));
            for (int j = 0; j < 8; j++) {
                scales[j] = nearest_lanes(up * batch.scale[j]) & 255;
                minima[j] = nearest_lanes(down * batch.offset[j]) & 255;
            }
            d = most / 63.f;
            dmin = deepest / 63.f;
        }
        if (!importance || bits == 5)
            for (int j = 0; j < 8; j++) {
                scales[j] = smaller_int(scales[j], vi_of(63));
                minima[j] = smaller_int(minima[j], vi_of(63));
            }
        store_halves(d, half_d);
        store_halves(dmin, half_dmin);
        for (int lane = 0; lane < batch.count; lane++) {
            uint8_t *block = out + size * (first + lane), *packed = block + 4, *low = block + size - 128;
            uint8_t codes[QK];
            memcpy(block, half_d + lane, 2);
            memcpy(block + 2, half_dmin + lane, 2);
            infinite += !half_is_finite(half_d[lane]) + !half_is_finite(half_dmin[lane]);
            for (int j = 0; j < 4; j++) {
                packed[j] = (uint8_t)scales[j][lane];
                packed[j + 4] = (uint8_t)minima[j][lane];
            }
            for (int j = 4; j < 8; j++) {
                uint8_t s = (uint8_t)scales[j][lane], m = (uint8_t)minima[j][lane];
                packed[j + 4] = (uint8_t)((s & 15) | (m & 15) << 4);
                packed[j - 4] |= (uint8_t)(s >> 4 << 6);
                packed[j] |= (uint8_t)(m >> 4 << 6);
            }
            for (int j = 0; j < 8; j++) {
                int s = j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | packed[j - 4] >> 6 << 4;
                int m = j < 4 ? packed[j + 4] & 63 : packed[j + 4] >> 4 | packed[j] >> 6 << 4;
                affine_codes(&batch, lane, j, 32, largest, float_of_half(half_d[lane]) * (float)s,
                             float_of_half(half_dmin[lane]) * (float)m, codes + 32 * j);
            }
            for (int j = 0; j < 4; j++)
                for (int i = 0; i < 32; i++)
                    low[32 * j + i] = (uint8_t)((codes[64 * j + i] & 15) | codes[64 * j + 32 + i] << 4);
            if (bits == 5)
                for (int i = 0; i < 32; i++) {
                    unsigned fifth = 0;
                    for (int j = 0; j < 8; j++) fifth |= (unsigned)(codes[32 * j + i] >> 4) << j;
                    block[16 + i] = (uint8_t)fifth;
                }
        }
    }
    return infinite;
}

/* Codes of 16 weights for x ~ d * code, kept with `largest` added, or those of the search where d is 0. */
INLINE void signed_codes(const Batch *batch, const vi *empty, int lane, int j, int largest, float d, uint8_t *codes)
{
    const float *x = batch->from[lane] + 16 * j;
    if (d != 0) {
        for (int i = 0; i < 16; i++)
            codes[i] = (uint8_t)(clamp(nearest(x[i] / d), -largest, largest - 1) + largest);
    } else if (empty[j][lane]) {
        memset(codes, 0, 16);
    } else {
        float inverse = batch->inverse[j][lane];
        for (int i = 0; i < 16; i++)
            codes[i] = (uint8_t)(clamp(nearest(inverse * x[i]), -largest, largest - 1) + largest);
    }
}

/* Q6_K: 128 bytes of low four bits, 64 of the upper two, 16 signed scales, half d. */
INLINE int64_t signed_16(const float *x, int64_t blocks, int64_t per_row, const float *importance, uint8_t *out)
{
    int64_t infinite = 0;
    Batch batch;
    for (int64_t first = 0; first < blocks; first += LANES) {
        vi empty[16], scales[16];
        vf size = vf_of(0), extreme = vf_of(0);
        uint16_t half_d[LANES];
        load_batch(&batch, x, first, blocks, per_row, importance);
        if (!importance)
            for (int i = 0; i < QK; i++) batch.w[i] = batch.x[i] * batch.x[i];
        for (int j = 0; j < 16; j++) {
            Signed found = signed_search(16, 32, 1, batch.x + 16 * j, batch.w + 16 * j);
            batch.scale[j] = found.scale;
            batch.inverse[j] = found.inverse;
            empty[j] = found.empty;
            vi more = magnitude(found.scale) > size;
            size = choose(more, magnitude(found.scale), size);
            extreme = choose(more, found.scale, extreme);
        }
        vi nothing = size < GROUP_MAX_EPS;
        vf inverse = -128.f / extreme;
        store_halves(1.f / inverse, half_d);
        for (int j = 0; j < 16; j++)
            scales[j] = smaller_int(nearest_lanes(inverse * batch.scale[j]), vi_of(127));
        for (int lane = 0; lane < batch.count; lane++) {
            uint8_t *block = out + 210 * (first + lane), codes[QK];
            if (nothing[lane]) {
                memset(block, 0, 210);
                continue;
            }
            infinite += !half_is_finite(half_d[lane]);
            for (int j = 0; j < 16; j++) {
                int8_t scale = (int8_t)scales[j][lane];
                block[192 + j] = (uint8_t)scale;
                signed_codes(&batch, empty, lane, j, 32, float_of_half(half_d[lane]) * (float)scale, codes + 16 * j);
            }
            memcpy(block + 208, half_d + lane, 2);
            for (int half = 0; half < 2; half++) {
                const uint8_t *c = codes + 128 * half;
                uint8_t *low = block + 64 * half, *high = block + 128 + 32 * half;
                for (int i = 0; i < 32; i++) {
                    low[i] = (uint8_t)((c[i] & 15) | c[i + 64] << 4);
                    low[i + 32] = (uint8_t)((c[i + 32] & 15) | c[i + 96] << 4);
                    high[i] = (uint8_t)(c[i] >> 4 | c[i + 32] >> 4 << 2 | c[i + 64] >> 4 << 4 | c[i + 96] >> 4 << 6);
                }
            }
        }
    }
    return infinite;
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

/* Q2_K: 16 bytes of a 4-bit scale and a 4-bit minimum, 64 bytes of codes, half d, half dmin. */
INLINE int64_t affine_16(const float *x, int64_t blocks, int64_t per_row, const float *importance, uint8_t *out)
{
    int64_t infinite = 0;
    Batch batch;
    for (int64_t first = 0; first < blocks; first += LANES) {
        vf d, dmin;
        vi scales[16], minima[16];
        uint16_t half_d[LANES], half_dmin[LANES];
        load_batch(&batch, x, first, blocks, per_row, importance);
        if (importance) {
            weigh_batch(&batch, 16, sum_of_squares(QK, batch.x) / (float)QK);
            search_affine(&batch, 16, 3, -0.9f, 0.05f, 36, 0);
            d = positive_search(16, 15, batch.scale, batch.total, scales);
            dmin = positive_search(16, 15, batch.offset, batch.total, minima);
        } else {
            vf most = vf_of(0), deepest = vf_of(0);
            for (int i = 0; i < QK; i++) batch.w[i] = magnitude(batch.x[i]);
            search_affine(&batch, 16, 3, -0.5f, 0.1f, 15, 1);
            for (int j = 0; j < 16; j++) {
                most = larger(batch.scale[j], most);
                deepest = larger(batch.offset[j], deepest);
            }
            vi some = most > 0, deep = deepest > 0;
            vf up = 15.f / most, down = 15.f / deepest;
            for (int j = 0; j < 16; j++) {
                scales[j] = nearest_lanes(up * batch.scale[j]) & some & 255;
                minima[j] = nearest_lanes(down * batch.offset[j]) & deep & 255;
            }
            d = choose(some, most / 15.f, vf_of(0));
            dmin = choose(deep, deepest / 15.f, vf_of(0));
        }
        store_halves(d, half_d);
        store_halves(dmin, half_dmin);
        for (int lane = 0; lane < batch.count; lane++) {
            uint8_t *block = out + 84 * (first + lane), codes[QK];
            for (int j = 0; j < 16; j++) {
                block[j] = (uint8_t)(scales[j][lane] | minima[j][lane] << 4);
                affine_codes(&batch, lane, j, 16, 3, float_of_half(half_d[lane]) * (float)(block[j] & 15),
                             float_of_half(half_dmin[lane]) * (float)(block[j] >> 4), codes + 16 * j);
            }
            pack_pairs(codes, block + 16);
            memcpy(block + 80, half_d + lane, 2);
            memcpy(block + 82, half_dmin + lane, 2);
            infinite += !half_is_finite(half_d[lane]) + !half_is_finite(half_dmin[lane]);
        }
    }
    return infinite;
}

/* Q3_K: 32 bytes of third bits, 64 of the lower two, 12 bytes of 6-bit scales, half d. */
INLINE int64_t climbing_16(const float *x, int64_t blocks, int64_t per_row, const float *importance, uint8_t *out)
{
    int64_t infinite = 0;
    Batch batch;
    vf climbed[QK];
    for (int64_t first = 0; first < blocks; first += LANES) {
        vf d;
        vi empty[16], scales[16]; /* scales with 32 added */
        uint16_t half_d[LANES];
        load_batch(&batch, x, first, blocks, per_row, importance);
        if (importance) {
            weigh_batch(&batch, 16, 2.f * sum_of_squares(QK, batch.x) / (float)QK);
            for (int j = 0; j < 16; j++) {
                Signed found = signed_search(16, 4, 1, batch.x + 16 * j, batch.w + 16 * j);
                batch.scale[j] = found.scale;
                batch.inverse[j] = found.inverse;
                empty[j] = found.empty;
            }
            Signed outer = signed_search(16, 32, 0, batch.scale, batch.total);
            for (int j = 0; j < 16; j++) {
                vi code = larger_int(smaller_int(nearest_lanes(outer.inverse * batch.scale[j]), vi_of(31)), vi_of(-32));
                scales[j] = (code + 32) & ~outer.empty;
            }
            d = outer.scale;
        } else {
            vf size = vf_of(0), extreme = vf_of(0);
            for (int j = 0; j < 16; j += 4) {
                Signed found[4];
                climbing_search(4, 4, batch.x + 16 * j, climbed + 16 * j, found);
                for (int k = 0; k < 4; k++) {
                    vi more = magnitude(found[k].scale) > size;
                    size = choose(more, magnitude(found[k].scale), size);
                    extreme = choose(more, found[k].scale, extreme);
                    batch.scale[j + k] = found[k].scale;
                }
            }
            vi some = extreme != 0;
            vf inverse = -32.f / extreme;
            for (int j = 0; j < 16; j++) {
                vi code = larger_int(smaller_int(nearest_lanes(inverse * batch.scale[j]), vi_of(31)), vi_of(-32));
                scales[j] = (code + 32) & some;
            }
            d = choose(some, 1.f / inverse, vf_of(0));
        }
        store_halves(d, half_d);
        for (int lane = 0; lane < batch.count; lane++) {
            uint8_t *block = out + 110 * (first + lane), *packed = block + 96, codes[QK];
            memset(packed, 0, 12);
            infinite += !half_is_finite(half_d[lane]);
            for (int j = 0; j < 16; j++) {
                int scale = scales[j][lane];
                float here = float_of_half(half_d[lane]) * (float)(scale - 32);
                packed[j % 8] |= (uint8_t)((scale & 15) << (j < 8 ? 0 : 4));
                packed[8 + j % 4] |= (uint8_t)(scale >> 4 << 2 * (j / 4));
                if (here == 0 && !importance)
                    for (int i = 16 * j; i < 16 * j + 16; i++) codes[i] = (uint8_t)(climbed[i][lane] + 4);
                else
                    signed_codes(&batch, empty, lane, j, 4, here, codes + 16 * j);
            }
            for (int i = 0; i < 32; i++) {
                unsigned third = 0;
                for (int j = 0; j < 8; j++) third |= (unsigned)(codes[32 * j + i] >> 2) << j;
                block[i] = (uint8_t)third;
            }
            pack_pairs(codes, block + 32);
            memcpy(block + 108, half_d + lane, 2);
        }
    }
    return infinite;
}

#endif
