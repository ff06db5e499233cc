/* Contexts, the choice of the level, the merging of tables, scratch memory. */
#include "context.h"

#include <stdlib.h>
#include <string.h>

#include "dequant.h"
#include "parallel.h"
#include "pool.h"
#include "selftest.h"

#define DECLARE(name) extern const rl_isa_table rl_table_##name;
#define ADDRESS(name) &rl_table_##name,
RL_ISAS(DECLARE)

static const rl_isa_table *const levels[] = {RL_ISAS(ADDRESS)};
#define N_LEVELS ((int)(sizeof levels / sizeof levels[0]))

int rl_isa_count(void) { return N_LEVELS; }
const char *rl_isa_name(int i) { return levels[i]->name; }
int rl_isa_compiled(int i) { return (levels[i]->needs & RL_CPU_ABSENT) == 0; }
int rl_isa_usable(int i) { return (levels[i]->needs & ~rl_cpu_features()) == 0; }

#define FORMAT_NAME(id, name, len, bytes) name,
#define FORMAT_LEN(id, name, len, bytes) len,
#define FORMAT_BYTES(id, name, len, bytes) bytes,
static const char *const format_names[] = {RL_FORMATS(FORMAT_NAME)};
static const int format_lens[] = {RL_FORMATS(FORMAT_LEN)};
static const int format_bytes[] = {RL_FORMATS(FORMAT_BYTES)};

int rl_format_count(void) { return RL_N_FORMATS; }
const char *rl_format_name(int format) { return format_names[format]; }
int rl_format_block_len(int format) { return format_lens[format]; }
int rl_format_block_bytes(int format) { return format_bytes[format]; }

void *rl_arena_get(rl_arena *arena, size_t n_bytes) {
    if (n_bytes <= arena->n_bytes) return arena->data;
    void *old = arena->block;
    arena->block = NULL;
    arena->n_bytes = 0;
    free(old);
    arena->block = malloc(n_bytes + 64);
    if (arena->block == NULL) return NULL;
    arena->data = (uint8_t *)(((uintptr_t)arena->block + 63) & ~(uintptr_t)63);
    arena->n_bytes = n_bytes;
    return arena->data;
}

/* Fill what `upper` leaves out from `lower`. */
static void inherit(rl_isa_table *upper, const rl_isa_table *lower) {
    for (int f = 0; f < RL_N_FORMATS; f++) {
        if (upper->formats[f].fused == NULL) upper->formats[f] = lower->formats[f];
        if (upper->dequant[f] == NULL) upper->dequant[f] = lower->dequant[f];
    }
    for (int a = 0; a < RL_N_ACTS; a++)
        if (upper->quant_act[a] == NULL) upper->quant_act[a] = lower->quant_act[a];
    for (int k = 0; k < RL_N_KV_FORMATS; k++) {
        if (upper->span[k] == NULL) {
            upper->span[k] = lower->span[k];
            upper->span_tile = lower->span_tile;
        }
        if (upper->kv_store[k] == NULL) upper->kv_store[k] = lower->kv_store[k];
    }
    if (upper->merge == NULL) upper->merge = lower->merge;
    if (upper->rms_norm == NULL) upper->rms_norm = lower->rms_norm;
    for (int a = 0; a < RL_N_ACTIVATIONS; a++)
        if (upper->glu[a] == NULL) upper->glu[a] = lower->glu[a];
    if (upper->scale == NULL) upper->scale = lower->scale;
    if (upper->add == NULL) upper->add = lower->add;
    if (upper->softcap == NULL) upper->softcap = lower->softcap;
    for (int r = 0; r < RL_N_RECIPES; r++)
        if (upper->quantize[r] == NULL) upper->quantize[r] = lower->quantize[r];
}

/* The table of a level, completed from the levels below. A format that no level multiplies keeps
 * fused == NULL: op_matmul.c turns its rows into F32 ones. */
static rl_isa_table complete_table(int level) {
    rl_isa_table table = *levels[level];
    for (int i = level - 1; i >= 0; i--) inherit(&table, levels[i]);
    for (int f = 0; f < RL_N_FORMATS; f++)
        if (table.dequant[f] == NULL) table.dequant[f] = rl_plain_dequant(f);
    return table;
}

/* The level asked for, or the best one; a level that fails its self-test is passed over. */
static int choose_table(const char *isa, rl_isa_table *table) {
    for (int i = N_LEVELS - 1; i >= 0; i--) {
        if (!rl_isa_usable(i) || (isa != NULL && strcmp(isa, levels[i]->name) != 0)) continue;
        *table = complete_table(i);
        if (rl_table_works(table)) return 1;
    }
    return 0;
}

rl_ctx *rl_ctx_new(const char *isa, int n_threads) {
    rl_ctx *ctx = calloc(1, sizeof *ctx);
    if (ctx == NULL || n_threads < 1 || !choose_table(isa, &ctx->table)) {
        free(ctx);
        return NULL;
    }
    ctx->n_threads = n_threads;
#ifdef RL_POOL
    ctx->pool = rl_pool_new(n_threads);
    if (ctx->pool == NULL) {
        free(ctx);
        return NULL;
    }
    ctx->n_threads = rl_pool_threads(ctx->pool);
#endif
    ctx->private = calloc((size_t)ctx->n_threads, sizeof *ctx->private);
    if (ctx->private == NULL ||
        rl_arena_get(&ctx->shares, (size_t)ctx->n_threads * sizeof(rl_share)) == NULL) {
        rl_ctx_free(ctx);
        return NULL;
    }
    return ctx;
}

void rl_ctx_free(rl_ctx *ctx) {
    if (ctx == NULL) return;
#ifdef RL_POOL
    rl_pool_free(ctx->pool);
#endif
    for (int i = 0; ctx->private != NULL && i < ctx->n_threads; i++) free(ctx->private[i].block);
    free(ctx->private);
    free(ctx->shared.block);
    free(ctx->parts.block);
    free(ctx->pairs.block);
    free(ctx->shares.block);
    free(ctx);
}

const char *rl_ctx_isa(const rl_ctx *ctx) { return ctx->table.name; }
int rl_ctx_has_kernels(const rl_ctx *ctx, int format) {
    return ctx->table.formats[format].fused != NULL;
}
int rl_ctx_threads(const rl_ctx *ctx) { return ctx->n_threads; }
void rl_ctx_set_serial(rl_ctx *ctx) { ctx->serial = 1; }
int rl_ctx_serial(const rl_ctx *ctx) { return ctx->serial; }
