/* The one home of native threads. */
#ifndef RL_PARALLEL_H
#define RL_PARALLEL_H

#include "rl.h"

/* Multiply-adds below which starting the threads costs more than they bring. */
#define RL_INLINE_WORK (128 * 1024)

/* Work on item `item` as thread `thread` (0 .. rl_ctx_threads - 1). */
typedef void (*rl_item_fn)(void *arg, int64_t item, int thread);

/* Call fn for every item 0..n_items-1; idle threads take the next one. Inline when there is one
 * item, one thread, or the context is serial. */
void rl_parallel_for(rl_ctx *ctx, int64_t n_items, rl_item_fn fn, void *arg);

/* The same as rl_parallel_for in the calling thread, for work too small to share. */
void rl_run_inline(int64_t n_items, rl_item_fn fn, void *arg);

#endif
