/* Block structs of the weight formats, and the list of them. dtypes.py has the same list. */
#ifndef RL_FORMATS_H
#define RL_FORMATS_H

#include <stdint.h>

#define RL_BLOCK 32 /* values in a block of the quantised formats */

/*         id      name      block length, block bytes */
#define RL_FORMATS(X)       \
    X(F32, "F32", 1, 4)     \
    X(F16, "F16", 1, 2)     \
    X(BF16, "BF16", 1, 2)   \
    X(Q8_0, "Q8_0", 32, 34) \
    X(Q4_0, "Q4_0", 32, 18) \
    X(Q8_F32, "Q8_F32", 32, 36)

#define RL_FORMAT_ENUM(id, name, len, bytes) RL_##id,
typedef enum { RL_FORMATS(RL_FORMAT_ENUM) RL_N_FORMATS } rl_format;
#undef RL_FORMAT_ENUM

typedef struct {
    uint16_t scale; /* f16 */
    int8_t values[32];
} rl_block_q8_0;

typedef struct {
    uint16_t scale;     /* f16 */
    uint8_t values[16]; /* low nibbles are values 0..15, high nibbles 16..31; value = (q - 8) */
} rl_block_q4_0;

typedef struct {
    float scale;
    int8_t values[32];
} rl_block_q8_f32;

_Static_assert(sizeof(rl_block_q8_0) == 34, "Q8_0 block");
_Static_assert(sizeof(rl_block_q4_0) == 18, "Q4_0 block");
_Static_assert(sizeof(rl_block_q8_f32) == 36, "Q8_F32 block");

#endif
