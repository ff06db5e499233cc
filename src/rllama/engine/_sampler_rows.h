// SPDX-License-Identifier: MIT
//
// The passes over a row of logits that the sampler makes, as plain loops that compilers vectorise.
//
// On x86 with GCC or Clang every pass is compiled for AVX-512 and AVX2 too, and the best that this
// machine has is taken; elsewhere there is one, for the compiler's baseline. All give the same bits:
// weights are exact in any order, and the only other sum, log_sum's, has its lanes written down.

#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace rows {

constexpr int64_t kBlock = 128; // ids per block; what a pass takes at a time
constexpr int kLanes = 16;      // running values of a pass, one AVX-512 vector of f32
constexpr float kInf = std::numeric_limits<float>::infinity();

#if defined(__GNUC__)
#define ROWS_INLINE static inline __attribute__((always_inline))
#else
#define ROWS_INLINE static inline
#endif

ROWS_INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

ROWS_INLINE float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// exp(x) for x <= 0, relative error under 2e-7; what is below -87, -inf too, counts as -87, whose
// exp is far below 2^-34. The clamp works on integers, which NaNs do not trouble.
ROWS_INLINE float exp_neg(float x) {
    const int32_t size = static_cast<int32_t>(bits_of(x) & 0x7FFFFFFFu);
    x = float_of(static_cast<uint32_t>(size < 0x42AE0000 ? size : 0x42AE0000) | 0x80000000u);
    const float shifted = x * 1.44269504f + 12582912.0f; // 1.5 * 2^23: rounds to a whole k
    const float k = shifted - 12582912.0f;
    const float r = (x - k * 0.693359375f) - k * -2.12194440e-4f; // ln 2 in two parts
    float p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * float_of((bits_of(shifted) + 127u) << 23); // times 2^k
}

// To the nearest multiple of 2^-34, for 0 <= weight <= 1. From 2^-11 on every f32 is one; below,
// the sum with 2^-11 has 2^-34 as its last bit. What comes out is exact in f32.
ROWS_INLINE float rounded(float weight) {
    constexpr float edge = 1.0f / 2048.0f;
    const float low = (weight + edge) - edge;
    return bits_of(weight) < bits_of(edge) ? low : weight;
}

// Of a token at a logit: relative to the likeliest, which has 1.
ROWS_INLINE float weigh(float logit, float max, float temperature) {
    return rounded(exp_neg((logit - max) / temperature));
}

template <class T>
ROWS_INLINE T folded(T (&lanes)[kLanes]) {
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
    return lanes[0];
}

// An integer for each float that lies as it does among others: NaNs beyond both infinities, -0 just
// below 0.
ROWS_INLINE int32_t key_of(float x) {
    const int32_t bits = static_cast<int32_t>(bits_of(x));
    return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

ROWS_INLINE float of_key(int32_t key) {
    return float_of(static_cast<uint32_t>(key ^ ((key >> 31) & 0x7FFFFFFF)));
}

// The largest of each block of x[0, n), a NaN if one of them is. Compared as integers, because compilers do
// not vectorise the maximum of floats, which NaNs and two zeros make depend on the order.
ROWS_INLINE void maxima_body(const float *x, int64_t n, float *maxima) {
    constexpr int32_t inf = 0x7F800000, low_inf = -inf - 1;
    for (int64_t begin = 0; begin < n; begin += kBlock) {
        const int64_t end = n - begin < kBlock ? n : begin + kBlock;
        int32_t least = inf, most = low_inf;
        for (int64_t i = begin; i < end; ++i) {
            const int32_t key = key_of(x[i]);
            least = key < least ? key : least;
            most = key > most ? key : most;
        }
        *maxima++ = of_key(least < low_inf ? inf + 1 : most);
    }
}

// Adds a block of values to running sums, one per lane.
ROWS_INLINE void add(const float *values, double *sums) {
    for (int64_t i = 0; i < kBlock; i += kLanes)
        for (int j = 0; j < kLanes; ++j) sums[j] += static_cast<double>(values[i + j]);
}

// The bodies whose name ends in _part take up to a block. Where they are given kBlock by name, the
// compiler knows the length and leaves out what a rest would need.

ROWS_INLINE double weigh_part(const float *x, int64_t n, float max, float temperature, float least,
                              float *weights) {
    float kept[kBlock];
    for (int64_t i = 0; i < n; ++i) {
        const float w = weigh(x[i], max, temperature);
        weights[i] = kept[i] = w >= least ? w : 0.0f;
    }
    for (int64_t i = n; i < kBlock; ++i) kept[i] = 0.0f;
    double sums[kLanes] = {};
    add(kept, sums);
    return folded(sums);
}

// Weights of up to a block, those under least being 0, and their sum.
ROWS_INLINE double weigh_body(const float *x, int64_t n, float max, float temperature, float least,
                              float *weights) {
    return n == kBlock ? weigh_part(x, kBlock, max, temperature, least, weights)
                       : weigh_part(x, n, max, temperature, least, weights);
}

ROWS_INLINE double sum_exp_part(const float *x, int64_t n, float max) {
    float e[kBlock];
    for (int64_t i = 0; i < n; ++i) e[i] = exp_neg(x[i] - max);
    for (int64_t i = n; i < kBlock; ++i) e[i] = 0.0f;
    double sums[kLanes] = {};
    add(e, sums);
    return folded(sums);
}

// Sum of exp(x - max) over up to a block.
ROWS_INLINE double sum_exp_body(const float *x, int64_t n, float max) {
    return n == kBlock ? sum_exp_part(x, kBlock, max) : sum_exp_part(x, n, max);
}

ROWS_INLINE void add_above_part(const float *x, const float *weights, int64_t n, float bound,
                                float least, double *sums) {
    float kept[kBlock];
    for (int64_t i = 0; i < n; ++i) {
        const bool is_kept = (x[i] > bound) & (weights[i] >= least);
        kept[i] = float_of(bits_of(weights[i]) & (0u - is_kept));
    }
    for (int64_t i = n; i < kBlock; ++i) kept[i] = 0.0f;
    add(kept, sums);
}

// Sum of the weights, of those from least on, whose logits are above a bound.
ROWS_INLINE double sum_above_body(const float *x, const float *weights, int64_t n, float bound,
                                  float least) {
    double sums[kLanes] = {};
    int64_t i = 0;
    for (; i + kBlock <= n; i += kBlock)
        add_above_part(x + i, weights + i, kBlock, bound, least, sums);
    if (i < n) add_above_part(x + i, weights + i, n - i, bound, least, sums);
    return folded(sums);
}

// Which of x[0, n) are in (low, high]: a byte each, 1 or 0.
ROWS_INLINE void mark_body(const float *x, int64_t n, float low, float high, uint8_t *marks) {
    for (int64_t i = 0; i < n; ++i) marks[i] = (x[i] > low) & (x[i] <= high);
}

// The passes as one level of instructions has them.
struct Level {
    const char *name;
    void (*maxima)(const float *, int64_t, float *);
    double (*weigh)(const float *, int64_t, float, float, float, float *);
    double (*sum_exp)(const float *, int64_t, float);
    double (*sum_above)(const float *, const float *, int64_t, float, float);
    void (*mark)(const float *, int64_t, float, float, uint8_t *);
};

#define ROWS_LEVEL(level, TARGET)                                                               \
    TARGET static void maxima_##level(const float *x, int64_t n, float *maxima) {               \
        maxima_body(x, n, maxima);                                                              \
    }                                                                                           \
    TARGET static double weigh_##level(const float *x, int64_t n, float max, float temperature, \
                                       float least, float *weights) {                           \
        return weigh_body(x, n, max, temperature, least, weights);                              \
    }                                                                                           \
    TARGET static double sum_exp_##level(const float *x, int64_t n, float max) {                \
        return sum_exp_body(x, n, max);                                                         \
    }                                                                                           \
    TARGET static double sum_above_##level(const float *x, const float *weights, int64_t n,     \
                                           float bound, float least) {                          \
        return sum_above_body(x, weights, n, bound, least);                                     \
    }                                                                                           \
    TARGET static void mark_##level(const float *x, int64_t n, float low, float high,           \
                                    uint8_t *marks) {                                           \
        mark_body(x, n, low, high, marks);                                                      \
    }                                                                                           \
    static constexpr Level level = {#level,          maxima_##level,    weigh_##level,          \
                                    sum_exp_##level, sum_above_##level, mark_##level};

ROWS_LEVEL(baseline, )

#if defined(__GNUC__) && defined(__x86_64__)
ROWS_LEVEL(avx2, __attribute__((target("avx2"))))
ROWS_LEVEL(avx512, __attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl"))))

inline std::vector<const Level *> usable_levels() {
    __builtin_cpu_init();
    std::vector<const Level *> levels = {&baseline};
    if (!__builtin_cpu_supports("avx2")) return levels;
    levels.push_back(&avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        levels.push_back(&avx512);
    return levels;
}
#else
inline std::vector<const Level *> usable_levels() { return {&baseline}; }
#endif

#undef ROWS_LEVEL
#undef ROWS_INLINE

} // namespace rows
