/* Packed whole numbers of other libraries -> rows of blocks of 32, when a weight is placed.
 *
 * A strip of rows is taken at once, so that a line of words serves all of them: 32 inputs of the
 * strip become bytes, input after input; then every row gets its block.
 */
#include <string.h>

#include "context.h"
#include "parallel.h"

#define STRIP 64 /* rows at once: a cache line of bytes, four of words */
#define HEAD 4   /* bytes in front of the whole numbers of a block */

/* Where AWQ keeps the j-th of eight rows in their word: the nibbles are those of 0 2 4 6 1 3 5 7. */
static const uint8_t awq_shift[8] = {0, 16, 4, 20, 8, 24, 12, 28};

static uint32_t word_at(const uint8_t *words, int64_t index) {
    uint32_t word;
    memcpy(&word, words + 4 * index, 4);
    return word;
}

/* One input for n rows from `row`, where a word holds eight rows of it. */
static void take_across(const rl_unpack_op *op, int64_t input, int64_t row, int64_t n,
                        uint8_t *values) {
    const int64_t skip = row % 8;
    for (int64_t i = -skip; i < n; i += 8) {
        uint32_t word = word_at(op->words, input * op->step_k + (row + i) / 8 * op->step_n);
        uint8_t eight[8];
        for (int j = 0; j < 8; j++) eight[j] = (uint8_t)(word >> awq_shift[j] & 15);
        if (i >= 0 && i + 8 <= n)
            memcpy(values + i, eight, 8);
        else
            for (int64_t j = i < 0 ? -i : 0; j < rl_min64(8, n - i); j++) values[i + j] = eight[j];
    }
}

/* The numbers of one input for n rows from `row`; a number of 3 bits may straddle two words. */
static void take_input(const rl_unpack_op *op, int64_t input, int64_t row, int64_t n,
                       uint8_t *values) {
    if (op->across_rows) {
        take_across(op, input, row, n, values);
        return;
    }
    int64_t bit = input * op->bits, shift = bit % 32;
    int64_t at = bit / 32 * op->step_k + row * op->step_n;
    uint32_t mask = (1u << op->bits) - 1;
    if (shift + op->bits <= 32) {
        for (int64_t i = 0; i < n; i++)
            values[i] = (uint8_t)(word_at(op->words, at + i * op->step_n) >> shift & mask);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        uint32_t low = word_at(op->words, at + i * op->step_n) >> shift;
        uint32_t high = word_at(op->words, at + op->step_k + i * op->step_n) << (32 - shift);
        values[i] = (uint8_t)((low | high) & mask);
    }
}

/* One block of every row of the strip: Q4_G has nibbles as in Q4_0, the others bytes. */
static void write_blocks(const rl_unpack_op *op, int64_t block, int64_t first, int64_t n,
                         uint8_t (*values)[STRIP]) {
    int64_t n_bytes = op->nibbles ? RL_BLOCK / 2 : RL_BLOCK;
    int64_t row_bytes = op->n_cols / RL_BLOCK * (HEAD + n_bytes);
    const int64_t at = op->group_of_block[block] * op->n_rows + first;
    const uint8_t *heads = op->heads + HEAD * at;
    const int16_t *offsets = op->offsets + at;
    uint8_t *out = op->out + first * row_bytes + block * (HEAD + n_bytes);
    if (op->nibbles)
        for (int i = 0; i < RL_BLOCK / 2; i++)
            for (int64_t r = 0; r < n; r++)
                values[i][r] = (uint8_t)(values[i][r] | values[i + RL_BLOCK / 2][r] << 4);
    for (int64_t r = 0; r < n; r++, out += row_bytes) {
        memcpy(out, heads + HEAD * r, HEAD);
        for (int64_t i = 0; i < n_bytes; i++) out[HEAD + i] = (uint8_t)(values[i][r] - offsets[r]);
    }
}

static void unpack_strip(void *arg, int64_t strip, int thread) {
    const rl_unpack_op *op = arg;
    uint8_t values[RL_BLOCK][STRIP];
    int64_t first = strip * STRIP, n = rl_min64(STRIP, op->n_rows - first);
    (void)thread;
    for (int64_t block = 0; block < op->n_cols / RL_BLOCK; block++) {
        for (int i = 0; i < RL_BLOCK; i++) {
            int64_t column = block * RL_BLOCK + i;
            take_input(op, op->inputs == NULL ? column : op->inputs[column], op->first_row + first,
                       n, values[i]);
        }
        write_blocks(op, block, first, n, values);
    }
}

rl_status rl_unpack(rl_ctx *ctx, const rl_unpack_op *op) {
    rl_parallel_for(ctx, rl_div_up(op->n_rows, STRIP), unpack_strip, (void *)op);
    return RL_OK;
}
