/* AVX-512 with VNNI: the integer formats. */
#define RL_ISA avx512vnni
#define RL_NEEDS (RL_CPU_AVX512 | RL_CPU_AVX512_VNNI)
#define RL_VNNI
#define RL_WITH_INT
#define RL_SIMD "simd_avx512.h"
#include "body.inc"
