/* Four lanes: SSE2, which every x86-64 has, NEON, or whatever the compiler makes of them. */
#define LANES 4
#define KERNEL quantize_portable
#define COLUMNS columns_portable
#define GRID grid_portable
#define ROUNDED rounded_portable
#define SCALED scaled_portable
#define CHANGE change_portable
#include "blocks.h"
#include "columns.h"
#include "grid.h"
#include "scaled.h"
#include "rounded.h"
