/* Q4_K, Q5_K and Q2_K: super-blocks whose sub-blocks have a scale and a minimum.
 *
 * Source: quantize_row_q*_K_ref (no importance) and quantize_row_q*_K_impl of llama.cpp's ggml-quants.c. */

#ifndef QUANTWRIGHT_AFFINE_H
#define QUANTWRIGHT_AFFINE_H

#include "superblocks.h"

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
INLINE void affine_codes(const Batch *batch, int lane, int j, int n, int largest, float d, float m,
                         uint8_t *codes)
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
            vf up = choose(most > 0, 63.f / most, vf_of(0));
            vf down = choose(deepest > 0, 63.f / deepest, vf_of(0));
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

/* Q2_K: 16 bytes of a 4-bit scale and a 4-bit minimum, 64 bytes of codes, half d, half dmin. */
INLINE int64_t affine_16(const float *x, int64_t blocks, int64_t per_row, const float *importance,
                         uint8_t *out)
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

#endif
