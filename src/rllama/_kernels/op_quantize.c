/* Float weights -> blocks, row by row, when a model is quantised at load. */
#include <stdlib.h>
#include <string.h>

#include "context.h"
#include "parallel.h"

#define VALUES_PER_ITEM 65536 /* that a thread takes at once */

typedef struct {
    rl_ctx *ctx;
    const rl_weight *source;
    const rl_recipe *recipe;
    uint8_t *out;
    int64_t out_row_bytes, rows_per_item;
} quantize_work;

/* A thread's scratch: whether all its rows were fit for blocks, and behind it one row of f32. */
#define FLAG_BYTES 64

static void quantize_rows(void *arg, int64_t item, int thread) {
    const quantize_work *work = arg;
    const rl_isa_table *table = &work->ctx->table;
    uint8_t *scratch = work->ctx->private[thread].data;
    float *row = (float *)(scratch + FLAG_BYTES);
    int64_t n_cols = work->source->n_cols, first = item * work->rows_per_item;
    int64_t last = rl_min64(work->source->n_rows, first + work->rows_per_item);
    for (int64_t n = first; n < last; n++) {
        const uint8_t *from = work->source->data + n * work->source->row_bytes;
        table->dequant[work->source->format](from, n_cols, row);
        if (!table->quantize[work->recipe->kind](row, n_cols, work->recipe,
                                                 work->out + n * work->out_row_bytes))
            scratch[0] = 1;
    }
}

rl_status rl_quantize(rl_ctx *ctx, const rl_weight *source, const rl_recipe *recipe, uint8_t *out,
                      int64_t out_row_bytes) {
    quantize_work work = {ctx, source, recipe, out, out_row_bytes, 0};
    size_t n_bytes = FLAG_BYTES + (size_t)source->n_cols * sizeof(float);
    for (int t = 0; t < ctx->n_threads; t++) {
        uint8_t *scratch = rl_arena_get(&ctx->private[t], n_bytes);
        if (scratch == NULL) return RL_NO_MEMORY;
        scratch[0] = 0;
    }
    work.rows_per_item = rl_max64(1, VALUES_PER_ITEM / source->n_cols);
    rl_parallel_for(ctx, rl_div_up(source->n_rows, work.rows_per_item), quantize_rows, &work);
    for (int t = 0; t < ctx->n_threads; t++)
        if (ctx->private[t].data[0]) return RL_BAD_ARGUMENT;
    return RL_OK;
}
