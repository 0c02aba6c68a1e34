/* The searches for scales that ggml's quantizers make, LANES blocks at once; each lane is ggml's sequence.
 *
 * Source: make_qkx2_quants, make_qkx3_quants, make_qx_quants, make_qp_quants and make_q3_quants of
 * llama.cpp's ggml-quants.c; numerics/scale_search.py says what each minimises. Codes are not kept where they
 * can be made again: what made the best ones is, and few blocks want theirs. */

#ifndef QUANTWRIGHT_SEARCH_H
#define QUANTWRIGHT_SEARCH_H

#include "lanes.h"

#define GROUP_MAX_EPS 1e-15f
#define AT_ONCE 3 /* of 18 trial scales, side by side: their sums do not wait for one another */

/* x ~ scale * code + minimum, code in 0..largest */
typedef struct {
    vf scale, minimum;
    vf inverse, lowest; /* codes = nearest(inverse * (x - lowest)) */
} Affine;

/* `together` blocks a lane, of n weights each: their sums do not wait for one another. */
INLINE void affine_search(int together, int n, int largest, const vf *x, const vf *w, float from, float step,
                          int steps, int absolute, Affine *best)
{
    vf high[2], low[2], sum_w[2], sum_x[2], error[2], codes[2 * 32];
    vi flat[2];
    for (int k = 0; k < together; k++) {
        const vf *xk = x + k * n, *wk = w + k * n;
        low[k] = high[k] = xk[0];
        sum_w[k] = wk[0];
        sum_x[k] = sum_w[k] * xk[0];
        for (int i = 1; i < n; i++) {
            low[k] = smaller(xk[i], low[k]);
            high[k] = larger(xk[i], high[k]);
            sum_w[k] += wk[i];
            sum_x[k] += wk[i] * xk[i];
        }
        low[k] = choose(low[k] > 0, vf_of(0), low[k]);
        flat[k] = high[k] == low[k];
        vf inverse = (float)largest / (high[k] - low[k]);
        best[k] = (Affine){1.f / inverse, low[k], inverse, low[k]};
        error[k] = vf_of(0);
        for (int i = 0; i < n; i++) {
            vf code = code_between(inverse * (xk[i] - low[k]), 0, (float)largest);
            vf off = best[k].scale * code + low[k] - xk[i];
            error[k] += wk[i] * (absolute ? magnitude(off) : off * off);
        }
    }
    for (int is = 0; is <= steps; is++) {
        vf inverse[2], lowest[2], sum_l[2], sum_l2[2], sum_xl[2], scale[2], minimum[2], wrong[2];
        vi valid[2];
        for (int k = 0; k < together; k++) {
            lowest[k] = best[k].minimum; /* what was found last decides where the next one starts */
            inverse[k] = (from + step * (float)is + (float)largest) / (high[k] - lowest[k]);
            sum_l[k] = sum_l2[k] = sum_xl[k] = wrong[k] = vf_of(0);
        }
        for (int i = 0; i < n; i++) {
#pragma GCC unroll 2
            for (int k = 0; k < together; k++) {
                vf here = x[k * n + i], place = inverse[k] * (here - lowest[k]);
                vf code = code_between(place, 0, (float)largest);
                vf weighted = w[k * n + i] * code;
                codes[i * together + k] = code;
                sum_l[k] += weighted;
                sum_l2[k] += weighted * code;
                sum_xl[k] += weighted * here;
            }
        }
        for (int k = 0; k < together; k++) {
            vf determinant = sum_w[k] * sum_l2[k] - sum_l[k] * sum_l[k];
            valid[k] = determinant > 0;
            scale[k] = (sum_w[k] * sum_xl[k] - sum_x[k] * sum_l[k]) / determinant;
            minimum[k] = (sum_l2[k] * sum_x[k] - sum_l[k] * sum_xl[k]) / determinant;
            vi positive = minimum[k] > 0;
            scale[k] = choose(positive, sum_xl[k] / sum_l2[k], scale[k]);
            minimum[k] = choose(positive, vf_of(0), minimum[k]);
        }
        for (int i = 0; i < n; i++) {
#pragma GCC unroll 2
            for (int k = 0; k < together; k++) {
                vf off = scale[k] * codes[i * together + k] + minimum[k] - x[k * n + i];
                wrong[k] += w[k * n + i] * (absolute ? magnitude(off) : off * off);
            }
        }
        for (int k = 0; k < together; k++) {
            vi better = valid[k] & (wrong[k] < error[k]);
            error[k] = choose(better, wrong[k], error[k]);
            best[k].scale = choose(better, scale[k], best[k].scale);
            best[k].minimum = choose(better, minimum[k], best[k].minimum);
            best[k].inverse = choose(better, inverse[k], best[k].inverse);
            best[k].lowest = choose(better, lowest[k], best[k].lowest);
        }
    }
    for (int k = 0; k < together; k++) {
        best[k].scale = choose(flat[k], vf_of(0), best[k].scale);
        best[k].minimum = choose(flat[k], low[k], best[k].minimum);
        best[k].inverse = choose(flat[k], vf_of(0), best[k].inverse); /* every code is 0 */
    }
}

/* values ~ scale * code for values of at least 0, codes 0..largest (kept as bytes, as ggml does) */
INLINE vf positive_search(int n, int largest, const vf *x, const vf *w, vi *codes)
{
    vf top = vf_of(0), error = vf_of(0), sum_xl = vf_of(0), sum_l2 = vf_of(0);
    for (int i = 0; i < n; i++) top = larger(top, x[i]);
    vi empty = top < GROUP_MAX_EPS;
    vf inverse = (float)largest / top, scale = 1.f / inverse;
    for (int i = 0; i < n; i++) {
        vf off = x[i] - scale * float_of(nearest_lanes(inverse * x[i]) & 255);
        error += w[i] * off * off;
    }
    for (int is = -4; is <= 4; is++) {
        if (is == 0) continue;
        vf tried = (0.1f * (float)is + (float)largest) / top, trial = 1.f / tried, wrong = vf_of(0);
        for (int i = 0; i < n; i++) {
            vi code = smaller_int(nearest_lanes(tried * x[i]), vi_of(largest));
            vf off = x[i] - trial * float_of(code);
            wrong += w[i] * off * off;
        }
        vi better = wrong < error;
        error = choose(better, wrong, error);
        inverse = choose(better, tried, inverse);
    }
    for (int i = 0; i < n; i++) {
        vi code = smaller_int(nearest_lanes(inverse * x[i]), vi_of(largest));
        vf l = float_of(code);
        codes[i] = code & 255;
        sum_xl += w[i] * x[i] * l;
        sum_l2 += w[i] * l * l;
    }
    for (int turn = 0; turn < 5; turn++) {
        vi changed = vi_of(0);
        for (int i = 0; i < n; i++) {
            vf l = float_of(codes[i]), wx = w[i] * x[i];
            vf xl = sum_xl - wx * l, l2 = sum_l2 - w[i] * l * l;
            vi code = smaller_int(nearest_lanes(x[i] * l2 / xl), vi_of(largest));
            vi other = (xl > 0) & (l2 > 0) & (code != codes[i]);
            vf m = float_of(code);
            xl += wx * m;
            l2 += w[i] * m * m;
            other &= xl * xl * sum_l2 > sum_xl * sum_xl * l2;
            codes[i] = choose_int(other, code & 255, codes[i]);
            sum_xl = choose(other, xl, sum_xl);
            sum_l2 = choose(other, l2, sum_l2);
            changed |= other;
        }
        if (!any(changed)) break;
    }
    for (int i = 0; i < n; i++) codes[i] &= ~empty;
    return choose(empty | ~(sum_l2 > 0), vf_of(0), sum_xl / sum_l2);
}

/* x ~ scale * code, code in -largest..largest-1 */
typedef struct {
    vf scale, inverse; /* codes = nearest(inverse * x) */
    vi empty;          /* nothing but zeros: ggml's stored codes are 0 then, not `largest` */
} Signed;

INLINE void signed_candidates(int n, int known, float largest, const vf *x, const vf *w, const vf *wx,
                              const vf *inverse, vf *best, Signed *found)
{
    vf sum_xl[AT_ONCE], sum_l2[AT_ONCE];
    for (int k = 0; k < AT_ONCE; k++) sum_xl[k] = sum_l2[k] = vf_of(0);
    for (int i = 0; i < n; i++) {
#pragma GCC unroll 3
        for (int k = 0; k < AT_ONCE; k++) {
            vf code = signed_code(known, inverse[k] * x[i], largest);
            sum_xl[k] += wx[i] * code;
            sum_l2[k] += w[i] * code * code;
        }
    }
    for (int k = 0; k < AT_ONCE; k++) {
        vi better = (sum_l2[k] > 0) & (sum_xl[k] * sum_xl[k] > *best * sum_l2[k]);
        vf scale = sum_xl[k] / sum_l2[k];
        found->scale = choose(better, scale, found->scale);
        found->inverse = choose(better, inverse[k], found->inverse);
        *best = choose(better, scale * sum_xl[k], *best);
    }
}

/* `finite`: x is known to be. */
INLINE Signed signed_search(int n, int largest, int finite, const vf *x, const vf *w)
{
    vf extreme = vf_of(0), size = vf_of(0), wx[32], sum_xl = vf_of(0), sum_l2 = vf_of(0);
    for (int i = 0; i < n; i++) {
        vf here = magnitude(x[i]);
        vi more = here > size;
        size = choose(more, here, size);
        extreme = choose(more, x[i], extreme);
        wx[i] = w[i] * x[i];
    }
    Signed found = {vf_of(0), (float)-largest / extreme, size < GROUP_MAX_EPS};
    for (int i = 0; i < n; i++) {
        vf code = signed_code(finite, found.inverse * x[i], (float)largest);
        sum_xl += wx[i] * code;
        sum_l2 += w[i] * code * code;
    }
    found.scale = choose(sum_l2 == 0, vf_of(0), sum_xl / sum_l2);
    vf best = found.scale * sum_xl;
    for (int is = 0; is < 18; is += AT_ONCE) {
        vf inverse[AT_ONCE];
        for (int k = 0; k < AT_ONCE; k++) {
            int off = is + k < 9 ? is + k - 9 : is + k - 8; /* -9..9 without 0 */
            inverse[k] = -((float)largest + 0.1f * (float)off) / extreme;
        }
        signed_candidates(n, finite, (float)largest, x, w, wx, inverse, &best, &found);
    }
    found.scale = choose(found.empty, vf_of(0), found.scale);
    return found;
}

/* As signed_search with weights x^2, from its first codes on, one code at a time; `codes` are what it ends
 * with. `together` blocks a lane, of 16 weights each. */
INLINE void climbing_search(int together, int largest, const vf *x, vf *codes, Signed *found)
{
    vf sum_xl[4], sum_l2[4], low = vf_of((float)-largest), cube[4 * 16];
    for (int k = 0; k < together; k++) {
        vf extreme = vf_of(0), size = vf_of(0);
        for (int i = 16 * k; i < 16 * k + 16; i++) {
            vi more = magnitude(x[i]) > size;
            size = choose(more, magnitude(x[i]), size);
            extreme = choose(more, x[i], extreme);
        }
        found[k].empty = size < GROUP_MAX_EPS;
        found[k].inverse = (float)-largest / extreme;
        sum_xl[k] = sum_l2[k] = vf_of(0);
        for (int i = 16 * k; i < 16 * k + 16; i++) {
            vf square = x[i] * x[i];
            codes[i] = signed_code(1, found[k].inverse * x[i], (float)largest);
            cube[i] = square * x[i];
            sum_xl[k] += cube[i] * codes[i];
            sum_l2[k] += square * codes[i] * codes[i];
        }
    }
    for (int turn = 0; turn < 5; turn++) {
        vi changed = vi_of(0);
        for (int i = 0; i < 16; i++) {
#pragma GCC unroll 4
            for (int k = 0; k < together; k++) {
                vf here = x[16 * k + i], square = here * here, old = codes[16 * k + i];
                vf xl = sum_xl[k] - cube[16 * k + i] * old, l2 = sum_l2[k] - square * old * old;
                vf code = code_between(here * l2 / xl, (float)-largest, (float)(largest - 1));
                vi other = (xl > 0) & (code != old);
                xl += cube[16 * k + i] * code;
                l2 += square * code * code;
                other &= (l2 > 0) & (xl * xl * sum_l2[k] > sum_xl[k] * sum_xl[k] * l2);
                codes[16 * k + i] = choose(other, code, old);
                sum_xl[k] = choose(other, xl, sum_xl[k]);
                sum_l2[k] = choose(other, l2, sum_l2[k]);
                changed |= other;
            }
        }
        if (!any(changed)) break;
    }
    for (int k = 0; k < together; k++) {
        vi none = found[k].empty | ~(sum_l2[k] > 0);
        found[k].scale = choose(none, vf_of(0), sum_xl[k] / sum_l2[k]);
        for (int i = 16 * k; i < 16 * k + 16; i++) codes[i] = choose(found[k].empty, low, codes[i]);
    }
}

#endif
