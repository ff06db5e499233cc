/* Compiled with -mavx2 -mfma -mf16c (MSVC: /arch:AVX2). */
#define RL_ISA avx2
#define RL_NEEDS (RL_CPU_AVX2)
#define RL_WITH_INT
#define RL_WITH_FLOAT
#define RL_WITH_ROWS
#define RL_SIMD "simd_avx2.h"
#include "body.inc"
