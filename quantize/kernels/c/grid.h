/* The search of a scale and a zero point for each group of weights, as quantize/numerics/rtn.py does it; for one
 * width of vectors, included by avx512.c, avx2.c and portable.c. */

#include "across.h"
#include "quantwright.h"

typedef struct {
    const float *x, *shares; /* no shares: all are 1 */
    int64_t size;
} Group;

/* the group that comes `number` groups later */
INLINE Group nth(Group group, int64_t number)
{
    int64_t at = number * group.size;
    return (Group){group.x + at, group.shares ? group.shares + at : 0, group.size};
}

/* up to LANES floats, zeros beyond the `count` that there are */
INLINE vf load_some(const float *from, int64_t count)
{
    if (count >= LANES) return load(from); /* a copy of a length that is known is one instruction */
    vf found = vf_of(0);
    memcpy(&found, from, sizeof(float) * (size_t)count);
    return found;
}

INLINE vf shares_of(Group group, int64_t at)
{
    return group.shares ? load_some(group.shares + at, group.size - at) : vf_of(1);
}

/* as float16 holds it, but neither 0 nor infinite */
INLINE float stored(float scale)
{
    float size = __builtin_fabsf(scale);
    size = size < 0x1p-24f ? 0x1p-24f : size > 65504.f ? 65504.f : size;
    return __builtin_copysignf(float_of_half(half_of(size)), scale);
}

/* the same of every lane */
INLINE vf stored_lanes(vf scales)
{
#if LANES == 16 || LANES == 8
    vf size = smaller(larger(magnitude(scales), vf_of(0x1p-24f)), vf_of(65504.f));
#if LANES == 16
    vf held = (vf)_mm512_cvtph_ps(_mm512_cvtps_ph((__m512)size, 0));
#else
    vf held = (vf)_mm256_cvtph_ps(_mm256_cvtps_ph((__m256)size, 0));
#endif
    return (vf)((vi)held | ((vi)scales & INT32_MIN));
#else
    for (int lane = 0; lane < LANES; lane++) scales[lane] = stored(scales[lane]);
    return scales;
#endif
}

/* x - steps * scale, the product exact: steps of at most 8 bits, and 11 of a scale that float16 holds. So one
 * rounding, as of a fused operation, is the two. */
INLINE vf left_of(vf x, vf steps, vf scale)
{
#if LANES == 16
    return (vf)_mm512_fnmadd_ps((__m512)steps, (__m512)scale, (__m512)x);
#elif LANES == 8
    return (vf)_mm256_fnmadd_ps((__m256)steps, (__m256)scale, (__m256)x);
#else
    return x - steps * scale;
#endif
}

/* the nearest whole number of at most 2^22, ties to even; the sign of a zero is of no consequence */
INLINE vf whole(vf a)
{
#if LANES == 16
    return (vf)_mm512_roundscale_ps((__m512)a, 0);
#elif LANES == 8
    return (vf)_mm256_round_ps((__m256)a, 0);
#else
    return (a + MAGIC) - MAGIC;
#endif
}

/* lane i of lanes[j]: lane j of rows[i] */
INLINE void transposed(const vf *rows, vf *lanes)
{
    const float *from[LANES];
    for (int each = 0; each < LANES; each++) from[each] = (const float *)(rows + each);
    across_tile(from, 0, lanes);
}

/* lane i: the sum of the lanes of rows[i], first to last */
INLINE vf totals(const vf *rows)
{
    vf lanes[LANES], sum = vf_of(0);
    transposed(rows, lanes);
    for (int lane = 0; lane < LANES; lane++) sum += lanes[lane];
    return sum;
}

/* The sums of share * (x - value)^2 for LANES scales, one a lane. */
INLINE vf errors_of(Group group, const float *scales, const float *zeros, float top)
{
    float inverses[LANES], lowest[LANES], highest[LANES];
    vf inverse = 1.f / load(scales), low = -load(zeros), high = top - load(zeros), error[LANES];
    memcpy(inverses, &inverse, sizeof inverses);
    memcpy(lowest, &low, sizeof lowest);
    memcpy(highest, &high, sizeof highest);
    for (int each = 0; each < LANES; each++) error[each] = vf_of(0);
    for (int64_t at = 0; at < group.size; at += LANES) {
        vf x = load_some(group.x + at, group.size - at), share = shares_of(group, at);
#pragma GCC unroll 16
        for (int each = 0; each < LANES; each++) {
            vf steps = whole(larger(smaller(x * inverses[each], vf_of(highest[each])), vf_of(lowest[each])));
            vf off = left_of(x, steps, vf_of(scales[each]));
            error[each] += share * (off * off);
        }
    }
    return totals(error);
}

/* The same where scales come in pairs, the second the first's negative, all zero points are half of top + 1, and
 * shares are 1. Rounding and squares know no sign, so magnitudes do: the first scale has one step more for what
 * is negative, the second for what is not. */
INLINE vf errors_of_pairs(Group group, const float *scales, float zero)
{
    float inverses[LANES];
    vf inverse = 1.f / load(scales), error[LANES];
    memcpy(inverses, &inverse, sizeof inverses);
    for (int each = 0; each < LANES; each++) error[each] = vf_of(0);
    for (int64_t at = 0; at < group.size; at += LANES) {
        vf x = load_some(group.x + at, group.size - at), size = magnitude(x);
        vf first = choose((vi)x >> 31, vf_of(zero), vf_of(zero - 1)), second = (2 * zero - 1) - first;
#pragma GCC unroll 8
        for (int each = 0; each < LANES; each += 2) {
            vf steps = whole(size * inverses[each]), scale = vf_of(scales[each]);
            vf off = left_of(size, smaller(steps, first), scale);
            vf other = left_of(size, smaller(steps, second), scale);
            error[each] += off * off;
            error[each + 1] += other * other;
        }
    }
    return totals(error);
}

/* The sum of share * (x - value)^2 for one scale, lane by lane: `totals` makes of it what errors_of gives. */
INLINE vf error_of(Group group, float scale, float zero, float top)
{
    vf error = vf_of(0), inverse = vf_of(1 / scale), lowest = vf_of(-zero), highest = vf_of(top - zero);
    for (int64_t at = 0; at < group.size; at += LANES) {
        vf x = load_some(group.x + at, group.size - at);
        vf off = left_of(x, whole(larger(smaller(x * inverse, highest), lowest)), vf_of(scale));
        error += shares_of(group, at) * (off * off);
    }
    return error;
}

/* The sums of share * steps * x and of share * steps^2, lane by lane. */
INLINE void fitted(Group group, float scale, float zero, float top, vf *products, vf *squares)
{
    vf product = vf_of(0), square = vf_of(0), inverse = vf_of(1 / scale);
    vf lowest = vf_of(-zero), highest = vf_of(top - zero);
    for (int64_t at = 0; at < group.size; at += LANES) {
        vf x = load_some(group.x + at, group.size - at);
        vf steps = (larger(smaller(x * inverse, highest), lowest) + MAGIC) - MAGIC;
        vf weighted = shares_of(group, at) * steps;
        product += weighted * x;
        square += weighted * steps;
    }
    *products = product, *squares = square;
}

/* What weights of a magnitude beyond `end` lose at the least, lane by lane, in the order of error_of. No
 * operation of floats exchanges what is less and what is more: no scale whose last step is `end` or less has a
 * smaller error. */
INLINE vf least_error(Group group, float end)
{
    vf error = vf_of(0);
    for (int64_t at = 0; at < group.size; at += LANES) {
        vf off = larger(magnitude(load_some(group.x + at, group.size - at)) - end, vf_of(0));
        error += shares_of(group, at) * (off * off);
    }
    return error;
}

/* whether each scale of a search is tried with both signs, the positive one first */
static int in_pairs(const Search *search)
{
    if (!search->symmetric || search->count % 2) return 0;
    for (int64_t each = 0; each < search->count; each += 2)
        if (!(search->factors[each] > 0) || search->factors[each + 1] != -search->factors[each]) return 0;
    return 1;
}

/* whether no scale is larger than the one before, so that what `least_error` says of one holds for the rest */
static int falls(const Search *search)
{
    for (int64_t each = 1; each < search->count; each++)
        if (__builtin_fabsf(search->factors[each]) > __builtin_fabsf(search->factors[each - 1])) return 0;
    return search->symmetric;
}

/* how many scales are tried between two looks at whether a smaller one can still be better */
#define SCALES_AT_ONCE 16

/* zero points from what they are before rounding */
INLINE vf zeros_of(const Search *search, vf zeros)
{
    return larger(smaller((zeros + MAGIC) - MAGIC, vf_of(search->top)), vf_of(search->lowest_zero));
}

/* The search for up to LANES groups in a row, the first given, so that sums over a group's lanes become sums of
 * vectors with a lane a group. scales and zeros: LANES. */
INLINE void search_groups(Group group, int count, const Search *search, int pairs, int falling, float *scales,
                          float *zeros)
{
    vf rows[LANES], others[LANES], lanes[LANES], best[LANES], low = vf_of(0), high = vf_of(0), extremes;
    vi chosen[LANES];
    float top = search->top, ends[LANES], lows[LANES], sizes[LANES];
    for (int each = 0; each < LANES; each++) {
        rows[each] = others[each] = vf_of(0);
        best[each] = vf_of(__builtin_inff());
        chosen[each] = vi_of(-1);
    }
    for (int each = 0; each < count; each++) {
        vf least = vf_of(0), most = vf_of(0);
        for (int64_t at = 0; at < group.size; at += LANES) {
            vf x = load_some(nth(group, each).x + at, group.size - at);
            least = smaller(x, least), most = larger(x, most);
        }
        rows[each] = least, others[each] = most;
    }
    transposed(rows, lanes);
    for (int lane = 0; lane < LANES; lane++) low = smaller(lanes[lane], low);
    transposed(others, lanes);
    for (int lane = 0; lane < LANES; lane++) high = larger(lanes[lane], high);
    if (search->symmetric)
        extremes = larger(-low, high) * 2 / top;
    else
        extremes = larger((high - low) / top, high / (top - search->lowest_zero));
    memcpy(lows, &low, sizeof lows);
    memcpy(sizes, &extremes, sizeof sizes);

    vi number;
    for (int lane = 0; lane < LANES; lane++) number[lane] = lane;
    for (int64_t first = 0; first < search->count; first += LANES, number += LANES) {
        float factors[LANES], tried[LANES], middles[LANES];
        int64_t last = search->count - 1 - first;
        for (int lane = 0; lane < LANES; lane++) /* beyond the last, the last again; of pairs both */
            factors[lane] = search->factors[first + (lane <= last ? lane : pairs ? last - (~lane & 1) : last)];
        int bounded = falling && first && first % SCALES_AT_ONCE == 0;
        if (bounded) {
            vf end = magnitude(stored_lanes(extremes * factors[0])) * search->middle;
            memcpy(ends, &end, sizeof ends);
            for (int each = 0; each < count; each++) rows[each] = least_error(nth(group, each), ends[each]);
            end = totals(rows);
            memcpy(ends, &end, sizeof ends);
        }
        for (int each = 0; each < count; each++) {
            if (bounded && any(best[each] <= vf_of(ends[each]))) continue;
            vf factor = load(factors), scale = stored_lanes(sizes[each] * factor), middle = vf_of(search->middle);
            if (!search->symmetric) middle = zeros_of(search, -lows[each] * factor / scale);
            memcpy(tried, &scale, sizeof tried);
            memcpy(middles, &middle, sizeof middles);
            vf error = pairs ? errors_of_pairs(nth(group, each), tried, search->middle)
                             : errors_of(nth(group, each), tried, middles, top);
            vi better = error < best[each];
            best[each] = choose(better, error, best[each]);
            chosen[each] = choose_int(better, number, chosen[each]);
        }
    }

    vi numbers[LANES], winner = vi_of(-1);
    vf least = vf_of(__builtin_inff());
    transposed(best, rows);
    transposed((const vf *)chosen, (vf *)numbers);
    for (int lane = 0; lane < LANES; lane++) { /* the first of equals */
        vi better = (rows[lane] < least) | ((rows[lane] == least) & (numbers[lane] < winner));
        least = choose(better, rows[lane], least);
        winner = choose_int(better, numbers[lane], winner);
    }
    vf factor = vf_of(0), scale, zero;
    for (int each = 0; each < count; each++)
        if (winner[each] >= 0) factor[each] = search->factors[winner[each]];
    scale = stored_lanes(extremes * factor);
    zero = search->symmetric ? vf_of(search->middle) : zeros_of(search, -low * factor / scale);
    scale = choose(winner >= 0, scale, vf_of(0)), zero = choose(winner >= 0, zero, vf_of(0));
    memcpy(zeros, &zero, sizeof zero);

    if (search->half != 0) {
        vf found = factor, sign = choose(found < 0, vf_of(-1), vf_of(1));
        for (float half = search->half; half; half = half > 0 ? -half : 0) { /* first larger, then smaller */
            factor = found + sign * half;
            vf tried = stored_lanes(extremes * factor), middle = vf_of(search->middle);
            if (!search->symmetric) middle = zeros_of(search, -low * factor / tried);
            memcpy(scales, &tried, sizeof tried);
            memcpy(sizes, &middle, sizeof middle);
            for (int each = 0; each < count; each++)
                rows[each] = error_of(nth(group, each), scales[each], sizes[each], top);
            vf error = totals(rows);
            vi better = error < least;
            least = choose(better, error, least);
            scale = choose(better, tried, scale), zero = choose(better, middle, zero);
        }
        memcpy(zeros, &zero, sizeof zero);
    }
    for (int round = 0; round < search->refinements; round++) {
        memcpy(scales, &scale, sizeof scale);
        for (int each = 0; each < count; each++)
            fitted(nth(group, each), scales[each], zeros[each], top, rows + each, others + each);
        vf squares = totals(others), tried = stored_lanes(totals(rows) / squares);
        memcpy(scales, &tried, sizeof tried);
        for (int each = 0; each < count; each++)
            rows[each] = error_of(nth(group, each), scales[each], zeros[each], top);
        vf error = totals(rows);
        vi better = (squares > 0) & (error < least);
        least = choose(better, error, least), scale = choose(better, tried, scale);
    }
    memcpy(scales, &scale, sizeof scale);
}

void GRID(const Search *search, int64_t inputs, int64_t size, int64_t first, int64_t last, const float *weight,
          const float *shares, float *scales, float *zeros)
{
    int64_t groups = inputs / size;
    int falling = falls(search);
    for (int64_t row = first; row < last; row++)
        for (int64_t group = 0; group < groups; group += LANES) {
            Group here = {weight + row * inputs + group * size, shares + group * size, size};
            int count = groups - group < LANES ? (int)(groups - group) : LANES;
            float found[LANES], middles[LANES];
            search_groups(here, count, search, 0, falling, found, middles);
            memcpy(scales + row * groups + group, found, sizeof(float) * (size_t)count);
            memcpy(zeros + row * groups + group, middles, sizeof(float) * (size_t)count);
        }
}
