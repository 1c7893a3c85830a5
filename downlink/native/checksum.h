/* downlink/checksum.py. */
#ifndef DOWNLINK_CHECKSUM_H
#define DOWNLINK_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

void crc32c_make(void); /* once, before the others */
uint32_t crc32c(const uint8_t *bytes, size_t size, uint32_t value);

#endif
