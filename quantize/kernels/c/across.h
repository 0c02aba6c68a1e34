/* From rows to lanes: LANES numbers of each of LANES rows change places as a matrix is transposed. */

#ifndef QUANTWRIGHT_ACROSS_H
#define QUANTWRIGHT_ACROSS_H

#include "lanes.h"

#if defined(__x86_64__)

#if LANES == 16
#define VECTOR(kind) __m512##kind
#define MIX(what) _mm512_##what
#define TO_DOUBLES(a) _mm512_castps_pd(a)
#define TO_FLOATS(a) _mm512_castpd_ps(a)
#elif LANES == 8
#define VECTOR(kind) __m256##kind
#define MIX(what) _mm256_##what
#define TO_DOUBLES(a) _mm256_castps_pd(a)
#define TO_FLOATS(a) _mm256_castpd_ps(a)
#else
#define VECTOR(kind) __m128##kind
#define MIX(what) _mm_##what
#define TO_DOUBLES(a) _mm_castps_pd(a)
#define TO_FLOATS(a) _mm_castpd_ps(a)
#endif

/* out[i] lane s = from[s][at + i] for i < LANES. Four rows are transposed within each 128 bits, which are
 * then put together. */
INLINE void across_tile(const float *const from[LANES], int at, vf *out)
{
    VECTOR() row[LANES];
    for (int lane = 0; lane < LANES; lane++) row[lane] = MIX(loadu_ps)(from[lane] + at);
#pragma GCC unroll 4
    for (int group = 0; group < LANES; group += 4) {
        VECTOR(d) a = TO_DOUBLES(MIX(unpacklo_ps)(row[group], row[group + 1]));
        VECTOR(d) b = TO_DOUBLES(MIX(unpacklo_ps)(row[group + 2], row[group + 3]));
        VECTOR(d) c = TO_DOUBLES(MIX(unpackhi_ps)(row[group], row[group + 1]));
        VECTOR(d) d = TO_DOUBLES(MIX(unpackhi_ps)(row[group + 2], row[group + 3]));
        row[group] = TO_FLOATS(MIX(unpacklo_pd)(a, b));
        row[group + 1] = TO_FLOATS(MIX(unpackhi_pd)(a, b));
        row[group + 2] = TO_FLOATS(MIX(unpacklo_pd)(c, d));
        row[group + 3] = TO_FLOATS(MIX(unpackhi_pd)(c, d));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
#if LANES == 16
        __m512 even = _mm512_shuffle_f32x4(row[i], row[i + 4], 0x88);
        __m512 odd = _mm512_shuffle_f32x4(row[i], row[i + 4], 0xdd);
        __m512 even_too = _mm512_shuffle_f32x4(row[i + 8], row[i + 12], 0x88);
        __m512 odd_too = _mm512_shuffle_f32x4(row[i + 8], row[i + 12], 0xdd);
        out[i] = (vf)_mm512_shuffle_f32x4(even, even_too, 0x88);
        out[i + 4] = (vf)_mm512_shuffle_f32x4(odd, odd_too, 0x88);
        out[i + 8] = (vf)_mm512_shuffle_f32x4(even, even_too, 0xdd);
        out[i + 12] = (vf)_mm512_shuffle_f32x4(odd, odd_too, 0xdd);
#elif LANES == 8
        out[i] = (vf)_mm256_permute2f128_ps(row[i], row[i + 4], 0x20);
        out[i + 4] = (vf)_mm256_permute2f128_ps(row[i], row[i + 4], 0x31);
#else
        out[i] = (vf)row[i];
#endif
    }
}

#else

INLINE void across_tile(const float *const from[LANES], int at, vf *out)
{
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < LANES; i++) out[i][lane] = from[lane][at + i];
}

#endif

/* out[i] lane s = from[s][i] for i < count, a multiple of LANES */
INLINE void across(int count, const float *const from[LANES], vf *out)
{
    for (int i = 0; i < count; i += LANES) across_tile(from, i, out + i);
}

#endif
