/* Compiled kernels of quantwright: plain C functions, called through ctypes. Nothing of Python is used. */

#ifndef QUANTWRIGHT_H
#define QUANTWRIGHT_H

#include <stdint.h>

/* Grows with every change of a signature below: the Python side refuses another. */
#define QUANTWRIGHT_ABI 1

/* ggml's numbers of the block types */
enum { Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14 };
enum { IQ4_NL = 20, IQ4_XS = 23 };

/* implementations, the best last */
enum { PORTABLE = 0, AVX2 = 1, AVX512 = 2 };

/* rows (rows, columns) float32 -> out; importance (columns) or null. Returns how many scales half precision does
 * not hold, -1 for an unknown kind. */
typedef int64_t Quantize(int kind, const float *x, int64_t rows, int64_t columns, const float *importance,
                         uint8_t *out);

Quantize quantize_portable;
#ifdef __x86_64__
Quantize quantize_avx2;
Quantize quantize_avx512;
#endif

#endif
