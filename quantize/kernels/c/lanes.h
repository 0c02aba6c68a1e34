/* Vectors of LANES floats, and the few operations on them that C's own operators do not give.
 *
 * Arithmetic is the compilers' on vector types (GCC, Clang): each lane rounds as the scalar operation does.
 * Nothing here may be contracted or reassociated: built with -ffp-contract=off and without fast-math. */

#ifndef QUANTWRIGHT_LANES_H
#define QUANTWRIGHT_LANES_H

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));

/* Adding this to a float of at most 2^22 leaves the nearest integer, ties to even, in the low bits. */
#define MAGIC 12582912.f

INLINE vf vf_of(float value) { return value - (vf){0}; }
INLINE vi vi_of(int32_t value) { return value + (vi){0}; }

/* lanes of a where the mask (all bits of a lane) is set, else of b */
#if LANES == 8 /* with 16 lanes the compiler finds the one instruction */
INLINE vf choose(vi mask, vf a, vf b)
{
    return (vf)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)mask);
}
INLINE vi choose_int(vi mask, vi a, vi b) { return (vi)choose(mask, (vf)a, (vf)b); }
#else
INLINE vf choose(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
INLINE vi choose_int(vi mask, vi a, vi b) { return (mask & a) | (~mask & b); }
#endif

/* a < b ? a : b and a > b ? a : b, by lane; b where either is NaN, as C's conditional gives */
#if LANES == 16
INLINE vf smaller(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vf larger(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf root(vf a) { return (vf)_mm512_sqrt_ps((__m512)a); }
#elif LANES == 8
INLINE vf smaller(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vf larger(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vf root(vf a) { return (vf)_mm256_sqrt_ps((__m256)a); }
#elif defined(__x86_64__)
INLINE vf smaller(vf a, vf b) { return (vf)_mm_min_ps((__m128)a, (__m128)b); }
INLINE vf larger(vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
INLINE vf root(vf a) { return (vf)_mm_sqrt_ps((__m128)a); }
#else
INLINE vf smaller(vf a, vf b) { return choose(a < b, a, b); }
INLINE vf larger(vf a, vf b) { return choose(a > b, a, b); }
INLINE vf root(vf a)
{
    for (int lane = 0; lane < LANES; lane++) a[lane] = __builtin_sqrtf(a[lane]);
    return a;
}
#endif

#if LANES == 8
INLINE vi smaller_int(vi a, vi b) { return (vi)_mm256_min_epi32((__m256i)a, (__m256i)b); }
INLINE vi larger_int(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }
#else
INLINE vi smaller_int(vi a, vi b) { return choose_int(a < b, a, b); }
INLINE vi larger_int(vi a, vi b) { return choose_int(a > b, a, b); }
#endif
INLINE vi clamp_lanes(vi a, int32_t low, int32_t high)
{
    return larger_int(smaller_int(a, vi_of(high)), vi_of(low));
}

INLINE vf load(const float *x)
{
    vf value;
    memcpy(&value, x, sizeof value);
    return value;
}

/* 16 numbers of 0..255, lanes in order, as bytes. */
typedef uint8_t vb __attribute__((vector_size(LANES)));
INLINE void store_bytes(const vi *values, uint8_t *out)
{
#if LANES == 8
    __m256i words = _mm256_permute4x64_epi64(
        _mm256_packus_epi32((__m256i)values[0], (__m256i)values[1]), 0xd8);
    __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    memcpy(out, &bytes, 16);
#else
    for (int p = 0; p < 16 / LANES; p++) {
        vb bytes = __builtin_convertvector(values[p], vb);
        memcpy(out + LANES * p, &bytes, LANES);
    }
#endif
}

INLINE vf magnitude(vf a) { return (vf)((vi)a & 0x7fffffff); }
INLINE vf float_of(vi a) { return __builtin_convertvector(a, vf); }

/* The lanes' sign bits, lane 0 lowest. */
INLINE uint32_t signs(vi mask)
{
#if LANES == 16
    return _mm512_movepi32_mask((__m512i)mask);
#elif LANES == 8
    return (uint32_t)_mm256_movemask_ps((__m256)mask);
#elif defined(__x86_64__)
    return (uint32_t)_mm_movemask_ps((__m128)mask);
#else
    uint32_t found = 0;
    for (int lane = 0; lane < LANES; lane++) found |= (uint32_t)(mask[lane] < 0) << lane;
    return found;
#endif
}

INLINE int any(vi mask) { return signs(mask) != 0; }

/* ggml's nearest_int, bit for bit, for whatever float: beyond 2^22, Inf and NaN give what its bits give. */
INLINE int32_t nearest(float value)
{
    float shifted = value + MAGIC;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    return (bits & 0x007fffff) - 0x00400000;
}
INLINE vi nearest_lanes(vf value) { return ((vi)(value + MAGIC) & 0x007fffff) - 0x00400000; }

/* The same as a float, and kept within low..high: the bits are put back under MAGIC's exponent. */
INLINE vf code_between(vf value, float low, float high)
{
    vf code = (vf)(((vi)(value + MAGIC) & 0x007fffff) | 0x4b000000) - MAGIC;
    return larger(smaller(code, vf_of(high)), vf_of(low));
}

/* The same where |value| <= 2^22 is `known`, one operation fewer. */
INLINE vf signed_code(int known, vf value, float largest)
{
    return known ? larger(smaller((value + MAGIC) - MAGIC, vf_of(largest - 1)), vf_of(-largest))
                 : code_between(value, -largest, largest - 1);
}

INLINE int32_t clamp(int32_t value, int32_t low, int32_t high)
{
    value = value < high ? value : high;
    return value > low ? value : low;
}

/* IEEE half precision, ties to even; too large becomes Inf, NaN stays NaN. */
INLINE uint16_t half_of(float value)
{
#if LANES == 8 && defined(__x86_64__) /* whoever has AVX2 has this: dispatch.c looks */
    return (uint16_t)_mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(value), 0), 0);
#else
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;
    if (bits >= 0x47800000) return sign | 0x7c00; /* 2^16 and more */
    if (bits < 0x38800000) {                      /* below 2^-14: a subnormal half, in units of 2^-24 */
        float shifted, small;
        memcpy(&small, &bits, sizeof small);
        shifted = small + 0.5f; /* a float's last place at 0.5 is 2^-24 */
        memcpy(&bits, &shifted, sizeof bits);
        return sign | (uint16_t)(bits - 0x3f000000);
    }
    bits += 0xfff + (bits >> 13 & 1); /* to nearest, ties to even, into the exponent if need be */
    return sign | (uint16_t)((bits - 0x38000000) >> 13);
#endif
}

INLINE float float_of_half(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    float value;
    if (rest < 0x400) {
        value = (float)rest * 0x1p-24f;
    } else {
        uint32_t bits = rest >= 0x7c00 ? 0x7f800000 | (rest & 0x3ff) << 13 : (rest << 13) + 0x38000000;
        memcpy(&value, &bits, sizeof value);
    }
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits |= sign;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE int half_is_finite(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

#endif
