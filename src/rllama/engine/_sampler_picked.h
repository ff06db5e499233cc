// SPDX-License-Identifier: MIT
//
// A range of logits, and the tokens of a row that lie in it.

#pragma once

#include "_sampler_rows.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace rows {

// The logits between two, the upper one included.
struct Range {
    float low, high;

    bool is_one() const { return std::nextafter(low, kInf) >= high; }

    // Between the two, for a range that is more than one number. By value, which logits are spread
    // by as a rule, or by bits, which end any range in 32 halvings.
    float middle(bool by_bits) const {
        float mid;
        if (by_bits) {
            const int64_t sum = int64_t{key_of(low)} + key_of(high);
            mid = of_key(static_cast<int32_t>(sum >> 1));
        } else {
            mid = static_cast<float>((double{std::max(low, -kHuge)} + double{high}) / 2);
        }
        return mid > low && mid < high ? mid : std::nextafter(low, kInf);
    }

  private:
    static constexpr float kHuge = std::numeric_limits<float>::max();
};

// Tokens by rising id, as the passes over rows take them.
struct Picked {
    std::vector<float> logits, weights;
    std::vector<int32_t> ids;
    size_t size = 0;

    // Room for one block more.
    void reserve_block() {
        if (ids.size() >= size + kBlock) return;
        const size_t room = 2 * (size + kBlock);
        logits.resize(room), weights.resize(room), ids.resize(room);
    }

    // Those of a block, at its first id, that are marked: few of them, as a rule. Both loops store
    // without a branch, since which ones is hard to guess.
    void add(const float *x, const float *w, int64_t first, const uint8_t (&marks)[kBlock]) {
        reserve_block();
        int64_t hits[kBlock / 8];
        size_t n_hits = 0;
        for (int64_t i = 0; i < kBlock; i += 8) {
            uint64_t eight;
            std::memcpy(&eight, marks + i, sizeof eight);
            hits[n_hits] = i;
            n_hits += eight != 0;
        }
        int32_t *const out = ids.data();
        size_t n = size;
        for (size_t hit = 0; hit < n_hits; ++hit)
            for (int64_t i = hits[hit]; i < hits[hit] + 8; ++i) {
                out[n] = static_cast<int32_t>(first + i);
                n += marks[i];
            }
        for (; size < n; ++size) {
            logits[size] = x[out[size] - first];
            weights[size] = w[out[size] - first];
        }
    }

    // Those of others, or of these, that lie in a range.
    void take(const Picked &from, Range range) {
        if (ids.size() < from.size)
            logits.resize(from.size), weights.resize(from.size), ids.resize(from.size);
        size_t n = 0;
        for (size_t i = 0; i < from.size; ++i) {
            const float logit = from.logits[i];
            logits[n] = logit, weights[n] = from.weights[i], ids[n] = from.ids[i];
            n += int{logit > range.low} & int{logit <= range.high};
        }
        size = n;
    }
};

} // namespace rows
