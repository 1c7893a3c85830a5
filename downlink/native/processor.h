/* Which kind of processor this runs on: inner loops are compiled for several and chosen when they run. */
#ifndef DOWNLINK_PROCESSOR_H
#define DOWNLINK_PROCESSOR_H

#if defined(__x86_64__) && defined(__GNUC__) && !defined(DOWNLINK_PLAIN)
#define DOWNLINK_X86 1
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

#define LEVEL_PLAIN 0
#define LEVEL_AVX2 1
#define LEVEL_AVX512 2

int processor(void);               /* a LEVEL */
const char *processor_name(void);
void processor_limit(int most);    /* tests may lower it */

#endif
