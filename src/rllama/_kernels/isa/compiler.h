/* What compilers spell differently. */
#ifndef RL_COMPILER_H
#define RL_COMPILER_H

#if defined(_MSC_VER) && !defined(__clang__)
#define RL_INLINE static __forceinline
#define RL_PREFETCH(p) _mm_prefetch((const char *)(p), _MM_HINT_T1)
#define RL_UNROLL
#else
#define RL_INLINE static inline __attribute__((always_inline))
#define RL_PREFETCH(p) __builtin_prefetch((p), 0, 2)
#define RL_UNROLL _Pragma("GCC unroll 16")
#endif

#endif
