/* Plain C at the compiler's baseline: runs on every machine. */
#define RL_ISA scalar
#define RL_NEEDS (0)
#define RL_WITH_INT
#define RL_WITH_FLOAT
#define RL_WITH_ROWS
#define RL_SIMD "simd_scalar.h"
#include "body.inc"
