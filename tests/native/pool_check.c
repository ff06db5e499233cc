/* Many short jobs through a pool: every item is done exactly once, by a thread that belongs to the
 * job, and nobody is inside once a run has returned. With pauses, so that threads sleep too. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "pool.h"
#include "shares.h"

#define MOST 37

typedef struct {
    rl_share shares[4];
    int n_shares;
    int done[MOST]; /* plain: a thread sanitizer sees two writers, and a reader that is too early */
    _Atomic int is_open;
} job;

static void fail(const char *what, int n) {
    fprintf(stderr, "%s: %d\n", what, n);
    exit(1);
}

static void work(void *arg, int thread) {
    job *j = arg;
    int64_t item;
    if (!j->is_open || thread >= j->n_shares) fail("a thread in a job that is not its own", thread);
    while ((item = rl_next_item(j->shares, j->n_shares, thread)) >= 0) j->done[item]++;
    if (!j->is_open) fail("a thread that was not waited for", thread);
}

int main(int argc, char **argv) {
    int n_jobs = argc > 1 ? atoi(argv[1]) : 20000;
    rl_pool *pool = rl_pool_new(4);
    if (pool == NULL || rl_pool_threads(pool) != 4) fail("threads", 0);
    for (int n = 0; n < n_jobs; n++) {
        job j = {.n_shares = 2 + n % 3, .is_open = 1};
        int n_items = 1 + n % MOST;
        rl_share_out(j.shares, j.n_shares, n_items);
        rl_pool_run(pool, j.n_shares, work, &j);
        j.is_open = 0;
        for (int i = 0; i < n_items; i++)
            if (j.done[i] != 1) fail("an item that was done another number of times", j.done[i]);
        if (n % 100 == 0) usleep(200);
    }
    rl_pool_free(pool);
    rl_pool_free(rl_pool_new(1));
    printf("%d jobs\n", n_jobs);
    return 0;
}
