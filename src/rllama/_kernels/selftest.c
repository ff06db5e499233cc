/* A known-answer test of the chosen level: an emulator or a faulty CPU may advertise instructions
 * that it runs wrongly, and wrong text is worse than slow text. Takes well under a millisecond. */
#include "selftest.h"

#include <math.h>
#include <string.h>

#define COLS 256 /* at most: a block, or two */
#define TOKENS 3
/* Largest relative error, beside sum |x||w|: half a step of an 8-bit activation, or of bf16. */
#define BOUND 0.006

typedef struct {
    _Alignas(64) uint8_t rows[RL_MAX_LANES * COLS * 4];
    _Alignas(64) uint8_t acts[TOKENS * COLS * 4 + TOKENS * (COLS / RL_BLOCK) * 64];
    _Alignas(64) uint8_t panel[RL_MAX_LANES * COLS * 8];
    _Alignas(64) float fused[RL_MAX_TILE * RL_MAX_LANES], gemm[RL_MAX_TILE * RL_MAX_LANES];
    float x[TOKENS * COLS], w[COLS];
} bench;

static uint32_t next_random(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* Where the upper bytes of a block's f16 numbers are, 0 for no more; a format that is not listed has
 * one number, at its beginning. Whatever else is in a block may be any byte. */
static const uint8_t uppers_at[RL_N_FORMATS][2] = {
    [RL_Q4_1] = {1, 3}, [RL_Q5_1] = {1, 3}, [RL_Q4_K] = {1, 3},   [RL_Q5_K] = {1, 3},
    [RL_Q4_G] = {1, 3}, [RL_Q8_G] = {1, 3}, [RL_Q2_K] = {81, 83}, [RL_Q3_K] = {109},
    [RL_Q6_K] = {209},  [RL_TQ1_0] = {53},  [RL_TQ2_0] = {65},
};

/* A block of random bytes becomes sane numbers: a small float, or scales near 2^-6. */
static void tame_block(uint8_t *p, rl_format format) {
    if (format == RL_F32 || format == RL_Q8_F32) {
        float whole = 0.015625f * (1.0f + (float)(p[0] & 15) / 8.0f);
        memcpy(p, &whole, 4);
    } else if (format == RL_BF16) {
        p[0] |= 0x80;
        p[1] = 0x3c;
    } else if (format == RL_MXFP4) {
        p[0] = (uint8_t)(120 + p[0] % 4);
    } else if (format == RL_IQ1_M) { /* the f16 lies in four top nibbles */
        for (int i = 0; i < 4; i++)
            p[49 + 2 * i] = (uint8_t)((p[49 + 2 * i] & 15) | (i == 3 ? 0x20 : i == 2 ? 0x40 : 0));
    } else {
        const uint8_t *at = uppers_at[format];
        uint8_t upper = (uint8_t)(0x24 | (format == RL_F16 ? p[1] & 0x80 : 0));
        p[at[0] == 0 ? 1 : at[0]] = upper;
        if (at[1] != 0) p[at[1]] = upper;
    }
}

static void fill_rows(uint8_t *rows, int64_t n_bytes, rl_format format, int block_bytes) {
    uint32_t state = 12345u + (uint32_t)format;
    for (int64_t i = 0; i < n_bytes; i++) rows[i] = (uint8_t)next_random(&state);
    for (int64_t i = 0; i < n_bytes; i += block_bytes) tame_block(rows + i, format);
}

static int agrees(const rl_isa_table *table, rl_format format, const bench *b, int n_cols,
                  int64_t row_bytes) {
    int lanes = table->formats[format].n_lanes;
    for (int lane = 0; lane < lanes; lane++) {
        float w[COLS];
        table->dequant[format](b->rows + lane * row_bytes, n_cols, w);
        for (int t = 0; t < TOKENS; t++) {
            double want = 0.0, norm = 0.0;
            for (int k = 0; k < n_cols; k++) {
                want += (double)w[k] * b->x[t * n_cols + k];
                norm += fabs((double)w[k] * b->x[t * n_cols + k]);
            }
            float got = b->fused[t * lanes + lane];
            if (!(fabs(got - want) <= BOUND * norm) || got != b->gemm[t * lanes + lane]) return 0;
        }
    }
    return 1;
}

static int format_works(const rl_isa_table *table, rl_format format, bench *b) {
    const rl_format_row *row = &table->formats[format];
    int block_len = rl_format_block_len(format), block_bytes = rl_format_block_bytes(format);
    int n_cols = block_len > 32 ? block_len : 64;
    int64_t row_bytes = n_cols / block_len * block_bytes;
    int64_t n_units = n_cols / (rl_act_is_q8(row->act) ? RL_BLOCK : RL_FLOAT_UNIT);
    fill_rows(b->rows, row->n_lanes * row_bytes, format, block_bytes);
    int tile = row->fused_tile < TOKENS ? row->fused_tile : TOKENS;
    for (int t = 0; t < TOKENS; t += tile) {
        int n = TOKENS - t < tile ? TOKENS - t : tile;
        table->quant_act[row->act](b->x + t * n_cols, n_cols, n_cols, n, row->offset, b->acts);
        row->fused(b->rows, row_bytes, n_units, b->acts, n, b->fused + t * row->n_lanes);
    }
    table->quant_act[row->gemm_act](b->x, n_cols, n_cols, TOKENS, row->offset, b->acts);
    row->panel(b->rows, row_bytes, n_units, b->panel);
    row->gemm(b->panel, n_units, b->acts, TOKENS, b->gemm);
    return agrees(table, format, b, n_cols, row_bytes);
}

int rl_table_works(const rl_isa_table *table) {
    bench b;
    uint32_t state = 1u;
    for (int i = 0; i < TOKENS * COLS; i++)
        b.x[i] = (float)(next_random(&state) & 0xffff) / 32768.0f - 1.0f;
    for (int format = 0; format < RL_N_FORMATS; format++)
        if (table->formats[format].fused != NULL && !format_works(table, (rl_format)format, &b))
            return 0;
    return 1;
}
