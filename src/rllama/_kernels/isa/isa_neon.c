/* arm64 baseline. */
#define RL_ISA neon
#define RL_NEEDS (RL_CPU_NEON)
#define RL_WITH_INT
#define RL_WITH_FLOAT
#define RL_WITH_ROWS
#define RL_SIMD "simd_neon.h"
#include "body.inc"
