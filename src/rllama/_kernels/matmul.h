/* Products that one op computes together, for the drivers that multiply. */
#ifndef RL_MATMUL_H
#define RL_MATMUL_H

#include "rl.h"

/* out[T, N] (+)= x[T, K] . w[N, K]^T; strides from one token to the next, in values. */
typedef struct {
    const rl_weight *w;
    const float *x;
    float *out;
    int64_t x_stride, out_stride, n_tokens;
} rl_product;

/* Any number of products, shared out among the threads as one piece of work. Neighbours that read
 * the same x in the same way share its quantised activations. */
rl_status rl_products(rl_ctx *ctx, const rl_product *products, int64_t n_products, int add);

#endif
