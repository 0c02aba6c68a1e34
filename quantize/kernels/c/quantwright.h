/* Compiled kernels of quantwright: plain C functions, called through ctypes. Nothing of Python is used. */

#ifndef QUANTWRIGHT_H
#define QUANTWRIGHT_H

#include <stdint.h>

/* Grows with every change of an exported function: the Python side refuses another. What is added it looks for. */
#define QUANTWRIGHT_ABI 3

/* ggml's numbers of the block types */
enum { Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, IQ4_NL = 20, IQ4_XS = 23 };
enum { Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14 };

/* implementations, the best last */
enum { PORTABLE = 0, AVX2 = 1, AVX512 = 2 };

/* x (rows, columns) float32 -> out; importance (columns) or null. Returns how many scales half precision does
 * not hold, -1 for an unknown kind. */
typedef int64_t Quantize(int kind, const float *x, int64_t rows, int64_t columns, const float *importance,
                         uint8_t *out);

/* Rounds the columns of a block of GPTQ one after the other, for the outputs first .. last - 1 of all.
 *
 * wanted, before, whole, carried (columns, outputs); factor (columns, columns), row j the shares of column j in
 * the errors of the earlier ones, what is not below its diagonal unread; scale, low, high (groups, outputs);
 * groups (columns). Column j is wanted_j + sum over i < j of factor[j, i] * carried_i (written back to wanted)
 * and becomes whole_j = round(that / scale), half to even, within low .. high, of at most 2^22;
 * carried_j = before_j - scale * whole_j. At most MOST_COLUMNS columns. */
#define MOST_COLUMNS 256
typedef void Columns(int64_t columns, int64_t outputs, int64_t first, int64_t last, float *wanted,
                     const float *before, float *whole, float *carried, const float *factor, const float *scale,
                     const float *low, const float *high, const int64_t *groups);

/* Scales and zero points for groups of `size` weights, of rows first .. last - 1.
 *
 * weight (rows, inputs), shares (inputs), scales and zeros (rows, inputs / size). Tried are `factors` times the
 * scale of a group's extremes (negative ones only if symmetric), rounded to half precision; then the best factor,
 * larger and smaller by `half`, unless that is 0; then, `refinements` times, the scale of least squares. The least
 * sum of share * (weight - value)^2 wins, the first of equals. */
typedef struct {
    int symmetric, refinements;
    float top, middle, lowest_zero, half;
    int64_t count;
    const float *factors;
} Search;
typedef void GridOf(const Search *search, int64_t inputs, int64_t size, int64_t first, int64_t last,
                    const float *weight, const float *shares, float *scales, float *zeros);

/* What rounding changes of weights whose columns are multiplied by scales, for the candidates first .. last - 1.
 *
 * weight (rows, inputs), scales (candidates, inputs) -> sums (candidates, inputs): over the rows in their order, the
 * squares of value - scaled weight. Groups of `size` have the scale of their extremes, in half precision; of `grid`,
 * refinements and factors are not used. */
typedef void Scaled(const Search *grid, int64_t rows, int64_t inputs, int64_t size, int64_t first, int64_t last,
                    const float *weight, const float *scales, float *sums);

/* out (rows, size): scale * the whole number nearest to x / scale, between -zero and top - zero, less x; scales and
 * zeros (rows), rows first .. last - 1. */
typedef void Change(int64_t size, int64_t first, int64_t last, float top, const float *x, const float *scales,
                    const float *zeros, float *out);

/* Rows of a weight as compressed-tensors stores them.
 *
 * x (rows, columns), of `type`. `bits` 0: E4M3, one scale for each row, the largest magnitude over 448; codes
 * (rows, columns). 4 and 8: integers in groups of `size` by `search`, codes (rows, columns * bits / 8), the first
 * of two in the lower bits, each byte xor `flip`; zeros (rows, columns / size). scales (rows, columns / size), of
 * `scale_type`. of_x, of_values (rows, 2), or null: products of the rows, and of what their codes mean, with
 * `factors` (2, columns up to a whole WORK_LANES, zero there). work: twice as many floats.
 *
 * Returns the largest magnitude; rows end where it is not finite, or above `limit`. */
enum { OF_FLOAT32 = 0, OF_BFLOAT16 = 1, OF_FLOAT16 = 2 };
#define WORK_LANES 16
typedef struct {
    int type, scale_type, bits, flip;
    int64_t columns, size;
    float limit;
    const Search *search;
    const double *factors;
} Rounding;
typedef float Rounded(const Rounding *how, const void *x, int64_t rows, uint8_t *codes, void *scales, float *zeros,
                      double *of_x, double *of_values, float *work);

Quantize quantize_portable;
Columns columns_portable;
GridOf grid_portable;
Rounded rounded_portable;
Scaled scaled_portable;
Change change_portable;
#ifdef __x86_64__
Quantize quantize_avx2;
Quantize quantize_avx512;
Columns columns_avx2;
Columns columns_avx512;
GridOf grid_avx2;
Rounded rounded_avx2;
GridOf grid_avx512;
Rounded rounded_avx512;
Scaled scaled_avx2;
Scaled scaled_avx512;
Change change_avx2;
Change change_avx512;
#endif

#endif
