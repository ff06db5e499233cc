/* Every op on every ISA level of this build that this CPU can run, against plain double
 * arithmetic, at sizes around lanes, tiles, pages and spans. No Python: it runs under sanitizers
 * and emulators. One line per level; exit 1 at the first difference. With the argument "short":
 * a third of the sizes.
 */
#include <inttypes.h>

#include "reference.h"

static const char *level;
static long n_checks;
static uint64_t products; /* a hash of what quantised weights gave: the same at every level */
static int is_short;

static void check(int ok, const char *what, int64_t a, int64_t b, int64_t c) {
    n_checks++;
    if (ok) return;
    printf("FAILED %s: %s (%lld, %lld, %lld)\n", level, what, (long long)a, (long long)b,
           (long long)c);
    exit(1);
}
static int same_bits(const float *a, const float *b, int64_t n) {
    return memcmp(a, b, (size_t)n * sizeof(float)) == 0;
}

/* ---- matmul ---- */

static float *run_matmul(rl_ctx *ctx, const test_weight *t, const float *x, int64_t n_tokens) {
    float *out = must_alloc((size_t)(n_tokens * t->w.n_rows) * sizeof(float));
    memset(out, 0xff, (size_t)(n_tokens * t->w.n_rows) * sizeof(float)); /* not-a-number */
    rl_matmul_op op = {.x = x, .n_tokens = n_tokens, .w = {&t->w}, .out = {out}, .n_outputs = 1};
    check(rl_matmul(ctx, &op) == RL_OK, "matmul status", t->w.format, n_tokens, t->w.n_rows);
    return out;
}

/* Formats without kernels of their own are multiplied as F32, with x as it is. */
static void check_row(const rl_ctx *ctx, const test_weight *t, const float *x, const float *got) {
    int64_t n_cols = t->w.n_cols;
    double *seen = must_alloc((size_t)n_cols * sizeof(double));
    if (t->w.format >= Q8_0 && rl_ctx_has_kernels(ctx, t->w.format))
        round_to_8_bits(x, n_cols, seen);
    else if (t->w.format == BF16 && strcmp(level, "avx512bf16") == 0)
        round_to_bf16(x, n_cols, seen);
    else
        for (int64_t k = 0; k < n_cols; k++) seen[k] = x[k];
    for (int64_t n = 0; n < t->w.n_rows; n++) {
        double want = 0.0, norm = 0.0;
        for (int64_t k = 0; k < n_cols; k++) {
            double term = seen[k] * t->values[n * n_cols + k];
            want += term;
            norm += fabs(term);
        }
        double bound = (double)(n_cols + 2) * (ROUNDING * norm + SMALLEST);
        check(fabs(got[n] - want) <= bound, "matmul format row cols", t->w.format, n, n_cols);
    }
    free(seen);
}

static void remember(const float *values, int64_t n) {
    const uint8_t *bytes = (const uint8_t *)values;
    for (int64_t i = 0; i < n * (int64_t)sizeof(float); i++)
        products = (products ^ bytes[i]) * 1099511628211u;
}

static void check_matmul_size(rl_ctx *ctx, rl_ctx *threads, int format, int64_t n_rows,
                              int64_t n_cols) {
    static const int64_t tokens[] = {1, 2, 3, 4, 5, 8, 9, 12, 13, 25, 37};
    test_weight t = make_weight(format, n_rows, n_cols);
    float *x = random_floats(37 * n_cols), *alone[37];
    for (int64_t i = 0; i < 37; i++) {
        alone[i] = run_matmul(ctx, &t, x + i * n_cols, 1);
        check_row(ctx, &t, x + i * n_cols, alone[i]);
        if (format >= Q8_0) remember(alone[i], n_rows);
    }
    for (int i = 0; i < (int)(sizeof tokens / sizeof tokens[0]); i++) {
        float *exact = must_alloc((size_t)(tokens[i] * n_cols) * sizeof(float));
        memcpy(exact, x, (size_t)(tokens[i] * n_cols) * sizeof(float));
        float *got = run_matmul(i % 2 ? ctx : threads, &t, exact, tokens[i]);
        for (int64_t row = 0; row < tokens[i]; row++)
            check(same_bits(got + row * n_rows, alone[row], n_rows),
                  "matmul row in batch is not row alone: format rows tokens", format, n_rows,
                  tokens[i]);
        free(got);
        free(exact);
    }
    for (int i = 0; i < 37; i++) free(alone[i]);
    free(x);
    free_weight(&t);
}

static void check_matmul(rl_ctx *ctx, rl_ctx *threads) {
    static const int64_t rows[] = {1, 3, 4, 5, 8, 9, 16, 17, 33};
    static const int64_t cols[] = {1, 7, 8, 9, 31, 64};
    for (int format = 0; format < N_FORMATS; format++) {
        for (int i = 0; i < (int)(sizeof rows / sizeof rows[0]); i += is_short ? 4 : 1)
            for (int j = 0; j < (int)(sizeof cols / sizeof cols[0]); j++)
                if (format < Q8_0)
                    check_matmul_size(ctx, threads, format, rows[i], cols[j]);
                else if (j < 3)
                    check_matmul_size(ctx, threads, format, rows[i], 32 * (j + 1));
        if (!is_short) check_matmul_size(ctx, threads, format, 515, 256); /* several chunks */
    }
    for (int format = N_FORMATS; format < rl_format_count(); format++)
        for (int i = is_short ? 3 : 0; i < (int)(sizeof rows / sizeof rows[0]); i += 4) {
            int len = rl_format_block_len(format);
            check_matmul_size(ctx, threads, format, rows[i], len);
            if (!is_short) check_matmul_size(ctx, threads, format, rows[i], 3 * len);
        }
}

/* Several weights that share x, and adding. */
static void check_shared(rl_ctx *ctx) {
    test_weight a = make_weight(Q4_0, 17, 64), b = make_weight(Q8_0, 5, 64);
    test_weight c = make_weight(F32, 3, 64), d = make_weight(BF16, 20, 64);
    const test_weight *all[] = {&a, &b, &c, &d};
    float *x = random_floats(40 * 64), *alone[4], *out[4];
    rl_matmul_op op = {.x = x, .n_tokens = 40, .n_outputs = 4};
    for (int i = 0; i < 4; i++) {
        alone[i] = run_matmul(ctx, all[i], x, 40);
        out[i] = random_floats(40 * all[i]->w.n_rows);
        op.w[i] = &all[i]->w;
        op.out[i] = out[i];
    }
    check(rl_matmul(ctx, &op) == RL_OK, "shared status", 0, 0, 0);
    for (int i = 0; i < 4; i++)
        check(same_bits(out[i], alone[i], 40 * all[i]->w.n_rows), "shared x", i, 0, 0);
    op.add = 1;
    check(rl_matmul(ctx, &op) == RL_OK, "add status", 0, 0, 0);
    for (int i = 0; i < 4; i++)
        for (int64_t j = 0; j < 40 * all[i]->w.n_rows; j++)
            check(out[i][j] == alone[i][j] + alone[i][j], "add", i, j, 0);
    for (int i = 0; i < 4; i++) {
        free(alone[i]);
        free(out[i]);
    }
    free(x);
    free_weight(&a);
    free_weight(&b);
    free_weight(&c);
    free_weight(&d);
}

/* Pieces: x and out that are parts of wider rows, and a table that holds a part of the ids. */
static void check_strides(rl_ctx *ctx) {
    const int32_t ids[] = {1, 4, 7, 2};
    for (int format = 0; format < N_FORMATS; format++) {
        test_weight t = make_weight(format, 5, 32);
        float *wide = random_floats(40 * 50), *x = must_alloc(40 * 32 * sizeof(float));
        for (int i = 0; i < 40 * 32; i++) x[i] = wide[i / 32 * 50 + 7 + i % 32];
        float *want = run_matmul(ctx, &t, x, 40), *out = must_alloc(40 * 9 * sizeof(float));
        for (int i = 0; i < 40 * 9; i++) out[i] = 3.0f;
        rl_matmul_op op = {.x = wide + 7, .x_stride = 50, .n_tokens = 40, .w = {&t.w}};
        op.out[0] = out + 2;
        op.out_stride[0] = 9;
        op.n_outputs = 1;
        check(rl_matmul(ctx, &op) == RL_OK, "stride status", format, 0, 0);
        for (int i = 0; i < 40 * 9; i++) {
            int inside = i % 9 >= 2 && i % 9 < 7;
            check(out[i] == (inside ? want[i / 9 * 5 + i % 9 - 2] : 3.0f), "stride", format, i, 0);
        }
        for (int i = 0; i < 4 * 33; i++) out[i] = 3.0f;
        check(rl_embed(ctx, &t.w, ids, 4, 2, out, 33) == RL_OK, "piece status", format, 0, 0);
        for (int i = 0; i < 4 * 33; i++) {
            int row = ids[i / 33] - 2, inside = i % 33 < 32 && row >= 0 && row < 5;
            float value = inside ? (float)t.values[row * 32 + i % 33] : 3.0f;
            check(out[i] == value, "piece of a table", format, i, 0);
        }
        free(wide);
        free(x);
        free(want);
        free(out);
        free_weight(&t);
    }
}

/* ---- mixtures of experts ---- */

#define MOE_EXPERTS 5
#define MOE_USED 2

typedef struct {
    test_weight router, gate[MOE_EXPERTS], up[MOE_EXPERTS], down[MOE_EXPERTS];
} mixture;

/* One token through its experts, product by product. */
static void moe_row(rl_ctx *ctx, const mixture *m, const float *x, float *into) {
    int64_t dim = m->router.w.n_cols, ffn_dim = m->gate[0].w.n_rows;
    float *logits = run_matmul(ctx, &m->router, x, 1);
    int first = 0, second = -1;
    for (int e = 1; e < MOE_EXPERTS; e++)
        if (logits[e] > logits[first]) first = e;
    for (int e = 0; e < MOE_EXPERTS; e++)
        if (e != first && (second < 0 || logits[e] > logits[second])) second = e;
    double power = exp((double)logits[second] - logits[first]);
    for (int e = 0; e < MOE_EXPERTS; e++) {
        if (e != first && e != second) continue;
        float *gate = run_matmul(ctx, &m->gate[e], x, 1), *up = run_matmul(ctx, &m->up[e], x, 1);
        rl_glu(ctx, gate, up, ffn_dim, RL_SILU);
        float *out = run_matmul(ctx, &m->down[e], gate, 1);
        float weight = (float)((e == first ? 1.0 : power) / (1.0 + power));
        rl_add_rows(ctx, out, 1, weight, 1, dim, into);
        free(gate);
        free(up);
        free(out);
    }
    free(logits);
}

static void check_moe(rl_ctx *ctx, rl_ctx *threads, int format, int64_t n_tokens) {
    int64_t dim = 64, ffn_dim = 96;
    rl_weight gate[MOE_EXPERTS], up[MOE_EXPERTS], down[MOE_EXPERTS];
    mixture m = {.router = make_weight(F32, MOE_EXPERTS, dim)};
    for (int e = 0; e < MOE_EXPERTS; e++) {
        gate[e] = (m.gate[e] = make_weight(format, ffn_dim, dim)).w;
        up[e] = (m.up[e] = make_weight(format, ffn_dim, dim)).w;
        down[e] = (m.down[e] = make_weight(format, dim, ffn_dim)).w;
    }
    rl_experts experts = {.router = &m.router.w,
                          .gate = gate,
                          .up = up,
                          .down = down,
                          .n_experts = MOE_EXPERTS,
                          .n_used = MOE_USED,
                          .dim = dim,
                          .ffn_dim = ffn_dim,
                          .activation = RL_SILU,
                          .normalise = 1};
    float *x = random_floats(n_tokens * dim), *want = random_floats(n_tokens * dim);
    float *got = must_alloc((size_t)(n_tokens * dim) * sizeof(float));
    memcpy(got, want, (size_t)(n_tokens * dim) * sizeof(float));
    for (int64_t t = 0; t < n_tokens; t++) moe_row(ctx, &m, x + t * dim, want + t * dim);
    rl_moe_op op = {.x = x, .into = got, .n_tokens = n_tokens, .experts = &experts};
    check(rl_moe(threads, &op) == RL_OK, "moe status", format, n_tokens, 0);
    check(same_bits(got, want, n_tokens * dim), "moe", format, n_tokens, 0);
    for (int e = 0; e < MOE_EXPERTS; e++) {
        free_weight(&m.gate[e]);
        free_weight(&m.up[e]);
        free_weight(&m.down[e]);
    }
    free_weight(&m.router);
    free(x);
    free(want);
    free(got);
}

/* ---- row by row ---- */

static void check_embed(rl_ctx *ctx) {
    const int32_t ids[] = {2, 0, 6, 6, 1};
    for (int format = 0; format < N_FORMATS; format++)
        for (int64_t n_cols = 32; n_cols <= 96; n_cols += format < Q8_0 ? 5 : 32) {
            test_weight t = make_weight(format, 7, n_cols);
            float *out = must_alloc((size_t)(5 * n_cols) * sizeof(float));
            check(rl_embed(ctx, &t.w, ids, 5, 0, out, n_cols) == RL_OK, "embed status", 0, 0, 0);
            for (int64_t i = 0; i < 5 * n_cols; i++)
                check(out[i] == (float)t.values[ids[i / n_cols] * n_cols + i % n_cols], "embed",
                      format, n_cols, i);
            free(out);
            free_weight(&t);
        }
    for (int format = N_FORMATS; format < rl_format_count(); format++) {
        int64_t n_cols = 3 * rl_format_block_len(format);
        test_weight t = make_weight(format, 1, n_cols);
        float *out = must_alloc((size_t)n_cols * sizeof(float));
        const int32_t id = 0;
        check(rl_embed(ctx, &t.w, &id, 1, 0, out, n_cols) == RL_OK, "embed status", 0, 0, 0);
        for (int64_t i = 0; i < n_cols; i++)
            check(out[i] == (float)t.values[i], "embed", format, n_cols, i);
        free(out);
        free_weight(&t);
    }
}

static void check_norm(rl_ctx *ctx, int64_t dim) {
    float *x = random_floats(3 * dim), *weight = random_floats(dim), *out = random_floats(3 * dim);
    check(rl_rms_norm(ctx, x, weight, 1e-5, 3, dim, out) == RL_OK, "norm status", dim, 0, 0);
    for (int64_t t = 0; t < 3; t++) {
        double sum = 0.0;
        for (int64_t k = 0; k < dim; k++) sum += (double)x[t * dim + k] * x[t * dim + k];
        for (int64_t k = 0; k < dim; k++) {
            double want = x[t * dim + k] / sqrt(sum / (double)dim + 1e-5f) * weight[k];
            double bound = ((double)dim / 2 + 6) * ROUNDING * fabs(want);
            check(fabs(out[t * dim + k] - want) <= bound, "norm", dim, t, k);
        }
    }
    free(x);
    free(weight);
    free(out);
}

static double unit(double gate, double up, rl_activation activation) {
    double cubic = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate);
    switch (activation) {
    case RL_GELU:
        return gate * 0.5 * erfc(-gate / sqrt(2.0)) * up;
    case RL_GELU_TANH:
        return gate / (1.0 + exp(-cubic)) * up;
    case RL_SWIGLU_CLAMPED:
        gate = fmin(gate, 7.0);
        return gate / (1.0 + exp(-1.702 * gate)) * (fmax(fmin(up, 7.0), -7.0) + 1.0);
    default:
        return gate / (1.0 + exp(-gate)) * up;
    }
}

static void check_glu(rl_ctx *ctx, int64_t n, rl_activation activation) {
    float *gate = random_floats(n), *up = random_floats(n);
    double *want = must_alloc((size_t)n * sizeof(double));
    for (int64_t i = 0; i < n; i++) {
        gate[i] *= 10.0f;
        want[i] = unit(gate[i], up[i], activation);
    }
    check(rl_glu(ctx, gate, up, n, activation) == RL_OK, "glu status", n, activation, 0);
    for (int64_t i = 0; i < n; i++) /* roundings of the exponent count as often as it is large */
        check(fabs(gate[i] - want[i]) <= 600 * ROUNDING * fabs(want[i]) + SMALLEST, "glu", n, i,
              activation);
    free(gate);
    free(up);
    free(want);
}

/* scale, add and a bias are rounded once; the soft cap keeps the digits of small values. */
static void check_values(rl_ctx *ctx, int64_t n) {
    float *x = random_floats(3 * n), *y = random_floats(3 * n), *z = random_floats(3 * n);
    float *was = must_alloc((size_t)(3 * n) * sizeof(float));
    memcpy(was, z, (size_t)(3 * n) * sizeof(float));
    check(rl_add_rows(ctx, x, 3, 0.5, 3, n, z) == RL_OK, "add status", n, 0, 0);
    for (int64_t i = 0; i < 3 * n; i++) check(z[i] == was[i] + 0.5f * x[i], "add", n, i, 0);
    memcpy(was, z, (size_t)(3 * n) * sizeof(float));
    check(rl_add_rows(ctx, y, 1, 1.0, 3, n, z) == RL_OK, "bias status", n, 0, 0);
    for (int64_t i = 0; i < 3 * n; i++) check(z[i] == was[i] + y[i % n], "bias", n, i, 0);
    memcpy(was, z, (size_t)(3 * n) * sizeof(float));
    check(rl_scale_values(ctx, z, 1.5, 3 * n) == RL_OK, "scale status", n, 0, 0);
    for (int64_t i = 0; i < 3 * n; i++) check(z[i] == was[i] * 1.5f, "scale", n, i, 0);
    memcpy(was, z, (size_t)(3 * n) * sizeof(float));
    const int32_t positions[] = {9, 10, 35};
    check(rl_grow_rows(ctx, z, positions, 0.5, 10, 3, n) == RL_OK, "grow status", n, 0, 0);
    for (int64_t i = 0; i < 3 * n; i++) {
        float factor = (float)(1.0 + 0.5 * log(1.0 + positions[i / n] / 10));
        check(z[i] == was[i] * factor, "grow", n, i, 0);
    }
    for (int64_t i = 0; i < 3 * n; i++) was[i] = z[i] *= i % 2 ? 1e-4f : 4.0f;
    check(rl_softcap_values(ctx, z, 2.0, 3.0, 3 * n) == RL_OK, "cap status", n, 0, 0);
    for (int64_t i = 0; i < 3 * n; i++) {
        double want = 3.0 * tanh(was[i] * 2.0 / 3.0);
        check(fabs(z[i] - want) <= 12 * ROUNDING * fabs(want), "softcap", n, i, 0);
    }
    free(x);
    free(y);
    free(z);
    free(was);
}

static void check_rope(rl_ctx *ctx, int64_t half, rl_rope_style style) {
    const int32_t positions[] = {0, 5, 6, 300};
    double *inv_freq = must_alloc((size_t)half * sizeof(double));
    for (int64_t i = 0; i < half; i++) inv_freq[i] = pow(10000.0, -(double)i / (double)half);
    rl_rope_table *table = rl_rope_table_new(inv_freq, half, 301, 1.0);
    rl_rope_table_fill(table, 300);
    int64_t dim = 2 * half, n = 4 * 3 * dim; /* 4 tokens of 3 heads */
    float *x = random_floats(n), *got = must_alloc((size_t)n * sizeof(float));
    memcpy(got, x, (size_t)n * sizeof(float));
    check(rl_rope(ctx, got, 4, 3, dim, positions, table, style) == RL_OK, "rope", half, 0, 0);
    for (int64_t head = 0; head < 12; head++)
        for (int64_t i = 0; i < half; i++) {
            int64_t first = head * dim + (style == RL_ROPE_HALF ? i : 2 * i);
            int64_t second = first + (style == RL_ROPE_HALF ? half : 1);
            double angle = positions[head / 3] * inv_freq[i], a = x[first], b = x[second];
            double bound = 4 * ROUNDING * (fabs(a) + fabs(b));
            check(fabs(got[first] - (a * cos(angle) - b * sin(angle))) <= bound, "rope", half, i,
                  head);
            check(fabs(got[second] - (a * sin(angle) + b * cos(angle))) <= bound, "rope", half, i,
                  head);
        }
    free(x);
    free(got);
    rl_rope_table_free(table);
    free(inv_freq);
}

/* ---- attention ---- */

#define CONTEXT 1030 /* two spans and a little */
#define N_PAGES 20

typedef struct {
    int64_t dim, n_kv_heads, group;
    int32_t format;
    float *q, *k, *v;        /* of all positions */
    double *k_kept, *v_kept; /* as the cache gives them back */
    float *sinks;            /* [H] or NULL */
    double softcap;
    int64_t window;
    rl_kv *kv;
} sequence;

static int64_t first_seen(const sequence *s, int64_t position) {
    return s->window > 0 && position >= s->window ? position - s->window + 1 : 0;
}

/* Heads of dim values as the cache gives them back. */
static double *kept(const float *values, int64_t n, int64_t dim, int32_t format) {
    double *out = must_alloc((size_t)n * sizeof(double));
    for (int64_t i = 0; i < n; i++)
        out[i] = format == RL_KV_F16 ? half_value(nearest_half(values[i])) : values[i];
    if (format != RL_KV_Q8_0) return out;
    for (int64_t head = 0; head < n; head += dim)
        for (int64_t i = head; i < head + dim; i += 32) {
            int64_t end = i + 32 < head + dim ? i + 32 : head + dim;
            float most = 0.0f;
            for (int64_t j = i; j < end; j++) most = fmaxf(most, fabsf(values[j]));
            float inverse = most > 0.0f ? 127.0f / most : 0.0f;
            double scale = half_value(nearest_half(most / 127.0f));
            for (int64_t j = i; j < end; j++) out[j] = scale * rintf(values[j] * inverse);
        }
    return out;
}

static sequence make_sequence(int32_t format, int64_t dim, int64_t n_kv_heads, int64_t group) {
    sequence s = {.dim = dim, .n_kv_heads = n_kv_heads, .group = group, .format = format};
    int64_t n = CONTEXT * dim * n_kv_heads;
    s.q = random_floats(n * group);
    s.k = random_floats(n);
    s.v = random_floats(n);
    s.k_kept = kept(s.k, n, dim, format);
    s.v_kept = kept(s.v, n, dim, format);
    s.kv = rl_kv_new(2, N_PAGES, n_kv_heads, dim, format);
    return s;
}

static void free_sequence(sequence *s) {
    free(s->q);
    free(s->k);
    free(s->v);
    free(s->k_kept);
    free(s->v_kept);
    free(s->sinks);
    rl_kv_free(s->kv);
}

/* Positions first .. last-1 as one step. The page table runs backwards; what is before the window
 * is not in it. */
static float *run_attend(rl_ctx *ctx, const sequence *s, int64_t first, int64_t last) {
    int32_t pages[N_PAGES], start[] = {0, (int32_t)(last - first)}, positions[CONTEXT];
    int64_t q_dim = s->dim * s->n_kv_heads * s->group, kv_dim = s->dim * s->n_kv_heads;
    for (int i = 0; i < N_PAGES; i++)
        pages[i] = i < first_seen(s, first) / RL_PAGE_LEN ? -1 : N_PAGES - 1 - i;
    for (int64_t t = first; t < last; t++) positions[t - first] = (int32_t)t;
    float *out = must_alloc((size_t)((last - first) * q_dim) * sizeof(float));
    rl_attend_op op = {.q = s->q + first * q_dim,
                       .k = s->k + first * kv_dim,
                       .v = s->v + first * kv_dim,
                       .out = out,
                       .positions = positions,
                       .seq_start = start,
                       .page_table = pages,
                       .n_tokens = last - first,
                       .n_seqs = 1,
                       .n_heads = s->n_kv_heads * s->group,
                       .pages_per_seq = N_PAGES,
                       .layer = 1,
                       .sinks = s->sinks,
                       .softcap = s->softcap,
                       .window = s->window,
                       .scale = 1.0 / sqrt((double)s->dim)};
    check(rl_attend(ctx, s->kv, &op) == RL_OK, "attend status", first, last, s->dim);
    return out;
}

static void check_attended(const sequence *s, int64_t position, int64_t head, const float *got) {
    int64_t d = s->dim, kv_dim = d * s->n_kv_heads, shift = head / s->group * d;
    const float *q = s->q + (position * s->n_kv_heads * s->group + head) * d;
    double scores[CONTEXT], most = -INFINITY, largest = 0.0, total = 0.0;
    int64_t first = first_seen(s, position);
    for (int64_t p = first; p <= position; p++) {
        double norm = 0.0;
        scores[p] = 0.0;
        for (int64_t i = 0; i < d; i++) {
            double term = q[i] * s->k_kept[p * kv_dim + shift + i] / sqrt((double)d);
            scores[p] += term;
            norm += fabs(term);
        }
        if (s->softcap > 0.0) scores[p] = s->softcap * tanh(scores[p] / s->softcap);
        most = fmax(most, scores[p]);
        largest = fmax(largest, norm);
    }
    if (s->sinks != NULL) {
        most = fmax(most, s->sinks[head]);
        total = exp(s->sinks[head] - most);
    }
    for (int64_t p = first; p <= position; p++) total += scores[p] = exp(scores[p] - most);
    for (int64_t i = 0; i < d; i++) {
        double want = 0.0, norm = 0.0;
        for (int64_t p = first; p <= position; p++) {
            double term = scores[p] / total * s->v_kept[p * kv_dim + shift + i];
            want += term;
            norm += fabs(term);
        }
        double terms = (double)(d + 5 + (s->softcap > 0.0 ? 10 : 0)); /* tanh is good to 4 ulp */
        double bound = 2.1 * terms * largest + 2.0 * (double)position + 66;
        check(fabs(got[i] - want) <= bound * ROUNDING * norm, "attend position head dim", position,
              head, d);
    }
}

static void check_attention(rl_ctx *ctx, rl_ctx *threads, sequence s) {
    static const int64_t cuts[] = {0, 1, 70, 511, 513, 600, 1023, 1026, CONTEXT};
    int64_t n_heads = s.n_kv_heads * s.group, dim = s.dim, q_dim = dim * n_heads;
    for (int i = 0; i + 1 < (int)(sizeof cuts / sizeof cuts[0]); i++) {
        int64_t n = cuts[i + 1] - cuts[i];
        float *piece = run_attend(i % 2 ? ctx : threads, &s, cuts[i], cuts[i + 1]);
        float *last = run_attend(ctx, &s, cuts[i + 1] - 1, cuts[i + 1]);
        check(same_bits(piece + (n - 1) * q_dim, last, q_dim), "decode is not prompt", cuts[i],
              cuts[i + 1], dim);
        for (int64_t head = 0; head < n_heads; head++) {
            check_attended(&s, cuts[i + 1] - 1, head, last + head * dim);
            check_attended(&s, cuts[i], head, piece + head * dim);
        }
        free(piece);
        free(last);
    }
    free_sequence(&s);
}

/* A layer with a window, a cap and sinks. */
static void check_attention_kind(rl_ctx *ctx, rl_ctx *threads, int32_t format, int64_t window) {
    sequence s = make_sequence(format, 16, 1, 3);
    s.window = window;
    s.softcap = 0.5;
    s.sinks = random_floats(3);
    check_attention(ctx, threads, s);
}

/* ---- all of it ---- */

static void check_level(void) {
    rl_ctx *ctx = rl_ctx_new(level, 1), *threads = rl_ctx_new(level, 2);
    check(ctx != NULL && threads != NULL, "context", 0, 0, 0);
    check(strcmp(rl_ctx_isa(ctx), level) == 0, "the level asked for", 0, 0, 0);
    random_state = 1;
    check_matmul(ctx, threads);
    check_shared(threads);
    check_strides(threads);
    check_moe(ctx, threads, F32, 1);
    check_moe(ctx, threads, Q4_0, 40);
    check_embed(ctx);
    for (int64_t n = 1; n <= 70; n += n < 20 ? 1 : 7) {
        check_norm(ctx, n);
        for (int a = 0; a < RL_N_ACTIVATIONS; a++) check_glu(ctx, n, (rl_activation)a);
        check_values(ctx, n);
    }
    for (int64_t half = 1; half <= 64; half = 2 * half + 1) {
        check_rope(ctx, half, RL_ROPE_HALF);
        check_rope(ctx, half, RL_ROPE_INTERLEAVED);
    }
    for (int32_t format = 0; format < RL_N_KV_FORMATS; format++) {
        check_attention(ctx, threads, make_sequence(format, 20, 2, 1));
        if (format == RL_KV_Q8_0) check_attention(ctx, threads, make_sequence(format, 70, 1, 2));
        check_attention_kind(ctx, threads, format, 70);
        if (is_short) continue;
        check_attention(ctx, threads, make_sequence(format, 16, 1, 3));
        check_attention_kind(ctx, threads, format, 3);
        check_attention_kind(ctx, threads, format, 600);
    }
    rl_ctx_free(ctx);
    rl_ctx_free(threads);
}

int main(int argc, char **argv) {
    is_short = argc > 1 && strcmp(argv[1], "short") == 0;
    decoder = rl_ctx_new("scalar", 1);
    check(decoder != NULL, "context of the decoder", 0, 0, 0);
    for (int i = 0; i < rl_isa_count(); i++) {
        level = rl_isa_name(i);
        n_checks = 0;
        products = 14695981039346656037u;
        if (!rl_isa_usable(i)) {
            printf("%s: %s\n", level, rl_isa_compiled(i) ? "not usable here" : "not compiled");
            continue;
        }
        check_level();
        printf("%s: %ld checks, products %016" PRIx64 "\n", level, n_checks, products);
        fflush(stdout);
    }
    rl_ctx *best = rl_ctx_new(NULL, 1);
    check(best != NULL, "context of the best level", 0, 0, 0);
    printf("chosen: %s\n", rl_ctx_isa(best));
    rl_ctx_free(best);
    rl_ctx_free(decoder);
    return 0;
}
