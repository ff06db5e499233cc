/* The vocabulary on AVX-512 F/BW/DQ/VL: 16 rows side by side. With VNNI the integer dot is one
 * instruction (define RL_VNNI before including). */
#ifndef RL_SIMD_AVX512_H
#define RL_SIMD_AVX512_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "compiler.h"

#define RL_R 16
#define RL_TILE 12
#define RL_ROW_TILE 4 /* tokens at once where lanes walk along a row, */
#define RL_SUMS 16    /* and sums that are kept in registers there */
#ifdef RL_VNNI
#define RL_INT_TILE 16   /* the same of integer weights; of those up to */
#define RL_FUSED_TILES 2 /* so many tiles are unpacked again */
#define RL_DIRECT 16     /* tokens whose operands need not pass through memory */
#else
#define RL_DIRECT 1
#endif

typedef __m512 rl_f32v;
typedef __m512i rl_i32v;
typedef __m512i rl_i16v;
typedef __m512i rl_row4; /* four bytes of each of 16 rows */

static inline rl_f32v rl_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void rl_store(float *p, rl_f32v v) { _mm512_storeu_ps(p, v); }
static inline rl_f32v rl_set1(float x) { return _mm512_set1_ps(x); }
static inline rl_f32v rl_zero(void) { return _mm512_setzero_ps(); }
static inline rl_f32v rl_add(rl_f32v a, rl_f32v b) { return _mm512_add_ps(a, b); }
static inline rl_f32v rl_sub(rl_f32v a, rl_f32v b) { return _mm512_sub_ps(a, b); }
static inline rl_f32v rl_mul(rl_f32v a, rl_f32v b) { return _mm512_mul_ps(a, b); }
static inline rl_f32v rl_div(rl_f32v a, rl_f32v b) { return _mm512_div_ps(a, b); }
static inline rl_f32v rl_fma(rl_f32v a, rl_f32v b, rl_f32v c) { return _mm512_fmadd_ps(a, b, c); }
static inline rl_f32v rl_max(rl_f32v a, rl_f32v b) { return _mm512_max_ps(a, b); }
static inline rl_f32v rl_min(rl_f32v a, rl_f32v b) { return _mm512_min_ps(a, b); }
/* Lane i and i + 8, then i + 4, i + 2, i + 1: the order of every level. */
static inline float rl_hsum(rl_f32v v) {
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 rest = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    rest = _mm_add_ps(rest, _mm_movehl_ps(rest, rest));
    return _mm_cvtss_f32(_mm_add_ss(rest, _mm_movehdup_ps(rest)));
}
static inline float rl_hmax(rl_f32v v) { return _mm512_reduce_max_ps(v); }

/* 2^n for whole n given as a float in [-126, 127] */
static inline rl_f32v rl_exp2_whole(rl_f32v n) {
    __m512i bits = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 23));
}
static inline rl_f32v rl_round(rl_f32v v) {
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline rl_f32v rl_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline rl_f32v rl_load_bf16(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
static inline void rl_store_f16(uint16_t *p, rl_f32v v) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
/* Signed bytes as floats. */
static inline rl_f32v rl_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
/* Round to int8; the values already lie in [-127, 127]. */
static inline void rl_store_i8(int8_t *p, rl_f32v v) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}

/* 16 bytes of two rows. As ymm: inserting into zmm takes twice as much of the ports that dots want. */
static inline __m256i rl_two_rows(const uint8_t *first, const uint8_t *second) {
    __m256i low = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)first));
    return _mm256_inserti128_si256(low, _mm_loadu_si128((const __m128i *)second), 1);
}
/* 16 bytes of each row, transposed: out[i] holds bytes 4i..4i+3 of every row. */
RL_INLINE void rl_rows16(const uint8_t *p, int64_t stride, rl_row4 out[4]) {
    __m512i rows[4]; /* rows[i]: rows i, i+4, i+8, i+12 */
    for (int i = 0; i < 4; i++) {
        __m256i low = rl_two_rows(p + i * stride, p + (i + 4) * stride);
        __m256i high = rl_two_rows(p + (i + 8) * stride, p + (i + 12) * stride);
        rows[i] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    __m512i low01 = _mm512_unpacklo_epi32(rows[0], rows[1]);
    __m512i low23 = _mm512_unpacklo_epi32(rows[2], rows[3]);
    __m512i high01 = _mm512_unpackhi_epi32(rows[0], rows[1]);
    __m512i high23 = _mm512_unpackhi_epi32(rows[2], rows[3]);
    out[0] = _mm512_unpacklo_epi64(low01, low23);
    out[1] = _mm512_unpackhi_epi64(low01, low23);
    out[2] = _mm512_unpacklo_epi64(high01, high23);
    out[3] = _mm512_unpackhi_epi64(high01, high23);
}

/* One f16 of each row, widened. Scalar loads keep the shuffle ports free. */
RL_INLINE rl_f32v rl_scales_f16(const uint8_t *p, int64_t stride) {
    uint64_t quads[4];
    for (int i = 0; i < 4; i++) {
        uint16_t s[4];
        for (int j = 0; j < 4; j++) memcpy(&s[j], p + (4 * i + j) * stride, 2);
        quads[i] = (uint64_t)s[0] | (uint64_t)s[1] << 16 | (uint64_t)s[2] << 32 |
                   (uint64_t)s[3] << 48;
    }
    return _mm512_cvtph_ps(_mm256_set_epi64x((long long)quads[3], (long long)quads[2],
                                             (long long)quads[1], (long long)quads[0]));
}
static inline rl_f32v rl_scales_f32(const uint8_t *p, int64_t stride) {
    float s[16];
    for (int i = 0; i < 16; i++) memcpy(&s[i], p + i * stride, 4);
    return _mm512_loadu_ps(s);
}

static inline rl_row4 rl_low4(rl_row4 v) { return _mm512_and_si512(v, _mm512_set1_epi8(0x0f)); }
static inline rl_row4 rl_high4(rl_row4 v) {
    return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(0x0f));
}

static inline rl_row4 rl_or(rl_row4 a, rl_row4 b) { return _mm512_or_si512(a, b); }
static inline rl_row4 rl_bits(rl_row4 v, const int shift, const uint8_t mask) {
    v = shift < 0 ? _mm512_sll_epi32(v, _mm_cvtsi32_si128(-shift))
                  : _mm512_srl_epi32(v, _mm_cvtsi32_si128(shift));
    return _mm512_and_si512(v, _mm512_set1_epi8((char)mask));
}
/* The byte with the four bits goes everywhere in its lane; each place tests one. */
static inline rl_row4 rl_spread_bits(rl_row4 v, const int k) {
    const __m512i lanes = _mm512_broadcast_i32x4(
        _mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c));
    const __m512i bits = _mm512_set1_epi32(k % 2 ? (int)0x80402010u : 0x08040201);
    v = _mm512_shuffle_epi8(v, _mm512_add_epi8(lanes, _mm512_set1_epi8((char)(k / 2))));
    return _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(v, bits), _mm512_set1_epi8(0x10));
}
static inline rl_row4 rl_table16(const int8_t *values) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)values));
}
static inline rl_row4 rl_lookup(rl_row4 table, rl_row4 index) {
    return _mm512_shuffle_epi8(table, index);
}
static inline rl_f32v rl_byte_f32(rl_row4 v, const int k) {
    v = _mm512_srl_epi32(v, _mm_cvtsi32_si128(8 * k));
    return _mm512_cvtepi32_ps(_mm512_and_si512(v, _mm512_set1_epi32(0xff)));
}
static inline rl_f32v rl_s8_f32(rl_row4 v, const int k) {
    v = _mm512_sll_epi32(v, _mm_cvtsi32_si128(24 - 8 * k));
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(v, 24));
}

/* The two 16-bit floats of each lane, widened. */
static inline rl_f32v rl_f16_first(rl_row4 v) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v)); }
static inline rl_f32v rl_f16_second(rl_row4 v) {
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16)));
}
static inline rl_f32v rl_bf16_first(rl_row4 v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
}
static inline rl_f32v rl_bf16_second(rl_row4 v) {
    return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32((int)0xffff0000u)));
}
static inline rl_f32v rl_as_f32(rl_row4 v) { return _mm512_castsi512_ps(v); }

static inline rl_row4 rl_load_row4(const void *p) { return _mm512_loadu_si512(p); }
static inline void rl_store_row4(void *p, rl_row4 v) { _mm512_storeu_si512(p, v); }

static inline rl_i32v rl_i32_set1(int32_t x) { return _mm512_set1_epi32(x); }
static inline rl_f32v rl_i32_to_f32(rl_i32v v) { return _mm512_cvtepi32_ps(v); }

static inline __m512i rl_four(const int8_t *a) {
    int32_t four;
    memcpy(&four, a, 4);
    return _mm512_set1_epi32(four);
}

#ifdef RL_VNNI

/* Signed weights are stored with 128 added, because vpdpbusd wants one side unsigned. */
#define RL_S8_OFFSET 128
static inline rl_row4 rl_s8_operand(rl_row4 v) {
    return _mm512_xor_si512(v, _mm512_set1_epi8((char)0x80));
}
static inline rl_i32v rl_dot(const rl_row4 *w, const int n, const int8_t *a, rl_i32v init) {
    for (int i = 0; i < n; i++) init = _mm512_dpbusd_epi32(init, w[i], rl_four(a + 4 * i));
    return init;
}

#else

#define RL_S8_OFFSET 0
static inline rl_row4 rl_s8_operand(rl_row4 v) { return v; }
#define RL_NARROW
#define RL_NARROW_STEPS 8
static inline rl_i16v rl_narrow_dot(rl_row4 w, rl_row4 a) { return _mm512_maddubs_epi16(w, a); }
static inline rl_i16v rl_i16_add(rl_i16v a, rl_i16v b) {
    a = _mm512_add_epi16(a, b);
    RL_KEEP_ORDER(a);
    return a;
}
static inline rl_i32v rl_widen(rl_i16v v) { return _mm512_madd_epi16(v, _mm512_set1_epi16(1)); }
static inline rl_i32v rl_i32_add(rl_i32v a, rl_i32v b) {
    a = _mm512_add_epi32(a, b);
    RL_KEEP_ORDER(a);
    return a;
}
static inline rl_row4 rl_sizes(rl_row4 w) { return _mm512_abs_epi8(w); }
static inline rl_row4 rl_signs(rl_row4 w) { return _mm512_movm_epi8(_mm512_movepi8_mask(w)); }
static inline rl_row4 rl_and(rl_row4 a, rl_row4 b) { return _mm512_and_si512(a, b); }
static inline rl_row4 rl_xor(rl_row4 a, rl_row4 b) { return _mm512_xor_si512(a, b); }
static inline rl_row4 rl_ones(void) { return _mm512_set1_epi8(1); }
/* a where w > 0, -a where w < 0; where w is 0 any of them. */
static inline rl_row4 rl_with_sign(rl_row4 a, rl_row4 w) {
    return _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(w), _mm512_setzero_si512(), a);
}

#endif

#ifdef RL_BF16_DOT
/* Two products of bf16 pairs added to each lane. */
static inline rl_f32v rl_dot_bf16(rl_row4 w, rl_row4 x, rl_f32v acc) {
    return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x);
}
static inline rl_row4 rl_pair(uint32_t pair) { return _mm512_set1_epi32((int)pair); }
#endif

#endif
