/* Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl (MSVC: /arch:AVX512). */
#define RL_ISA avx512
#define RL_NEEDS (RL_CPU_AVX512)
#define RL_WITH_INT
#define RL_WITH_FLOAT
#define RL_WITH_ROWS
#define RL_SIMD "simd_avx512.h"
#include "body.inc"
