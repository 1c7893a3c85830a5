/* CRC-32C (Castagnoli), eight bytes at a time from eight tables: slicing-by-8 (Kounavis and Berry, A Systematic Approach
 * to Building High Performance Software-based CRC Generators, ISCC 2005). */

#include "checksum.h"

static uint32_t tables[8][256];

void crc32c_make(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t state = byte;
        for (int bit = 0; bit < 8; bit++) state = state & 1 ? state >> 1 ^ 0x82F63B78u : state >> 1;
        tables[0][byte] = state;
    }
    for (int place = 1; place < 8; place++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t before = tables[place - 1][byte];
            tables[place][byte] = before >> 8 ^ tables[0][before & 255];
        }
}

uint32_t crc32c(const uint8_t *bytes, size_t size, uint32_t value) {
    uint32_t state = ~value;
    for (; size >= 8; size -= 8, bytes += 8) {
        state ^= (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
        state = tables[7][state & 255] ^ tables[6][state >> 8 & 255] ^ tables[5][state >> 16 & 255] ^ tables[4][state >> 24] ^
                tables[3][bytes[4]] ^ tables[2][bytes[5]] ^ tables[1][bytes[6]] ^ tables[0][bytes[7]];
    }
    for (; size; size--, bytes++) state = state >> 8 ^ tables[0][(state ^ *bytes) & 255];
    return ~state;
}
