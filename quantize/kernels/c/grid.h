/* The search of a scale and a zero point for each group of weights, as quantize/numerics/rtn.py does it; for one
 * width of vectors, included by avx512.c, avx2.c and portable.c. */

#include "quantwright.h"
#include "lanes.h"

typedef struct {
    const float *x, *shares; /* no shares: all are 1 */
    int64_t size;
} Group;

/* up to LANES floats, zeros beyond the `count` that there are */
INLINE vf load_some(const float *from, int64_t count)
{
    vf found = vf_of(0);
    memcpy(&found, from, sizeof(float) * (size_t)(count < LANES ? count : LANES));
    return found;
}

INLINE vf shares_of(Group group, int64_t at)
{
    return group.shares ? load_some(group.shares + at, group.size - at) : vf_of(1);
}

INLINE float total(vf a)
{
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += a[lane];
    return sum;
}

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

/* the sum of share * (x - value)^2 and, if asked, those of share * steps * x and share * steps^2 */
INLINE float error_of(Group group, float scale, float zero, float top, float *products, float *squares)
{
    vf error = vf_of(0), product = vf_of(0), square = vf_of(0), inverse = vf_of(1 / scale);
    vf lowest = vf_of(-zero), highest = vf_of(top - zero);
    for (int64_t at = 0; at < group.size; at += LANES) {
        vf x = load_some(group.x + at, group.size - at), share = shares_of(group, at);
        vf steps = (larger(smaller(x * inverse, highest), lowest) + MAGIC) - MAGIC;
        vf off = x - steps * scale;
        error += share * (off * off);
        if (products) {
            product += share * steps * x;
            square += share * steps * steps;
        }
    }
    if (products) *products = total(product), *squares = total(square);
    return total(error);
}

/* The errors of LANES scales at once, one a lane: each is summed over the same lanes in the same order as
 * error_of does, so that they are its errors, bit by bit. */
INLINE vf errors_of(Group group, const float *scales, const float *zeros, float top)
{
    float sums[LANES][LANES];
    float inverses[LANES];
    vf inverse = 1.f / load(scales);
    memcpy(inverses, &inverse, sizeof inverses);
    vf error[LANES];
    for (int each = 0; each < LANES; each++) error[each] = vf_of(0);
    for (int64_t at = 0; at < group.size; at += LANES) {
        vf x = load_some(group.x + at, group.size - at), share = shares_of(group, at);
        for (int each = 0; each < LANES; each++) {
            vf lowest = vf_of(-zeros[each]), highest = vf_of(top - zeros[each]);
            vf steps = (larger(smaller(x * inverses[each], highest), lowest) + MAGIC) - MAGIC;
            vf off = x - steps * scales[each];
            error[each] += share * (off * off);
        }
    }
    for (int each = 0; each < LANES; each++)
        for (int lane = 0; lane < LANES; lane++) sums[lane][each] = error[each][lane];
    vf sum = vf_of(0);
    for (int lane = 0; lane < LANES; lane++) sum += load(sums[lane]);
    return sum;
}

/* The same where scales come in pairs, the second the first's negative, all zero points are half of top + 1, and
 * shares are 1. What a pair's weights round to differs at the two ends only: -scale is scale with the codes
 * between 1 - zero and zero instead of -zero and zero - 1. */
INLINE vf errors_of_pairs(Group group, const float *scales, float zero)
{
    float sums[LANES][LANES], inverses[LANES];
    vf inverse = 1.f / load(scales);
    memcpy(inverses, &inverse, sizeof inverses);
    vf error[LANES], most = vf_of(zero), least = vf_of(-zero), below = vf_of(zero - 1), above = vf_of(1 - zero);
    for (int each = 0; each < LANES; each++) error[each] = vf_of(0);
    for (int64_t at = 0; at < group.size; at += LANES) {
        vf x = load_some(group.x + at, group.size - at);
        for (int each = 0; each < LANES; each += 2) {
            vf steps = (larger(smaller(x * inverses[each], most), least) + MAGIC) - MAGIC;
            vf first = x - smaller(steps, below) * scales[each], second = x - larger(steps, above) * scales[each];
            error[each] += first * first;
            error[each + 1] += second * second;
        }
    }
    for (int each = 0; each < LANES; each++)
        for (int lane = 0; lane < LANES; lane++) sums[lane][each] = error[each][lane];
    vf sum = vf_of(0);
    for (int lane = 0; lane < LANES; lane++) sum += load(sums[lane]);
    return sum;
}

/* whether each scale of a search is tried with both signs, the positive one first */
static int in_pairs(const Search *search)
{
    if (!search->symmetric || search->count % 2) return 0;
    for (int64_t each = 0; each < search->count; each += 2)
        if (!(search->factors[each] > 0) || search->factors[each + 1] != -search->factors[each]) return 0;
    return 1;
}

static void search_group(Group group, const Search *search, int pairs, float *best_scale, float *best_zero)
{
    float low = 0, high = 0, top = search->top;
    for (int64_t at = 0; at < group.size; at++) {
        low = group.x[at] < low ? group.x[at] : low;
        high = group.x[at] > high ? group.x[at] : high;
    }
    float extremes;
    if (search->symmetric) {
        extremes = (-low > high ? -low : high) * 2 / top;
    } else {
        float spread = (high - low) / top, above = high / (top - search->lowest_zero);
        extremes = spread > above ? spread : above;
    }
    float least = __builtin_inff(), scale = 0, zero = 0;
    for (int64_t first = 0; first < search->count; first += LANES) {
        float factors[LANES], tried[LANES], middles[LANES];
        int64_t count = search->count - first < LANES ? search->count - first : LANES;
        for (int64_t each = 0; each < LANES; each++) /* beyond the last, the last again */
            factors[each] = search->factors[first + (each < count ? each : count - 1)];
        vf factor = load(factors), scales = stored_lanes(extremes * factor), middle = vf_of(search->middle);
        if (!search->symmetric) {
            middle = (-low * factor / scales + MAGIC) - MAGIC;
            middle = larger(smaller(middle, vf_of(top)), vf_of(search->lowest_zero));
        }
        memcpy(tried, &scales, sizeof tried);
        memcpy(middles, &middle, sizeof middles);
        vf error = pairs ? errors_of_pairs(group, tried, search->middle) : errors_of(group, tried, middles, top);
        for (int64_t each = 0; each < count; each++)
            if (error[each] < least) least = error[each], scale = tried[each], zero = middles[each];
    }
    for (int round = 0; round < search->refinements; round++) {
        float products, squares;
        error_of(group, scale, zero, top, &products, &squares);
        if (!(squares > 0)) break;
        float tried = stored(products / squares), error = error_of(group, tried, zero, top, 0, 0);
        if (error < least) least = error, scale = tried;
    }
    *best_scale = scale;
    *best_zero = zero;
}

void GRID(const Search *search, int64_t inputs, int64_t size, int64_t first, int64_t last, const float *weight,
          const float *shares, float *scales, float *zeros)
{
    int64_t groups = inputs / size;
    for (int64_t row = first; row < last; row++)
        for (int64_t group = 0; group < groups; group++) {
            Group here = {weight + row * inputs + group * size, shares + group * size, size};
            search_group(here, search, 0, scales + row * groups + group, zeros + row * groups + group);
        }
}
