/* The only header that Cython sees: op structs, status codes, prototypes.
 *
 * Every op is validated by its caller, runs without the GIL, and cuts its work into ranges for
 * rl_parallel_for. Shapes are written [rows, columns], rows outermost, f32 unless said otherwise.
 */
#ifndef RL_H
#define RL_H

#include <stddef.h>
#include <stdint.h>

#define RL_PAGE_LEN 64  /* positions in a page of the cache */
#define RL_SPAN_LEN 512 /* positions that attention sums before it merges; a multiple of a page */

typedef enum { RL_OK = 0, RL_NO_MEMORY = 1, RL_BAD_ARGUMENT = 2 } rl_status;

typedef struct rl_ctx rl_ctx;

/* ---- context ---- */

/* isa: a level's name, or NULL for the best usable one. NULL when out of memory, not usable, or
 * when the level fails its self-test. */
rl_ctx *rl_ctx_new(const char *isa, int n_threads);
void rl_ctx_free(rl_ctx *ctx);
const char *rl_ctx_isa(const rl_ctx *ctx);
int rl_ctx_threads(const rl_ctx *ctx);
/* Whether a format has kernels of its own here; else its rows are multiplied as F32. */
int rl_ctx_has_kernels(const rl_ctx *ctx, int format);
/* After fork: the thread pool is gone in the child, so every op runs inline from now on. */
void rl_ctx_set_serial(rl_ctx *ctx);
int rl_ctx_serial(const rl_ctx *ctx);

/* Levels in ascending order: name, compiled into this build, usable on this CPU. */
int rl_isa_count(void);
const char *rl_isa_name(int i);
int rl_isa_compiled(int i);
int rl_isa_usable(int i);
/* Which threads library this build uses: "POSIX threads", "OpenMP", "libdispatch" or "serial". */
const char *rl_parallel_kind(void);

/* ---- formats ---- */

int rl_format_count(void);
const char *rl_format_name(int format);
int rl_format_block_len(int format);
int rl_format_block_bytes(int format);

/* ---- ops ---- */

typedef struct {
    const uint8_t *data; /* [n_rows, row_bytes], as it lies in the file, any alignment */
    int64_t n_rows, n_cols, row_bytes;
    int32_t format;
    const int32_t *column_order; /* [n_cols]: column j meets x[column_order[j]]; NULL: x[j] */
} rl_weight;

#define RL_MAX_OUTPUTS 16

/* out[i][T, N_i] (+)= x[T, K] . w[i][N_i, K]^T; up to RL_MAX_OUTPUTS weights share x.
 * Strides are from one token to the next, in values; 0: as wide as the weight makes them. */
typedef struct {
    const float *x;
    int64_t x_stride, n_tokens;
    const rl_weight *w[RL_MAX_OUTPUTS];
    float *out[RL_MAX_OUTPUTS];
    int64_t out_stride[RL_MAX_OUTPUTS];
    int n_outputs;
    int add;
} rl_matmul_op;

rl_status rl_matmul(rl_ctx *ctx, const rl_matmul_op *op);

/* How float weights become blocks; see kernels/quantize.inc. */
typedef enum {
    RL_QUANTIZE_Q8_0 = 0,
    RL_QUANTIZE_Q4_0,
    RL_QUANTIZE_Q4_K,
    RL_QUANTIZE_SYMMETRIC_8,  /* Q8_F32 */
    RL_QUANTIZE_SYMMETRIC_4,  /* Q4_0 */
    RL_QUANTIZE_ASYMMETRIC_4, /* Q4_1 */
    RL_N_RECIPES
} rl_recipe_kind;

typedef struct {
    int32_t kind;       /* rl_recipe_kind */
    int32_t scale_type; /* rl_format, a float: what symmetric scales are rounded to */
    int64_t group;      /* columns under one scale, a multiple of 32; not for the first three */
} rl_recipe;

/* Float rows -> blocks. RL_BAD_ARGUMENT: a value is not finite, or a scale beyond half precision. */
rl_status rl_quantize(rl_ctx *ctx, const rl_weight *source, const rl_recipe *recipe, uint8_t *out,
                      int64_t out_row_bytes);

/* Packed whole numbers of 2, 3, 4 or 8 bits -> rows of blocks of 32 behind a head of 4 bytes.
 * Word i of row n is words[i * step_k + n * step_n]; the numbers of a row follow each other from
 * bit 0 of word 0. across_rows: a word holds one input of eight rows instead, as AWQ has them. */
typedef struct {
    const uint8_t *words; /* u32 at any alignment */
    int64_t step_k, step_n;
    int32_t bits, across_rows;
    int64_t first_row, n_rows, n_cols;
    const int32_t *inputs;         /* [n_cols]: column j of the result is this input; NULL: j */
    const int32_t *group_of_block; /* [n_cols / 32] */
    const uint8_t *heads;          /* [groups, n_rows, 4] */
    const int16_t *offsets;        /* [groups, n_rows]: taken from the numbers; 0 for nibbles */
    int32_t nibbles;               /* 16 bytes as in Q4_0; else 32 bytes */
    uint8_t *out;
} rl_unpack_op;

rl_status rl_unpack(rl_ctx *ctx, const rl_unpack_op *op);

/* out[T, D] = the rows `ids` of the table; its first row is that of the id first_row, and tokens
 * whose rows it does not hold are left alone. Rows of out are out_stride apart. */
rl_status rl_embed(rl_ctx *ctx, const rl_weight *table, const int32_t *ids, int64_t n_tokens,
                   int32_t first_row, float *out, int64_t out_stride);

/* out[rows, D] = x / sqrt(mean(x^2) + eps) * weight[D]; a row is a token, or one of its heads */
rl_status rl_rms_norm(rl_ctx *ctx, const float *x, const float *weight, double eps, int64_t n_rows,
                      int64_t dim, float *out);

typedef enum {
    RL_SILU = 0,       /* x / (1 + e^-x) */
    RL_GELU,           /* x Phi(x), Phi the normal distribution */
    RL_GELU_TANH,      /* the same by way of tanh */
    RL_SWIGLU_CLAMPED, /* x / (1 + e^(-1.702 x)), x at most 7; up within 7 of 0, and raised by 1 */
    RL_N_ACTIVATIONS
} rl_activation;

/* gate[i] = activation(gate[i]) * up[i] */
rl_status rl_glu(rl_ctx *ctx, float *gate, const float *up, int64_t n_values,
                 rl_activation activation);

#define RL_MAX_EXPERTS 1024

/* The feed-forward experts of a layer and their router; biases may be NULL. */
typedef struct {
    const rl_weight *router;                         /* [E, D] */
    const float *router_bias;                        /* [E] */
    const rl_weight *gate, *up, *down;               /* E of each: [F, D], [F, D], [D, F] */
    const float **gate_bias, **up_bias, **down_bias; /* E of each: [F], [F], [D] */
    int64_t n_experts, n_used, dim, ffn_dim;
    rl_activation activation;
    int normalise; /* the weights of the chosen ones add up to 1, else those of all do */
} rl_experts;

typedef struct {
    const float *x; /* [T, D] */
    float *into;    /* [T, D] */
    int64_t n_tokens;
    const rl_experts *experts;
} rl_moe_op;

/* into += the weighted outputs of the experts that the router chooses for each token */
rl_status rl_moe(rl_ctx *ctx, const rl_moe_op *op);

/* x[i] *= factor */
rl_status rl_scale_values(rl_ctx *ctx, float *x, double factor, int64_t n_values);

/* into[T, N] += factor * x[T, N]; x is one row for all where x_rows is 1 */
rl_status rl_add_rows(rl_ctx *ctx, const float *x, int64_t x_rows, double factor, int64_t n_tokens,
                      int64_t n_cols, float *into);

/* x[i] = cap * tanh(scale * x[i] / cap) */
rl_status rl_softcap_values(rl_ctx *ctx, float *x, double scale, double cap, int64_t n_values);
/* x[t] *= 1 + growth * ln(1 + position / length), the division in whole numbers */
rl_status rl_grow_rows(rl_ctx *ctx, float *x, const int32_t *positions, double growth,
                       int64_t length, int64_t n_rows, int64_t n_cols);

/* cos and sin of every position and pair, times a factor, filled as far as they have been asked
 * for. */
typedef struct {
    float *values;    /* [max_seq_len, half_dim, 2] */
    double *inv_freq; /* [half_dim], radians per position */
    double factor;
    int64_t max_seq_len, half_dim, n_filled;
} rl_rope_table;

rl_rope_table *rl_rope_table_new(const double *inv_freq, int64_t half_dim, int64_t max_seq_len,
                                 double factor);
void rl_rope_table_free(rl_rope_table *table);
/* Fill the table up to and with this position. */
void rl_rope_table_fill(rl_rope_table *table, int64_t position);

typedef enum { RL_ROPE_INTERLEAVED = 0, RL_ROPE_HALF = 1 } rl_rope_style;

/* Rotate heads in place: x[T, n_heads, head_dim]; the first 2*half_dim values of each head. */
rl_status rl_rope(rl_ctx *ctx, float *x, int64_t n_tokens, int64_t n_heads, int64_t head_dim,
                  const int32_t *positions, const rl_rope_table *table, rl_rope_style style);

/* ---- the paged cache and attention ---- */

typedef enum { RL_KV_F32 = 0, RL_KV_F16, RL_KV_Q8_0, RL_N_KV_FORMATS } rl_kv_format;

/* [n_pages, n_layers, G] of keys [d, PAGE_LEN], then values [PAGE_LEN, d_padded]. Keys lie
 * position-last, so that a vector of scores needs no sum across lanes. In Q8_0 both end with their
 * f16 scales, [blocks of 32, PAGE_LEN]. A page of all layers is one piece, so that few sequences
 * touch little memory even where the system hands it out in large pages. */
typedef struct {
    uint8_t *data; /* allocated at once, touched page by page; aligned */
    void *block;   /* what is freed */
    int64_t n_layers, n_pages, n_kv_heads, head_dim, d_padded;
    int64_t k_bytes, v_bytes; /* of one page of one head */
    int32_t format;
} rl_kv;

rl_kv *rl_kv_new(int64_t n_layers, int64_t n_pages, int64_t n_kv_heads, int64_t head_dim,
                 int32_t format);
void rl_kv_free(rl_kv *kv);
/* Bytes that one page takes over all layers. */
int64_t rl_kv_page_bytes(const rl_kv *kv);

typedef struct {
    const float *q, *k, *v;                            /* [T, H, d], [T, G, d], [T, G, d] */
    float *out;                                        /* [T, H, d] */
    const int32_t *positions, *seq_start, *page_table; /* [T], [B+1], [B, P] */
    int64_t n_tokens, n_seqs, n_heads, pages_per_seq, layer;
    const float *sinks;    /* [H] logits that join the denominator only, or NULL */
    double scale, softcap; /* score = softcap * tanh(scale * q . k / softcap); 0: no cap */
    int64_t window;        /* a query sees so many positions up to its own; 0: all of them */
} rl_attend_op;

/* Store k and v into the cache, then attend every query to the positions that it sees. Pages that
 * no query of the step sees may be anything in the page table. */
rl_status rl_attend(rl_ctx *ctx, rl_kv *kv, const rl_attend_op *op);

/* ---- measuring ---- */

/* Read n_bytes with all threads, for the bandwidth yardstick; the result only defeats optimisers. */
uint64_t rl_read_all(rl_ctx *ctx, const uint8_t *data, int64_t n_bytes);

#endif
