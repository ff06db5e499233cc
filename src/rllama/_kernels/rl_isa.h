/* One table of functions per ISA level, and the list of levels. */
#ifndef RL_ISA_H
#define RL_ISA_H

#include "rl.h"
#include "rl_formats.h"

/* Activation types: what the weights of a format are multiplied with. */
typedef enum {
    RL_ACT_Q8,
    RL_ACT_Q8_SUM,
    RL_ACT_Q8_HALVES,
    RL_ACT_BF16,
    RL_ACT_BF16_SLOTS,
    RL_ACT_F32,
    RL_ACT_F32_SLOTS,
    RL_N_ACTS
} rl_act;

/* Whether activations are blocks of 32 in 8 bits. */
static inline int rl_act_is_q8(int32_t act) { return act <= RL_ACT_Q8_HALVES; }

/* One block of 32 activations in 8 bits; `init` is where the block's integer sum starts:
 * -offset * sum(values), so that weights may be kept unsigned. */
typedef struct {
    int8_t values[RL_BLOCK];
    float scale;
    int32_t init[1];
} rl_act_block;
_Static_assert(sizeof(rl_act_block) == 40, "activation block");

/* The same for weights that have mins: with scale * sum(values). */
typedef struct {
    int8_t values[RL_BLOCK];
    float scale;
    int32_t init[1];
    float sum[1];
} rl_act_sum;
_Static_assert(sizeof(rl_act_sum) == 44, "activation block with its sum");

/* The same for weights that have a scale per 16 values: for each half. */
typedef struct {
    int8_t values[RL_BLOCK];
    float scale;
    int32_t init[2];
    float sum[2];
} rl_act_halves;
_Static_assert(sizeof(rl_act_halves) == 52, "activation block of two halves");

/* Two neighbours of a tile in the place of their blocks, for levels that multiply tokens by twos: 8
 * values of the first, 8 of the second, and so on; then each number of both. */
typedef struct {
    int8_t values[2 * RL_BLOCK];
    float scale[2];
    int32_t init[1][2];
} rl_act_block_pair;
typedef struct {
    int8_t values[2 * RL_BLOCK];
    float scale[2];
    int32_t init[1][2];
    float sum[1][2];
} rl_act_sum_pair;
typedef struct {
    int8_t values[2 * RL_BLOCK];
    float scale[2];
    int32_t init[2][2];
    float sum[2][2];
} rl_act_halves_pair;
_Static_assert(sizeof(rl_act_block_pair) == 2 * sizeof(rl_act_block) &&
                   sizeof(rl_act_sum_pair) == 2 * sizeof(rl_act_sum) &&
                   sizeof(rl_act_halves_pair) == 2 * sizeof(rl_act_halves),
               "pairs of activation blocks");

#define RL_FLOAT_UNIT 32 /* columns that the float kernels take at once */

/* Activations of a tile of up to max_tile tokens, interleaved so that a kernel walks them in order:
 *   Q8: [K/32][tile] rl_act_block, or one of the others; or pairs of them, and a last one alone
 *   F32: [K/32][tile][32] f32             BF16: [K/32][tile][32] bf16
 *   F32_SLOTS: [16][K/16][tile] f32       BF16_SLOTS: [16][K/32][tile] two bf16   (kernels/slots.inc)
 * Weight rows come in groups of `n_lanes` rows, a lane per row; a kernel writes tile[t][lane]. */
typedef void (*rl_fused_fn)(const uint8_t *rows, int64_t row_bytes, int64_t n_units,
                            const void *acts, int n_tokens, float *tile);
typedef void (*rl_panel_fn)(const uint8_t *rows, int64_t row_bytes, int64_t n_units, void *panel);
typedef void (*rl_gemm_fn)(const void *panel, int64_t n_units, const void *acts, int n_tokens,
                           float *tile);
/* x[n_tokens, K], its rows x_stride apart -> interleaved activations; offset is the weights' (see
 * rl_act_block). */
typedef void (*rl_quant_act_fn)(const float *x, int64_t x_stride, int64_t n_cols, int n_tokens,
                                int32_t offset, void *acts);

/* Positions low .. high of a span or a page that a row sees, high excluded; none if low >= high. */
typedef struct {
    int32_t low, high;
} rl_seen;

/* A span of up to RL_SPAN_LEN positions for n_rows query rows that share one key/value head. */
typedef struct {
    const float *q;              /* tiles of `tile` rows, each [d][rows], already scaled */
    const uint8_t *const *pages; /* those that any row sees: keys, and k_bytes behind them values */
    const uint8_t *next;         /* the page that is read after them, to fetch it; NULL: none */
    int64_t k_bytes, v_bytes;
    const rl_seen *seen; /* [n_rows] from the span's first position */
    int64_t n_rows, head_dim, d_padded;
    int64_t tile;           /* rows that travel together, at most the table's span_tile */
    float softcap;          /* a score becomes softcap * tanh(score); 0: no cap */
    float *max, *sum, *acc; /* [n_rows], [n_rows], [n_rows, d_padded] */
    float *scores;          /* [n_rows, RL_PAGE_LEN] scratch */
} rl_span;

typedef void (*rl_span_fn)(const rl_span *span);
/* Merge a span into the running state: state = state (+) span, in position order. */
typedef void (*rl_merge_fn)(int64_t n_rows, int64_t d_padded, const float *max, const float *sum,
                            const float *acc, float *state_max, float *state_sum, float *state_acc);
/* Store one token's key and value of one head at a slot of its page. */
typedef void (*rl_kv_store_fn)(const float *k, const float *v, int64_t head_dim, uint8_t *k_page,
                               uint8_t *v_page, int64_t d_padded, int64_t slot);

typedef void (*rl_norm_fn)(const float *x, const float *weight, float eps, int64_t dim, float *out);
typedef void (*rl_glu_fn)(float *gate, const float *up, int64_t n);
typedef void (*rl_scale_fn)(float *x, float factor, int64_t n);
typedef void (*rl_add_fn)(const float *x, float factor, int64_t n, float *into);
/* A row of f32 -> blocks; 0 where that cannot be. */
typedef int (*rl_quantize_fn)(const float *x, int64_t n_cols, const rl_recipe *recipe,
                              uint8_t *out);
typedef void (*rl_softcap_fn)(float *x, float factor, float cap, int64_t n);
typedef void (*rl_dequant_fn)(const uint8_t *row, int64_t n_cols, float *out);

/* How one format is multiplied at one level. fused == NULL: inherit the row of the level below;
 * where no level has one, rows are dequantised and multiplied as F32. */
typedef struct {
    rl_fused_fn fused;
    rl_panel_fn panel;
    rl_gemm_fn gemm;
    int32_t act;         /* rl_act of the fused kernel */
    int32_t gemm_act;    /* rl_act of the GEMM */
    int32_t offset;      /* what `load` adds to weights to make them unsigned */
    int32_t n_terms;     /* floats that a row of a block has in a panel: scales and mins */
    int32_t n_lanes;     /* weight rows side by side, at most RL_MAX_LANES */
    int32_t max_tile;    /* tokens in a tile, at most RL_MAX_TILE */
    int32_t fused_tile;  /* the same for the fused kernel */
    int32_t fused_tiles; /* up to this many of max_tile, unpacking again beats a panel */
} rl_format_row;

#define RL_MAX_LANES 16
#define RL_MAX_TILE 16

typedef struct {
    const char *name;
    uint32_t needs; /* RL_CPU_ bits */
    rl_format_row formats[RL_N_FORMATS];
    rl_quant_act_fn quant_act[RL_N_ACTS];
    rl_dequant_fn dequant[RL_N_FORMATS];
    rl_span_fn span[RL_N_KV_FORMATS];
    int32_t span_tile; /* query rows in a tile of `span`; inherited with it */
    rl_kv_store_fn kv_store[RL_N_KV_FORMATS];
    rl_merge_fn merge;
    rl_norm_fn rms_norm;
    rl_glu_fn glu[RL_N_ACTIVATIONS];
    rl_scale_fn scale;
    rl_add_fn add;
    rl_softcap_fn softcap;
    rl_quantize_fn quantize[RL_N_RECIPES];
} rl_isa_table;

/* CPU features that a level may need. */
enum {
    RL_CPU_ABSENT = 1u << 30, /* no CPU has it: the level is not in this build */
    RL_CPU_AVX2 = 1u << 0,    /* AVX2, FMA, F16C, and the OS saves ymm */
    RL_CPU_AVX512 = 1u << 1,  /* F BW DQ VL, and the OS saves zmm */
    RL_CPU_AVX512_VNNI = 1u << 2,
    RL_CPU_AVX512_BF16 = 1u << 3,
    RL_CPU_NEON = 1u << 8,
    RL_CPU_NEON_DOT = 1u << 9,
    RL_CPU_NEON_I8MM = 1u << 10,
};

uint32_t rl_cpu_features(void);

/* Levels in ascending order; a later one is preferred. */
#if defined(__x86_64__) || defined(_M_X64)
#define RL_ISAS(X) X(scalar) X(avx2) X(avx512) X(avx512vnni) X(avx512bf16)
#elif defined(__aarch64__) || defined(_M_ARM64)
#define RL_ISAS(X) X(scalar) X(neon) X(neon_dot) X(neon_i8mm)
#else
#define RL_ISAS(X) X(scalar)
#endif

#endif
