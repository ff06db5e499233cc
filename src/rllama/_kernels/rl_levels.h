/* The levels of this architecture in ascending order; a level that the compiler could not build
 * has no table. Included by context.c alone. */
typedef struct {
    const char *name;
    const rl_isa_table *table;
} level_entry;

static const level_entry levels[] = {
#ifndef RL_NO_scalar
    {"scalar", &rl_table_scalar},
#endif
#if defined(__x86_64__) || defined(_M_X64)
#ifdef RL_NO_avx2
    {"avx2", NULL},
#else
    {"avx2", &rl_table_avx2},
#endif
#ifdef RL_NO_avx512
    {"avx512", NULL},
#else
    {"avx512", &rl_table_avx512},
#endif
#ifdef RL_NO_avx512vnni
    {"avx512vnni", NULL},
#else
    {"avx512vnni", &rl_table_avx512vnni},
#endif
#ifdef RL_NO_avx512bf16
    {"avx512bf16", NULL},
#else
    {"avx512bf16", &rl_table_avx512bf16},
#endif
#elif defined(__aarch64__) || defined(_M_ARM64)
#ifdef RL_NO_neon
    {"neon", NULL},
#else
    {"neon", &rl_table_neon},
#endif
#ifdef RL_NO_neon_dot
    {"neon_dot", NULL},
#else
    {"neon_dot", &rl_table_neon_dot},
#endif
#ifdef RL_NO_neon_i8mm
    {"neon_i8mm", NULL},
#else
    {"neon_i8mm", &rl_table_neon_i8mm},
#endif
#endif
};
