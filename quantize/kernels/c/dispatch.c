/* Which implementation runs is decided here, by what the processor has. */

#include "quantwright.h"

#define EXPORT __attribute__((visibility("default")))

EXPORT int quantwright_abi(void) { return QUANTWRIGHT_ABI; }

EXPORT int quantwright_best(void)
{
#ifdef __x86_64__
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
        return PORTABLE;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return AVX512;
    return AVX2;
#endif
    return PORTABLE;
}

/* As Quantize, by implementation `which`, which must not be above quantwright_best(). */
EXPORT int64_t quantwright_quantize(int which, int kind, const float *x, int64_t rows, int64_t columns,
                                    const float *importance, uint8_t *out)
{
#ifdef __x86_64__
    if (which == AVX512) return quantize_avx512(kind, x, rows, columns, importance, out);
    if (which == AVX2) return quantize_avx2(kind, x, rows, columns, importance, out);
#endif
    (void)which;
    return quantize_portable(kind, x, rows, columns, importance, out);
}

/* As Columns, by implementation `which`. */
EXPORT void quantwright_columns(int which, int64_t columns, int64_t outputs, int64_t first, int64_t last,
                                float *wanted, const float *before, float *whole, float *carried,
                                const float *factor, const float *scale, const float *low, const float *high,
                                const int64_t *groups)
{
    Columns *run = columns_portable;
#ifdef __x86_64__
    if (which == AVX512) run = columns_avx512;
    if (which == AVX2) run = columns_avx2;
#endif
    (void)which;
    run(columns, outputs, first, last, wanted, before, whole, carried, factor, scale, low, high, groups);
}

/* As GridOf, by implementation `which`. */
EXPORT void quantwright_grid(int which, const Search *search, int64_t inputs, int64_t size, int64_t first,
                             int64_t last, const float *weight, const float *shares, float *scales, float *zeros)
{
    GridOf *run = grid_portable;
#ifdef __x86_64__
    if (which == AVX512) run = grid_avx512;
    if (which == AVX2) run = grid_avx2;
#endif
    (void)which;
    run(search, inputs, size, first, last, weight, shares, scales, zeros);
}

/* As Rounded, by implementation `which`. */
EXPORT float quantwright_rounded(int which, const Rounding *how, const void *x, int64_t rows, uint8_t *codes,
                                 void *scales, float *zeros, double *of_x, double *of_values, float *work)
{
    Rounded *run = rounded_portable;
#ifdef __x86_64__
    if (which == AVX512) run = rounded_avx512;
    if (which == AVX2) run = rounded_avx2;
#endif
    (void)which;
    return run(how, x, rows, codes, scales, zeros, of_x, of_values, work);
}

/* As Scaled, by implementation `which`. */
EXPORT void quantwright_scaled(int which, const Search *grid, int64_t rows, int64_t inputs, int64_t size,
                               int64_t first, int64_t last, const float *weight, const float *scales, float *sums)
{
    Scaled *run = scaled_portable;
#ifdef __x86_64__
    if (which == AVX512) run = scaled_avx512;
    if (which == AVX2) run = scaled_avx2;
#endif
    (void)which;
    run(grid, rows, inputs, size, first, last, weight, scales, sums);
}

/* As Change, by implementation `which`. */
EXPORT void quantwright_change(int which, int64_t size, int64_t first, int64_t last, float top, const float *x,
                               const float *scales, const float *zeros, float *out)
{
    Change *run = change_portable;
#ifdef __x86_64__
    if (which == AVX512) run = change_avx512;
    if (which == AVX2) run = change_avx2;
#endif
    (void)which;
    run(size, first, last, top, x, scales, zeros, out);
}
