/* Matmul driver: quantise activation rows once, cut weight rows into chunks, call the table.
 *
 * Few tokens: the fused kernel, straight from the file layout. More: a chunk's rows become panels
 * that fit L2, and the GEMM body walks them tile of tokens by tile of tokens.
 *
 * A format without kernels takes the same ways with the F32 kernels: a thread turns the rows of one
 * group after the other into F32 in its scratch. Each output is then the F32 sum of its own row.
 */
#include "matmul.h"

#include <string.h>

#include "context.h"
#include "parallel.h"

#define L2_PANEL_BYTES (192 * 1024) /* panels that a thread keeps while tiles pass by */
#define CHUNK_BYTES (128 * 1024)    /* weights that a thread takes at once when it decodes */
#define CHUNK_TOKENS 4              /* tokens that make their chunks smaller: they compute longer */
#define PIECE_COLS 1024             /* columns that a thread quantises at once */
#define CHUNKS_PER_THREAD 2         /* of four weights, at least: so that no thread idles */
#define INLINE_VALUES 16384         /* activations that one thread quantises alone */
#define NEIGHBOURS 3                /* products before one, among which x may be the same */

/* One product with its kernels and its activations. */
typedef struct {
    const rl_weight *w;
    const float *x;
    float *out;
    int64_t x_stride, out_stride, n_tokens;
    const rl_format_row *row;
    rl_dequant_fn dequant; /* rows -> F32 for `row`; NULL where `row` takes them as they lie */
    uint8_t *acts;
    float *gathered;     /* [T, K]: x in the order of the columns, where the weight has one */
    int64_t row_bytes;   /* of a row as the kernels see it, without padding */
    int64_t n_units;     /* blocks, or units of RL_FLOAT_UNIT columns */
    int32_t act;         /* rl_act */
    int64_t act_bytes;   /* activations of one token */
    int64_t panel_bytes; /* one panel */
    int64_t tile;        /* tokens in a tile */
    int64_t n_groups, groups_per_chunk;
    int fused;     /* few tokens: no panels */
    int copy_rows; /* columns or rows do not fill a unit: work on a zero-padded copy */
} part;

typedef struct {
    rl_ctx *ctx;
    part *parts;
    int64_t *first_chunk, *first_piece; /* of every part; pieces to quantise */
    int64_t n_parts;
    int add;
} matmul_work;

/* The kernels that multiply a format: its own, or those of F32. */
static const rl_format_row *kernels_of(const rl_isa_table *table, int32_t format) {
    return &table->formats[table->formats[format].fused != NULL ? format : RL_F32];
}

static int64_t unit_cols(const rl_format_row *row) {
    return rl_act_is_q8(row->act) ? RL_BLOCK : RL_FLOAT_UNIT;
}

static int64_t act_unit_bytes(int32_t act) {
    if (act == RL_ACT_Q8) return (int64_t)sizeof(rl_act_block);
    if (act == RL_ACT_Q8_SUM) return (int64_t)sizeof(rl_act_sum);
    if (act == RL_ACT_Q8_HALVES) return (int64_t)sizeof(rl_act_halves);
    return RL_FLOAT_UNIT * (act == RL_ACT_BF16 || act == RL_ACT_BF16_SLOTS ? 2 : 4);
}

static int64_t panel_unit_bytes(const rl_format_row *row) {
    if (rl_act_is_q8(row->act)) return (int64_t)row->n_lanes * (RL_BLOCK + 4 * row->n_terms);
    return row->n_lanes * act_unit_bytes(row->act);
}

static void choose_kernels(part *p, const rl_isa_table *table) {
    p->row = kernels_of(table, p->w->format);
    p->row_bytes = p->w->row_bytes;
    if (p->row == &table->formats[p->w->format]) return;
    p->dequant = table->dequant[p->w->format];
    p->row_bytes = p->w->n_cols * (int64_t)sizeof(float);
}

/* As few tiles as can be, all about equally wide; of several an even number of tokens each, as
 * kernels that have code for some numbers only have it for those. */
static int64_t tile_width(int64_t n_tokens, int64_t most) {
    int64_t n_tiles = rl_div_up(n_tokens, most), width = rl_div_up(n_tokens, n_tiles);
    return n_tiles > 1 && width < most ? rl_round_up(width, 2) : width;
}

static void plan_part(part *p, const matmul_work *work, const rl_product *product) {
    const rl_weight *w = product->w;
    *p = (part){.w = w, .x = product->x, .out = product->out};
    choose_kernels(p, &work->ctx->table);
    const rl_format_row *row = p->row;
    p->x_stride = product->x_stride;
    p->out_stride = product->out_stride;
    p->n_tokens = product->n_tokens;
    p->fused = p->n_tokens <= row->fused_tiles * row->max_tile;
    int64_t most = p->fused ? row->fused_tile : row->max_tile;
    p->tile = tile_width(p->n_tokens, most);
    p->n_units = rl_div_up(w->n_cols, unit_cols(row));
    p->act = p->fused ? row->act : row->gemm_act;
    p->act_bytes = p->n_units * act_unit_bytes(p->act);
    p->panel_bytes = rl_round_up(p->n_units * panel_unit_bytes(row), 64);
    p->n_groups = rl_div_up(w->n_rows, row->n_lanes);
    p->copy_rows = w->n_cols % unit_cols(row) != 0 || w->n_rows < row->n_lanes;
    int64_t group_bytes = p->fused ? row->n_lanes * p->row_bytes : p->panel_bytes;
    int64_t limit = p->fused ? CHUNK_BYTES / (1 + p->n_tokens / CHUNK_TOKENS) : L2_PANEL_BYTES;
    int64_t n_chunks = rl_div_up(CHUNKS_PER_THREAD * 4 * work->ctx->n_threads,
                                 rl_max64(4, work->n_parts));
    int64_t fair = rl_div_up(p->n_groups, n_chunks);
    p->groups_per_chunk = rl_max64(1, rl_min64(fair, limit / group_bytes));
}

/* The part that holds an item: the last one whose first item is not beyond it. */
static const part *part_of(const matmul_work *work, const int64_t *first, int64_t item) {
    int64_t low = 0, high = work->n_parts - 1;
    while (low < high) {
        int64_t middle = (low + high + 1) / 2;
        if (first[middle] <= item)
            low = middle;
        else
            high = middle - 1;
    }
    return &work->parts[low];
}

/* Columns of a piece; by slot, a column's place depends on how many there are. */
static int64_t piece_cols(const part *p) {
    int by_slot = p->act == RL_ACT_F32_SLOTS || p->act == RL_ACT_BF16_SLOTS;
    return by_slot ? p->w->n_cols : PIECE_COLS;
}

/* Pieces of columns, and of each the tiles of tokens. */
static int64_t n_quantise_items(const part *p) {
    return rl_div_up(p->n_tokens, p->tile) * rl_div_up(p->w->n_cols, piece_cols(p));
}

static void quantise_piece(void *arg, int64_t item, int thread) {
    const matmul_work *work = arg;
    const part *p = part_of(work, work->first_piece, item);
    const int32_t *order = p->w->column_order;
    int64_t n_tiles = rl_div_up(p->n_tokens, p->tile), n_cols = p->w->n_cols;
    int64_t index = item - work->first_piece[p - work->parts], x_stride = p->x_stride;
    int64_t first = index % n_tiles * p->tile, col = index / n_tiles * piece_cols(p);
    int64_t end = rl_min64(n_cols, col + piece_cols(p));
    int n = (int)rl_min64(p->tile, p->n_tokens - first);
    const float *x = p->x + first * x_stride;
    (void)thread;
    if (order != NULL) {
        float *gathered = p->gathered + first * n_cols;
        for (int t = 0; t < n; t++)
            for (int64_t k = col; k < end; k++)
                gathered[t * n_cols + k] = x[t * x_stride + order[k]];
        x = gathered;
        x_stride = n_cols;
    }
    int64_t skipped = col / unit_cols(p->row) * act_unit_bytes(p->act) * n;
    work->ctx->table.quant_act[p->act](x + col, x_stride, end - col, n, p->row->offset,
                                       p->acts + first * p->act_bytes + skipped);
}

/* A part shortly before part i that wants the very same activations, or NULL. */
static const part *shares_activations(const matmul_work *work, int64_t i) {
    const part *p = &work->parts[i];
    for (int64_t j = i - 1; j >= rl_max64(0, i - NEIGHBOURS); j--) {
        const part *q = &work->parts[j];
        if (q->x == p->x && q->x_stride == p->x_stride && q->n_tokens == p->n_tokens &&
            q->w->n_cols == p->w->n_cols && q->w->column_order == p->w->column_order &&
            q->act == p->act && q->row->offset == p->row->offset && q->tile == p->tile)
            return q;
    }
    return NULL;
}

static int64_t act_size(const part *p) { return rl_round_up(p->act_bytes * p->n_tokens, 64); }

static int64_t gathered_size(const part *p) {
    if (p->w->column_order == NULL) return 0;
    return rl_round_up(p->n_tokens * p->w->n_cols * (int64_t)sizeof(float), 64);
}

/* Give every part its activations; neighbours that want the same share them. */
static rl_status prepare_activations(matmul_work *work) {
    int64_t n_bytes = 0, n_values = 0, n_pieces = 0;
    for (int64_t i = 0; i < work->n_parts; i++) {
        const part *p = &work->parts[i];
        work->first_piece[i] = n_pieces;
        if (shares_activations(work, i) != NULL) continue;
        n_bytes += act_size(p) + gathered_size(p);
        n_values += p->n_tokens * p->w->n_cols;
        n_pieces += n_quantise_items(p);
    }
    uint8_t *next = rl_arena_get(&work->ctx->shared, (size_t)n_bytes);
    if (next == NULL) return RL_NO_MEMORY;
    for (int64_t i = 0; i < work->n_parts; i++) {
        part *p = &work->parts[i];
        const part *other = shares_activations(work, i);
        p->acts = other == NULL ? next : other->acts;
        if (other != NULL) continue;
        p->gathered = (float *)(void *)(next + act_size(p));
        next += act_size(p) + gathered_size(p);
    }
    if (n_values < INLINE_VALUES)
        rl_run_inline(n_pieces, quantise_piece, work);
    else
        rl_parallel_for(work->ctx, n_pieces, quantise_piece, work);
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
    if (!rl_act_is_q8(p->row->act))
        padded = rl_round_up(p->w->n_cols, RL_FLOAT_UNIT) * (p->row_bytes / p->w->n_cols);
    copy_group(p, g.data, padded, copy);
    g.data = copy;
    g.row_bytes = padded;
    return g;
}

/* n is a constant where a row fills the lanes, which spares the copy a call. */
static inline void write_lanes(float *out, const float *lanes, int64_t n, int add) {
    if (add)
        for (int64_t r = 0; r < n; r++) out[r] += lanes[r];
    else
        memcpy(out, lanes, (size_t)n * sizeof(float));
}

static void write_tile(const part *p, const row_group *g, int64_t first_token, int n,
                       const float *tile, int add) {
    float *out = p->out + first_token * p->out_stride + g->first;
    const float *lanes = tile + g->skip;
    for (int t = 0; t < n; t++, out += p->out_stride, lanes += p->row->n_lanes)
        if (g->n == RL_MAX_LANES)
            write_lanes(out, lanes, RL_MAX_LANES, add);
        else
            write_lanes(out, lanes, g->n, add);
}

static void fused_chunk(const matmul_work *work, const part *p, int64_t first, int64_t last,
                        uint8_t *copy) {
    _Alignas(64) float tile[RL_MAX_TILE * RL_MAX_LANES];
    int64_t n_tokens = p->n_tokens, step = p->tile;
    for (int64_t group = first; group < last; group++) {
        row_group g = take_group(p, group, copy);
        for (int64_t token = 0; token < n_tokens; token += step) {
            int n = (int)rl_min64(step, n_tokens - token);
            p->row->fused(g.data, g.row_bytes, p->n_units, p->acts + token * p->act_bytes, n, tile);
            write_tile(p, &g, token, n, tile, work->add);
        }
    }
}

static void panel_chunk(const matmul_work *work, const part *p, int64_t first, int64_t last,
                        uint8_t *copy, uint8_t *panels) {
    _Alignas(64) float tile[RL_MAX_TILE * RL_MAX_LANES];
    int64_t n_tokens = p->n_tokens, step = p->tile;
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
            write_tile(p, &g, token, n, tile, work->add);
        }
    }
}

/* Scratch for the rows of a group, padded. */
static int64_t copy_bytes(const part *p) {
    return rl_round_up(p->row->n_lanes * (p->row_bytes + 256), 64);
}

static void run_chunk(void *arg, int64_t chunk, int thread) {
    const matmul_work *work = arg;
    const part *p = part_of(work, work->first_chunk, chunk);
    int64_t first = (chunk - work->first_chunk[p - work->parts]) * p->groups_per_chunk;
    int64_t last = rl_min64(p->n_groups, first + p->groups_per_chunk);
    uint8_t *copy = work->ctx->private[thread].data;
    uint8_t *panels = copy + copy_bytes(p);
    if (p->fused)
        fused_chunk(work, p, first, last, copy);
    else
        panel_chunk(work, p, first, last, copy, panels);
}

/* Every thread's scratch: a padded copy of a group of rows, and the panels of a chunk. */
static rl_status reserve_private(matmul_work *work) {
    int64_t most = 0;
    for (int64_t i = 0; i < work->n_parts; i++) {
        const part *p = &work->parts[i];
        int64_t bytes = copy_bytes(p);
        if (!p->fused) bytes += p->groups_per_chunk * p->panel_bytes;
        most = rl_max64(most, bytes);
    }
    for (int t = 0; t < work->ctx->n_threads; t++)
        if (rl_arena_get(&work->ctx->private[t], (size_t)most) == NULL) return RL_NO_MEMORY;
    return RL_OK;
}

static rl_status reserve_parts(matmul_work *work) {
    size_t n = (size_t)work->n_parts;
    void *memory = rl_arena_get(&work->ctx->parts, n * (sizeof(part) + 2 * sizeof(int64_t)));
    if (memory == NULL) return RL_NO_MEMORY;
    work->parts = memory;
    work->first_chunk = (int64_t *)(void *)(work->parts + n);
    work->first_piece = work->first_chunk + n;
    return RL_OK;
}

rl_status rl_products(rl_ctx *ctx, const rl_product *products, int64_t n_products, int add) {
    matmul_work work = {.ctx = ctx, .n_parts = n_products, .add = add};
    int64_t n_chunks = 0, n_multiplies = 0;
    if (reserve_parts(&work) != RL_OK) return RL_NO_MEMORY;
    for (int64_t i = 0; i < n_products; i++) {
        part *p = &work.parts[i];
        plan_part(p, &work, &products[i]);
        work.first_chunk[i] = n_chunks;
        n_chunks += rl_div_up(p->n_groups, p->groups_per_chunk);
        n_multiplies += p->w->n_rows * p->w->n_cols * p->n_tokens;
    }
    rl_status status = prepare_activations(&work);
    if (status == RL_OK) status = reserve_private(&work);
    if (status != RL_OK) return status;
    if (n_multiplies < RL_INLINE_WORK)
        rl_run_inline(n_chunks, run_chunk, &work);
    else
        rl_parallel_for(ctx, n_chunks, run_chunk, &work);
    return RL_OK;
}

rl_status rl_matmul(rl_ctx *ctx, const rl_matmul_op *op) {
    rl_product products[RL_MAX_OUTPUTS];
    for (int i = 0; i < op->n_outputs; i++) {
        const rl_weight *w = op->w[i];
        int64_t x_stride = op->x_stride ? op->x_stride : w->n_cols;
        int64_t out_stride = op->out_stride[i] ? op->out_stride[i] : w->n_rows;
        products[i] = (rl_product){w, op->x, op->out[i], x_stride, out_stride, op->n_tokens};
    }
    return rl_products(ctx, products, op->n_outputs, op->add);
}
