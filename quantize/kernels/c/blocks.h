/* The block quantizers for one width of vectors; included by avx512.c, avx2.c and portable.c. */

#include "quantwright.h"
#include "superblocks.h"

int64_t KERNEL(int kind, const float *x, int64_t rows, int64_t columns, const float *importance, uint8_t *out)
{
    switch (kind) {
    case Q4_K: return affine_32(4, x, rows * (columns / QK), columns / QK, importance, out);
    case Q5_K: return affine_32(5, x, rows * (columns / QK), columns / QK, importance, out);
    case Q6_K: return signed_16(x, rows * (columns / QK), columns / QK, importance, out);
    }
    return -1;
}
