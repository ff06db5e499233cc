/* SPDX-License-Identifier: MIT
 *
 * The physical limits of this machine: DRAM read bandwidth and the peak rates of the int8, bf16 and
 * f32 dot products, on all threads at once. Built at run time for exactly this CPU.
 *
 * Every function returns a rate per second (bytes, or multiplications plus additions), or 0 where
 * the CPU lacks the instruction. All threads start together and the clock stops with the last one. */
#define _GNU_SOURCE
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* Independent sums: enough to cover latency times issue width, few enough for 16 registers. */
#define N_SUMS 12

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

typedef float f32v __attribute__((vector_size(VECTOR_BYTES)));
typedef uint64_t u64v __attribute__((vector_size(VECTOR_BYTES), aligned(8)));

/* An empty statement that the compiler believes to change `value`: nothing is hoisted or dropped. */
#if defined(__AVX512F__)
#define KEEP(value) __asm__ volatile("" : "+v"(value))
#elif defined(__x86_64__)
#define KEEP(value) __asm__ volatile("" : "+x"(value))
#else
#define KEEP(value) __asm__ volatile("" : "+w"(value))
#endif

typedef void (*body_fn)(int thread, const void *job);

static double seconds_of(body_fn body, const void *job, int n_threads) {
    double start_s = 0, end_s = 0;
#pragma omp parallel num_threads(n_threads)
    {
#pragma omp barrier
#pragma omp master
        start_s = omp_get_wtime();
        body(omp_get_thread_num(), job);
#pragma omp barrier
#pragma omp master
        end_s = omp_get_wtime();
    }
    return end_s - start_s;
}

/* Defines peak_<name>(): N_SUMS chains of `step`, each `ops_per_step` operations. The operands `w`
 * and `x` are the thread's own; `step` is an expression in `sum`, `w` and `x`. */
#define DEFINE_PEAK(name, sum_type, operand_type, one, ops_per_step, step)               \
    static void run_##name(int thread, const void *job) {                                \
        const int64_t n_rounds = *(const int64_t *)job;                                  \
        sum_type sums[N_SUMS];                                                           \
        operand_type w = one, x = one;                                                   \
        (void)thread;                                                                    \
        memset(sums, 0, sizeof sums);                                                    \
        KEEP(w);                                                                         \
        KEEP(x);                                                                         \
        for (int64_t round = 0; round < n_rounds; ++round) {                             \
            _Pragma("GCC unroll 12") for (int i = 0; i < N_SUMS; ++i) {                  \
                sum_type sum = sums[i];                                                  \
                sum = step;                                                              \
                KEEP(sum);                                                               \
                sums[i] = sum;                                                           \
            }                                                                            \
        }                                                                                \
    }                                                                                    \
    double peak_##name(int n_threads, int64_t n_rounds) {                                \
        const double seconds = seconds_of(run_##name, &n_rounds, n_threads);             \
        return (double)n_threads * (double)n_rounds * N_SUMS * (ops_per_step) / seconds; \
    }

#define DEFINE_NO_PEAK(name)                              \
    double peak_##name(int n_threads, int64_t n_rounds) { \
        (void)n_threads;                                  \
        (void)n_rounds;                                   \
        return 0;                                         \
    }

DEFINE_PEAK(f32, f32v, f32v, (f32v){0}, VECTOR_BYTES / 4 * 2, sum + w * x)

#if defined(__AVX512BF16__)
DEFINE_PEAK(bf16, __m512, __m512i, _mm512_set1_epi32(0), 64,
            _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x))
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
DEFINE_PEAK(bf16, float32x4_t, uint16x8_t, vdupq_n_u16(0), 32, /* 2 x 2 sums of 4 products */
            vbfmmlaq_f32(sum, vreinterpretq_bf16_u16(w), vreinterpretq_bf16_u16(x)))
#else
DEFINE_NO_PEAK(bf16)
#endif

/* The best 8-bit dot product there is: VNNI, else the AVX2 maddubs chain; smmla, else sdot. */
#if defined(__AVX512VNNI__)
static const char name_of_int8[] = "512-bit vpdpbusd";
DEFINE_PEAK(int8, __m512i, __m512i, _mm512_set1_epi8(1), 128, _mm512_dpbusd_epi32(sum, w, x))
#elif defined(__AVXVNNI__)
static const char name_of_int8[] = "256-bit vpdpbusd";
DEFINE_PEAK(int8, __m256i, __m256i, _mm256_set1_epi8(1), 64, _mm256_dpbusd_avx_epi32(sum, w, x))
#elif defined(__AVX2__)
static const char name_of_int8[] = "vpmaddubsw chain";
DEFINE_PEAK(int8, __m256i, __m256i, _mm256_set1_epi8(1), 64,
            _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), w)))
#elif defined(__ARM_FEATURE_MATMUL_INT8)
static const char name_of_int8[] = "smmla";
DEFINE_PEAK(int8, int32x4_t, int8x16_t, vdupq_n_s8(1), 64, vmmlaq_s32(sum, w, x))
#elif defined(__ARM_FEATURE_DOTPROD)
static const char name_of_int8[] = "sdot";
DEFINE_PEAK(int8, int32x4_t, int8x16_t, vdupq_n_s8(1), 32, vdotq_s32(sum, w, x))
#else
static const char name_of_int8[] = "";
DEFINE_NO_PEAK(int8)
#endif

const char *int8_name(void) { return name_of_int8; }

/* Memory that no cache holds, touched by the threads that will read it; NULL if there is none. */
void *memory_new(int64_t n_bytes, int n_threads) {
    void *memory = NULL;
    if (posix_memalign(&memory, 1 << 21, (size_t)n_bytes) != 0) {
        return NULL;
    }
#if defined(__linux__)
    madvise(memory, (size_t)n_bytes, MADV_HUGEPAGE);
#endif
    const int64_t share = n_bytes / n_threads;
#pragma omp parallel num_threads(n_threads)
    memset((char *)memory + omp_get_thread_num() * share, 1, (size_t)share);
    return memory;
}

void memory_free(void *memory) { free(memory); }

typedef struct {
    const char *memory;
    int64_t n_times;
    int64_t share; /* bytes of one thread */
    int64_t run;   /* bytes of one of its streams, a multiple of 256 */
    int n_streams;
    int64_t ahead; /* prefetch distance in bytes, 0 for none */
} read_job;

static void read_once(const read_job *job, const char *begin, u64v sums[4]) {
    for (int64_t at = 0; at < job->run; at += 256) {
        for (int stream = 0; stream < job->n_streams; ++stream) {
            const char *line = begin + stream * job->run + at;
            for (int64_t i = 0; job->ahead != 0 && i < 256; i += 64) {
                __builtin_prefetch(line + job->ahead + i, 0, 2);
            }
            for (int64_t i = 0; i < 256; i += VECTOR_BYTES) {
                sums[i / VECTOR_BYTES & 3] |= *(const u64v *)(line + i);
            }
        }
    }
}

static void run_read(int thread, const void *arg) {
    const read_job *job = arg;
    u64v sums[4];
    memset(sums, 0, sizeof sums);
    for (int64_t time = 0; time < job->n_times; ++time) {
        read_once(job, job->memory + thread * job->share, sums);
        for (int i = 0; i < 4; ++i) {
            KEEP(sums[i]);
        }
    }
}

/* Read the first n_bytes n_times; each thread walks its share as `n_streams` runs side by side. */
double read_rate(const char *memory, int64_t n_bytes, int64_t n_times, int n_threads, int n_streams,
                 int64_t ahead) {
    const int64_t share = n_bytes / n_threads / 256 * 256;
    const int64_t run = share / n_streams / 256 * 256;
    const read_job job = {memory, n_times, share, run, n_streams, ahead};
    const double seconds = seconds_of(run_read, &job, n_threads);
    return (double)n_threads * (double)(n_times * run) * n_streams / seconds;
}
