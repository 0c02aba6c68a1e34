/* 16 lanes, for processors with AVX-512; compiled everywhere on x86-64, chosen in dispatch.c when it runs. */
#ifdef __x86_64__
#include <immintrin.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#endif
#define LANES 16
#define KERNEL quantize_avx512
#define COLUMNS columns_avx512
#define GRID grid_avx512
#define ROUNDED rounded_avx512
#define SCALED scaled_avx512
#define CHANGE change_avx512
#include "blocks.h"
#include "columns.h"
#include "grid.h"
#include "scaled.h"
#include "rounded.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
