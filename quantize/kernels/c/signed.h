/* Q6_K and Q3_K: super-blocks whose sub-blocks have a scale alone.
 *
 * Source: quantize_row_q*_K_ref (no importance) and quantize_row_q*_K_impl of llama.cpp's ggml-quants.c. */

#ifndef QUANTWRIGHT_SIGNED_H
#define QUANTWRIGHT_SIGNED_H

#include "superblocks.h"

/* Codes of 16 weights for x ~ d * code, kept with `largest` added, or those of the search where d is 0. */
INLINE void signed_codes(const Batch *batch, const vi *empty, int lane, int j, int largest, float d,
                         uint8_t *codes)
{
    const float *x = batch->from[lane] + 16 * j;
    vi made[16 / LANES];
    if (d == 0 && empty[j][lane]) {
        memset(codes, 0, 16);
        return;
    }
    for (int p = 0; p < 16 / LANES; p++) {
        vf place = d != 0 ? load(x + LANES * p) / d : batch->inverse[j][lane] * load(x + LANES * p);
        made[p] = clamp_lanes(nearest_lanes(place), -largest, largest - 1) + largest;
    }
    store_bytes(made, codes);
}

/* Q6_K: 128 bytes of low four bits, 64 of the upper two, 16 signed scales, half d. */
INLINE int64_t signed_16(const float *x, int64_t blocks, int64_t per_row, const float *importance,
                         uint8_t *out)
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
                float here = float_of_half(half_d[lane]) * (float)scale;
                signed_codes(&batch, empty, lane, j, 32, here, codes + 16 * j);
            }
            memcpy(block + 208, half_d + lane, 2);
            for (int half = 0; half < 2; half++) {
                const uint8_t *c = codes + 128 * half;
                uint8_t *low = block + 64 * half, *high = block + 128 + 32 * half;
                for (int i = 0; i < 32; i++) {
                    low[i] = (uint8_t)((c[i] & 15) | c[i + 64] << 4);
                    low[i + 32] = (uint8_t)((c[i + 32] & 15) | c[i + 96] << 4);
                    high[i] = (uint8_t)(c[i] >> 4 | c[i + 32] >> 4 << 2 | c[i + 64] >> 4 << 4 |
                                        c[i + 96] >> 4 << 6);
                }
            }
        }
    }
    return infinite;
}

/* Q3_K: 32 bytes of third bits, 64 of the lower two, 12 bytes of 6-bit scales, half d. */
INLINE int64_t climbing_16(const float *x, int64_t blocks, int64_t per_row, const float *importance,
                           uint8_t *out)
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
                vi code = clamp_lanes(nearest_lanes(outer.inverse * batch.scale[j]), -32, 31);
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
                vi code = clamp_lanes(nearest_lanes(inverse * batch.scale[j]), -32, 31);
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
