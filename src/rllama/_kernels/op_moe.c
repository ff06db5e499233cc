/* Mixture of experts: choose the experts of every token, bring the tokens of an expert together,
 * multiply, and add what comes out to the residual stream.
 *
 * A pair is a token with one of its experts. Pairs lie expert by expert, tokens ascending within
 * one; they are worked on in slices of whole experts, so that scratch does not grow with the number
 * of experts used. A token adds its experts up in the order of their ids, whatever the slices, so
 * the sum depends on the token alone.
 */
#include <math.h>
#include <string.h>

#include "context.h"
#include "matmul.h"
#include "parallel.h"

#define SLICE_PAIRS 256 /* pairs of a slice, at least; as many as there are tokens otherwise */
#define TOKENS_PER_ITEM 16
#define VALUES_PER_ITEM 16384

typedef struct {
    rl_ctx *ctx;
    const rl_moe_op *op;
    int64_t n_pairs, slice_pairs;
    /* scratch */
    float *logits;              /* [T, E] */
    float *weights;             /* [T, k] of the chosen experts, ids ascending */
    int32_t *chosen;            /* [T, k] their ids */
    int32_t *pair_of;           /* [T, k] where their pairs lie */
    int32_t *token_of;          /* [P] */
    int32_t *expert_of;         /* [P] */
    int64_t *first_pair;        /* [E + 1] pairs of expert e: first_pair[e] .. first_pair[e + 1] */
    float *x, *gate, *up, *out; /* [slice, D], [slice, F], [slice, F], [slice, D] */
    rl_product *products;       /* [2 * E] */
    int64_t slice_first, slice_end; /* pairs of the slice in progress */
} moe_work;

/* The experts with the largest logits, the lower id first where they are equal. Their weights are
 * the softmax over them, or over all. */
static void choose(const rl_experts *experts, const float *logits, int32_t *chosen,
                   float *weights) {
    uint8_t taken[RL_MAX_EXPERTS] = {0};
    int64_t best = -1;
    float most = 0.0f;
    for (int64_t j = 0; j < experts->n_used; j++, best = -1) {
        for (int64_t e = 0; e < experts->n_experts; e++)
            if (!taken[e] && (best < 0 || logits[e] > logits[best])) best = e;
        taken[best] = 1;
        if (j == 0) most = logits[best];
    }
    double sum = 0.0, powers[RL_MAX_EXPERTS];
    for (int64_t e = 0; e < experts->n_experts; e++) {
        if (!taken[e] && experts->normalise) continue;
        powers[e] = exp((double)logits[e] - most);
        sum += powers[e];
    }
    for (int64_t e = 0; e < experts->n_experts; e++)
        if (taken[e]) {
            *chosen++ = (int32_t)e;
            *weights++ = (float)(powers[e] / sum);
        }
}

static void choose_tokens(void *arg, int64_t item, int thread) {
    const moe_work *work = arg;
    const rl_experts *experts = work->op->experts;
    int64_t last = rl_min64(work->op->n_tokens, (item + 1) * TOKENS_PER_ITEM);
    (void)thread;
    for (int64_t t = item * TOKENS_PER_ITEM; t < last; t++)
        choose(experts, work->logits + t * experts->n_experts, work->chosen + t * experts->n_used,
               work->weights + t * experts->n_used);
}

/* Count the tokens of each expert and give every pair its place. */
static void arrange(moe_work *work) {
    const rl_experts *experts = work->op->experts;
    int64_t *first = work->first_pair;
    memset(first, 0, (size_t)(experts->n_experts + 1) * sizeof *first);
    for (int64_t i = 0; i < work->n_pairs; i++) first[work->chosen[i] + 1]++;
    for (int64_t e = 0; e < experts->n_experts; e++) first[e + 1] += first[e];
    for (int64_t i = 0; i < work->n_pairs; i++) { /* first[e] moves to the end of e ... */
        int32_t e = work->chosen[i], pair = (int32_t)first[e]++;
        work->pair_of[i] = pair;
        work->token_of[pair] = (int32_t)(i / experts->n_used);
        work->expert_of[pair] = e;
    }
    for (int64_t e = experts->n_experts; e > 0; e--) first[e] = first[e - 1]; /* ... and back */
    first[0] = 0;
}

/* Run fn over the pairs of the slice, or its tokens; inline where it is little. */
static void run(moe_work *work, int64_t n_items, int64_t n_values, rl_item_fn fn) {
    if (n_values < VALUES_PER_ITEM)
        rl_run_inline(n_items, fn, work);
    else
        rl_parallel_for(work->ctx, n_items, fn, work);
}

static void gather_pair(void *arg, int64_t item, int thread) {
    const moe_work *work = arg;
    int64_t dim = work->op->experts->dim;
    (void)thread;
    memcpy(work->x + item * dim, work->op->x + work->token_of[work->slice_first + item] * dim,
           (size_t)dim * sizeof(float));
}

static void unit_pair(void *arg, int64_t item, int thread) {
    const moe_work *work = arg;
    const rl_experts *experts = work->op->experts;
    const rl_isa_table *table = &work->ctx->table;
    int64_t n = experts->ffn_dim, e = work->expert_of[work->slice_first + item];
    float *gate = work->gate + item * n, *up = work->up + item * n;
    (void)thread;
    if (experts->gate_bias != NULL) table->add(experts->gate_bias[e], 1.0f, n, gate);
    if (experts->up_bias != NULL) table->add(experts->up_bias[e], 1.0f, n, up);
    table->glu[experts->activation](gate, up, n);
}

static void add_tokens(void *arg, int64_t item, int thread) {
    const moe_work *work = arg;
    const rl_experts *experts = work->op->experts;
    const rl_isa_table *table = &work->ctx->table;
    int64_t dim = experts->dim, n_used = experts->n_used;
    int64_t last = rl_min64(work->op->n_tokens, (item + 1) * TOKENS_PER_ITEM);
    (void)thread;
    for (int64_t t = item * TOKENS_PER_ITEM; t < last; t++)
        for (int64_t i = t * n_used; i < (t + 1) * n_used; i++) {
            int64_t pair = work->pair_of[i];
            if (pair < work->slice_first || pair >= work->slice_end) continue;
            float *out = work->out + (pair - work->slice_first) * dim;
            if (experts->down_bias != NULL)
                table->add(experts->down_bias[work->chosen[i]], 1.0f, dim, out);
            table->add(out, work->weights[i], dim, work->op->into + t * dim);
        }
}

/* The products of the slice's experts: gate and up of the gathered tokens, or down of the units. */
static int64_t list_products(moe_work *work, int64_t first, int64_t end, int down) {
    const rl_experts *experts = work->op->experts;
    int64_t n = 0, dim = experts->dim, ffn_dim = experts->ffn_dim;
    int one = work->op->n_tokens == 1; /* every expert reads the same row */
    for (int64_t e = first; e < end; e++) {
        int64_t at = work->first_pair[e] - work->slice_first;
        int64_t n_tokens = work->first_pair[e + 1] - work->first_pair[e];
        const float *x = one ? work->op->x : work->x + at * dim;
        float *gate = work->gate + at * ffn_dim;
        if (n_tokens == 0) continue;
        if (down) {
            float *out = work->out + at * dim;
            work->products[n++] = (rl_product){&experts->down[e], gate, out,
                                               ffn_dim,           dim,  n_tokens};
            continue;
        }
        float *up = work->up + at * ffn_dim;
        work->products[n++] = (rl_product){&experts->gate[e], x, gate, dim, ffn_dim, n_tokens};
        work->products[n++] = (rl_product){&experts->up[e], x, up, dim, ffn_dim, n_tokens};
    }
    return n;
}

static rl_status run_slice(moe_work *work, int64_t first, int64_t end) {
    const rl_experts *experts = work->op->experts;
    int64_t n_tokens = work->op->n_tokens;
    work->slice_first = work->first_pair[first];
    work->slice_end = work->first_pair[end];
    int64_t n_pairs = work->slice_end - work->slice_first;
    if (n_pairs == 0) return RL_OK;
    if (n_tokens > 1) run(work, n_pairs, n_pairs * experts->dim, gather_pair);
    int64_t n = list_products(work, first, end, 0);
    rl_status status = rl_products(work->ctx, work->products, n, 0);
    if (status != RL_OK) return status;
    run(work, n_pairs, n_pairs * experts->ffn_dim, unit_pair);
    n = list_products(work, first, end, 1);
    status = rl_products(work->ctx, work->products, n, 0);
    if (status != RL_OK) return status;
    run(work, rl_div_up(n_tokens, TOKENS_PER_ITEM), n_pairs * experts->dim, add_tokens);
    return RL_OK;
}

static void *cut(uintptr_t *next, int64_t n_bytes) {
    void *piece = (void *)*next;
    *next += (uintptr_t)rl_round_up(n_bytes, 64);
    return piece;
}

/* Lay the scratch out from `start`; how many bytes it takes. */
static size_t lay_out(moe_work *work, void *start) {
    const rl_experts *experts = work->op->experts;
    int64_t n_experts = experts->n_experts, n_pairs = work->n_pairs, slice = work->slice_pairs;
    uintptr_t next = (uintptr_t)start;
    work->logits = cut(&next, work->op->n_tokens * n_experts * 4);
    work->weights = cut(&next, n_pairs * 4);
    work->chosen = cut(&next, n_pairs * 4);
    work->pair_of = cut(&next, n_pairs * 4);
    work->token_of = cut(&next, n_pairs * 4);
    work->expert_of = cut(&next, n_pairs * 4);
    work->first_pair = cut(&next, (n_experts + 1) * 8);
    work->x = cut(&next, work->op->n_tokens > 1 ? slice * experts->dim * 4 : 0);
    work->gate = cut(&next, slice * experts->ffn_dim * 4);
    work->up = cut(&next, slice * experts->ffn_dim * 4);
    work->out = cut(&next, slice * experts->dim * 4);
    work->products = cut(&next, 2 * n_experts * (int64_t)sizeof(rl_product));
    return next - (uintptr_t)start;
}

static rl_status route(moe_work *work) {
    const rl_moe_op *op = work->op;
    const rl_experts *experts = op->experts;
    int64_t n_experts = experts->n_experts;
    rl_product router = {experts->router, op->x,     work->logits,
                         experts->dim,    n_experts, op->n_tokens};
    rl_status status = rl_products(work->ctx, &router, 1, 0);
    if (status != RL_OK) return status;
    if (experts->router_bias != NULL)
        rl_add_rows(work->ctx, experts->router_bias, 1, 1.0, op->n_tokens, n_experts, work->logits);
    run(work, rl_div_up(op->n_tokens, TOKENS_PER_ITEM), op->n_tokens * n_experts, choose_tokens);
    arrange(work);
    return RL_OK;
}

rl_status rl_moe(rl_ctx *ctx, const rl_moe_op *op) {
    moe_work work = {.ctx = ctx, .op = op, .n_pairs = op->n_tokens * op->experts->n_used};
    work.slice_pairs = rl_min64(work.n_pairs, rl_max64(op->n_tokens, SLICE_PAIRS));
    void *scratch = rl_arena_get(&ctx->pairs, lay_out(&work, NULL));
    if (scratch == NULL) return RL_NO_MEMORY;
    lay_out(&work, scratch);
    rl_status status = route(&work);
    int64_t first = 0, n_experts = op->experts->n_experts;
    for (int64_t end = 1; end <= n_experts && status == RL_OK; end++) {
        if (end < n_experts &&
            work.first_pair[end + 1] - work.first_pair[first] <= work.slice_pairs)
            continue;
        status = run_slice(&work, first, end);
        first = end;
    }
    return status;
}
