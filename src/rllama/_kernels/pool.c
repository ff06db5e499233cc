/* The pool of a context: an OpenMP team that is opened once and stays open, or POSIX threads where
 * the compiler has no OpenMP. Who has nothing to do spins for some microseconds, which bridges the gap
 * between two ops, and then sleeps, because on a busy machine it keeps the processor from the very
 * thread that is waited for.
 *
 * A job is open while the calling thread works on it. Workers that find it open enter; the caller
 * closes it when nothing is left to take, and waits for those inside. One that the system runs late
 * finds the job closed: its share was done by others. So an op waits only for a thread that was
 * interrupted in the middle of an item, never for one that has yet to start.
 */
#if defined(__linux__)
#define _GNU_SOURCE /* syscall */
#endif

#include "pool.h"

#ifdef RL_POOL

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#define SPINS 1000                /* rounds of waiting before a thread sleeps, some 20 us */
#define STACK_BYTES (1024 * 1024) /* kernels keep tiles on the stack, and nothing larger */
#define OPEN 0x80000000u

#ifdef _OPENMP
#include <omp.h>
#endif

struct rl_pool {
    _Alignas(64) _Atomic uint32_t state; /* OPEN, and how many workers are inside */
    _Atomic uint32_t caller_sleeps;
    _Alignas(64) _Atomic uint32_t n_jobs; /* workers wait for it to change */
    _Atomic uint32_t n_asleep, is_ending, n_numbered;
    _Alignas(64) rl_pool_fn fn; /* of the open job */
    void *arg;
    int n_wanted;
    int n_threads;  /* the calling one included */
    pid_t pid;      /* of the process that has the threads */
    pthread_t *ids; /* of the threads that were started here */
    int n_started;
#if !defined(__linux__)
    pthread_mutex_t mutex;
    pthread_cond_t changed;
#endif
};

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

#if defined(__linux__)

#include <linux/futex.h>
#include <sys/syscall.h>

static int prepare_sleep(rl_pool *pool) {
    (void)pool;
    return 1;
}
static void forget_sleep(rl_pool *pool) { (void)pool; }

/* Sleeps until someone wakes, at once awake if the word has another value already. */
static void sleep_while(rl_pool *pool, _Atomic uint32_t *word, uint32_t value) {
    (void)pool;
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake_all(rl_pool *pool, _Atomic uint32_t *word) {
    (void)pool;
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

#else

static int prepare_sleep(rl_pool *pool) {
    return pthread_mutex_init(&pool->mutex, NULL) == 0 &&
           pthread_cond_init(&pool->changed, NULL) == 0;
}

static void forget_sleep(rl_pool *pool) {
    pthread_cond_destroy(&pool->changed);
    pthread_mutex_destroy(&pool->mutex);
}

static void sleep_while(rl_pool *pool, _Atomic uint32_t *word, uint32_t value) {
    pthread_mutex_lock(&pool->mutex);
    while (atomic_load(word) == value) pthread_cond_wait(&pool->changed, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

static void wake_all(rl_pool *pool, _Atomic uint32_t *word) {
    (void)word;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->changed);
    pthread_mutex_unlock(&pool->mutex);
}

#endif

/* Waits until there is a job after `n_known`; the number of jobs then. */
static uint32_t wait_for_job(rl_pool *pool, uint32_t n_known) {
    for (int i = 0; i < SPINS; i++) {
        uint32_t n = atomic_load_explicit(&pool->n_jobs, memory_order_acquire);
        if (n != n_known) return n;
        pause_briefly();
    }
    atomic_fetch_add(&pool->n_asleep, 1);
    while (atomic_load(&pool->n_jobs) == n_known) sleep_while(pool, &pool->n_jobs, n_known);
    atomic_fetch_sub(&pool->n_asleep, 1);
    return atomic_load(&pool->n_jobs);
}

static void join_job(rl_pool *pool, int thread) {
    uint32_t state = atomic_load_explicit(&pool->state, memory_order_relaxed);
    do {
        if (!(state & OPEN)) return;
    } while (!atomic_compare_exchange_weak(&pool->state, &state, state + 1));
    if (thread < pool->n_wanted) pool->fn(pool->arg, thread);
    /* 1: closed, and this was the last one inside */
    if (atomic_fetch_sub(&pool->state, 1) == 1 && atomic_load(&pool->caller_sleeps))
        wake_all(pool, &pool->state);
}

static void work(rl_pool *pool, int thread) {
    uint32_t n_known = 0;
    for (;;) {
        n_known = wait_for_job(pool, n_known);
        if (atomic_load(&pool->is_ending)) return;
        join_job(pool, thread);
    }
}

static void announce(rl_pool *pool) {
    atomic_fetch_add(&pool->n_jobs, 1);
    if (atomic_load(&pool->n_asleep)) wake_all(pool, &pool->n_jobs);
}

static void wait_for_those_inside(rl_pool *pool) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&pool->state, memory_order_acquire) == 0) return;
        pause_briefly();
    }
    uint32_t state;
    atomic_store(&pool->caller_sleeps, 1);
    while ((state = atomic_load(&pool->state)) != 0) sleep_while(pool, &pool->state, state);
    atomic_store(&pool->caller_sleeps, 0);
}

void rl_pool_run(rl_pool *pool, int n_threads, rl_pool_fn fn, void *arg) {
    pool->fn = fn;
    pool->arg = arg;
    pool->n_wanted = n_threads;
    atomic_store(&pool->state, OPEN);
    announce(pool);
    fn(arg, 0);
    if (atomic_fetch_and(&pool->state, ~OPEN) != OPEN) wait_for_those_inside(pool);
}

/* Signals are for the threads of the host program. */
static int start(pthread_t *id, void *(*fn)(void *), void *arg) {
    sigset_t all, before;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return 0;
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int status = pthread_create(id, &attributes, fn, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return status == 0;
}

#ifdef _OPENMP

static void *wait_for_gate(void *gate) {
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

/* How many of n threads the system starts, all alive at once: OpenMP ends the process where it
 * cannot start one. */
static int n_startable(pthread_t *ids, int n) {
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    int n_started = 0;
    pthread_mutex_lock(&gate);
    while (n_started < n && start(&ids[n_started], wait_for_gate, &gate)) n_started++;
    pthread_mutex_unlock(&gate);
    for (int i = 0; i < n_started; i++) pthread_join(ids[i], NULL);
    pthread_mutex_destroy(&gate);
    return n_started;
}

/* A smaller team than asked for does no harm: who is missing is never waited for. */
static void *open_team(void *arg) {
    rl_pool *pool = arg;
    omp_set_dynamic(0);
#pragma omp parallel num_threads(pool->n_threads - 1)
    { work(pool, 1 + omp_get_thread_num()); }
    return NULL;
}

static void start_workers(rl_pool *pool, int n_workers) {
    pool->n_threads = 1 + n_startable(pool->ids, n_workers);
    if (pool->n_threads == 1) return;
    pool->n_started = start(&pool->ids[0], open_team, pool);
    if (pool->n_started == 0) pool->n_threads = 1;
}

#else

static void *work_alone(void *arg) {
    rl_pool *pool = arg;
    work(pool, 1 + (int)atomic_fetch_add(&pool->n_numbered, 1));
    return NULL;
}

static void start_workers(rl_pool *pool, int n_workers) {
    while (pool->n_started < n_workers && start(&pool->ids[pool->n_started], work_alone, pool))
        pool->n_started++;
    pool->n_threads = 1 + pool->n_started;
}

#endif

rl_pool *rl_pool_new(int n_threads) {
    rl_pool *pool = aligned_alloc(64, (sizeof *pool + 63) / 64 * 64);
    if (pool == NULL) return NULL;
    *pool = (rl_pool){.n_threads = 1, .pid = getpid()};
    pool->ids = calloc((size_t)n_threads, sizeof *pool->ids);
    if (pool->ids == NULL || !prepare_sleep(pool)) {
        free(pool->ids);
        free(pool);
        return NULL;
    }
    start_workers(pool, n_threads - 1);
    return pool;
}

int rl_pool_threads(const rl_pool *pool) { return pool->n_threads; }

void rl_pool_free(rl_pool *pool) {
    if (pool == NULL) return;
    if (pool->pid == getpid()) {
        atomic_store(&pool->is_ending, 1);
        announce(pool);
        for (int i = 0; i < pool->n_started; i++) pthread_join(pool->ids[i], NULL);
        forget_sleep(pool);
    }
    free(pool->ids);
    free(pool);
}

#endif
