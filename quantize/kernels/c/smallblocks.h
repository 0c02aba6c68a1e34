/* Types of blocks of 32 weights with scales of their own: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
 *
 * Without importance nothing is searched, and memory sets the pace: a block is a few vectors. With importance
 * each block is searched, lane by row.
 * Source: quantize_row_q*_ref and quantize_row_q*_impl of llama.cpp's ggml-quants.c. */

#ifndef QUANTWRIGHT_SMALLBLOCKS_H
#define QUANTWRIGHT_SMALLBLOCKS_H

#include "across.h"
#include "search.h"

/* Codes of 4 or 5 bits: [4 bytes of fifth bits,] 16 bytes, the first half of the block in the low bits. */
INLINE void pack_32(int bits, const uint8_t *codes, uint8_t *out)
{
    if (bits == 5) {
        uint32_t fifth = 0;
        for (int i = 0; i < 32; i++) fifth |= (uint32_t)(codes[i] >> 4 & 1) << i;
        memcpy(out, &fifth, 4);
        out += 4;
    }
    for (int i = 0; i < 16; i++) out[i] = (uint8_t)((codes[i] & 15) | (codes[i + 16] & 15) << 4);
}

#define PARTS (32 / LANES) /* vectors of a block */

/* The least of one vector's lanes, and of another's. */
INLINE void least_lanes(vf a, vf b, float *least_a, float *least_b)
{
#if LANES == 16
    *least_a = _mm512_reduce_min_ps((__m512)a);
    *least_b = _mm512_reduce_min_ps((__m512)b);
#elif LANES == 8 /* a in the lower half, b in the upper */
    __m256 both = _mm256_min_ps(_mm256_permute2f128_ps((__m256)a, (__m256)b, 0x20),
                                _mm256_permute2f128_ps((__m256)a, (__m256)b, 0x31));
    both = _mm256_min_ps(both, _mm256_permute_ps(both, 0x4e));
    both = _mm256_min_ps(both, _mm256_permute_ps(both, 0xb1));
    *least_a = _mm256_cvtss_f32(both);
    *least_b = _mm_cvtss_f32(_mm256_extractf128_ps(both, 1));
#else
    *least_a = a[0];
    *least_b = b[0];
    for (int lane = 1; lane < LANES; lane++) {
        *least_a = a[lane] < *least_a ? a[lane] : *least_a;
        *least_b = b[lane] < *least_b ? b[lane] : *least_b;
    }
#endif
}

INLINE float largest_lane(vf a)
{
    float least, same;
    least_lanes(-a, -a, &least, &same);
    return -least;
}

/* Whether codes can be made with this inverse: x86's conversions of Inf and NaN end in a code of 0. */
INLINE int usable(float inverse) { return __builtin_fabsf(inverse) < __builtin_inff(); }

INLINE void ends_of(const vf *x, float *low, float *high)
{
    vf least = x[0], most = x[0];
    for (int p = 1; p < PARTS; p++) {
        least = smaller(x[p], least);
        most = larger(x[p], most);
    }
    least_lanes(least, -most, low, high);
    *high = -*high;
}

/* Rounded to the nearest integer, halves away from zero; |value| < 2^22. */
INLINE int32_t away_from_zero(float value)
{
    int32_t whole = (int32_t)value;
    float rest = value - (float)whole;
    return whole + (rest >= 0.5f) - (rest <= -0.5f);
}

INLINE int64_t plain_8(const float *x, int64_t blocks, uint8_t *out)
{
    int64_t infinite = 0;
    for (int64_t b = 0; b < blocks; b++, x += 32, out += 34) {
        vf most = vf_of(0);
        for (int p = 0; p < PARTS; p++) most = larger(magnitude(load(x + LANES * p)), most);
        float d = largest_lane(most) / 127.f, inverse = d != 0 ? 1.f / d : 0.f;
        uint16_t half = half_of(d);
        infinite += !half_is_finite(half);
        memcpy(out, &half, 2);
        if (usable(inverse)) {
            int8_t codes[32];
            for (int i = 0; i < 32; i++) codes[i] = (int8_t)away_from_zero(x[i] * inverse);
            memcpy(out + 2, codes, 32);
        } else {
            memset(out + 2, 0, 32);
        }
    }
    return infinite;
}

/* `offset`: with a minimum (Q4_1, Q5_1), else around zero (Q4_0, Q5_0). */
INLINE int64_t plain_32(int bits, int offset, const float *x, int64_t blocks, uint8_t *out)
{
    int levels = 1 << bits, top = levels - 1, size = 2 + 2 * offset + (bits == 5 ? 20 : 16);
    int64_t infinite = 0;
    for (int64_t b = 0; b < blocks; b++, x += 32, out += size) {
        uint8_t *codes = out + size - 16;
        vf values[PARTS];
        float low, high, d, half_step = 0.5f;
        for (int p = 0; p < PARTS; p++) values[p] = load(x + LANES * p);
        ends_of(values, &low, &high);
        if (offset) {
            d = low == high ? 0 : (high - low) / (float)top;
            for (int i = 0; low == 0 && i < 32; i++)
                if (x[i] == 0) { /* of zeros of both signs ggml keeps the first */
                    low = x[i];
                    break;
                }
        } else {
            /* the number of the largest magnitude, the first of equals; +0 where all are 0 */
            float extreme = high > -low ? high : low;
            for (int i = 0; high == -low && i < 32; i++)
                if (__builtin_fabsf(x[i]) == high) {
                    extreme = high == 0 ? 0 : x[i];
                    break;
                }
            d = extreme / (float)(-levels / 2);
            half_step = (float)(levels / 2) + 0.5f;
        }
        float inverse = d != 0 ? 1.f / d : 0.f;
        uint16_t half = half_of(d);
        infinite += !half_is_finite(half);
        memcpy(out, &half, 2);
        if (offset) {
            half = half_of(low);
            infinite += !half_is_finite(half);
            memcpy(out + 2, &half, 2);
        }
        if (!usable(inverse) || !usable(d)) {
            memset(codes - (bits == 5 ? 4 : 0), 0, bits == 5 ? 20 : 16);
            continue;
        }
        vi made[PARTS];
        for (int p = 0; p < PARTS; p++) {
            vf place = (offset ? values[p] - low : values[p]) * inverse + half_step;
            made[p] = __builtin_convertvector(smaller(place, vf_of((float)top)), vi);
        }
        if (bits == 5) {
            uint32_t fifth = 0;
            for (int p = 0; p < PARTS; p++) fifth |= signs(made[p] << 27) << LANES * p;
            memcpy(codes - 4, &fifth, 4);
        }
        for (int p = 0; p < PARTS / 2; p++) made[p] = (made[p] & 15) | (made[p + PARTS / 2] & 15) << 4;
        store_bytes(made, codes);
    }
    return infinite;
}

/* The same types with importances: LANES rows at once, block by block. */
INLINE int64_t weighted_32(int bits, int offset, const float *x, int64_t rows, int64_t columns,
                           const float *importance, uint8_t *out)
{
    int largest = offset ? (1 << bits) - 1 : 1 << (bits - 1), size = 2 + 2 * offset + (bits == 5 ? 20 : 16);
    int64_t infinite = 0, per_row = columns / 32;
    for (int64_t first = 0; first < rows; first += LANES) {
        int count = rows - first < LANES ? (int)(rows - first) : LANES;
        const float *from[LANES];
        vf values[32], w[32], spread = vf_of(0);
        for (int64_t b = 0; b < per_row; b++) {
            for (int lane = 0; lane < LANES; lane++)
                from[lane] = x + columns * (first + (lane < count ? lane : count - 1)) + 32 * b;
            across(32, from, values);
            for (int i = 0; i < 32; i++) spread += values[i] * values[i];
        }
        spread = spread / (float)columns;
        for (int64_t b = 0; b < per_row; b++) {
            vf scale, inverse, lowest = vf_of(0), minimum = vf_of(0);
            vi empty = vi_of(0);
            for (int lane = 0; lane < LANES; lane++)
                from[lane] = x + columns * (first + (lane < count ? lane : count - 1)) + 32 * b;
            across(32, from, values);
            for (int i = 0; i < 32; i++)
                w[i] = importance[32 * b + i] * root(spread + values[i] * values[i]);
            if (offset) {
                Affine found;
                affine_search(1, 32, largest, values, w, -0.9f, 0.05f, 36, 0, &found);
                scale = found.scale;
                minimum = found.minimum;
                inverse = found.inverse;
                lowest = found.lowest;
            } else {
                Signed found = signed_search(32, largest, 1, values, w);
                scale = found.scale;
                inverse = found.inverse;
                empty = found.empty;
            }
            for (int lane = 0; lane < count; lane++) {
                uint8_t *block = out + size * (per_row * (first + lane) + b), codes[32];
                uint16_t half = half_of(scale[lane]), half_low = half_of(minimum[lane]);
                float up = inverse[lane], low = lowest[lane];
                infinite += !half_is_finite(half);
                memcpy(block, &half, 2);
                if (offset) {
                    infinite += !half_is_finite(half_low);
                    memcpy(block + 2, &half_low, 2);
                    for (int i = 0; i < 32; i++)
                        codes[i] = (uint8_t)clamp(nearest(up * (from[lane][i] - low)), 0, largest);
                } else if (empty[lane]) {
                    memset(codes, 0, sizeof codes);
                } else {
                    for (int i = 0; i < 32; i++) {
                        int32_t code = nearest(up * from[lane][i]);
                        codes[i] = (uint8_t)(clamp(code, -largest, largest - 1) + largest);
                    }
                }
                pack_32(bits, codes, block + 2 + 2 * offset);
            }
        }
    }
    return infinite;
}

#endif
