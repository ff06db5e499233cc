/* What this CPU and this operating system can run. Compiled at the baseline, without LTO. */
#include "rl_isa.h"

#if defined(__x86_64__) || defined(_M_X64)

#if defined(_MSC_VER)
#include <intrin.h>
static void cpuid(uint32_t leaf, uint32_t sub, uint32_t out[4]) {
    int regs[4];
    __cpuidex(regs, (int)leaf, (int)sub);
    for (int i = 0; i < 4; i++) out[i] = (uint32_t)regs[i];
}
static uint64_t xgetbv0(void) { return _xgetbv(0); }
#else
#include <cpuid.h>
static void cpuid(uint32_t leaf, uint32_t sub, uint32_t out[4]) {
    __cpuid_count(leaf, sub, out[0], out[1], out[2], out[3]);
}
static uint64_t xgetbv0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}
#endif

#define BIT(word, n) ((word) >> (n) & 1u)

uint32_t rl_cpu_features(void) {
    uint32_t leaf0[4], leaf1[4], leaf7[4] = {0}, leaf7_1[4] = {0}, found = 0;
    cpuid(0, 0, leaf0);
    cpuid(1, 0, leaf1);
    if (!BIT(leaf1[2], 27)) return 0; /* no OSXSAVE: the OS does not save wide registers */
    if (leaf0[0] >= 7) {
        cpuid(7, 0, leaf7);
        if (leaf7[0] >= 1) cpuid(7, 1, leaf7_1);
    }
    uint64_t saved = xgetbv0();
    int ymm_saved = (saved & 0x6) == 0x6, zmm_saved = (saved & 0xe6) == 0xe6;
    /* AVX, FMA, F16C in leaf 1; AVX2 in leaf 7 */
    if (ymm_saved && BIT(leaf1[2], 28) && BIT(leaf1[2], 12) && BIT(leaf1[2], 29) &&
        BIT(leaf7[1], 5))
        found |= RL_CPU_AVX2;
    /* F, DQ, BW, VL */
    if ((found & RL_CPU_AVX2) && zmm_saved && BIT(leaf7[1], 16) && BIT(leaf7[1], 17) &&
        BIT(leaf7[1], 30) && BIT(leaf7[1], 31))
        found |= RL_CPU_AVX512;
    if ((found & RL_CPU_AVX512) && BIT(leaf7[2], 11)) found |= RL_CPU_AVX512_VNNI;
    if ((found & RL_CPU_AVX512) && BIT(leaf7_1[0], 5)) found |= RL_CPU_AVX512_BF16;
    return found;
}

#elif defined(__aarch64__) || defined(_M_ARM64)

#if defined(__linux__) || defined(__ANDROID__)
#include <sys/auxv.h>
uint32_t rl_cpu_features(void) {
    unsigned long caps = getauxval(AT_HWCAP), caps2 = getauxval(AT_HWCAP2);
    uint32_t found = RL_CPU_NEON;
    if (caps >> 20 & 1) found |= RL_CPU_NEON_DOT;   /* HWCAP_ASIMDDP */
    if (caps2 >> 13 & 1) found |= RL_CPU_NEON_I8MM; /* HWCAP2_I8MM */
    return found;
}
#elif defined(__APPLE__)
#include <sys/sysctl.h>
static int has(const char *name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value;
}
uint32_t rl_cpu_features(void) {
    uint32_t found = RL_CPU_NEON;
    if (has("hw.optional.arm.FEAT_DotProd")) found |= RL_CPU_NEON_DOT;
    if (has("hw.optional.arm.FEAT_I8MM")) found |= RL_CPU_NEON_I8MM;
    return found;
}
#elif defined(_WIN32)
#include <windows.h>
uint32_t rl_cpu_features(void) {
    uint32_t found = RL_CPU_NEON;
    if (IsProcessorFeaturePresent(43)) found |= RL_CPU_NEON_DOT; /* PF_ARM_V82_DP_INSTRUCTIONS */
    return found;
}
#else
uint32_t rl_cpu_features(void) { return RL_CPU_NEON; }
#endif

#else
uint32_t rl_cpu_features(void) { return 0; }
#endif
