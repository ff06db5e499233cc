/* Drivers that go row by row or value by value: embed, norm, glu, scale, add, softcap, rope; and
 * the bandwidth yardstick. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "context.h"
#include "parallel.h"

#define ROWS_PER_ITEM 16 /* rows of a prompt that a thread takes at once */
#define VALUES_PER_ITEM 16384

typedef struct {
    const rl_weight *table;
    const int32_t *ids;
    float *out;
    rl_dequant_fn dequant;
    int64_t n_tokens, first_row, out_stride;
} embed_work;

static void embed_rows(void *arg, int64_t item, int thread) {
    const embed_work *work = arg;
    int64_t last = rl_min64(work->n_tokens, (item + 1) * ROWS_PER_ITEM);
    (void)thread;
    for (int64_t t = item * ROWS_PER_ITEM; t < last; t++) {
        int64_t row = work->ids[t] - work->first_row;
        if (row < 0 || row >= work->table->n_rows) continue;
        work->dequant(work->table->data + row * work->table->row_bytes, work->table->n_cols,
                      work->out + t * work->out_stride);
    }
}

rl_status rl_embed(rl_ctx *ctx, const rl_weight *table, const int32_t *ids, int64_t n_tokens,
                   int32_t first_row, float *out, int64_t out_stride) {
    embed_work work = {.table = table, .ids = ids, .out = out, .n_tokens = n_tokens};
    work.dequant = ctx->table.dequant[table->format];
    work.first_row = first_row;
    work.out_stride = out_stride;
    rl_parallel_for(ctx, rl_div_up(n_tokens, ROWS_PER_ITEM), embed_rows, &work);
    return RL_OK;
}

typedef struct {
    const float *x, *weight;
    float *out;
    double eps;
    rl_norm_fn norm;
    int64_t n_rows, dim, rows_per_item;
} norm_work;

static void norm_rows(void *arg, int64_t item, int thread) {
    const norm_work *work = arg;
    int64_t last = rl_min64(work->n_rows, (item + 1) * work->rows_per_item);
    (void)thread;
    for (int64_t t = item * work->rows_per_item; t < last; t++)
        work->norm(work->x + t * work->dim, work->weight, (float)work->eps, work->dim,
                   work->out + t * work->dim);
}

rl_status rl_rms_norm(rl_ctx *ctx, const float *x, const float *weight, double eps, int64_t n_rows,
                      int64_t dim, float *out) {
    int64_t rows_per_item = rl_max64(ROWS_PER_ITEM, VALUES_PER_ITEM / dim);
    norm_work work = {x, weight, out, eps, ctx->table.rms_norm, n_rows, dim, rows_per_item};
    rl_parallel_for(ctx, rl_div_up(n_rows, rows_per_item), norm_rows, &work);
    return RL_OK;
}

typedef struct {
    float *gate;
    const float *up;
    rl_glu_fn glu;
    int64_t n_values;
} glu_work;

static void glu_values(void *arg, int64_t item, int thread) {
    const glu_work *work = arg;
    int64_t first = item * VALUES_PER_ITEM;
    (void)thread;
    work->glu(work->gate + first, work->up + first,
              rl_min64(VALUES_PER_ITEM, work->n_values - first));
}

rl_status rl_glu(rl_ctx *ctx, float *gate, const float *up, int64_t n_values,
                 rl_activation activation) {
    glu_work work = {gate, up, ctx->table.glu[activation], n_values};
    rl_parallel_for(ctx, rl_div_up(n_values, VALUES_PER_ITEM), glu_values, &work);
    return RL_OK;
}

/* scale and softcap: cap 0 is none */
typedef struct {
    const rl_isa_table *table;
    float *x;
    float factor, cap;
    int64_t n_values;
} scale_work;

static void scale_values(void *arg, int64_t item, int thread) {
    const scale_work *work = arg;
    float *x = work->x + item * VALUES_PER_ITEM;
    int64_t n = rl_min64(VALUES_PER_ITEM, work->n_values - item * VALUES_PER_ITEM);
    (void)thread;
    if (work->cap > 0.0f)
        work->table->softcap(x, work->factor, work->cap, n);
    else
        work->table->scale(x, work->factor, n);
}

rl_status rl_scale_values(rl_ctx *ctx, float *x, double factor, int64_t n_values) {
    scale_work work = {&ctx->table, x, (float)factor, 0.0f, n_values};
    rl_parallel_for(ctx, rl_div_up(n_values, VALUES_PER_ITEM), scale_values, &work);
    return RL_OK;
}

typedef struct {
    const rl_isa_table *table;
    float *x;
    const int32_t *positions;
    double growth;
    int64_t length, n_rows, n_cols;
} grow_work;

static void grow_rows(void *arg, int64_t item, int thread) {
    const grow_work *work = arg;
    int64_t last = rl_min64(work->n_rows, (item + 1) * ROWS_PER_ITEM);
    (void)thread;
    for (int64_t t = item * ROWS_PER_ITEM; t < last; t++) {
        int64_t times = work->positions[t] / work->length;
        double factor = 1.0 + work->growth * log((double)(1 + times));
        if (times > 0) work->table->scale(work->x + t * work->n_cols, (float)factor, work->n_cols);
    }
}

rl_status rl_grow_rows(rl_ctx *ctx, float *x, const int32_t *positions, double growth,
                       int64_t length, int64_t n_rows, int64_t n_cols) {
    grow_work work = {&ctx->table, x, positions, growth, length, n_rows, n_cols};
    rl_parallel_for(ctx, rl_div_up(n_rows, ROWS_PER_ITEM), grow_rows, &work);
    return RL_OK;
}

rl_status rl_softcap_values(rl_ctx *ctx, float *x, double scale, double cap, int64_t n_values) {
    scale_work work = {&ctx->table, x, (float)(scale / cap), (float)cap, n_values};
    rl_parallel_for(ctx, rl_div_up(n_values, VALUES_PER_ITEM), scale_values, &work);
    return RL_OK;
}

typedef struct {
    const float *x;
    float *into;
    float factor;
    rl_add_fn add;
    int64_t x_step, n_tokens, n_cols; /* x_step 0: one row for all tokens */
} add_work;

static void add_rows(void *arg, int64_t item, int thread) {
    const add_work *work = arg;
    int64_t last = rl_min64(work->n_tokens, (item + 1) * ROWS_PER_ITEM);
    (void)thread;
    for (int64_t t = item * ROWS_PER_ITEM; t < last; t++)
        work->add(work->x + t * work->x_step, work->factor, work->n_cols,
                  work->into + t * work->n_cols);
}

rl_status rl_add_rows(rl_ctx *ctx, const float *x, int64_t x_rows, double factor, int64_t n_tokens,
                      int64_t n_cols, float *into) {
    int64_t x_step = x_rows == 1 ? 0 : n_cols;
    add_work work = {x, into, (float)factor, ctx->table.add, x_step, n_tokens, n_cols};
    rl_parallel_for(ctx, rl_div_up(n_tokens, ROWS_PER_ITEM), add_rows, &work);
    return RL_OK;
}

rl_rope_table *rl_rope_table_new(const double *inv_freq, int64_t half_dim, int64_t max_seq_len,
                                 double factor) {
    rl_rope_table *table = calloc(1, sizeof *table);
    if (table == NULL) return NULL;
    table->half_dim = half_dim;
    table->max_seq_len = max_seq_len;
    table->factor = factor;
    table->inv_freq = malloc((size_t)half_dim * sizeof(double));
    /* calloc: rows that are never asked for are never touched */
    table->values = calloc((size_t)(max_seq_len * half_dim), 2 * sizeof(float));
    if (table->inv_freq == NULL || table->values == NULL) {
        rl_rope_table_free(table);
        return NULL;
    }
    memcpy(table->inv_freq, inv_freq, (size_t)half_dim * sizeof(double));
    return table;
}

void rl_rope_table_free(rl_rope_table *table) {
    if (table == NULL) return;
    free(table->inv_freq);
    free(table->values);
    free(table);
}

static void fill_next_row(void *arg, int64_t item, int thread) {
    rl_rope_table *table = arg;
    float *row = table->values + table->n_filled * table->half_dim * 2;
    (void)item;
    (void)thread;
    for (int64_t i = 0; i < table->half_dim; i++) {
        double angle = (double)table->n_filled * table->inv_freq[i];
        row[2 * i] = (float)(table->factor * cos(angle));
        row[2 * i + 1] = (float)(table->factor * sin(angle));
    }
    table->n_filled++;
}

void rl_rope_table_fill(rl_rope_table *table, int64_t position) {
    rl_run_inline(position + 1 - table->n_filled, fill_next_row, table);
}

typedef struct {
    float *x;
    const int32_t *positions;
    const rl_rope_table *table;
    int64_t n_tokens, n_heads, head_dim;
    int64_t pair_step, partner; /* pair i is at (i*pair_step, i*pair_step + partner) */
} rope_work;

static void rotate_rows(void *arg, int64_t item, int thread) {
    const rope_work *work = arg;
    int64_t last = rl_min64(work->n_tokens, (item + 1) * ROWS_PER_ITEM);
    int64_t half = work->table->half_dim;
    (void)thread;
    for (int64_t t = item * ROWS_PER_ITEM; t < last; t++) {
        const float *turn = work->table->values + work->positions[t] * half * 2;
        float *head = work->x + t * work->n_heads * work->head_dim;
        for (int64_t h = 0; h < work->n_heads; h++, head += work->head_dim)
            for (int64_t i = 0; i < half; i++) {
                float *a = head + i * work->pair_step, *b = a + work->partner;
                float first = *a, second = *b, c = turn[2 * i], s = turn[2 * i + 1];
                *a = first * c - second * s;
                *b = first * s + second * c;
            }
    }
}

rl_status rl_rope(rl_ctx *ctx, float *x, int64_t n_tokens, int64_t n_heads, int64_t head_dim,
                  const int32_t *positions, const rl_rope_table *table, rl_rope_style style) {
    rope_work work = {x, positions, table, n_tokens, n_heads, head_dim, 2, 1};
    if (style == RL_ROPE_HALF) {
        work.pair_step = 1;
        work.partner = table->half_dim;
    }
    rl_parallel_for(ctx, rl_div_up(n_tokens, ROWS_PER_ITEM), rotate_rows, &work);
    return RL_OK;
}

#define READ_BYTES (1 << 20)

typedef struct {
    const uint8_t *data;
    int64_t n_bytes;
    uint64_t *sums; /* one cache line a thread */
} read_work;

static void read_piece(void *arg, int64_t item, int thread) {
    const read_work *work = arg;
    int64_t first = item * READ_BYTES, last = rl_min64(work->n_bytes, first + READ_BYTES);
    uint64_t sum[8] = {0};
    for (int64_t i = first; i + 64 <= last; i += 64) {
        uint64_t line[8];
        memcpy(line, work->data + i, 64);
        for (int j = 0; j < 8; j++) sum[j] += line[j];
    }
    for (int j = 0; j < 8; j++) work->sums[thread * 8] += sum[j];
}

uint64_t rl_read_all(rl_ctx *ctx, const uint8_t *data, int64_t n_bytes) {
    uint64_t *sums = rl_arena_get(&ctx->shared, (size_t)ctx->n_threads * 64), total = 0;
    if (sums == NULL) return 0;
    memset(sums, 0, (size_t)ctx->n_threads * 64);
    read_work work = {data, n_bytes, sums};
    rl_parallel_for(ctx, rl_div_up(n_bytes, READ_BYTES), read_piece, &work);
    for (int t = 0; t < ctx->n_threads; t++) total += sums[t * 8];
    return total;
}
