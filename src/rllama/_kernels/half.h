/* Half precision in plain C, for whoever has no instruction for it. */
#ifndef RL_HALF_H
#define RL_HALF_H

#include <stdint.h>
#include <string.h>

static inline float rl_half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff) << 13, bits;
    float value;
    if (rest >= 0x0f800000u) { /* infinity, not a number */
        bits = rest + 0x70000000u;
        memcpy(&value, &bits, 4);
    } else { /* 2^112 moves the exponent; subnormals come out right */
        memcpy(&value, &rest, 4);
        value *= 0x1p112f;
    }
    memcpy(&bits, &value, 4);
    bits |= sign;
    memcpy(&value, &bits, 4);
    return value;
}

#endif
