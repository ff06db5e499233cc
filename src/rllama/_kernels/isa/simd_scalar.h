/* The vocabulary in plain C: 4 rows side by side. It runs anywhere and says what the others do. */
#ifndef RL_SIMD_SCALAR_H
#define RL_SIMD_SCALAR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../half.h"

#define RL_R 4
#define RL_TILE 4
#define RL_ROW_TILE 4
#define RL_SUMS 16
#define RL_DIRECT 0 /* short code, as nobody waits for this level */
#define RL_EACH for (int i = 0; i < RL_R; i++)

/* One line each, so that the list can be read at a glance. */
// clang-format off
typedef struct { float v[RL_R]; } rl_f32v;
typedef struct { int32_t v[RL_R]; } rl_i32v;
typedef struct { uint32_t v[RL_R]; } rl_row4; /* four bytes of each of 4 rows */

static inline rl_f32v rl_load(const float *p) { rl_f32v r; memcpy(r.v, p, sizeof r.v); return r; }
static inline void rl_store(float *p, rl_f32v a) { memcpy(p, a.v, sizeof a.v); }
static inline rl_f32v rl_set1(float x) { rl_f32v r; RL_EACH r.v[i] = x; return r; }
static inline rl_f32v rl_zero(void) { return rl_set1(0.0f); }
static inline rl_f32v rl_add(rl_f32v a, rl_f32v b) { RL_EACH a.v[i] += b.v[i]; return a; }
static inline rl_f32v rl_sub(rl_f32v a, rl_f32v b) { RL_EACH a.v[i] -= b.v[i]; return a; }
static inline rl_f32v rl_mul(rl_f32v a, rl_f32v b) { RL_EACH a.v[i] *= b.v[i]; return a; }
static inline rl_f32v rl_div(rl_f32v a, rl_f32v b) { RL_EACH a.v[i] /= b.v[i]; return a; }
/* The product is exact in f64, so this rounds as the hardware's fused instruction does, but for
 * one case in half a milliard. */
static inline rl_f32v rl_fma(rl_f32v a, rl_f32v b, rl_f32v c) {
    RL_EACH c.v[i] = (float)((double)a.v[i] * b.v[i] + c.v[i]);
    return c;
}
static inline rl_f32v rl_max(rl_f32v a, rl_f32v b) {
    RL_EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}
static inline rl_f32v rl_min(rl_f32v a, rl_f32v b) {
    RL_EACH a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
}
static inline float rl_hsum(rl_f32v a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
static inline float rl_hmax(rl_f32v a) {
    float m = a.v[0];
    RL_EACH m = a.v[i] > m ? a.v[i] : m;
    return m;
}

/* 2^n for whole n given as a float in [-126, 127] */
static inline rl_f32v rl_exp2_whole(rl_f32v n) {
    RL_EACH {
        float shifted = n.v[i] + 12582912.0f; /* 1.5 * 2^23: n stands in the low bits */
        uint32_t bits;
        memcpy(&bits, &shifted, 4);
        bits = (bits + 127u) << 23;
        memcpy(&n.v[i], &bits, 4);
    }
    return n;
}
static inline rl_f32v rl_round(rl_f32v a) { RL_EACH a.v[i] = rintf(a.v[i]); return a; }

/* Round to nearest, ties to even, as the hardware does. */
static inline uint16_t rl_float_to_half(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint32_t sign = bits >> 16 & 0x8000u, mag = bits & 0x7fffffffu;
    if (mag > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (mag >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
    if (mag < 0x38800000u) { /* subnormal: let the adder round at 2^-24 */
        float value;
        memcpy(&value, &mag, 4);
        value += 0.5f;
        memcpy(&mag, &value, 4);
        return (uint16_t)(sign | (mag - 0x3f000000u));
    }
    mag += 0xc8000fffu + (mag >> 13 & 1u);
    return (uint16_t)(sign | mag >> 13);
}
static inline rl_f32v rl_load_f16(const void *p) {
    uint16_t halves[RL_R];
    rl_f32v r;
    memcpy(halves, p, sizeof halves);
    RL_EACH r.v[i] = rl_half_to_float(halves[i]);
    return r;
}
static inline rl_f32v rl_load_bf16(const void *p) {
    uint16_t halves[RL_R];
    uint32_t bits[RL_R];
    rl_f32v r;
    memcpy(halves, p, sizeof halves);
    RL_EACH bits[i] = (uint32_t)halves[i] << 16;
    memcpy(&r, bits, sizeof r);
    return r;
}
static inline void rl_store_f16(uint16_t *p, rl_f32v a) {
    RL_EACH p[i] = rl_float_to_half(a.v[i]);
}
/* Signed bytes as floats. */
static inline rl_f32v rl_load_i8(const int8_t *p) { rl_f32v r; RL_EACH r.v[i] = p[i]; return r; }
/* Round to int8; the values already lie in [-127, 127]. */
static inline void rl_store_i8(int8_t *p, rl_f32v a) { RL_EACH p[i] = (int8_t)rintf(a.v[i]); }

/* 16 bytes of each row, transposed: out[i] holds bytes 4i..4i+3 of every row. */
static inline void rl_rows16(const uint8_t *p, int64_t stride, rl_row4 out[4]) {
    for (int column = 0; column < 4; column++)
        RL_EACH memcpy(&out[column].v[i], p + i * stride + 4 * column, 4);
}

static inline rl_f32v rl_scales_f16(const uint8_t *p, int64_t stride) {
    rl_f32v r;
    RL_EACH {
        uint16_t h;
        memcpy(&h, p + i * stride, 2);
        r.v[i] = rl_half_to_float(h);
    }
    return r;
}
static inline rl_f32v rl_scales_f32(const uint8_t *p, int64_t stride) {
    rl_f32v r;
    RL_EACH memcpy(&r.v[i], p + i * stride, 4);
    return r;
}

static inline rl_row4 rl_low4(rl_row4 a) { RL_EACH a.v[i] &= 0x0f0f0f0fu; return a; }
static inline rl_row4 rl_high4(rl_row4 a) {
    RL_EACH a.v[i] = a.v[i] >> 4 & 0x0f0f0f0fu;
    return a;
}

static inline rl_row4 rl_or(rl_row4 a, rl_row4 b) { RL_EACH a.v[i] |= b.v[i]; return a; }
/* The four bytes of a lane shifted as one number, to the left if negative; then the bits of each
 * byte that are in the mask. */
static inline rl_row4 rl_bits(rl_row4 a, const int shift, const uint8_t mask) {
    RL_EACH a.v[i] = (shift < 0 ? a.v[i] << -shift : a.v[i] >> shift) & mask * 0x01010101u;
    return a;
}
/* Bits 4k to 4k + 3 of each lane as 16 or 0, a byte each. */
static inline rl_row4 rl_spread_bits(rl_row4 a, const int k) {
    RL_EACH a.v[i] = ((a.v[i] >> 4 * k & 15u) * 0x02040810u) & 0x10101010u;
    return a;
}
/* 16 values, and for each byte of an index from 0 to 15 the one that it names. */
static inline rl_row4 rl_table16(const int8_t *values) { rl_row4 r; memcpy(&r, values, 16); return r; }
static inline rl_row4 rl_lookup(rl_row4 table, rl_row4 index) {
    uint8_t from[16], to[16];
    memcpy(from, &table, 16);
    memcpy(to, &index, 16);
    for (int i = 0; i < 16; i++) to[i] = from[to[i]];
    memcpy(&index, to, 16);
    return index;
}
/* Byte k of each lane as a number, unsigned or signed. */
static inline rl_f32v rl_byte_f32(rl_row4 a, const int k) {
    rl_f32v r;
    RL_EACH r.v[i] = (float)(a.v[i] >> 8 * k & 0xffu);
    return r;
}
static inline rl_f32v rl_s8_f32(rl_row4 a, const int k) {
    rl_f32v r;
    RL_EACH r.v[i] = (float)(int8_t)(a.v[i] >> 8 * k);
    return r;
}

/* The two 16-bit floats of each lane, widened. */
static inline rl_f32v rl_f16_first(rl_row4 a) {
    rl_f32v r;
    RL_EACH r.v[i] = rl_half_to_float((uint16_t)a.v[i]);
    return r;
}
static inline rl_f32v rl_f16_second(rl_row4 a) {
    rl_f32v r;
    RL_EACH r.v[i] = rl_half_to_float((uint16_t)(a.v[i] >> 16));
    return r;
}
static inline rl_f32v rl_as_f32(rl_row4 a) { rl_f32v r; memcpy(&r, &a, sizeof r); return r; }
static inline rl_f32v rl_bf16_first(rl_row4 a) { RL_EACH a.v[i] <<= 16; return rl_as_f32(a); }
static inline rl_f32v rl_bf16_second(rl_row4 a) {
    RL_EACH a.v[i] &= 0xffff0000u;
    return rl_as_f32(a);
}

static inline rl_row4 rl_load_row4(const void *p) { rl_row4 r; memcpy(&r, p, sizeof r); return r; }
static inline void rl_store_row4(void *p, rl_row4 a) { memcpy(p, &a, sizeof a); }

static inline rl_i32v rl_i32_set1(int32_t x) { rl_i32v r; RL_EACH r.v[i] = x; return r; }
static inline rl_f32v rl_i32_to_f32(rl_i32v a) {
    rl_f32v r;
    RL_EACH r.v[i] = (float)a.v[i];
    return r;
}

#define RL_S8_OFFSET 0 /* what rl_s8_operand adds to signed bytes */
static inline rl_row4 rl_s8_operand(rl_row4 a) { return a; }
static inline rl_i32v rl_dot(const rl_row4 *w, const int n, const int8_t *a, rl_i32v init) {
    for (int column = 0; column < n; column++)
        RL_EACH {
            int8_t four[4];
            memcpy(four, &w[column].v[i], 4);
            for (int j = 0; j < 4; j++) init.v[i] += four[j] * a[4 * column + j];
        }
    return init;
}
// clang-format on

#endif
