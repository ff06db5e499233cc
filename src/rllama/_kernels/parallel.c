/* rl_parallel_for: OpenMP, libdispatch on macOS, or serial. */
#include "parallel.h"

#include "context.h"

/* Kernels run with round-to-nearest and with subnormals, whatever the host program has set; its
 * own setting comes back afterwards. */
#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
typedef unsigned int fp_state;
static fp_state enter_fp(void) {
    fp_state old = _mm_getcsr();
    _mm_setcsr(0x1f80);
    return old;
}
static void leave_fp(fp_state old) { _mm_setcsr(old); }
#elif defined(__aarch64__) && !defined(_MSC_VER)
typedef uint64_t fp_state;
static fp_state enter_fp(void) {
    fp_state old;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    if (old != 0) __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)0));
    return old;
}
static void leave_fp(fp_state old) {
    if (old != 0) __asm__ volatile("msr fpcr, %0" ::"r"(old));
}
#else
typedef int fp_state;
static fp_state enter_fp(void) { return 0; }
static void leave_fp(fp_state old) { (void)old; }
#endif

void rl_run_inline(int64_t n_items, rl_item_fn fn, void *arg) {
    fp_state host = enter_fp();
    for (int64_t item = 0; item < n_items; item++) fn(arg, item, 0);
    leave_fp(host);
}

#if defined(_OPENMP) && !defined(_WIN32)

#include <pthread.h>
#include <stdlib.h>

static void *wait_for_gate(void *gate) {
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

/* Start all of them at once, as the threads library will, and let them go again. */
int rl_startable_threads(int wanted) {
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_t *threads = malloc((size_t)wanted * sizeof *threads);
    int n = 1; /* the calling one */
    if (threads == NULL) return 1;
    pthread_mutex_lock(&gate);
    while (n < wanted && pthread_create(&threads[n], NULL, wait_for_gate, &gate) == 0) n++;
    pthread_mutex_unlock(&gate);
    for (int i = 1; i < n; i++) pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&gate);
    free(threads);
    return n;
}

#else

int rl_startable_threads(int wanted) { return wanted; }

#endif

#if defined(_OPENMP) || (defined(__APPLE__) && !defined(RL_SERIAL))

static void work_through(rl_share *shares, int n_shares, rl_item_fn fn, void *arg, int thread) {
    fp_state host = enter_fp();
    int64_t item;
    while ((item = rl_next_item(shares, n_shares, thread)) >= 0) fn(arg, item, thread);
    leave_fp(host);
}

#endif

#if defined(_OPENMP)

#include <omp.h>

const char *rl_parallel_kind(void) { return "OpenMP"; }

void rl_parallel_for(rl_ctx *ctx, int64_t n_items, rl_item_fn fn, void *arg) {
    int n_threads = ctx->n_threads < n_items ? ctx->n_threads : (int)n_items;
    if (n_threads <= 1 || ctx->serial) {
        rl_run_inline(n_items, fn, arg);
        return;
    }
    rl_share *shares = (rl_share *)(void *)ctx->shares.data;
    rl_share_out(shares, n_threads, n_items);
#pragma omp parallel num_threads(n_threads)
    { work_through(shares, n_threads, fn, arg, omp_get_thread_num()); }
}

#elif defined(__APPLE__) && !defined(RL_SERIAL)

#include <dispatch/dispatch.h>

typedef struct {
    rl_share *shares;
    int n_shares;
    rl_item_fn fn;
    void *arg;
} shared_work;

static void start_thread(void *context, size_t thread) {
    const shared_work *work = context;
    work_through(work->shares, work->n_shares, work->fn, work->arg, (int)thread);
}

const char *rl_parallel_kind(void) { return "libdispatch"; }

void rl_parallel_for(rl_ctx *ctx, int64_t n_items, rl_item_fn fn, void *arg) {
    int n_threads = ctx->n_threads < n_items ? ctx->n_threads : (int)n_items;
    if (n_threads <= 1 || ctx->serial) {
        rl_run_inline(n_items, fn, arg);
        return;
    }
    shared_work work = {(rl_share *)(void *)ctx->shares.data, n_threads, fn, arg};
    rl_share_out(work.shares, n_threads, n_items);
    dispatch_apply_f((size_t)n_threads, DISPATCH_APPLY_AUTO, &work, start_thread);
}

#else

const char *rl_parallel_kind(void) { return "serial"; }

void rl_parallel_for(rl_ctx *ctx, int64_t n_items, rl_item_fn fn, void *arg) {
    (void)ctx;
    rl_run_inline(n_items, fn, arg);
}

#endif
