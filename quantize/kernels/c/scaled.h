/* What rounding changes, and costs once columns are multiplied by scales, as quantize/numerics/awq.py tries it; for one width of
 * vectors, included after grid.h by avx512.c, avx2.c and portable.c. */

INLINE float least_of(vf a)
{
#if LANES == 16
    return _mm512_reduce_min_ps((__m512)a);
#else
    float found = a[0];
    for (int lane = 1; lane < LANES; lane++) found = a[lane] < found ? a[lane] : found;
    return found;
#endif
}

/* One group of one row: x and scales (size); sums (size) grow. `whole`: size is a number of whole vectors. */
INLINE void scaled_group(int whole, const Search *grid, int64_t size, const float *x, const float *scales, float *sums)
{
#define SOME(from) (whole ? load((from) + at) : load_some((from) + at, size - at))
    vf lows = vf_of(0), highs = vf_of(0);
    for (int64_t at = 0; at < size; at += LANES) {
        vf value = SOME(x) * SOME(scales);
        lows = smaller(value, lows);
        highs = larger(value, highs);
    }
    float low = least_of(lows), high = -least_of(-highs), top = grid->top, step, zero = grid->middle;
    if (grid->symmetric) {
        step = stored((-low > high ? -low : high) * 2 / top);
    } else {
        step = stored((high - low) / top);
        zero = (-low / step + MAGIC) - MAGIC;
        zero = zero > top ? top : zero < grid->lowest_zero ? grid->lowest_zero : zero;
    }
    vf inverse = vf_of(1 / step), lowest = vf_of(-zero), highest = vf_of(top - zero);
    for (int64_t at = 0; at < size; at += LANES) {
        vf value = SOME(x) * SOME(scales);
        vf steps = (larger(smaller(value * inverse, highest), lowest) + MAGIC) - MAGIC;
        vf off = steps * step - value, sum = SOME(sums) + off * off;
        memcpy(sums + at, &sum, whole ? sizeof sum : sizeof(float) * (size_t)(size - at < LANES ? size - at : LANES));
    }
#undef SOME
}

void SCALED(const Search *grid, int64_t rows, int64_t inputs, int64_t size, int64_t first, int64_t last,
            const float *weight, const float *scales, float *sums)
{
    for (int64_t candidate = first; candidate < last; candidate++) {
        const float *here = scales + candidate * inputs;
        float *found = sums + candidate * inputs;
        memset(found, 0, sizeof(float) * (size_t)inputs);
        for (int64_t row = 0; row < rows; row++)
            for (int64_t at = 0; at < inputs; at += size)
                if (size % LANES)
                    scaled_group(0, grid, size, weight + row * inputs + at, here + at, found + at);
                else
                    scaled_group(1, grid, size, weight + row * inputs + at, here + at, found + at);
    }
}

void CHANGE(int64_t size, int64_t first, int64_t last, float top, const float *x, const float *scales,
            const float *zeros, float *out)
{
    for (int64_t row = first; row < last; row++) {
        const float *from = x + row * size;
        float *to = out + row * size;
        vf scale = vf_of(scales[row]), inverse = vf_of(1 / scales[row]);
        vf lowest = vf_of(-zeros[row]), highest = vf_of(top - zeros[row]);
        for (int64_t at = 0; at < size; at += LANES) {
            int whole = size - at >= LANES;
            vf value = whole ? load(from + at) : load_some(from + at, size - at);
            vf steps = (larger(smaller(value * inverse, highest), lowest) + MAGIC) - MAGIC;
            vf added = steps * scale - value;
            if (whole)
                memcpy(to + at, &added, sizeof added);
            else
                memcpy(to + at, &added, sizeof(float) * (size_t)(size - at));
        }
    }
}
