/* One row of each rarer format -> f32. Compiled once, at the compiler's baseline: all of it is
 * table and integer work with at most one rounding, so no level would give other numbers.
 *
 * A block is copied into its struct first: rows may lie at any address. */
#include "dequant.h"

#include <string.h>

#include "half.h"

/* Eight small numbers side by side in one integer, the first lowest. */
#define RL_EACH_BYTE 0x0101010101010101u

/* Eight bits as bytes of 0 and 1. */
static inline uint64_t bytes_of_bits(int bits) {
    uint64_t one_of_each = (uint64_t)bits * RL_EACH_BYTE & 0x8040201008040201u;
    return (one_of_each + 0x7f * RL_EACH_BYTE) >> 7 & RL_EACH_BYTE;
}

#include "kernels/dequant_32.inc"
#include "kernels/dequant_k.inc"
#include "kernels/dequant_iq.inc"
#include "kernels/dequant_tq.inc"

static const rl_dequant_fn plain[RL_N_FORMATS] = {
    [RL_Q4_1] = dequant_q4_1,     [RL_Q5_0] = dequant_q5_0,       [RL_Q5_1] = dequant_q5_1,
    [RL_Q2_K] = dequant_q2_k,     [RL_Q3_K] = dequant_q3_k,       [RL_Q4_K] = dequant_q4_k,
    [RL_Q5_K] = dequant_q5_k,     [RL_Q6_K] = dequant_q6_k,       [RL_IQ4_NL] = dequant_iq4_nl,
    [RL_IQ4_XS] = dequant_iq4_xs, [RL_MXFP4] = dequant_mxfp4,     [RL_IQ3_XXS] = dequant_iq3_xxs,
    [RL_IQ3_S] = dequant_iq3_s,   [RL_IQ2_XXS] = dequant_iq2_xxs, [RL_IQ2_XS] = dequant_iq2_xs,
    [RL_IQ2_S] = dequant_iq2_s,   [RL_IQ1_S] = dequant_iq1_s,     [RL_IQ1_M] = dequant_iq1_m,
    [RL_TQ1_0] = dequant_tq1_0,   [RL_TQ2_0] = dequant_tq2_0,     [RL_Q4_G] = dequant_q4_g,
    [RL_Q8_G] = dequant_q8_g,
};

rl_dequant_fn rl_plain_dequant(int format) { return plain[format]; }
