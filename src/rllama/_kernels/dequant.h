/* Formats without code of their own at any level: one row -> f32, the same on every machine. */
#ifndef RL_DEQUANT_H
#define RL_DEQUANT_H

#include "rl_isa.h"

/* NULL where the levels bring their own. */
rl_dequant_fn rl_plain_dequant(int format);

#endif
