/* Does a completed table compute what it should on this machine? Asked once per context. */
#ifndef RL_SELFTEST_H
#define RL_SELFTEST_H

#include "rl_isa.h"

/* 1 if every format's kernels agree with plain arithmetic on a small known case, else 0. */
int rl_table_works(const rl_isa_table *table);

#endif
