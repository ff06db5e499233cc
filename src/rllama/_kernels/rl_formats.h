/* Block structs of the weight formats, and the list of them. dtypes.py has the same list. */
#ifndef RL_FORMATS_H
#define RL_FORMATS_H

#include <stdint.h>

#define RL_BLOCK 32 /* values in a block of activations, and of the smaller weight formats */

/*         id      name      block length, block bytes */
#define RL_FORMATS(X)              \
    X(F32, "F32", 1, 4)            \
    X(F16, "F16", 1, 2)            \
    X(BF16, "BF16", 1, 2)          \
    X(Q8_0, "Q8_0", 32, 34)        \
    X(Q4_0, "Q4_0", 32, 18)        \
    X(Q8_F32, "Q8_F32", 32, 36)    \
    X(Q4_1, "Q4_1", 32, 20)        \
    X(Q5_0, "Q5_0", 32, 22)        \
    X(Q5_1, "Q5_1", 32, 24)        \
    X(Q2_K, "Q2_K", 256, 84)       \
    X(Q3_K, "Q3_K", 256, 110)      \
    X(Q4_K, "Q4_K", 256, 144)      \
    X(Q5_K, "Q5_K", 256, 176)      \
    X(Q6_K, "Q6_K", 256, 210)      \
    X(IQ4_NL, "IQ4_NL", 32, 18)    \
    X(IQ4_XS, "IQ4_XS", 256, 136)  \
    X(MXFP4, "MXFP4", 32, 17)      \
    X(IQ3_XXS, "IQ3_XXS", 256, 98) \
    X(IQ3_S, "IQ3_S", 256, 110)    \
    X(IQ2_XXS, "IQ2_XXS", 256, 66) \
    X(IQ2_XS, "IQ2_XS", 256, 74)   \
    X(IQ2_S, "IQ2_S", 256, 82)     \
    X(IQ1_S, "IQ1_S", 256, 50)     \
    X(IQ1_M, "IQ1_M", 256, 56)     \
    X(TQ1_0, "TQ1_0", 256, 54)     \
    X(TQ2_0, "TQ2_0", 256, 66)     \
    X(Q4_G, "Q4_G", 32, 20)        \
    X(Q8_G, "Q8_G", 32, 36)

#define RL_FORMAT_ENUM(id, name, len, bytes) RL_##id,
typedef enum { RL_FORMATS(RL_FORMAT_ENUM) RL_N_FORMATS } rl_format;
#undef RL_FORMAT_ENUM

typedef struct {
    uint16_t scale; /* f16 */
    int8_t values[32];
} rl_block_q8_0;

typedef struct {
    uint16_t scale;     /* f16 */
    uint8_t values[16]; /* low nibbles are values 0..15, high nibbles 16..31; value = (q - 8) */
} rl_block_q4_0;

typedef struct {
    float scale;
    int8_t values[32];
} rl_block_q8_f32;

typedef struct {
    uint16_t scale, min; /* f16; value = scale * q + min */
    uint8_t nibbles[16]; /* as in Q4_0 */
} rl_block_q4_1;

typedef struct {
    uint16_t scale;      /* f16 */
    uint8_t high[4];     /* bit i is the fifth bit of value i */
    uint8_t nibbles[16]; /* as in Q4_0; value = scale * (q - 16) */
} rl_block_q5_0;

typedef struct {
    uint16_t scale, min; /* f16; value = scale * q + min */
    uint8_t high[4], nibbles[16];
} rl_block_q5_1;

/* Formats of 256: sub-blocks of 16 or 32 values have scales of their own, in 4 to 8 bits. */
typedef struct {
    uint8_t scales[16]; /* of 16 values each: low nibble the scale, high nibble the min */
    uint8_t low[64];    /* 2 bits: byte i of 32 holds values i, i + 32, i + 64, i + 96 of 128 */
    uint16_t scale, min;
} rl_block_q2_k;

typedef struct {
    uint8_t high[32]; /* bit j of byte i is the third bit of value 32 * j + i; value - 4 where 0 */
    uint8_t low[64];  /* as in Q2_K */
    uint8_t scales[12]; /* 6 bits of 16 values each, less 32 */
    uint16_t scale;
} rl_block_q3_k;

typedef struct {
    uint16_t scale, min;
    uint8_t scales[12]; /* 6 bits of scale and of min, of 32 values each */
    uint8_t nibbles[128];
} rl_block_q4_k;

typedef struct {
    uint16_t scale, min;
    uint8_t scales[12];
    uint8_t high[32]; /* bit j of byte i is the fifth bit of value 32 * j + i */
    uint8_t nibbles[128];
} rl_block_q5_k;

typedef struct {
    uint8_t low[128], high[64]; /* 4 bits and 2 bits; value - 32 */
    int8_t scales[16];          /* of 16 values each */
    uint16_t scale;
} rl_block_q6_k;

typedef struct {
    uint16_t scale;
    uint8_t nibbles[16]; /* as in Q4_0, but each stands for a value of a table */
} rl_block_iq4_nl;

typedef struct {
    uint16_t scale, scales_high;
    uint8_t scales_low[4], nibbles[128]; /* 6 bits of 32 values each, less 32 */
} rl_block_iq4_xs;

typedef struct {
    uint8_t exponent;    /* scale = 2^(exponent - 128), half of what the standard says ... */
    uint8_t nibbles[16]; /* ... as the table of e2m1 values is doubled; order as in Q4_0 */
} rl_block_mxfp4;

/* Formats with a code book: a code stands for 4 or 8 values at once, signs lie beside it. */
typedef struct {
    uint16_t scale;
    uint8_t codes[64], signs[32]; /* per 32 values: four times 7 bits of signs, 4 bits of scale */
} rl_block_iq3_xxs;

typedef struct {
    uint16_t scale;
    uint8_t codes[64], high[8], signs[32], scales[4];
} rl_block_iq3_s;

typedef struct {
    uint16_t scale;
    uint8_t codes[64]; /* per 32 values: four codes, then signs and scale as in IQ3_XXS */
} rl_block_iq2_xxs;

typedef struct {
    uint16_t scale;
    uint16_t codes[32]; /* 9 bits, then 7 bits of signs */
    uint8_t scales[8];  /* 4 bits of 16 values each */
} rl_block_iq2_xs;

typedef struct {
    uint16_t scale;
    uint8_t codes[32], signs[32], high[8], scales[8];
} rl_block_iq2_s;

typedef struct {
    uint16_t scale;
    uint8_t codes[32];
    uint16_t high[8]; /* per 32 values: four times 3 bits of code, 3 bits of scale, a sign */
} rl_block_iq1_s;

typedef struct {
    uint8_t codes[32], high[16]; /* a nibble per code: 3 bits of it, and a sign */
    uint16_t scales[4];          /* four times 3 bits; the top nibbles together are the scale */
} rl_block_iq1_m;

/* Values -1, 0, 1. */
typedef struct {
    uint8_t fives[48], fours[4]; /* five, or four, to the byte */
    uint16_t scale;
} rl_block_tq1_0;

typedef struct {
    uint8_t low[64]; /* as in Q2_K */
    uint16_t scale;
} rl_block_tq2_0;

/* Formats that no file stores: readers make them of integers with a zero point per group. */
typedef struct {
    uint16_t scale, zero; /* f16; value = scale * (q - zero) */
    uint8_t nibbles[16];  /* as in Q4_0 */
} rl_block_q4_g;

typedef struct {
    uint16_t scale, zero; /* f16; value = scale * (q - zero) */
    int8_t values[32];
} rl_block_q8_g;

_Static_assert(sizeof(rl_block_q8_0) == 34, "Q8_0 block");
_Static_assert(sizeof(rl_block_q4_0) == 18, "Q4_0 block");
_Static_assert(sizeof(rl_block_q8_f32) == 36, "Q8_F32 block");
_Static_assert(sizeof(rl_block_q4_1) == 20, "Q4_1 block");
_Static_assert(sizeof(rl_block_q5_0) == 22, "Q5_0 block");
_Static_assert(sizeof(rl_block_q5_1) == 24, "Q5_1 block");
_Static_assert(sizeof(rl_block_q2_k) == 84, "Q2_K block");
_Static_assert(sizeof(rl_block_q3_k) == 110, "Q3_K block");
_Static_assert(sizeof(rl_block_q4_k) == 144, "Q4_K block");
_Static_assert(sizeof(rl_block_q5_k) == 176, "Q5_K block");
_Static_assert(sizeof(rl_block_q6_k) == 210, "Q6_K block");
_Static_assert(sizeof(rl_block_iq4_nl) == 18, "IQ4_NL block");
_Static_assert(sizeof(rl_block_iq4_xs) == 136, "IQ4_XS block");
_Static_assert(sizeof(rl_block_mxfp4) == 17, "MXFP4 block");
_Static_assert(sizeof(rl_block_iq3_xxs) == 98, "IQ3_XXS block");
_Static_assert(sizeof(rl_block_iq3_s) == 110, "IQ3_S block");
_Static_assert(sizeof(rl_block_iq2_xxs) == 66, "IQ2_XXS block");
_Static_assert(sizeof(rl_block_iq2_xs) == 74, "IQ2_XS block");
_Static_assert(sizeof(rl_block_iq2_s) == 82, "IQ2_S block");
_Static_assert(sizeof(rl_block_iq1_s) == 50, "IQ1_S block");
_Static_assert(sizeof(rl_block_iq1_m) == 56, "IQ1_M block");
_Static_assert(sizeof(rl_block_tq1_0) == 54, "TQ1_0 block");
_Static_assert(sizeof(rl_block_tq2_0) == 66, "TQ2_0 block");
_Static_assert(sizeof(rl_block_q4_g) == 20, "Q4_G block");
_Static_assert(sizeof(rl_block_q8_g) == 36, "Q8_G block");

#endif
