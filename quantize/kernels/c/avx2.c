/* 8 lanes, for processors with AVX2; compiled everywhere on x86-64, chosen in dispatch.c when it runs. */
#ifdef __x86_64__
#include <immintrin.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define LANES 8
#define KERNEL quantize_avx2
#define COLUMNS columns_avx2
#define GRID grid_avx2
#define ROUNDED rounded_avx2
#define SCALED scaled_avx2
#define CHANGE change_avx2
#include "blocks.h"
#include "columns.h"
#include "grid.h"
#include "scaled.h"
#include "rounded.h"
#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
