/* Threads that wait for work: the pool of one context, on Linux and other POSIX systems. */
#ifndef RL_POOL_H
#define RL_POOL_H

#include "parallel.h"

#if !defined(RL_SERIAL) && !defined(_WIN32) && !defined(__APPLE__)
#define RL_POOL 1
#endif

typedef struct rl_pool rl_pool;

/* Work through what there is, as thread `thread`. */
typedef void (*rl_pool_fn)(void *arg, int thread);

/* A pool of up to n_threads, the calling one among them: fewer where the system starts no more.
 * NULL: no memory. */
rl_pool *rl_pool_new(int n_threads);
int rl_pool_threads(const rl_pool *pool);

/* Ends the threads. In a child of fork there are none, and only memory is freed. */
void rl_pool_free(rl_pool *pool);

/* Runs fn in the calling thread and in those of the first n_threads that come while it does, and
 * returns when all that have come are done. A thread that is late is not waited for, so what fn
 * works through must be shared out so that others can do it. */
void rl_pool_run(rl_pool *pool, int n_threads, rl_pool_fn fn, void *arg);

#endif
