/* AVX-512 with VNNI and BF16: BF16 weights. */
#define RL_ISA avx512bf16
#define RL_NEEDS (RL_CPU_AVX512 | RL_CPU_AVX512_VNNI | RL_CPU_AVX512_BF16)
#define RL_VNNI
#define RL_BF16_DOT
#define RL_WITH_BF16_DOT
#define RL_SIMD "simd_avx512.h"
#include "body.inc"
