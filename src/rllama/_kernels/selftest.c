/* A known-answer test of the chosen level: an emulator or a faulty CPU may advertise instructions
 * that it runs wrongly, and wrong text is worse than slow text. Takes well under a millisecond. */
#include "selftest.h"

#include <math.h>
#include <string.h>

#define COLS 64
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

/* Bytes that are sane numbers in every format: small floats, or blocks with a small scale. */
static void fill_rows(uint8_t *rows, int64_t n_bytes, rl_format format, int block_bytes) {
    uint32_t state = 12345u + (uint32_t)format;
    for (int64_t i = 0; i < n_bytes; i++) rows[i] = (uint8_t)next_random(&state);
    for (int64_t i = 0; i < n_bytes; i += block_bytes) {
        uint16_t half = format == RL_BF16 ? 0x3c80 : 0x2400; /* near 2^-6 in either 16-bit float */
        float whole = 0.015625f;
        if (format == RL_F32 || format == RL_Q8_F32) {
            whole *= 1.0f + (float)(rows[i] & 15) / 8.0f;
            memcpy(rows + i, &whole, 4);
        } else {
            half = (uint16_t)(half | (rows[i] & 0x7f) |
                              (format == RL_F16 ? rows[i + 1] & 0x80 : 0));
            memcpy(rows + i, &half, 2);
        }
    }
}

static int agrees(const rl_isa_table *table, rl_format format, const bench *b, int64_t row_bytes) {
    int lanes = table->formats[format].n_lanes;
    for (int lane = 0; lane < lanes; lane++) {
        float w[COLS];
        table->dequant[format](b->rows + lane * row_bytes, COLS, w);
        for (int t = 0; t < TOKENS; t++) {
            double want = 0.0, norm = 0.0;
            for (int k = 0; k < COLS; k++) {
                want += (double)w[k] * b->x[t * COLS + k];
                norm += fabs((double)w[k] * b->x[t * COLS + k]);
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
    int64_t row_bytes = COLS / block_len * block_bytes;
    int64_t n_units = COLS / (row->act == RL_ACT_Q8 ? RL_BLOCK : RL_FLOAT_UNIT);
    fill_rows(b->rows, row->n_lanes * row_bytes, format, block_bytes);
    table->quant_act[row->act](b->x, COLS, COLS, TOKENS, row->offset, b->acts);
    row->fused(b->rows, row_bytes, n_units, b->acts, TOKENS, b->fused);
    row->panel(b->rows, row_bytes, n_units, b->panel);
    row->gemm(b->panel, n_units, b->acts, TOKENS, b->gemm);
    return agrees(table, format, b, row_bytes);
}

int rl_table_works(const rl_isa_table *table) {
    bench b;
    uint32_t state = 1u;
    for (int i = 0; i < TOKENS * COLS; i++)
        b.x[i] = (float)(next_random(&state) & 0xffff) / 32768.0f - 1.0f;
    for (int format = 0; format < RL_N_FORMATS; format++)
        if (!format_works(table, (rl_format)format, &b)) return 0;
    return 1;
}
