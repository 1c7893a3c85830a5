#include "processor.h"

static int level(void) {
#ifdef DOWNLINK_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("bmi2"))
        return LEVEL_AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma"))
        return LEVEL_AVX2;
#endif
    return LEVEL_PLAIN;
}

static int ceiling = LEVEL_AVX512;

void processor_limit(int most) { ceiling = most; }

int processor(void) {
    int found = level();
    return found < ceiling ? found : ceiling;
}

const char *processor_name(void) {
    static const char *const names[] = {"plain", "avx2", "avx512-vnni"};
    return names[processor()];
}
