/* Rows of a weight in float8 E4M3 or in integers of 4 and 8 bits, from its file's numbers to those of the
 * artifact's, as quantize/numerics/small_floats.py and rtn.py do it; for one width of vectors, after grid.h. */

#include "quantwright.h"
#include "lanes.h"

typedef uint16_t vs __attribute__((vector_size(2 * LANES)));
typedef double vd __attribute__((vector_size(8 * LANES)));

/* bits of a float's nearest bfloat16, ties to even; finite */
INLINE uint32_t bfloat16_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

/* a scale as the file holds it, written to place `at` of `to`; what that means */
INLINE float held_scale(int kind, float scale, void *to, int64_t at)
{
    if (kind == OF_BFLOAT16) {
        uint32_t bits = bfloat16_bits(scale);
        ((uint16_t *)to)[at] = (uint16_t)bits;
        bits <<= 16;
        memcpy(&scale, &bits, sizeof bits);
    } else if (kind == OF_FLOAT16) {
        uint16_t half = half_of(scale);
        ((uint16_t *)to)[at] = half;
        scale = float_of_half(half);
    } else {
        ((float *)to)[at] = scale;
    }
    return scale;
}

/* `count` numbers of a file as float32, zeros up to a whole vector; the largest magnitude, by its bits */
static uint32_t widened(int kind, const void *from, int64_t count, float *to)
{
    vi most = vi_of(0);
    for (int64_t at = 0; at < count; at += LANES) {
        int64_t left = count - at < LANES ? count - at : LANES;
        vf values = vf_of(0);
        if (kind == OF_FLOAT32) {
            memcpy(&values, (const float *)from + at, sizeof(float) * (size_t)left);
        } else if (kind == OF_BFLOAT16) {
            vs halves = {0};
            if (left == LANES) /* a length that is known: no call */
                memcpy(&halves, (const uint16_t *)from + at, sizeof halves);
            else
                memcpy(&halves, (const uint16_t *)from + at, sizeof(uint16_t) * (size_t)left);
            values = (vf)(__builtin_convertvector(halves, vi) << 16);
        } else {
            for (int64_t lane = 0; lane < left; lane++)
                values[lane] = float_of_half(((const uint16_t *)from)[at + lane]);
        }
        most = larger_int(most, (vi)values & 0x7fffffff);
        memcpy(to + at, &values, sizeof values);
    }
    uint32_t found = 0;
    for (int lane = 0; lane < LANES; lane++) found = (uint32_t)most[lane] > found ? (uint32_t)most[lane] : found;
    return found;
}

/* x over scale, at most 448, to the nearest number of E4M3, ties to even: its code, and the number */
INLINE vi e4m3_codes(vf x, float scale, vf *level)
{
    vf inside = larger(smaller(x / scale, vf_of(448)), vf_of(-448)), size = magnitude(inside);
    vi bits = (vi)size, sign = (vi)inside & INT32_MIN;
    /* the three first bits of the fraction; the exponent's bias is 7 */
    vi held = (bits + 0x7ffff + ((bits >> 20) & 1)) & ~0xfffff;
    /* below 2^-6 steps of 2^-9, which is the last place of a float at 2^14 */
    vf steps = size + 0x1p14f;
    vi small = size < 0x1p-6f;
    *level = (vf)((vi)choose(small, steps - 0x1p14f, (vf)held) | sign);
    vi code = choose_int(small, (vi)steps - ((0x7f + 14) << 23), (held >> 20) - (0x78 << 3));
    return code | ((sign >> 24) & 0x80);
}

static void e4m3_row(const float *x, int64_t count, float scale, uint8_t *codes, float *values)
{
    uint8_t last[16];
    for (int64_t at = 0; at < count; at += 16) {
        vi found[16 / LANES];
        for (int part = 0; part < 16 / LANES; part++) {
            vf level;
            found[part] = e4m3_codes(load(x + at + part * LANES), scale, &level);
            level *= scale;
            memcpy(values + at + part * LANES, &level, sizeof level);
        }
        int whole = count - at >= 16;
        store_bytes(found, whole ? codes + at : last);
        if (!whole) memcpy(codes + at, last, (size_t)(count - at));
    }
}

/* `count` integers, at most 16, packed if they are of 4 bits; `count` even then. `flip` is put over each byte. */
INLINE void integers(const float *x, int64_t count, int bits, float scale, float zero, float top, int flip,
                     uint8_t *codes, float *values)
{
    vi found[16 / LANES];
    vf inverse = vf_of(1 / scale), lowest = vf_of(-zero), highest = vf_of(top - zero);
    for (int part = 0; part < 16 / LANES; part++) {
        int64_t left = count - part * LANES < LANES ? count - part * LANES : LANES;
        vf some = load_some(x + part * LANES, left > 0 ? left : 0);
        vf steps = (larger(smaller(some * inverse, highest), lowest) + MAGIC) - MAGIC, value = steps * scale;
        if (left > 0) memcpy(values + part * LANES, &value, sizeof(float) * (size_t)left);
        found[part] = __builtin_convertvector(steps + zero, vi) ^ flip;
    }
    uint8_t bytes[16];
    store_bytes(found, bytes);
    if (bits == 4) {
        typedef uint16_t pairs __attribute__((vector_size(16)));
        typedef uint8_t halves __attribute__((vector_size(8)));
        pairs both;
        memcpy(&both, bytes, sizeof both);
        halves packed = __builtin_convertvector(both | both >> 4, halves);
        memcpy(bytes, &packed, sizeof packed);
    }
    memcpy(codes, bytes, (size_t)(count * bits / 8));
}

static void integer_group(const float *x, int64_t count, int bits, float scale, float zero, float top, int flip,
                          uint8_t *codes, float *values)
{
    int64_t at = 0;
    for (; at + 16 <= count; at += 16) /* lengths are known here */
        if (bits == 4)
            integers(x + at, 16, 4, scale, zero, top, flip, codes + at / 2, values + at);
        else
            integers(x + at, 16, 8, scale, zero, top, flip, codes + at, values + at);
    if (at < count)
        integers(x + at, count - at, bits, scale, zero, top, flip, codes + at * bits / 8, values + at);
}

/* The projections of x and of values on both rows of `factors` (2, whole vectors), which is zero beyond `count`. */
static void projected(const float *x, const float *values, int64_t whole, const double *factors, double *of_x,
                      double *of_values)
{
    vd sums[4] = {{0}, {0}, {0}, {0}};
    for (int64_t at = 0; at < whole; at += LANES) {
        vd first, second, a = __builtin_convertvector(load(x + at), vd);
        vd b = __builtin_convertvector(load(values + at), vd);
        memcpy(&first, factors + at, sizeof first);
        memcpy(&second, factors + whole + at, sizeof second);
        sums[0] += a * first, sums[1] += a * second;
        sums[2] += b * first, sums[3] += b * second;
    }
    double found[4] = {0, 0, 0, 0};
    for (int each = 0; each < 4; each++)
        for (int lane = 0; lane < LANES; lane++) found[each] += sums[each][lane];
    of_x[0] = found[0], of_x[1] = found[1], of_values[0] = found[2], of_values[1] = found[3];
}

float ROUNDED(const Rounding *how, const void *x, int64_t rows, uint8_t *codes, void *scales, float *zeros,
              double *of_x, double *of_values, float *work)
{
    int64_t columns = how->columns, size = how->size, groups = columns / size;
    int64_t padded = (columns + WORK_LANES - 1) / WORK_LANES * WORK_LANES;
    size_t width = how->type == OF_FLOAT32 ? 4 : 2;
    float *row = work, *values = work + padded, largest = 0;
    int pairs = how->bits && in_pairs(how->search), falling = how->bits && falls(how->search);
    memset(work, 0, 2 * sizeof(float) * (size_t)padded);
    for (int64_t each = 0; each < rows; each++) {
        uint32_t bits = widened(how->type, (const uint8_t *)x + (size_t)(each * columns) * width, columns, row);
        float most;
        memcpy(&most, &bits, sizeof bits);
        if (bits >= 0x7f800000) return most;
        if (most > largest) largest = most;
        if (most > how->limit) return largest;
        if (how->bits == 0) {
            float scale = most / 448, smallest = how->scale_type == OF_FLOAT16 ? 0x1p-14f : 0x1p-126f;
            scale = most > 0 ? (scale < smallest ? smallest : scale) : 1;
            scale = held_scale(how->scale_type, scale, scales, each);
            e4m3_row(row, columns, scale, codes + each * columns, values);
        } else {
            uint8_t *to = codes + each * columns * how->bits / 8;
            for (int64_t first = 0; first < groups; first += LANES) {
                int count = groups - first < LANES ? (int)(groups - first) : LANES;
                Group here = {row + first * size, 0, size};
                float found[LANES], middles[LANES];
                search_groups(here, count, how->search, pairs, falling, found, middles);
                for (int next = 0; next < count; next++) {
                    int64_t group = first + next, at = each * groups + group;
                    float scale = held_scale(how->scale_type, found[next], scales, at);
                    zeros[at] = middles[next];
                    integer_group(row + group * size, size, how->bits, scale, zeros[at], how->search->top,
                                  how->flip, to + group * size * how->bits / 8, values + group * size);
                }
            }
        }
        if (of_x) projected(row, values, padded, how->factors, of_x + 2 * each, of_values + 2 * each);
    }
    return largest;
}
