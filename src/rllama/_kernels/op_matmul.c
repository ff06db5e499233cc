/* Matmul driver: quantise activation rows once, cut weight rows into chunks, call the table.
 *
 * Few tokens: the fused kernel, straight from the file layout. More: a chunk's rows become panels
 * that fit L2, and the GEMM body walks them tile of tokens by tile of tokens.
 *
 * A format without kernels takes the same ways with the F32 kernels: a thread turns the rows of one
 * group after the other into F32 in its scratch. Each output is then the F32 sum of its own row.
 */
#include <string.h>

#include "context.h"
#include "parallel.h"

#define L2_PANEL_BYTES (192 * 1024) /* panels that a thread keeps while tiles pass by */
#define CHUNK_BYTES (128 * 1024)    /* weights that a thread takes at once when it decodes */
#define CHUNKS_PER_THREAD 2         /* of one weight, at least: so that no thread idles */
#define FUSED_TILES 3               /* up to this many tiles, unpacking again beats a panel */

/* One weight of the op with its kernels and its share of the activations. */
typedef struct {
    const rl_weight *w;
    const rl_format_row *row;
    rl_dequant_fn dequant; /* rows -> F32 for `row`; NULL where `row` takes them as they lie */
    float *out;
    int64_t out_stride, x_stride;
    const uint8_t *acts;
    int64_t row_bytes;   /* of a row as the kernels see it, without padding */
    int64_t n_units;     /* blocks, or units of 8 columns */
    int64_t act_bytes;   /* activations of one token */
    int64_t panel_bytes; /* one panel */
    int64_t n_groups, groups_per_chunk, first_chunk;
    int copy_rows; /* columns or rows do not fill a unit: work on a zero-padded copy */
} part;

typedef struct {
    rl_ctx *ctx;
    const rl_matmul_op *op;
    part parts[RL_MAX_OUTPUTS];
    int64_t n_chunks;
    int fused;
} matmul_work;

/* The kernels that multiply a format: its own, or those of F32. */
static const rl_format_row *kernels_of(const rl_isa_table *table, int32_t format) {
    return &table->formats[table->formats[format].fused != NULL ? format : RL_F32];
}

/* Tokens in a tile: as few tiles as can be, all about equally wide. */
static int64_t tile_tokens(const matmul_work *work, const part *p) {
    int64_t n_tiles = rl_div_up(work->op->n_tokens, p->row->max_tile);
    return rl_div_up(work->op->n_tokens, n_tiles);
}

static int64_t unit_cols(const rl_format_row *row) {
    return row->act == RL_ACT_Q8 ? RL_BLOCK : RL_FLOAT_UNIT;
}

static int64_t act_unit_bytes(int32_t act) {
    if (act == RL_ACT_Q8) return (int64_t)sizeof(rl_act_block);
    return RL_FLOAT_UNIT * (act == RL_ACT_BF16 ? 2 : 4);
}

static int64_t panel_unit_bytes(const rl_format_row *row) {
    if (row->act == RL_ACT_Q8) return (int64_t)row->n_lanes * (RL_BLOCK + 4);
    return (int64_t)row->n_lanes * RL_FLOAT_UNIT * (row->act == RL_ACT_BF16 ? 2 : 4);
}

static void choose_kernels(part *p, const rl_isa_table *table) {
    p->row = kernels_of(table, p->w->format);
    p->row_bytes = p->w->row_bytes;
    p->dequant = NULL;
    if (p->row == &table->formats[p->w->format]) return;
    p->dequant = table->dequant[p->w->format];
    p->row_bytes = p->w->n_cols * (int64_t)sizeof(float);
}

static void plan_part(part *p, const matmul_work *work, int i) {
    p->w = work->op->w[i];
    p->out = work->op->out[i];
    p->out_stride = work->op->out_stride[i] ? work->op->out_stride[i] : p->w->n_rows;
    p->x_stride = work->op->x_stride ? work->op->x_stride : p->w->n_cols;
    choose_kernels(p, &work->ctx->table);
    p->n_units = rl_div_up(p->w->n_cols, unit_cols(p->row));
    p->act_bytes = p->n_units * act_unit_bytes(p->row->act);
    p->panel_bytes = rl_round_up(p->n_units * panel_unit_bytes(p->row), 64);
    p->n_groups = rl_div_up(p->w->n_rows, p->row->n_lanes);
    p->copy_rows = p->w->n_cols % unit_cols(p->row) != 0 || p->w->n_rows < p->row->n_lanes;
    int64_t group_bytes = work->fused ? p->row->n_lanes * p->row_bytes : p->panel_bytes;
    int64_t limit = work->fused ? CHUNK_BYTES : L2_PANEL_BYTES;
    int64_t fair = rl_div_up(p->n_groups, CHUNKS_PER_THREAD * work->ctx->n_threads);
    p->groups_per_chunk = rl_max64(1, rl_min64(fair, limit / group_bytes));
}

/* Quantise one tile of tokens for one part. Tile `item` of the op starts at token item*tile. */
typedef struct {
    const rl_matmul_op *op;
    const part *p;
    rl_quant_act_fn quant;
    uint8_t *acts;
    int64_t tile;
    float *gathered; /* [T, K]: x in the order of the columns, where the weight has one */
} quant_work;

static void quantise_tile(void *arg, int64_t item, int thread) {
    const quant_work *work = arg;
    const int32_t *order = work->p->w->column_order;
    int64_t first = item * work->tile, n_cols = work->p->w->n_cols, x_stride = work->p->x_stride;
    int n = (int)rl_min64(work->tile, work->op->n_tokens - first);
    const float *x = work->op->x + first * x_stride;
    (void)thread;
    if (order != NULL) {
        float *gathered = work->gathered + first * n_cols;
        for (int t = 0; t < n; t++)
            for (int64_t k = 0; k < n_cols; k++)
                gathered[t * n_cols + k] = x[t * x_stride + order[k]];
        x = gathered;
        x_stride = n_cols;
    }
    work->quant(x, x_stride, n_cols, n, work->p->row->offset,
                work->acts + first * work->p->act_bytes);
}

/* The first part before part i that wants the very same activations, or NULL. */
static const part *shares_activations(const matmul_work *work, int i) {
    const rl_format_row *row = work->parts[i].row;
    const int32_t *order = work->parts[i].w->column_order;
    for (int j = 0; j < i; j++) {
        const rl_format_row *other = work->parts[j].row;
        if (other->act == row->act && other->offset == row->offset &&
            other->max_tile == row->max_tile && work->parts[j].w->column_order == order)
            return &work->parts[j];
    }
    return NULL;
}

/* Give every part its activations; parts of the same kind share them. */
static rl_status prepare_activations(matmul_work *work) {
    const rl_matmul_op *op = work->op;
    int64_t total = 0, gathered_bytes = 0;
    for (int i = 0; i < op->n_outputs; i++) {
        const rl_weight *w = op->w[i];
        if (shares_activations(work, i) == NULL)
            total += rl_round_up(work->parts[i].act_bytes * op->n_tokens, 64);
        if (w->column_order != NULL)
            gathered_bytes = rl_round_up(op->n_tokens * w->n_cols * (int64_t)sizeof(float), 64);
    }
    uint8_t *next = rl_arena_get(&work->ctx->shared, (size_t)(gathered_bytes + total));
    if (next == NULL) return RL_NO_MEMORY;
    float *gathered = (float *)next; /* of one part at a time: they are quantised in turn */
    next += gathered_bytes;
    for (int i = 0; i < op->n_outputs; i++) {
        part *p = &work->parts[i];
        const part *other = shares_activations(work, i);
        p->acts = other == NULL ? next : other->acts;
        if (other != NULL) continue;
        quant_work quant = {
            op, p, work->ctx->table.quant_act[p->row->act], next, tile_tokens(work, p), gathered};
        rl_parallel_for(work->ctx, rl_div_up(op->n_tokens, quant.tile), quantise_tile, &quant);
        next += rl_round_up(p->act_bytes * op->n_tokens, 64);
    }
    return RL_OK;
}

/* The rows of a group: in place, or as a zero-padded copy where they do not fill the lanes, or as
 * F32 where their format has no kernels. */
typedef struct {
    const uint8_t *data;
    int64_t row_bytes;
    int64_t first, skip; /* first row of the output; lanes before it that repeat earlier rows */
    int64_t n;           /* rows to write */
} row_group;

static void copy_group(const part *p, const uint8_t *rows, int64_t padded, uint8_t *copy) {
    int64_t lanes = p->row->n_lanes;
    if (p->copy_rows) memset(copy, 0, (size_t)(padded * lanes));
    for (int64_t r = 0; r < rl_min64(lanes, p->w->n_rows); r++, rows += p->w->row_bytes)
        if (p->dequant != NULL)
            p->dequant(rows, p->w->n_cols, (float *)(void *)(copy + r * padded));
        else
            memcpy(copy + r * padded, rows, (size_t)p->row_bytes);
}

static row_group take_group(const part *p, int64_t group, uint8_t *copy) {
    int64_t lanes = p->row->n_lanes, n_rows = p->w->n_rows;
    row_group g = {NULL, p->row_bytes, group * lanes, 0, 0};
    g.n = rl_min64(lanes, n_rows - g.first);
    int64_t start = g.first;
    if (g.n < lanes && n_rows >= lanes) { /* the last group starts earlier; it writes its own */
        start = n_rows - lanes;
        g.skip = g.first - start;
    }
    g.data = p->w->data + start * p->w->row_bytes;
    if (!p->copy_rows && p->dequant == NULL) return g;
    int64_t padded = p->row_bytes; /* blocks always fill a row; floats may not fill a unit */
    if (p->row->act != RL_ACT_Q8)
        padded = rl_round_up(p->w->n_cols, RL_FLOAT_UNIT) * (p->row_bytes / p->w->n_cols);
    copy_group(p, g.data, padded, copy);
    g.data = copy;
    g.row_bytes = padded;
    return g;
}

static void write_tile(const part *p, const row_group *g, int64_t first_token, int n,
                       const float *tile, int add) {
    for (int t = 0; t < n; t++) {
        float *out = p->out + (first_token + t) * p->out_stride + g->first;
        const float *lanes = tile + t * p->row->n_lanes + g->skip;
        if (add)
            for (int64_t r = 0; r < g->n; r++) out[r] += lanes[r];
        else
            memcpy(out, lanes, (size_t)g->n * sizeof(float));
    }
}

static void fused_chunk(const matmul_work *work, const part *p, int64_t first, int64_t last,
                        uint8_t *copy) {
    _Alignas(64) float tile[RL_MAX_TILE * RL_MAX_LANES];
    int64_t n_tokens = work->op->n_tokens, step = tile_tokens(work, p);
    for (int64_t group = first; group < last; group++) {
        row_group g = take_group(p, group, copy);
        for (int64_t token = 0; token < n_tokens; token += step) {
            int n = (int)rl_min64(step, n_tokens - token);
            p->row->fused(g.data, g.row_bytes, p->n_units, p->acts + token * p->act_bytes, n, tile);
            write_tile(p, &g, token, n, tile, work->op->add);
        }
    }
}

static void panel_chunk(const matmul_work *work, const part *p, int64_t first, int64_t last,
                        uint8_t *copy, uint8_t *panels) {
    _Alignas(64) float tile[RL_MAX_TILE * RL_MAX_LANES];
    int64_t n_tokens = work->op->n_tokens, step = tile_tokens(work, p);
    for (int64_t group = first; group < last; group++) {
        row_group g = take_group(p, group, copy);
        p->row->panel(g.data, g.row_bytes, p->n_units, panels + (group - first) * p->panel_bytes);
    }
    for (int64_t token = 0; token < n_tokens; token += step) {
        int n = (int)rl_min64(step, n_tokens - token);
        for (int64_t group = first; group < last; group++) {
            row_group g = {NULL, 0, group * p->row->n_lanes, 0, 0};
            g.n = rl_min64(p->row->n_lanes, p->w->n_rows - g.first);
            if (g.n < p->row->n_lanes && p->w->n_rows >= p->row->n_lanes)
                g.skip = p->row->n_lanes - g.n;
            p->row->gemm(panels + (group - first) * p->panel_bytes, p->n_units,
                         p->acts + token * p->act_bytes, n, tile);
            write_tile(p, &g, token, n, tile, work->op->add);
        }
    }
}

/* Scratch for the rows of a group, padded. */
static int64_t copy_bytes(const part *p) {
    return rl_round_up(p->row->n_lanes * (p->row_bytes + 256), 64);
}

static void run_chunk(void *arg, int64_t chunk, int thread) {
    const matmul_work *work = arg;
    int i = work->op->n_outputs - 1;
    while (work->parts[i].first_chunk > chunk) i--;
    const part *p = &work->parts[i];
    int64_t first = (chunk - p->first_chunk) * p->groups_per_chunk;
    int64_t last = rl_min64(p->n_groups, first + p->groups_per_chunk);
    uint8_t *copy = work->ctx->private[thread].data;
    uint8_t *panels = copy + copy_bytes(p);
    if (work->fused)
        fused_chunk(work, p, first, last, copy);
    else
        panel_chunk(work, p, first, last, copy, panels);
}

/* Every thread's scratch: a padded copy of a group of rows, and the panels of a chunk. */
static rl_status reserve_private(matmul_work *work) {
    int64_t most = 0;
    for (int i = 0; i < work->op->n_outputs; i++) {
        const part *p = &work->parts[i];
        int64_t bytes = copy_bytes(p);
        if (!work->fused) bytes += p->groups_per_chunk * p->panel_bytes;
        most = rl_max64(most, bytes);
    }
    for (int t = 0; t < work->ctx->n_threads; t++)
        if (rl_arena_get(&work->ctx->private[t], (size_t)most) == NULL) return RL_NO_MEMORY;
    return RL_OK;
}

rl_status rl_matmul(rl_ctx *ctx, const rl_matmul_op *op) {
    matmul_work work = {.ctx = ctx, .op = op};
    int64_t n_weights = 0;
    work.fused = 1;
    for (int i = 0; i < op->n_outputs; i++)
        if (op->n_tokens > FUSED_TILES * kernels_of(&ctx->table, op->w[i]->format)->max_tile)
            work.fused = 0;
    for (int i = 0; i < op->n_outputs; i++) {
        part *p = &work.parts[i];
        plan_part(p, &work, i);
        p->first_chunk = work.n_chunks;
        work.n_chunks += rl_div_up(p->n_groups, p->groups_per_chunk);
        n_weights += p->w->n_rows * p->w->n_cols;
    }
    rl_status status = prepare_activations(&work);
    if (status == RL_OK) status = reserve_private(&work);
    if (status != RL_OK) return status;
    if (n_weights * op->n_tokens < RL_INLINE_WORK)
        rl_run_inline(work.n_chunks, run_chunk, &work);
    else
        rl_parallel_for(ctx, work.n_chunks, run_chunk, &work);
    return RL_OK;
}
