/* How the items of one parallel region are divided. Every thread owns a contiguous share and works
 * through it in order, because weights are read ahead linearly; a thread that has finished takes
 * items from the far end of another's share, so that no thread waits for a slower one. */
#ifndef RL_SHARES_H
#define RL_SHARES_H

#include <stdatomic.h>
#include <stdint.h>

/* First item that nobody has taken in the low half, the end of the share in the high half. */
typedef struct {
    _Alignas(64) _Atomic uint64_t range;
} rl_share;

static inline void rl_share_out(rl_share *shares, int n_shares, int64_t n_items) {
    for (int64_t i = 0; i < n_shares; i++) {
        uint64_t first = (uint64_t)(i * n_items / n_shares);
        uint64_t end = (uint64_t)((i + 1) * n_items / n_shares);
        atomic_store_explicit(&shares[i].range, end << 32 | first, memory_order_relaxed);
    }
}

/* An item from the front of a share, or from its far end; -1 when it is empty. */
static inline int64_t rl_take(rl_share *share, int from_front) {
    uint64_t range = atomic_load_explicit(&share->range, memory_order_relaxed);
    for (;;) {
        uint64_t first = range & 0xffffffffu, end = range >> 32;
        if (first >= end) return -1;
        uint64_t left = from_front ? end << 32 | (first + 1) : (end - 1) << 32 | first;
        if (atomic_compare_exchange_weak(&share->range, &range, left))
            return (int64_t)(from_front ? first : end - 1);
    }
}

/* The next item for the owner of share `own`; -1 when everything is taken. */
static inline int64_t rl_next_item(rl_share *shares, int n_shares, int own) {
    int64_t item = rl_take(&shares[own], 1);
    for (int i = 1; item < 0 && i < n_shares; i++) item = rl_take(&shares[(own + i) % n_shares], 0);
    return item;
}

#endif
