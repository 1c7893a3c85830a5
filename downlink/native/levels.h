/* Includes BODY once for each kind of processor: with LEVEL, and names made by NAME. */

#define LEVEL LEVEL_PLAIN
#define NAME(x) x##_plain
#include BODY
#undef LEVEL
#undef NAME

#ifdef DOWNLINK_X86

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,fma")
#endif
#define LEVEL LEVEL_AVX2
#define NAME(x) x##_avx2
#include BODY
#undef LEVEL
#undef NAME
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
#endif
#define LEVEL LEVEL_AVX512
#define NAME(x) x##_avx512
#include BODY
#undef LEVEL
#undef NAME
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

