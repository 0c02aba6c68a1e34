/* The columns of one block of GPTQ, TILES * LANES outputs side by side; for one width of vectors, included by
 * avx512.c, avx2.c and portable.c. */

#include "quantwright.h"
#include "lanes.h"

#define TILES 4
#define WIDE (TILES * LANES)

/* `count` of `from`'s floats into WIDE, `rest` beyond them */
INLINE void load_wide(vf to[TILES], const float *from, int64_t count, float rest)
{
    if (count >= WIDE) {
        memcpy(to, from, sizeof(float) * WIDE);
        return;
    }
    for (int tile = 0; tile < TILES; tile++) to[tile] = vf_of(rest);
    memcpy(to, from, sizeof(float) * (size_t)count);
}

INLINE void store_wide(float *to, const vf from[TILES], int64_t count)
{
    memcpy(to, from, sizeof(float) * (size_t)(count < WIDE ? count : WIDE));
}

void COLUMNS(int64_t columns, int64_t outputs, int64_t first, int64_t last, float *wanted, const float *before,
             float *whole, float *carried, const float *factor, const float *scale, const float *low,
             const float *high, const int64_t *groups)
{
    vf moved[MOST_COLUMNS][TILES];
    for (int64_t at = first; at < last; at += WIDE) {
        int64_t count = last - at;
        for (int64_t column = 0; column < columns; column++) {
            const float *shares = factor + column * columns;
            int64_t here = column * outputs + at, group = groups[column] * outputs + at;
            vf want[TILES], was[TILES], step[TILES], lowest[TILES], highest[TILES];
            load_wide(want, wanted + here, count, 0);
            for (int64_t earlier = 0; earlier < column; earlier++) {
                vf share = vf_of(shares[earlier]);
                for (int tile = 0; tile < TILES; tile++) want[tile] += share * moved[earlier][tile];
            }
            load_wide(was, before + here, count, 0);
            load_wide(step, scale + group, count, 1);
            load_wide(lowest, low + group, count, 0);
            load_wide(highest, high + group, count, 0);
            vf code[TILES];
            for (int tile = 0; tile < TILES; tile++) {
                vf inverse = vf_of(1) / step[tile];
                vf kept = larger(smaller(want[tile] * inverse, highest[tile]), lowest[tile]);
                code[tile] = (kept + MAGIC) - MAGIC;
                moved[column][tile] = was[tile] - code[tile] * step[tile];
            }
            store_wide(wanted + here, want, count);
            store_wide(whole + here, code, count);
            store_wide(carried + here, moved[column], count);
        }
    }
}
