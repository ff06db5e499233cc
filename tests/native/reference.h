/* What the kernel check compares with: plain double arithmetic, and random operands in memory that
 * ends where the operand ends. */
#ifndef REFERENCE_H
#define REFERENCE_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rl.h"

#define ROUNDING 0x1p-24 /* error of one f32 rounding, relative */
#define SMALLEST 0x1p-149

static const int block_bytes[] = {4, 2, 2, 34, 18, 36};
enum { F32, F16, BF16, Q8_0, Q4_0, Q8_F32, N_FORMATS };
/* Formats from N_FORMATS on are decoded by the library, in a context of their own: the tests in
 * Python compare that decoder. */
static rl_ctx *decoder;

static uint32_t random_state;
static uint32_t random_bits(void) {
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 8 | random_state << 24;
}
/* Uniform in (-1, 1). */
static float random_float(void) { return (float)(random_bits() & 0xffff) / 32768.0f - 1.0f; }

static void *must_alloc(size_t n_bytes) {
    void *p = malloc(n_bytes);
    if (p == NULL) {
        fprintf(stderr, "no memory\n");
        exit(2);
    }
    return p;
}
static float *random_floats(int64_t n) {
    float *values = must_alloc((size_t)n * sizeof(float));
    for (int64_t i = 0; i < n; i++) values[i] = random_float();
    return values;
}

static double half_value(uint16_t h) {
    int exponent = h >> 10 & 31, fraction = h & 1023;
    double value = fraction * 0x1p-24;
    if (exponent > 0) value = (1024 + fraction) * (double)(1u << exponent) * 0x1p-25;
    return h & 0x8000 ? -value : value;
}
/* The nearest f16, ties to even, by trying: finite values in range only. */
static uint16_t nearest_half(double x) {
    uint16_t low = 0, high = 0x7bff;
    double size = fabs(x);
    while (high - low > 1) {
        uint16_t middle = (uint16_t)((low + high) / 2);
        if (half_value(middle) <= size)
            low = middle;
        else
            high = middle;
    }
    double below = size - half_value(low), above = half_value(high) - size;
    uint16_t best = below < above || (below == above && low % 2 == 0) ? low : high;
    return (uint16_t)(best | (signbit(x) ? 0x8000 : 0));
}

/* A weight of one row group after the other, in a block of memory of exactly its size that starts
 * at an odd address. */
typedef struct {
    rl_weight w;
    uint8_t *block;
    double *values; /* [n_rows, n_cols] */
} test_weight;

static void decode_block(int format, const uint8_t *p, double *out) {
    uint16_t half;
    float single;
    memcpy(&half, p, 2);
    memcpy(&single, p, format == F32 || format == Q8_F32 ? 4 : 0);
    switch (format) {
    case F32:
        out[0] = single;
        break;
    case F16:
        out[0] = half_value(half);
        break;
    case BF16: {
        uint32_t bits = (uint32_t)half << 16;
        memcpy(&single, &bits, 4);
        out[0] = single;
        break;
    }
    case Q4_0:
        for (int i = 0; i < 16; i++) {
            out[i] = half_value(half) * ((p[2 + i] & 15) - 8);
            out[i + 16] = half_value(half) * ((p[2 + i] >> 4) - 8);
        }
        break;
    default:
        for (int i = 0; i < 32; i++)
            out[i] = format == Q8_0 ? half_value(half) * (int8_t)p[2 + i]
                                    : (double)single * (int8_t)p[4 + i];
    }
}

/* Random bytes, but numbers and scales of sane size: between 2^-6 and 2. */
static void random_block(int format, uint8_t *p) {
    for (int i = 0; i < block_bytes[format]; i++) p[i] = (uint8_t)random_bits();
    if (format == F32 || format == Q8_F32) {
        float value = random_float();
        memcpy(p, &value, 4);
    } else if (format == BF16) {
        p[1] = (uint8_t)((p[1] & 0x80) | 0x3e);
    } else {
        p[1] = (uint8_t)((p[1] & 0x83) | (0x28 + 4 * (p[1] >> 2 & 3)));
    }
}

/* Any bytes that make values of sane size. */
static void random_other_block(int format, uint8_t *p, double *out) {
    float values[256];
    int len = rl_format_block_len(format), bytes = rl_format_block_bytes(format), is_sane = 0;
    const rl_weight block = {
        .data = p, .n_rows = 1, .n_cols = len, .row_bytes = bytes, .format = format};
    while (!is_sane) {
        const int32_t id = 0;
        float most = 0.0f;
        for (int i = 0; i < bytes; i++) p[i] = (uint8_t)random_bits();
        if (rl_embed(decoder, &block, &id, 1, 0, values, len) != RL_OK) exit(2);
        is_sane = 1;
        for (int i = 0; i < len; i++) {
            if (!(fabsf(values[i]) < 100.0f)) is_sane = 0;
            most = fmaxf(most, fabsf(values[i]));
        }
        if (most < 0x1p-20f) is_sane = 0;
    }
    for (int i = 0; i < len; i++) out[i] = values[i];
}

static test_weight make_weight(int format, int64_t n_rows, int64_t n_cols) {
    test_weight t;
    int len = rl_format_block_len(format), bytes = rl_format_block_bytes(format);
    int64_t per_row = n_cols / len, row_bytes = per_row * bytes;
    t.block = must_alloc((size_t)(n_rows * row_bytes + 1));
    t.values = must_alloc((size_t)(n_rows * n_cols) * sizeof(double));
    t.w = (rl_weight){t.block + 1, n_rows, n_cols, row_bytes, format, NULL};
    for (int64_t b = 0; b < n_rows * per_row; b++) {
        uint8_t *p = t.block + 1 + b * bytes;
        if (format >= N_FORMATS) {
            random_other_block(format, p, t.values + b * len);
            continue;
        }
        random_block(format, p);
        decode_block(format, p, t.values + b * len);
    }
    return t;
}
static void free_weight(test_weight *t) {
    free(t->block);
    free(t->values);
}

/* x as the kernels see it: rounded to BF16, or to 8 bits in blocks of 32. */
static void round_to_bf16(const float *x, int64_t n, double *out) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        float rounded;
        memcpy(&bits, x + i, 4);
        bits = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
        memcpy(&rounded, &bits, 4);
        out[i] = rounded;
    }
}
static void round_to_8_bits(const float *x, int64_t n, double *out) {
    for (int64_t i = 0; i < n; i += 32) {
        float most = 0.0f;
        for (int j = 0; j < 32; j++) most = fmaxf(most, fabsf(x[i + j]));
        float inverse = most > 0.0f ? 127.0f / most : 0.0f, scale = most / 127.0f;
        for (int j = 0; j < 32; j++) out[i + j] = (double)scale * rintf(x[i + j] * inverse);
    }
}

#endif
