"""What Cython knows of rl.h, in its order; the comments stand there."""

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint64_t

cdef extern from "rl.h" nogil:
    enum: RL_PAGE_LEN
    enum: RL_MAX_OUTPUTS
    ctypedef enum rl_status:
        RL_OK
        RL_NO_MEMORY
        RL_BAD_ARGUMENT
    ctypedef struct rl_ctx:
        pass
    rl_ctx *rl_ctx_new(const char *isa, int n_threads) noexcept
    void rl_ctx_free(rl_ctx *ctx) noexcept
    const char *rl_ctx_isa(const rl_ctx *ctx) noexcept
    int rl_ctx_threads(const rl_ctx *ctx) noexcept
    int rl_ctx_has_kernels(const rl_ctx *ctx, int format) noexcept
    void rl_ctx_set_serial(rl_ctx *ctx) noexcept
    int rl_ctx_serial(const rl_ctx *ctx) noexcept
    int rl_isa_count() noexcept
    const char *rl_isa_name(int i) noexcept
    int rl_isa_compiled(int i) noexcept
    int rl_isa_usable(int i) noexcept
    const char *rl_parallel_kind() noexcept
    int rl_format_count() noexcept
    const char *rl_format_name(int format) noexcept
    int rl_format_block_len(int format) noexcept
    int rl_format_block_bytes(int format) noexcept
    ctypedef struct rl_weight:
        const uint8_t *data
        int64_t n_rows, n_cols, row_bytes
        int32_t format
        const int32_t *column_order
    ctypedef struct rl_matmul_op:
        const float *x
        int64_t x_stride, n_tokens
        const rl_weight *w[16]
        float *out[16]
        int64_t out_stride[16]
        int n_outputs
        int add
    rl_status rl_matmul(rl_ctx *ctx, const rl_matmul_op *op) noexcept
    enum: RL_N_RECIPES
    enum: RL_QUANTIZE_SYMMETRIC_8
    ctypedef struct rl_recipe:
        int32_t kind, scale_type
        int64_t group
    rl_status rl_quantize(rl_ctx *ctx, const rl_weight *source, const rl_recipe *recipe,
                          uint8_t *out, int64_t out_row_bytes) noexcept
    ctypedef struct rl_unpack_op:
        const uint8_t *words
        int64_t step_k, step_n
        int32_t bits, across_rows
        int64_t first_row, n_rows, n_cols
        const int32_t *inputs
        const int32_t *group_of_block
        const uint8_t *heads
        const int16_t *offsets
        int32_t nibbles
        uint8_t *out
    rl_status rl_unpack(rl_ctx *ctx, const rl_unpack_op *op) noexcept
    rl_status rl_embed(rl_ctx *ctx, const rl_weight *table, const int32_t *ids, int64_t n_tokens,
                       int32_t first_row, float *out, int64_t out_stride) noexcept
    rl_status rl_rms_norm(rl_ctx *ctx, const float *x, const float *weight, double eps,
                          int64_t n_tokens, int64_t dim, float *out) noexcept
    ctypedef enum rl_activation:
        RL_SILU
        RL_GELU
        RL_GELU_TANH
        RL_SWIGLU_CLAMPED
    rl_status rl_glu(rl_ctx *ctx, float *gate, const float *up, int64_t n_values,
                     rl_activation activation) noexcept
    enum: RL_MAX_EXPERTS
    ctypedef struct rl_experts:
        const rl_weight *router
        const float *router_bias
        const rl_weight *gate
        const rl_weight *up
        const rl_weight *down
        const float **gate_bias
        const float **up_bias
        const float **down_bias
        int64_t n_experts, n_used, dim, ffn_dim
        rl_activation activation
        int normalise
    ctypedef struct rl_moe_op:
        const float *x
        float *into
        int64_t n_tokens
        const rl_experts *experts
    rl_status rl_moe(rl_ctx *ctx, const rl_moe_op *op) noexcept
    rl_status rl_grow_rows(rl_ctx *ctx, float *x, const int32_t *positions, double growth,
                           int64_t length, int64_t n_rows, int64_t n_cols) noexcept
    rl_status rl_scale_values(rl_ctx *ctx, float *x, double factor, int64_t n_values) noexcept
    rl_status rl_add_rows(rl_ctx *ctx, const float *x, int64_t x_rows, double factor, int64_t n_tokens,
                     int64_t n_cols, float *into) noexcept
    rl_status rl_softcap_values(rl_ctx *ctx, float *x, double scale, double cap,
                         int64_t n_values) noexcept
    ctypedef struct rl_rope_table:
        int64_t max_seq_len, half_dim
    rl_rope_table *rl_rope_table_new(const double *inv_freq, int64_t half_dim, int64_t max_seq_len,
                                     double factor) noexcept
    void rl_rope_table_free(rl_rope_table *table) noexcept
    void rl_rope_table_fill(rl_rope_table *table, int64_t position) noexcept
    ctypedef enum rl_rope_style:
        RL_ROPE_INTERLEAVED
        RL_ROPE_HALF
    rl_status rl_rope(rl_ctx *ctx, float *x, int64_t n_tokens, int64_t n_heads, int64_t head_dim,
                      const int32_t *positions, const rl_rope_table *table,
                      rl_rope_style style) noexcept
    enum: RL_KV_F32
    enum: RL_KV_F16
    enum: RL_KV_Q8_0
    ctypedef struct rl_kv:
        int64_t n_layers, n_pages, n_kv_heads, head_dim
    rl_kv *rl_kv_new(int64_t n_layers, int64_t n_pages, int64_t n_kv_heads, int64_t head_dim,
                     int32_t format) noexcept
    void rl_kv_free(rl_kv *kv) noexcept
    int64_t rl_kv_page_bytes(const rl_kv *kv) noexcept
    ctypedef struct rl_attend_op:
        const float *q
        const float *k
        const float *v
        float *out
        const int32_t *positions
        const int32_t *seq_start
        const int32_t *page_table
        int64_t n_tokens, n_seqs, n_heads, pages_per_seq, layer
        const float *sinks
        double scale, softcap
        int64_t window
    rl_status rl_attend(rl_ctx *ctx, rl_kv *kv, const rl_attend_op *op) noexcept
    uint64_t rl_read_all(rl_ctx *ctx, const uint8_t *data, int64_t n_bytes) noexcept
