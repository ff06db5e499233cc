/* The vocabulary on arm64: 4 rows side by side. RL_SDOT brings sdot, RL_SMMLA smmla as well. */
#ifndef RL_SIMD_NEON_H
#define RL_SIMD_NEON_H

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "compiler.h"

#define RL_R 4
#define RL_TILE 8
#define RL_ROW_TILE 4 /* tokens at once where lanes walk along a row, */
#define RL_SUMS 16    /* and sums that are kept in registers there */
#define RL_DIRECT 1   /* tokens whose operands need not pass through memory */

typedef float32x4_t rl_f32v;
typedef int32x4_t rl_i32v;
typedef uint8x16_t rl_row4; /* four bytes of each of 4 rows */

static inline rl_f32v rl_load(const float *p) { return vld1q_f32(p); }
static inline void rl_store(float *p, rl_f32v v) { vst1q_f32(p, v); }
static inline rl_f32v rl_set1(float x) { return vdupq_n_f32(x); }
static inline rl_f32v rl_zero(void) { return vdupq_n_f32(0.0f); }
static inline rl_f32v rl_add(rl_f32v a, rl_f32v b) { return vaddq_f32(a, b); }
static inline rl_f32v rl_sub(rl_f32v a, rl_f32v b) { return vsubq_f32(a, b); }
static inline rl_f32v rl_mul(rl_f32v a, rl_f32v b) { return vmulq_f32(a, b); }
static inline rl_f32v rl_div(rl_f32v a, rl_f32v b) { return vdivq_f32(a, b); }
static inline rl_f32v rl_fma(rl_f32v a, rl_f32v b, rl_f32v c) { return vfmaq_f32(c, a, b); }
static inline rl_f32v rl_max(rl_f32v a, rl_f32v b) { return vmaxq_f32(a, b); }
static inline rl_f32v rl_min(rl_f32v a, rl_f32v b) { return vminq_f32(a, b); }
/* Lane i and i + 2, then i + 1: the order of every level. */
static inline float rl_hsum(rl_f32v v) {
    float32x2_t half = vadd_f32(vget_low_f32(v), vget_high_f32(v));
    return vget_lane_f32(vpadd_f32(half, half), 0);
}
static inline float rl_hmax(rl_f32v v) { return vmaxvq_f32(v); }

/* 2^n for whole n given as a float in [-126, 127] */
static inline rl_f32v rl_exp2_whole(rl_f32v n) {
    int32x4_t bits = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
    return vreinterpretq_f32_s32(vshlq_n_s32(bits, 23));
}
static inline rl_f32v rl_round(rl_f32v v) { return vrndnq_f32(v); }

static inline rl_f32v rl_load_f16(const uint16_t *p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
static inline rl_f32v rl_load_bf16(const uint16_t *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
static inline void rl_store_f16(uint16_t *p, rl_f32v v) {
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
}
/* Signed bytes as floats. */
static inline rl_f32v rl_load_i8(const int8_t *p) {
    int32_t four;
    memcpy(&four, p, 4);
    int16x8_t words = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
}
/* Round to int8; the values already lie in [-127, 127]. */
static inline void rl_store_i8(int8_t *p, rl_f32v v) {
    int16x4_t words = vmovn_s32(vcvtnq_s32_f32(v));
    int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    vst1_lane_s32((int32_t *)(void *)p, vreinterpret_s32_s8(bytes), 0);
}

/* 16 bytes of each row, transposed: out[i] holds bytes 4i..4i+3 of every row. */
RL_INLINE void rl_rows16(const uint8_t *p, int64_t stride, rl_row4 out[4]) {
    uint32x4_t r0 = vreinterpretq_u32_u8(vld1q_u8(p));
    uint32x4_t r1 = vreinterpretq_u32_u8(vld1q_u8(p + stride));
    uint32x4_t r2 = vreinterpretq_u32_u8(vld1q_u8(p + 2 * stride));
    uint32x4_t r3 = vreinterpretq_u32_u8(vld1q_u8(p + 3 * stride));
    uint64x2_t low01 = vreinterpretq_u64_u32(vzip1q_u32(r0, r1));
    uint64x2_t low23 = vreinterpretq_u64_u32(vzip1q_u32(r2, r3));
    uint64x2_t high01 = vreinterpretq_u64_u32(vzip2q_u32(r0, r1));
    uint64x2_t high23 = vreinterpretq_u64_u32(vzip2q_u32(r2, r3));
    out[0] = vreinterpretq_u8_u64(vzip1q_u64(low01, low23));
    out[1] = vreinterpretq_u8_u64(vzip2q_u64(low01, low23));
    out[2] = vreinterpretq_u8_u64(vzip1q_u64(high01, high23));
    out[3] = vreinterpretq_u8_u64(vzip2q_u64(high01, high23));
}

RL_INLINE rl_f32v rl_scales_f16(const uint8_t *p, int64_t stride) {
    uint16_t s[4];
    for (int i = 0; i < 4; i++) memcpy(&s[i], p + i * stride, 2);
    return rl_load_f16(s);
}
static inline rl_f32v rl_scales_f32(const uint8_t *p, int64_t stride) {
    float s[4];
    for (int i = 0; i < 4; i++) memcpy(&s[i], p + i * stride, 4);
    return vld1q_f32(s);
}

static inline rl_row4 rl_low4(rl_row4 v) { return vandq_u8(v, vdupq_n_u8(0x0f)); }
static inline rl_row4 rl_high4(rl_row4 v) { return vshrq_n_u8(v, 4); }

static inline rl_row4 rl_or(rl_row4 a, rl_row4 b) { return vorrq_u8(a, b); }
static inline uint32x4_t rl_shifted(rl_row4 v, const int right) {
    return vshlq_u32(vreinterpretq_u32_u8(v), vdupq_n_s32(-right));
}
static inline rl_row4 rl_bits(rl_row4 v, const int shift, const uint8_t mask) {
    return vandq_u8(vreinterpretq_u8_u32(rl_shifted(v, shift)), vdupq_n_u8(mask));
}
#ifdef RL_SMMLA
/* As below, for 8 columns of 2 rows. */
static inline rl_row4 rl_spread_bits(rl_row4 v, const int k) {
    static const uint8_t lanes[16] = {0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4};
    uint8x16_t bits = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
    v = vqtbl1q_u8(v, vaddq_u8(vld1q_u8(lanes), vdupq_n_u8((uint8_t)(k % 2 * 8 + k / 2))));
    return vandq_u8(vtstq_u8(v, bits), vdupq_n_u8(0x10));
}
#else
/* The byte with the four bits goes everywhere in its lane; each place tests one. */
static inline rl_row4 rl_spread_bits(rl_row4 v, const int k) {
    static const uint8_t lanes[16] = {0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12};
    uint8x16_t bits = vreinterpretq_u8_u32(vdupq_n_u32(k % 2 ? 0x80402010u : 0x08040201u));
    v = vqtbl1q_u8(v, vaddq_u8(vld1q_u8(lanes), vdupq_n_u8((uint8_t)(k / 2))));
    return vandq_u8(vtstq_u8(v, bits), vdupq_n_u8(0x10));
}
#endif
static inline rl_row4 rl_table16(const int8_t *values) {
    return vreinterpretq_u8_s8(vld1q_s8(values));
}
static inline rl_row4 rl_lookup(rl_row4 table, rl_row4 index) { return vqtbl1q_u8(table, index); }
static inline rl_f32v rl_byte_f32(rl_row4 v, const int k) {
    return vcvtq_f32_u32(vandq_u32(rl_shifted(v, 8 * k), vdupq_n_u32(0xff)));
}
static inline rl_f32v rl_s8_f32(rl_row4 v, const int k) {
    int32x4_t top = vreinterpretq_s32_u32(rl_shifted(v, 8 * k - 24));
    return vcvtq_f32_s32(vshrq_n_s32(top, 24));
}

/* The two 16-bit floats of each lane, widened. */
static inline rl_f32v rl_f16_first(rl_row4 v) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(vreinterpretq_u32_u8(v))));
}
static inline rl_f32v rl_f16_second(rl_row4 v) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vshrn_n_u32(vreinterpretq_u32_u8(v), 16)));
}
static inline rl_f32v rl_bf16_first(rl_row4 v) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(v), 16));
}
static inline rl_f32v rl_bf16_second(rl_row4 v) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(v), vdupq_n_u32(0xffff0000u)));
}
static inline rl_f32v rl_as_f32(rl_row4 v) { return vreinterpretq_f32_u8(v); }

static inline rl_row4 rl_load_row4(const void *p) { return vld1q_u8((const uint8_t *)p); }
static inline void rl_store_row4(void *p, rl_row4 v) { vst1q_u8((uint8_t *)p, v); }

static inline rl_i32v rl_i32_set1(int32_t x) { return vdupq_n_s32(x); }
static inline rl_f32v rl_i32_to_f32(rl_i32v v) { return vcvtq_f32_s32(v); }

#define RL_S8_OFFSET 0
static inline rl_row4 rl_s8_operand(rl_row4 v) { return v; }

#if defined RL_SMMLA
/* Dots of pairs: 8 columns of 2 rows with 8 columns of 2 tokens. Operands 2i and 2i + 1 are columns
 * 8i to 8i + 7 of rows 0 and 1, and of rows 2 and 3; a lane of the results is
 *   row 0 token 0 | row 0 token 1 | row 1 token 0 | row 1 token 1      then rows 2 and 3. */
#define RL_PAIRS
RL_INLINE void rl_operands16(const uint8_t *p, int64_t stride, rl_row4 out[4]) {
    uint64x2_t r0 = vreinterpretq_u64_u8(vld1q_u8(p));
    uint64x2_t r1 = vreinterpretq_u64_u8(vld1q_u8(p + stride));
    uint64x2_t r2 = vreinterpretq_u64_u8(vld1q_u8(p + 2 * stride));
    uint64x2_t r3 = vreinterpretq_u64_u8(vld1q_u8(p + 3 * stride));
    out[0] = vreinterpretq_u8_u64(vzip1q_u64(r0, r1));
    out[1] = vreinterpretq_u8_u64(vzip1q_u64(r2, r3));
    out[2] = vreinterpretq_u8_u64(vzip2q_u64(r0, r1));
    out[3] = vreinterpretq_u8_u64(vzip2q_u64(r2, r3));
}
static inline rl_i32v rl_pair_i32(const int32_t *both) {
    int32x2_t v = vld1_s32(both);
    return vcombine_s32(v, v);
}
static inline rl_f32v rl_pair_f32(const float *both) {
    float32x2_t v = vld1_f32(both);
    return vcombine_f32(v, v);
}
/* A number of each row, as the lanes of the results have them. */
static inline void rl_pair_rows(rl_f32v v, rl_f32v *first, rl_f32v *second) {
    *first = vzip1q_f32(v, v);
    *second = vzip2q_f32(v, v);
}
/* Both results -> a lane per row: of token 0, of token 1. */
static inline void rl_split_pair(rl_f32v *first, rl_f32v *second) {
    rl_f32v token0 = vuzp1q_f32(*first, *second);
    *second = vuzp2q_f32(*first, *second);
    *first = token0;
}
RL_INLINE void rl_dot_pair(const rl_row4 *w, const int n, const int8_t *a, rl_i32v init,
                           rl_i32v *first, rl_i32v *second) {
    *first = *second = init;
    RL_UNROLL
    for (int i = 0; i < n; i += 2) {
        int8x16_t both = vld1q_s8(a + 8 * i);
        *first = vmmlaq_s32(*first, vreinterpretq_s8_u8(w[i]), both);
        *second = vmmlaq_s32(*second, vreinterpretq_s8_u8(w[i + 1]), both);
    }
}
/* The same operands with one token. */
RL_INLINE rl_i32v rl_dot(const rl_row4 *w, const int n, const int8_t *a, rl_i32v init) {
    rl_i32v first = vdupq_n_s32(0), second = first;
    RL_UNROLL
    for (int i = 0; i < n; i += 2) {
        int8x8_t eight = vld1_s8(a + 4 * i);
        int8x16_t twice = vcombine_s8(eight, eight);
        first = vdotq_s32(first, vreinterpretq_s8_u8(w[i]), twice);
        second = vdotq_s32(second, vreinterpretq_s8_u8(w[i + 1]), twice);
    }
    return vaddq_s32(vpaddq_s32(first, second), init);
}
#elif defined RL_SDOT
RL_INLINE rl_i32v rl_dot(const rl_row4 *w, const int n, const int8_t *a, rl_i32v init) {
    RL_UNROLL
    for (int i = 0; i < n; i += 4) {
        int8x16_t columns = vld1q_s8(a + 4 * i);
        init = vdotq_laneq_s32(init, vreinterpretq_s8_u8(w[i]), columns, 0);
        init = vdotq_laneq_s32(init, vreinterpretq_s8_u8(w[i + 1]), columns, 1);
        init = vdotq_laneq_s32(init, vreinterpretq_s8_u8(w[i + 2]), columns, 2);
        init = vdotq_laneq_s32(init, vreinterpretq_s8_u8(w[i + 3]), columns, 3);
    }
    return init;
}
#else
static inline int8x16_t rl_four(const int8_t *a) {
    int32_t four;
    memcpy(&four, a, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
/* Products reach 127 * 128 = 16,256; pairs are widened before they are added. */
static inline rl_i32v rl_dot(const rl_row4 *w, const int n, const int8_t *a, rl_i32v init) {
    for (int i = 0; i < n; i++) {
        int8x16_t weights = vreinterpretq_s8_u8(w[i]), four = rl_four(a + 4 * i);
        int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(weights), vget_low_s8(four)));
        int32x4_t high = vpaddlq_s16(vmull_high_s8(weights, four));
        init = vaddq_s32(init, vpaddq_s32(low, high));
    }
    return init;
}
#endif

#endif
