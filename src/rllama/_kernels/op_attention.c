/* Attention driver: store the step's keys and values, then split by (query tile, KV head, span).
 *
 * All query heads of a KV head travel together, so the cache is read once per KV head. Spans of
 * RL_SPAN_LEN positions are summed apart and merged in position order, whoever computed them.
 */
#ifdef __linux__
#define _DEFAULT_SOURCE /* madvise */
#endif
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "context.h"
#include "parallel.h"

#define TILE_ROWS 96    /* query rows that a prompt's work item holds */
#define SPLIT_TOKENS 4  /* up to this many tokens of a sequence, spans become items of their own */
#define STORE_TOKENS 16 /* tokens whose keys and values one item stores */
#define LARGE_PAGE ((size_t)2 << 20)  /* bytes; as far as the first level of tables reaches */
#define MANY_BYTES ((size_t)32 << 20) /* a cache that large pages are worth asking for */
#define PAGES_PER_SPAN (RL_SPAN_LEN / RL_PAGE_LEN)

rl_kv *rl_kv_new(int64_t n_layers, int64_t n_pages, int64_t n_kv_heads, int64_t head_dim,
                 int32_t format) {
    rl_kv *kv = calloc(1, sizeof *kv);
    if (kv == NULL) return NULL;
    int64_t size = format == RL_KV_F32 ? 4 : format == RL_KV_F16 ? 2 : 1;
    int64_t scales = format == RL_KV_Q8_0 ? 2 * rl_div_up(head_dim, RL_BLOCK) : 0;
    kv->n_layers = n_layers;
    kv->n_pages = n_pages;
    kv->n_kv_heads = n_kv_heads;
    kv->head_dim = head_dim;
    kv->format = format;
    kv->d_padded = rl_round_up(head_dim, 16);
    kv->k_bytes = (head_dim * size + scales) * RL_PAGE_LEN;
    kv->v_bytes = (kv->d_padded * size + scales) * RL_PAGE_LEN;
    size_t n_bytes = (size_t)(n_pages * rl_kv_page_bytes(kv));
    size_t align = n_bytes >= MANY_BYTES ? LARGE_PAGE : 64;
    /* calloc: pages that are never used are never touched */
    kv->block = calloc(n_bytes + align, 1);
    if (kv->block == NULL) {
        free(kv);
        return NULL;
    }
    kv->data = (uint8_t *)kv->block + (align - (uintptr_t)kv->block % align);
#ifdef MADV_HUGEPAGE
    /* only asked for: where the system has none, nothing changes but speed */
    if (align == LARGE_PAGE) (void)madvise(kv->data, n_bytes / align * align, MADV_HUGEPAGE);
#endif
    return kv;
}

void rl_kv_free(rl_kv *kv) {
    if (kv == NULL) return;
    free(kv->block);
    free(kv);
}

int64_t rl_kv_page_bytes(const rl_kv *kv) {
    return kv->n_layers * kv->n_kv_heads * (kv->k_bytes + kv->v_bytes);
}

/* Keys of a page and head; its values lie behind them. */
static uint8_t *page_of(const rl_kv *kv, int64_t layer, int64_t page, int64_t head) {
    return kv->data +
           ((page * kv->n_layers + layer) * kv->n_kv_heads + head) * (kv->k_bytes + kv->v_bytes);
}

/* A run of query tokens of one sequence, and the scratch of its partial results. */
typedef struct {
    int64_t seq, first_token, n_tokens;
    int64_t first_seen;          /* the first position that any of its queries sees */
    int64_t first_span, n_spans; /* from the span of that position to the span of the last */
    int64_t first_item;          /* items: n_kv_heads * (split ? n_spans : 1) */
    int64_t partial;    /* offset in floats of the first span's partial results; split only */
    int64_t first_left; /* of the first KV head in `left`; split only */
    int split;
} query_tile;

typedef struct {
    rl_ctx *ctx;
    const rl_kv *kv;
    const rl_attend_op *op;
    query_tile *tiles;
    float *partials;
    _Atomic int64_t *left; /* spans of a split tile and KV head that are still to be summed */
    int64_t n_tiles, n_items, n_partials, n_left, heads_per_kv, tile_tokens;
    int64_t n_scores; /* query rows times positions, for the choice between threads and none */
} attend_work;

/* The first position that a query sees. */
static int64_t first_seen(const rl_attend_op *op, int64_t position) {
    return op->window > 0 ? rl_max64(0, position - op->window + 1) : 0;
}

static int64_t seq_of_token(const rl_attend_op *op, int64_t token) {
    int64_t seq = 0;
    while (op->seq_start[seq + 1] <= token) seq++;
    return seq;
}

static void store_tokens(void *arg, int64_t item, int thread) {
    const attend_work *work = arg;
    const rl_attend_op *op = work->op;
    const rl_kv *kv = work->kv;
    rl_kv_store_fn store = work->ctx->table.kv_store[kv->format];
    int64_t first = item * STORE_TOKENS;
    int64_t last = rl_min64(op->n_tokens, first + STORE_TOKENS), seq = seq_of_token(op, first);
    (void)thread;
    for (int64_t t = first; t < last; t++) {
        while (op->seq_start[seq + 1] <= t) seq++;
        int64_t position = op->positions[t];
        int64_t page = op->page_table[seq * op->pages_per_seq + position / RL_PAGE_LEN];
        for (int64_t g = 0; g < kv->n_kv_heads; g++) {
            int64_t offset = (t * kv->n_kv_heads + g) * kv->head_dim;
            uint8_t *keys = page_of(kv, op->layer, page, g);
            store(op->k + offset, op->v + offset, kv->head_dim, keys, keys + kv->k_bytes,
                  kv->d_padded, position % RL_PAGE_LEN);
        }
    }
}

/* Floats of one (tile, KV head, span): max, sum and acc of every row. */
static int64_t partial_floats(const attend_work *work, int64_t n_rows) {
    return rl_round_up(n_rows * (2 + work->kv->d_padded), 16);
}

static void add_tile(attend_work *work, int64_t seq, int64_t first, int64_t n) {
    const rl_attend_op *op = work->op;
    query_tile *tile = &work->tiles[work->n_tiles++];
    tile->seq = seq;
    tile->first_token = first;
    tile->n_tokens = n;
    int64_t last_seen = op->positions[first + n - 1];
    tile->first_seen = first_seen(op, op->positions[first]);
    tile->first_span = tile->first_seen / RL_SPAN_LEN;
    tile->n_spans = last_seen / RL_SPAN_LEN + 1 - tile->first_span;
    tile->split = op->seq_start[seq + 1] - op->seq_start[seq] <= SPLIT_TOKENS && tile->n_spans > 1;
    tile->first_item = work->n_items;
    tile->partial = work->n_partials;
    work->n_items += work->kv->n_kv_heads * (tile->split ? tile->n_spans : 1);
    work->n_scores += n * op->n_heads * (last_seen + 1 - tile->first_seen);
    tile->first_left = work->n_left;
    if (!tile->split) return;
    work->n_left += work->kv->n_kv_heads;
    work->n_partials += work->kv->n_kv_heads * tile->n_spans *
                        partial_floats(work, n * work->heads_per_kv);
}

static void plan_tiles(attend_work *work) {
    const rl_attend_op *op = work->op;
    for (int64_t seq = 0; seq < op->n_seqs; seq++)
        for (int64_t t = op->seq_start[seq]; t < op->seq_start[seq + 1]; t += work->tile_tokens)
            add_tile(work, seq, t, rl_min64(work->tile_tokens, op->seq_start[seq + 1] - t));
}

/* A thread's scratch for one item. */
typedef struct {
    float *q, *scores;
    float *max, *sum, *acc;                   /* of the span */
    float *state_max, *state_sum, *state_acc; /* merged */
    rl_seen *seen;
} item_scratch;

static int64_t scratch_floats(const attend_work *work) {
    int64_t rows = work->tile_tokens * work->heads_per_kv;
    return rows * (work->kv->head_dim + 2 * work->kv->d_padded + 6) + RL_MAX_TILE * RL_PAGE_LEN +
           9 * 16;
}

static float *carve(float **next, int64_t n) {
    float *piece = *next;
    *next += rl_round_up(n, 16);
    return piece;
}

static item_scratch carve_scratch(const attend_work *work, int thread) {
    int64_t rows = work->tile_tokens * work->heads_per_kv;
    float *next = (float *)(void *)work->ctx->private[thread].data;
    item_scratch s;
    s.q = carve(&next, rows * work->kv->head_dim);
    s.scores = carve(&next, RL_MAX_TILE * RL_PAGE_LEN);
    s.acc = carve(&next, rows * work->kv->d_padded);
    s.state_acc = carve(&next, rows * work->kv->d_padded);
    s.max = carve(&next, rows);
    s.sum = carve(&next, rows);
    s.state_max = carve(&next, rows);
    s.state_sum = carve(&next, rows);
    s.seen = (rl_seen *)(void *)carve(&next, 2 * rows);
    return s;
}

/* Rows that travel together in a span: as even as can be. */
static int64_t span_tile(const attend_work *work, int64_t n_rows) {
    return rl_div_up(n_rows, rl_div_up(n_rows, work->ctx->table.span_tile));
}

/* Rows of a tile are (token, query head of the group); q becomes tiles [d][n], scaled. */
static void pack_queries(const attend_work *work, const query_tile *tile, int64_t g, float *out) {
    const rl_attend_op *op = work->op;
    int64_t d = work->kv->head_dim, per_kv = work->heads_per_kv;
    int64_t n_rows = tile->n_tokens * per_kv, width = span_tile(work, n_rows);
    float scale = (float)op->scale; /* here, where rounding is to nearest */
    for (int64_t row = 0; row < n_rows; row++) {
        int64_t token = tile->first_token + row / per_kv, head = g * per_kv + row % per_kv;
        const float *q = op->q + (token * op->n_heads + head) * d;
        int64_t first = row / width * width, n = rl_min64(width, n_rows - first);
        for (int64_t k = 0; k < d; k++) out[first * d + k * n + row - first] = q[k] * scale;
    }
}

static rl_seen seen_of_span(const rl_attend_op *op, int64_t position, int64_t first) {
    int64_t low = rl_max64(0, first_seen(op, position) - first);
    return (rl_seen){(int32_t)rl_min64(RL_SPAN_LEN, low),
                     (int32_t)rl_max64(0, rl_min64(RL_SPAN_LEN, position + 1 - first))};
}

/* The first page that a tile reads of a span. */
static int64_t first_page(const query_tile *tile, int64_t span) {
    return rl_max64(span * RL_SPAN_LEN, tile->first_seen) / RL_PAGE_LEN;
}

/* A span of a tile and KV head, and what is read after it. */
typedef struct {
    const query_tile *tile;
    int64_t g, span;
} span_place;

static void run_span(const attend_work *work, span_place here, const span_place *next,
                     const item_scratch *s, float *max, float *sum, float *acc) {
    const rl_attend_op *op = work->op;
    const query_tile *tile = here.tile;
    const uint8_t *pages[PAGES_PER_SPAN] = {0};
    const int32_t *table = op->page_table + tile->seq * op->pages_per_seq;
    int64_t first = here.span * RL_SPAN_LEN, n_rows = tile->n_tokens * work->heads_per_kv;
    int64_t last = op->positions[tile->first_token + tile->n_tokens - 1];
    int64_t last_page = rl_min64(first + RL_SPAN_LEN - 1, last) / RL_PAGE_LEN;
    for (int64_t page = first_page(tile, here.span); page <= last_page; page++)
        pages[page - first / RL_PAGE_LEN] = page_of(work->kv, op->layer, table[page], here.g);
    for (int64_t row = 0; row < n_rows; row++)
        s->seen[row] = seen_of_span(op, op->positions[tile->first_token + row / work->heads_per_kv],
                                    first);
    rl_span args = {.q = s->q,
                    .pages = pages,
                    .k_bytes = work->kv->k_bytes,
                    .v_bytes = work->kv->v_bytes,
                    .seen = s->seen,
                    .n_rows = n_rows,
                    .head_dim = work->kv->head_dim,
                    .d_padded = work->kv->d_padded,
                    .tile = span_tile(work, n_rows),
                    .softcap = (float)op->softcap,
                    .max = max,
                    .sum = sum,
                    .acc = acc,
                    .scores = s->scores};
    if (next->tile != NULL) {
        int64_t page = op->page_table[next->tile->seq * op->pages_per_seq +
                                      first_page(next->tile, next->span)];
        args.next = page_of(work->kv, op->layer, page, next->g);
    }
    work->ctx->table.span[work->kv->format](&args);
}

static void start_state(const item_scratch *s, int64_t n_rows, int64_t d_padded) {
    for (int64_t row = 0; row < n_rows; row++) {
        s->state_max[row] = -INFINITY;
        s->state_sum[row] = 0.0f;
    }
    memset(s->state_acc, 0, (size_t)(n_rows * d_padded) * sizeof(float));
}

/* The sink of each row is one more position, with a logit and without a value. */
static void merge_sinks(const attend_work *work, const query_tile *tile, int64_t g,
                        const item_scratch *s) {
    int64_t per_kv = work->heads_per_kv, n_rows = tile->n_tokens * per_kv;
    int64_t d_padded = work->kv->d_padded;
    for (int64_t row = 0; row < n_rows; row++) {
        s->max[row] = work->op->sinks[g * per_kv + row % per_kv];
        s->sum[row] = 1.0f;
    }
    memset(s->acc, 0, (size_t)(n_rows * d_padded) * sizeof(float));
    work->ctx->table.merge(n_rows, d_padded, s->max, s->sum, s->acc, s->state_max, s->state_sum,
                           s->state_acc);
}

static void write_rows(const attend_work *work, const query_tile *tile, int64_t g,
                       const item_scratch *s) {
    const rl_attend_op *op = work->op;
    int64_t d = work->kv->head_dim, per_kv = work->heads_per_kv;
    if (op->sinks != NULL) merge_sinks(work, tile, g, s);
    for (int64_t row = 0; row < tile->n_tokens * per_kv; row++) {
        int64_t token = tile->first_token + row / per_kv, head = g * per_kv + row % per_kv;
        float *out = op->out + (token * op->n_heads + head) * d;
        const float *acc = s->state_acc + row * work->kv->d_padded;
        float inverse = 1.0f / s->state_sum[row];
        for (int64_t k = 0; k < d; k++) out[k] = acc[k] * inverse;
    }
}

static const query_tile *tile_of_item(const attend_work *work, int64_t item) {
    int64_t low = 0, high = work->n_tiles - 1;
    while (low < high) {
        int64_t middle = (low + high + 1) / 2;
        if (work->tiles[middle].first_item <= item)
            low = middle;
        else
            high = middle - 1;
    }
    return &work->tiles[low];
}

/* Where an item begins; no tile if there is no such item. */
static span_place place_of_item(const attend_work *work, int64_t item) {
    if (item >= work->n_items) return (span_place){0};
    const query_tile *tile = tile_of_item(work, item);
    int64_t index = item - tile->first_item, n = tile->split ? tile->n_spans : 1;
    return (span_place){tile, index / n, tile->first_span + index % n};
}

/* One span of a split tile; who is the last of its KV head merges them all, in position order. */
static void attend_split(const attend_work *work, span_place here, const span_place *next,
                         const item_scratch *s) {
    const query_tile *tile = here.tile;
    int64_t n_rows = tile->n_tokens * work->heads_per_kv, n_floats = partial_floats(work, n_rows);
    float *partial = work->partials + tile->partial + here.g * tile->n_spans * n_floats;
    float *own = partial + (here.span - tile->first_span) * n_floats;
    run_span(work, here, next, s, own, own + n_rows, own + 2 * n_rows);
    if (atomic_fetch_sub(&work->left[tile->first_left + here.g], 1) > 1) return;
    start_state(s, n_rows, work->kv->d_padded);
    for (int64_t span = 0; span < tile->n_spans; span++, partial += n_floats)
        work->ctx->table.merge(n_rows, work->kv->d_padded, partial, partial + n_rows,
                               partial + 2 * n_rows, s->state_max, s->state_sum, s->state_acc);
    write_rows(work, tile, here.g, s);
}

/* A whole tile and KV head, span by span. */
static void attend_whole(const attend_work *work, span_place here, const span_place *next,
                         const item_scratch *s) {
    const query_tile *tile = here.tile;
    int64_t n_rows = tile->n_tokens * work->heads_per_kv, d_padded = work->kv->d_padded;
    start_state(s, n_rows, d_padded);
    for (int64_t left = tile->n_spans; left > 0; left--, here.span++) {
        span_place after = {tile, here.g, here.span + 1};
        run_span(work, here, left > 1 ? &after : next, s, s->max, s->sum, s->acc);
        work->ctx->table.merge(n_rows, d_padded, s->max, s->sum, s->acc, s->state_max, s->state_sum,
                               s->state_acc);
    }
    write_rows(work, tile, here.g, s);
}

static void attend_item(void *arg, int64_t item, int thread) {
    const attend_work *work = arg;
    const span_place here = place_of_item(work, item), next = place_of_item(work, item + 1);
    const item_scratch s = carve_scratch(work, thread);
    pack_queries(work, here.tile, here.g, s.q);
    if (here.tile->split)
        attend_split(work, here, &next, &s);
    else
        attend_whole(work, here, &next, &s);
}

static rl_status reserve(attend_work *work) {
    int64_t most_tiles = 0;
    for (int64_t seq = 0; seq < work->op->n_seqs; seq++)
        most_tiles += rl_div_up(work->op->seq_start[seq + 1] - work->op->seq_start[seq],
                                work->tile_tokens);
    int64_t left_at = rl_round_up(most_tiles * (int64_t)sizeof(query_tile), 64);
    int64_t partials_at = rl_round_up(
        left_at + most_tiles * work->kv->n_kv_heads * (int64_t)sizeof *work->left, 64);
    /* planned twice where the arena must grow for the partial results, because growing loses the
     * plan, even if the memory comes back at the same address */
    work->tiles = rl_arena_get(&work->ctx->shared, (size_t)partials_at);
    if (work->tiles == NULL) return RL_NO_MEMORY;
    plan_tiles(work);
    size_t old_bytes = work->ctx->shared.n_bytes;
    uint8_t *all = rl_arena_get(&work->ctx->shared,
                                (size_t)(partials_at + work->n_partials * (int64_t)sizeof(float)));
    if (all == NULL) return RL_NO_MEMORY;
    if (work->ctx->shared.n_bytes != old_bytes) {
        work->tiles = (query_tile *)(void *)all;
        work->n_tiles = work->n_items = work->n_partials = work->n_left = work->n_scores = 0;
        plan_tiles(work);
    }
    work->left = (_Atomic int64_t *)(void *)(all + left_at);
    work->partials = (float *)(void *)(all + partials_at);
    for (int64_t i = 0; i < work->n_tiles; i++)
        for (int64_t g = 0; work->tiles[i].split && g < work->kv->n_kv_heads; g++)
            atomic_init(&work->left[work->tiles[i].first_left + g], work->tiles[i].n_spans);
    for (int t = 0; t < work->ctx->n_threads; t++)
        if (rl_arena_get(&work->ctx->private[t], (size_t)scratch_floats(work) * sizeof(float)) ==
            NULL)
            return RL_NO_MEMORY;
    return RL_OK;
}

rl_status rl_attend(rl_ctx *ctx, rl_kv *kv, const rl_attend_op *op) {
    attend_work work = {.ctx = ctx, .kv = kv, .op = op};
    work.heads_per_kv = op->n_heads / kv->n_kv_heads;
    work.tile_tokens = rl_max64(1, TILE_ROWS / work.heads_per_kv);
    rl_status status = reserve(&work);
    if (status != RL_OK) return status;
    rl_parallel_for(ctx, rl_div_up(op->n_tokens, STORE_TOKENS), store_tokens, &work);
    if (2 * work.n_scores * kv->head_dim < RL_INLINE_WORK)
        rl_run_inline(work.n_items, attend_item, &work);
    else
        rl_parallel_for(ctx, work.n_items, attend_item, &work);
    return RL_OK;
}
