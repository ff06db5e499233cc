/* The context: the only owner of table, threads and scratch. Seen by the drivers alone. */
#ifndef RL_CONTEXT_H
#define RL_CONTEXT_H

#include "rl_isa.h"
#include "shares.h"

typedef struct {
    uint8_t *data; /* 64-byte aligned */
    size_t n_bytes;
    void *block; /* what is freed */
} rl_arena;

struct rl_ctx {
    rl_isa_table table; /* the chosen level, completed from the levels below */
    int n_threads;
    struct rl_pool *pool; /* NULL where another library has the threads */
    int serial;
    rl_arena shared;   /* activations of the op in progress */
    rl_arena *private; /* [n_threads] panels and tiles */
    rl_arena parts;    /* the plan of a matmul */
    rl_arena pairs;    /* tokens and their experts */
    rl_arena shares;   /* [n_threads] rl_share of the region in progress */
};

/* Memory of at least n_bytes, kept until the context goes; the old content is lost. NULL: none. */
void *rl_arena_get(rl_arena *arena, size_t n_bytes);

static inline int64_t rl_div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t rl_round_up(int64_t a, int64_t b) { return rl_div_up(a, b) * b; }
static inline int64_t rl_min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t rl_max64(int64_t a, int64_t b) { return a > b ? a : b; }

#endif
