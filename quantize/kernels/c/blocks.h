/* The block quantizers for one width of vectors; included by avx512.c, avx2.c and portable.c. */

#include "quantwright.h"
#include "affine.h"
#include "codebook.h"
#include "signed.h"
#include "smallblocks.h"

int64_t KERNEL(int kind, const float *x, int64_t rows, int64_t columns, const float *importance, uint8_t *out)
{
    switch (kind) {
    case Q4_0:
        if (importance) return weighted_32(4, 0, x, rows, columns, importance, out);
        return plain_32(4, 0, x, rows * (columns / 32), out);
    case Q4_1:
        if (importance) return weighted_32(4, 1, x, rows, columns, importance, out);
        return plain_32(4, 1, x, rows * (columns / 32), out);
    case Q5_0:
        if (importance) return weighted_32(5, 0, x, rows, columns, importance, out);
        return plain_32(5, 0, x, rows * (columns / 32), out);
    case Q5_1:
        if (importance) return weighted_32(5, 1, x, rows, columns, importance, out);
        return plain_32(5, 1, x, rows * (columns / 32), out);
    case Q8_0: return plain_8(x, rows * (columns / 32), out);
    case IQ4_NL: return codebook_32(x, rows * (columns / 32), columns / 32, importance, out);
    case IQ4_XS: return codebook_256(x, rows * (columns / QK), columns / QK, importance, out);
    case Q2_K: return affine_16(x, rows * (columns / QK), columns / QK, importance, out);
    case Q3_K: return climbing_16(x, rows * (columns / QK), columns / QK, importance, out);
    case Q4_K: return affine_32(4, x, rows * (columns / QK), columns / QK, importance, out);
    case Q5_K: return affine_32(5, x, rows * (columns / QK), columns / QK, importance, out);
    case Q6_K: return signed_16(x, rows * (columns / QK), columns / QK, importance, out);
    }
    return -1;
}
