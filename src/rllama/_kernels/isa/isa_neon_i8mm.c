/* arm64 with i8mm: the integer formats, two rows with two tokens at a time. */
#define RL_ISA neon_i8mm
#define RL_NEEDS (RL_CPU_NEON | RL_CPU_NEON_DOT | RL_CPU_NEON_I8MM)
#define RL_SMMLA
#define RL_WITH_INT
#define RL_SIMD "simd_neon.h"
#include "body.inc"
