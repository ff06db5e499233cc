/* rl_parallel_for: a pool (an OpenMP team that stays open, or POSIX threads), libdispatch on macOS,
 * plain OpenMP on Windows, or serial. */
#include "parallel.h"

#include "context.h"
#include "pool.h"

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

typedef struct {
    rl_share *shares;
    int n_shares;
    rl_item_fn fn;
    void *arg;
} shared_work;

/* What one thread does of a region. */
static void work_through(void *arg, int thread) {
    const shared_work *work = arg;
    fp_state host = enter_fp();
    int64_t item;
    while ((item = rl_next_item(work->shares, work->n_shares, thread)) >= 0)
        work->fn(work->arg, item, thread);
    leave_fp(host);
}

static void run_threads(rl_ctx *ctx, int n_threads, shared_work *work);

void rl_parallel_for(rl_ctx *ctx, int64_t n_items, rl_item_fn fn, void *arg) {
    int n_threads = ctx->n_threads < n_items ? ctx->n_threads : (int)n_items;
    if (n_threads <= 1 || ctx->serial) {
        rl_run_inline(n_items, fn, arg);
        return;
    }
    shared_work work = {(rl_share *)(void *)ctx->shares.data, n_threads, fn, arg};
    rl_share_out(work.shares, n_threads, n_items);
    run_threads(ctx, n_threads, &work);
}

#if defined(RL_POOL)

#ifdef _OPENMP
const char *rl_parallel_kind(void) { return "OpenMP"; }
#else
const char *rl_parallel_kind(void) { return "POSIX threads"; }
#endif

static void run_threads(rl_ctx *ctx, int n_threads, shared_work *work) {
    rl_pool_run(ctx->pool, n_threads, work_through, work);
}

#elif defined(_OPENMP)

#include <omp.h>

const char *rl_parallel_kind(void) { return "OpenMP"; }

static void run_threads(rl_ctx *ctx, int n_threads, shared_work *work) {
    (void)ctx;
#pragma omp parallel num_threads(n_threads)
    { work_through(work, omp_get_thread_num()); }
}

#elif defined(__APPLE__) && !defined(RL_SERIAL)

#include <dispatch/dispatch.h>

const char *rl_parallel_kind(void) { return "libdispatch"; }

static void start_thread(void *work, size_t thread) { work_through(work, (int)thread); }

static void run_threads(rl_ctx *ctx, int n_threads, shared_work *work) {
    (void)ctx;
    dispatch_apply_f((size_t)n_threads, DISPATCH_APPLY_AUTO, work, start_thread);
}

#else

const char *rl_parallel_kind(void) { return "serial"; }

static void run_threads(rl_ctx *ctx, int n_threads, shared_work *work) {
    (void)ctx;
    (void)n_threads;
    work_through(work, 0);
}

#endif
