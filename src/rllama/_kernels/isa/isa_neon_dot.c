/* arm64 with dotprod: the integer formats. */
#define RL_ISA neon_dot
#define RL_NEEDS (RL_CPU_NEON | RL_CPU_NEON_DOT)
#define RL_SDOT
#define RL_WITH_INT
#define RL_SIMD "simd_neon.h"
#include "body.inc"
