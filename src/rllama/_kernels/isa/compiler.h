/* What compilers spell differently. */
#ifndef RL_COMPILER_H
#define RL_COMPILER_H

#if defined(_MSC_VER) && !defined(__clang__)
#define RL_INLINE static __forceinline
#define RL_PREFETCH(p) _mm_prefetch((const char *)(p), _MM_HINT_T1)
#define RL_UNROLL
#define RL_KEEP_ORDER(v)
#else
#define RL_INLINE static inline __attribute__((always_inline))
#define RL_PREFETCH(p) __builtin_prefetch((p), 0, 2)
#define RL_UNROLL _Pragma("GCC unroll 16")
/* Sums of integers stay in the order they are written in: as a tree, they would want more registers
 * than there are. */
#if defined(__AVX512F__)
#define RL_KEEP_ORDER(v) __asm__("" : "+v"(v))
#elif defined(__x86_64__)
#define RL_KEEP_ORDER(v) __asm__("" : "+x"(v))
#endif
#endif

#endif
