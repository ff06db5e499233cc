/* The vocabulary on AVX2 + FMA + F16C: 8 rows side by side. */
#ifndef RL_SIMD_AVX2_H
#define RL_SIMD_AVX2_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "compiler.h"

#define RL_R 8
#define RL_TILE 4
#define RL_INT_TILE 8
#define RL_FLOAT_TILE 12
#define RL_ROW_TILE 2 /* tokens at once where lanes walk along a row, */
#define RL_SUMS 8     /* and sums that are kept in registers there */
#define RL_DIRECT 1   /* tokens whose operands need not pass through memory */

typedef __m256 rl_f32v;
typedef __m256i rl_i32v;
typedef __m256i rl_i16v;
typedef __m256i rl_row4; /* four bytes of each of 8 rows */

static inline rl_f32v rl_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void rl_store(float *p, rl_f32v v) { _mm256_storeu_ps(p, v); }
static inline rl_f32v rl_set1(float x) { return _mm256_set1_ps(x); }
static inline rl_f32v rl_zero(void) { return _mm256_setzero_ps(); }
static inline rl_f32v rl_add(rl_f32v a, rl_f32v b) { return _mm256_add_ps(a, b); }
static inline rl_f32v rl_sub(rl_f32v a, rl_f32v b) { return _mm256_sub_ps(a, b); }
static inline rl_f32v rl_mul(rl_f32v a, rl_f32v b) { return _mm256_mul_ps(a, b); }
static inline rl_f32v rl_div(rl_f32v a, rl_f32v b) { return _mm256_div_ps(a, b); }
static inline rl_f32v rl_fma(rl_f32v a, rl_f32v b, rl_f32v c) { return _mm256_fmadd_ps(a, b, c); }
static inline rl_f32v rl_max(rl_f32v a, rl_f32v b) { return _mm256_max_ps(a, b); }
static inline rl_f32v rl_min(rl_f32v a, rl_f32v b) { return _mm256_min_ps(a, b); }
static inline float rl_hsum(rl_f32v v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
static inline float rl_hmax(rl_f32v v) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

/* 2^n for whole n given as a float in [-126, 127] */
static inline rl_f32v rl_exp2_whole(rl_f32v n) {
    __m256i bits = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23));
}
static inline rl_f32v rl_round(rl_f32v v) {
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline rl_f32v rl_load_f16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
static inline rl_f32v rl_load_bf16(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
static inline void rl_store_f16(uint16_t *p, rl_f32v v) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
/* Signed bytes as floats. */
static inline rl_f32v rl_load_i8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
/* Round to int8; the values already lie in [-127, 127]. */
static inline void rl_store_i8(int8_t *p, rl_f32v v) {
    __m256i whole = _mm256_cvtps_epi32(v);
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole),
                                    _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(words, words));
}

/* 16 bytes of each row, transposed: out[i] holds bytes 4i..4i+3 of every row. */
RL_INLINE void rl_rows16(const uint8_t *p, int64_t stride, rl_row4 out[4]) {
    __m256i rows[4]; /* rows[i]: rows i and i+4 */
    for (int i = 0; i < 4; i++) {
        const uint8_t *q = p + i * stride;
        rows[i] = _mm256_inserti128_si256(
            _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)q)),
            _mm_loadu_si128((const __m128i *)(q + 4 * stride)), 1);
    }
    __m256i low01 = _mm256_unpacklo_epi32(rows[0], rows[1]);
    __m256i low23 = _mm256_unpacklo_epi32(rows[2], rows[3]);
    __m256i high01 = _mm256_unpackhi_epi32(rows[0], rows[1]);
    __m256i high23 = _mm256_unpackhi_epi32(rows[2], rows[3]);
    out[0] = _mm256_unpacklo_epi64(low01, low23);
    out[1] = _mm256_unpackhi_epi64(low01, low23);
    out[2] = _mm256_unpacklo_epi64(high01, high23);
    out[3] = _mm256_unpackhi_epi64(high01, high23);
}

/* One f16 of each row, widened. */
RL_INLINE rl_f32v rl_scales_f16(const uint8_t *p, int64_t stride) {
    uint64_t quads[2];
    for (int i = 0; i < 2; i++) {
        uint16_t s[4];
        for (int j = 0; j < 4; j++) memcpy(&s[j], p + (4 * i + j) * stride, 2);
        quads[i] = (uint64_t)s[0] | (uint64_t)s[1] << 16 | (uint64_t)s[2] << 32 |
                   (uint64_t)s[3] << 48;
    }
    return _mm256_cvtph_ps(_mm_set_epi64x((long long)quads[1], (long long)quads[0]));
}
static inline rl_f32v rl_scales_f32(const uint8_t *p, int64_t stride) {
    float s[8];
    for (int i = 0; i < 8; i++) memcpy(&s[i], p + i * stride, 4);
    return _mm256_loadu_ps(s);
}

static inline rl_row4 rl_low4(rl_row4 v) { return _mm256_and_si256(v, _mm256_set1_epi8(0x0f)); }
static inline rl_row4 rl_high4(rl_row4 v) {
    return _mm256_and_si256(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(0x0f));
}

static inline rl_row4 rl_or(rl_row4 a, rl_row4 b) { return _mm256_or_si256(a, b); }
static inline rl_row4 rl_bits(rl_row4 v, const int shift, const uint8_t mask) {
    v = shift < 0 ? _mm256_sll_epi32(v, _mm_cvtsi32_si128(-shift))
                  : _mm256_srl_epi32(v, _mm_cvtsi32_si128(shift));
    return _mm256_and_si256(v, _mm256_set1_epi8((char)mask));
}
/* The byte with the four bits goes everywhere in its lane; each place keeps one. */
static inline rl_row4 rl_spread_bits(rl_row4 v, const int k) {
    const __m256i lanes = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404,
                                            0x08080808, 0x0c0c0c0c);
    const __m256i bits = _mm256_set1_epi32(k % 2 ? (int)0x80402010u : 0x08040201);
    v = _mm256_shuffle_epi8(v, _mm256_add_epi8(lanes, _mm256_set1_epi8((char)(k / 2))));
    v = _mm256_cmpeq_epi8(_mm256_and_si256(v, bits), bits);
    return _mm256_and_si256(v, _mm256_set1_epi8(0x10));
}
static inline rl_row4 rl_table16(const int8_t *values) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)values));
}
static inline rl_row4 rl_lookup(rl_row4 table, rl_row4 index) {
    return _mm256_shuffle_epi8(table, index);
}
static inline rl_f32v rl_byte_f32(rl_row4 v, const int k) {
    v = _mm256_srl_epi32(v, _mm_cvtsi32_si128(8 * k));
    return _mm256_cvtepi32_ps(_mm256_and_si256(v, _mm256_set1_epi32(0xff)));
}
static inline rl_f32v rl_s8_f32(rl_row4 v, const int k) {
    v = _mm256_sll_epi32(v, _mm_cvtsi32_si128(24 - 8 * k));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(v, 24));
}

/* The two 16-bit floats of each lane, widened. */
static inline __m128i rl_low_words(__m256i v) {
    const __m256i pick = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1,
                                          0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(v, pick), 0x08);
    return _mm256_castsi256_si128(packed);
}
static inline rl_f32v rl_f16_first(rl_row4 v) { return _mm256_cvtph_ps(rl_low_words(v)); }
static inline rl_f32v rl_f16_second(rl_row4 v) {
    return _mm256_cvtph_ps(rl_low_words(_mm256_srli_epi32(v, 16)));
}
static inline rl_f32v rl_bf16_first(rl_row4 v) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
}
static inline rl_f32v rl_bf16_second(rl_row4 v) {
    return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32((int)0xffff0000u)));
}
static inline rl_f32v rl_as_f32(rl_row4 v) { return _mm256_castsi256_ps(v); }

static inline rl_row4 rl_load_row4(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline void rl_store_row4(void *p, rl_row4 v) { _mm256_storeu_si256((__m256i *)p, v); }

static inline rl_i32v rl_i32_set1(int32_t x) { return _mm256_set1_epi32(x); }
static inline rl_f32v rl_i32_to_f32(rl_i32v v) { return _mm256_cvtepi32_ps(v); }

static inline __m256i rl_four(const int8_t *a) {
    int32_t four;
    memcpy(&four, a, 4);
    return _mm256_set1_epi32(four);
}

#define RL_S8_OFFSET 0
static inline rl_row4 rl_s8_operand(rl_row4 v) { return v; }
#define RL_NARROW
#define RL_NARROW_STEPS 4
static inline rl_i16v rl_narrow_dot(rl_row4 w, rl_row4 a) { return _mm256_maddubs_epi16(w, a); }
static inline rl_i16v rl_i16_add(rl_i16v a, rl_i16v b) {
    a = _mm256_add_epi16(a, b);
    RL_KEEP_ORDER(a);
    return a;
}
static inline rl_i32v rl_widen(rl_i16v v) { return _mm256_madd_epi16(v, _mm256_set1_epi16(1)); }
static inline rl_i32v rl_i32_add(rl_i32v a, rl_i32v b) {
    a = _mm256_add_epi32(a, b);
    RL_KEEP_ORDER(a);
    return a;
}
static inline rl_row4 rl_sizes(rl_row4 w) { return _mm256_abs_epi8(w); }
static inline rl_row4 rl_signs(rl_row4 w) { return _mm256_cmpgt_epi8(_mm256_setzero_si256(), w); }
static inline rl_row4 rl_and(rl_row4 a, rl_row4 b) { return _mm256_and_si256(a, b); }
static inline rl_row4 rl_xor(rl_row4 a, rl_row4 b) { return _mm256_xor_si256(a, b); }
static inline rl_row4 rl_ones(void) { return _mm256_set1_epi8(1); }
/* a where w > 0, -a where w < 0; where w is 0 any of them. */
static inline rl_row4 rl_with_sign(rl_row4 a, rl_row4 w) { return _mm256_sign_epi8(a, w); }

#endif
