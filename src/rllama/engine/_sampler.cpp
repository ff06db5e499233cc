// SPDX-License-Identifier: MIT
//
// The choice of the next token over one row of logits, without sorting the vocabulary.
//
// What is computed, and in which order, is written down in sampling.py, whose numpy chain gives the
// same token bit for bit. The points that make this possible in any loop order:
//
//   weights   exp((x - max) / temperature) in f32 by exp_neg below, then rounded to multiples of
//             2^-34; sums of up to 2^19 of them are exact in f64, so their order does not matter
//   ties      equal logits are ordered by id, the lower one first
//   draw      the first survivor, in id order, whose running sum exceeds u * total
//
// Build with -ffp-contract=off (a fused multiply-add would round differently) and never with
// -ffast-math.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace py = pybind11;

namespace {

constexpr int64_t kBlock = 128; // ids per block maximum; a few cache lines
constexpr int64_t kMaxVocab = int64_t{1} << 19;
constexpr double kUnit = 1.0 / (int64_t{1} << 34); // weights are multiples of this
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Item {
    float logit;
    int32_t id;
};

// Likeliest first; of equal ones the lower id first.
inline bool before(const Item &a, const Item &b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// exp(x) for x <= 0, relative error under 2e-7; what is below -87, -inf too, counts as -87, whose
// exp is far below 2^-34. The clamp works on integers: a comparison of floats may trap, and keeps
// compilers from vectorising the loops around it.
inline float exp_neg(float x) {
    const int32_t size = static_cast<int32_t>(bits_of(x) & 0x7FFFFFFFu);
    x = float_of(static_cast<uint32_t>(size < 0x42AE0000 ? size : 0x42AE0000) | 0x80000000u);
    const float shifted = x * 1.44269504f + 12582912.0f; // 1.5 * 2^23: rounds to a whole k
    const float k = shifted - 12582912.0f;
    const float r = (x - k * 0.693359375f) - k * -2.12194440e-4f; // ln 2 in two parts
    float p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * float_of((bits_of(shifted) + 127u) << 23); // times 2^k
}

// To the nearest multiple of 2^-34, for 0 <= weight <= 1.
inline double exact(float weight) {
    constexpr double magic = 1.5 * (1 << 18); // its last bit is worth 2^-34
    return (static_cast<double>(weight) + magic) - magic;
}

// Philox4x32-10 (Salmon et al., SC 2011): ten rounds over a 128-bit counter under a 64-bit key.
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> c, std::array<uint32_t, 2> key) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t{0xD2511F53} * c[0];
        const uint64_t b = uint64_t{0xCD9E8D57} * c[2];
        c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ key[0], static_cast<uint32_t>(b),
             static_cast<uint32_t>(a >> 32) ^ c[3] ^ key[1], static_cast<uint32_t>(a)};
        key[0] += 0x9E3779B9u;
        key[1] += 0xBB67AE85u;
    }
    return c;
}

double uniform(uint64_t seed, uint32_t choice, uint64_t position) {
    const auto words = philox(
        {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), choice, 0},
        {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
    return ((words[0] >> 5) * 67108864.0 + (words[1] >> 6)) * (1.0 / 9007199254740992.0);
}

// Row of a [R, V] f32 array.
using Logits = py::array_t<float, py::array::c_style>;

float *row_of(Logits &logits, int64_t row, int64_t n_vocab) {
    if (logits.ndim() != 2 || row < 0 || row >= logits.shape(0) || logits.shape(1) < n_vocab)
        throw std::invalid_argument("logits must be [R, V] with R above the row and V at least "
                                    "the vocabulary");
    return const_cast<float *>(logits.data()) + row * logits.shape(1);
}

// How one request chooses, and which tokens it has seen.
class Chain {
  public:
    Chain(int64_t n_vocab_, double temperature_, int64_t top_k_, double top_p_, double min_p_,
          double penalty_, uint64_t seed_, uint32_t choice_)
        : n_vocab(n_vocab_), temperature(static_cast<float>(std::max(temperature_, 1e-30))),
          greedy(temperature_ == 0.0 || top_k_ == 1), top_k(top_k_), top_p(top_p_), min_p(min_p_),
          penalty(static_cast<float>(penalty_)), seed(seed_), choice(choice_) {
        if (n_vocab < 1 || n_vocab > kMaxVocab)
            throw std::invalid_argument("the vocabulary must have 1 to 2^19 tokens");
        if (penalty != 1.0f) is_seen.assign(static_cast<size_t>(n_vocab), 0);
    }

    void see(const std::vector<int64_t> &ids) {
        if (penalty == 1.0f) return;
        for (int64_t id : ids) {
            if (id < 0 || id >= n_vocab || is_seen[static_cast<size_t>(id)]) continue;
            is_seen[static_cast<size_t>(id)] = 1;
            seen.push_back(static_cast<int32_t>(id));
        }
    }

    const int64_t n_vocab;
    const float temperature;
    const bool greedy;
    const int64_t top_k;
    const double top_p, min_p;
    const float penalty;
    const uint64_t seed;
    const uint32_t choice;
    std::vector<uint8_t> is_seen;
    std::vector<int32_t> seen;
};

// Puts the penalised logits into the row, and the old ones back at the end.
class Penalised {
  public:
    Penalised(float *row, const Chain &chain, std::vector<float> &saved)
        : row_(row), seen_(chain.seen), saved_(saved) {
        saved_.resize(seen_.size());
        for (size_t i = 0; i < seen_.size(); ++i) {
            const float x = row_[seen_[i]];
            saved_[i] = x;
            row_[seen_[i]] = x > 0.0f ? x / chain.penalty : x * chain.penalty;
        }
    }
    ~Penalised() {
        for (size_t i = 0; i < seen_.size(); ++i) row_[seen_[i]] = saved_[i];
    }
    Penalised(const Penalised &) = delete;
    Penalised &operator=(const Penalised &) = delete;

  private:
    float *row_;
    const std::vector<int32_t> &seen_;
    std::vector<float> &saved_;
};

// The scratch of all choices; one per engine.
class Sampler {
  public:
    int64_t draw(const Chain &chain, Logits logits, int64_t row, uint64_t position) {
        float *x = row_of(logits, row, chain.n_vocab);
        if (!chain.seen.empty() && !logits.writeable()) {
            copy_.assign(x, x + chain.n_vocab);
            x = copy_.data();
        }
        const Penalised guard(x, chain, saved_);
        const float max = scan(x, chain.n_vocab);
        if (chain.greedy) return first_of(x, chain.n_vocab, max);
        const double u = uniform(chain.seed, chain.choice, position);
        if (chain.top_k > 0 && chain.top_k < chain.n_vocab) return draw_top_k(chain, x, max, u);
        return draw_all(chain, x, max, u);
    }

    // Log probabilities of the row as it is: of one token, and of the likeliest.
    std::pair<double, std::vector<std::pair<int32_t, double>>>
    logprobs(Logits logits, int64_t row, int64_t n_vocab, int64_t token_id, int64_t n_top) {
        const float *x = row_of(logits, row, n_vocab);
        if (token_id < 0 || token_id >= n_vocab) throw std::invalid_argument("no such token");
        const float max = scan(x, n_vocab);
        const double log_sum = static_cast<double>(max) + std::log(sum_exp(x, n_vocab, max));
        std::vector<std::pair<int32_t, double>> top;
        if (n_top > 0) {
            select(x, n_vocab, n_top);
            std::sort(items_.begin(), items_.end(), before);
            for (const Item &item : items_) top.emplace_back(item.id, item.logit - log_sum);
        }
        return {x[token_id] - log_sum, top};
    }

  private:
    // Block maxima into maxima_, the largest of them back; throws unless that is a number.
    float scan(const float *x, int64_t n) {
        maxima_.resize(static_cast<size_t>((n + kBlock - 1) / kBlock));
        float best = -kInf;
        int32_t is_nan = 0;
        for (size_t b = 0; b < maxima_.size(); ++b) {
            const int64_t begin = static_cast<int64_t>(b) * kBlock;
            const int64_t len = std::min(kBlock, n - begin);
            maxima_[b] = len == kBlock ? block_max(x + begin, is_nan)
                                       : tail_max(x + begin, len, is_nan);
            best = std::max(best, maxima_[b]);
        }
        if (is_nan || !std::isfinite(best)) throw std::domain_error("logits are not finite");
        return best;
    }

    static float block_max(const float *x, int32_t &is_nan) {
#ifdef __SSE2__
        __m128 m[4], bad = _mm_setzero_ps();
        for (int j = 0; j < 4; ++j) m[j] = _mm_loadu_ps(x + 4 * j);
        for (int64_t i = 0; i < kBlock; i += 16)
            for (int j = 0; j < 4; ++j) {
                const __m128 v = _mm_loadu_ps(x + i + 4 * j);
                m[j] = _mm_max_ps(m[j], v);
                bad = _mm_or_ps(bad, _mm_cmpunord_ps(v, v));
            }
        is_nan |= _mm_movemask_ps(bad);
        float lanes[4];
        _mm_storeu_ps(lanes, _mm_max_ps(_mm_max_ps(m[0], m[1]), _mm_max_ps(m[2], m[3])));
        return std::max(std::max(lanes[0], lanes[1]), std::max(lanes[2], lanes[3]));
#else
        return tail_max(x, kBlock, is_nan);
#endif
    }

    static float tail_max(const float *x, int64_t len, int32_t &is_nan) {
        float m = -kInf;
        for (int64_t i = 0; i < len; ++i) {
            is_nan |= x[i] != x[i];
            m = x[i] > m ? x[i] : m;
        }
        return m;
    }

    int64_t first_of(const float *x, int64_t n, float value) const {
        size_t b = 0;
        while (maxima_[b] != value) ++b;
        int64_t i = static_cast<int64_t>(b) * kBlock;
        while (i < n && x[i] != value) ++i;
        return i;
    }

    static double sum_exp(const float *x, int64_t n, float max) {
        constexpr int lanes = 8;
        double sums[lanes] = {};
        int64_t i = 0;
        for (; i + lanes <= n; i += lanes) {
            float e[lanes];
            for (int j = 0; j < lanes; ++j) e[j] = exp_neg(x[i + j] - max);
            for (int j = 0; j < lanes; ++j) sums[j] += static_cast<double>(e[j]);
        }
        for (; i < n; ++i) sums[0] += static_cast<double>(exp_neg(x[i] - max));
        for (int width = lanes / 2; width > 0; width /= 2)
            for (int j = 0; j < width; ++j) sums[j] += sums[j + width];
        return sums[0];
    }

    // The k likeliest into items_, in no order. Needs the block maxima of the row.
    //
    // A buffer of a few times k; when it is full it is cut to its k likeliest, and from then on
    // only what beats the worst of these gets in, whole blocks being passed over by their maxima.
    // Ids come in rising order, so an equal logit that comes later never displaces one.
    void select(const float *x, int64_t n, int64_t k) {
        const size_t kept = static_cast<size_t>(std::min(k, n)), limit = 4 * kept + kBlock;
        items_.clear();
        float worst = -kInf;
        bool is_cut = false;
        for (int64_t begin = 0; begin < n; begin += kBlock) {
            if (is_cut && maxima_[static_cast<size_t>(begin / kBlock)] <= worst) continue;
            const int64_t end = std::min(begin + kBlock, n);
            for (int64_t i = begin; i < end; ++i)
                if (!is_cut || x[i] > worst) items_.push_back({x[i], static_cast<int32_t>(i)});
            if (items_.size() > limit) {
                worst = cut_items(kept);
                is_cut = true;
            }
        }
        cut_items(kept);
    }

    // Leaves the likeliest of items_; the logit of the worst of them back.
    float cut_items(size_t kept) {
        const auto last = items_.begin() + static_cast<int64_t>(kept) - 1;
        std::nth_element(items_.begin(), last, items_.end(), before);
        const float worst = last->logit;
        items_.resize(kept);
        return worst;
    }

    static float weigh(const Chain &chain, float logit, float max) {
        return exp_neg((logit - max) / chain.temperature);
    }

    int64_t draw_top_k(const Chain &chain, const float *x, float max, double u) {
        select(x, chain.n_vocab, chain.top_k);
        if (chain.top_p < 1.0) {
            std::sort(items_.begin(), items_.end(), before);
            double total = 0.0, sum = 0.0;
            for (const Item &item : items_) total += exact(weigh(chain, item.logit, max));
            size_t n = 0;
            while (n < items_.size() && (n == 0 || sum < chain.top_p * total))
                sum += exact(weigh(chain, items_[n++].logit, max));
            items_.resize(n);
        }
        std::sort(items_.begin(), items_.end(),
                  [](const Item &a, const Item &b) { return a.id < b.id; });
        return draw_item(chain, max, u);
    }

    // One of items_, which lie in id order, after min-p.
    int64_t draw_item(const Chain &chain, float max, double u) {
        weights_.clear();
        double total = 0.0;
        for (const Item &item : items_) {
            const float w = weigh(chain, item.logit, max);
            weights_.push_back(static_cast<double>(w) >= chain.min_p ? w : 0.0f);
            total += exact(weights_.back());
        }
        const int64_t n = static_cast<int64_t>(weights_.size());
        return items_[static_cast<size_t>(walk(0, n, 0.0, u * total))].id;
    }

    int64_t draw_all(const Chain &chain, const float *x, float max, double u) {
        const int64_t n = chain.n_vocab;
        const double total = weigh_all(chain, x, max);
        if (chain.top_p < 1.0) {
            keep_nucleus(chain, x, max, total);
            return draw_item(chain, max, u);
        }
        const double target = u * total;
        double sum = 0.0;
        size_t b = 0;
        while (b + 1 < sums_.size() && sum + sums_[b] <= target) sum += sums_[b++];
        const int64_t begin = static_cast<int64_t>(b) * kBlock;
        return walk(begin, std::min(begin + kBlock, n), sum, target);
    }

    // Weights of the whole row, sums of its blocks, and their total. Where no nucleus is to be
    // taken first, min-p is applied on the way.
    double weigh_all(const Chain &chain, const float *x, float max) {
        const int64_t n = chain.n_vocab;
        const double floor = chain.top_p < 1.0 ? 0.0 : chain.min_p;
        const float temperature = chain.temperature;
        weights_.resize(static_cast<size_t>(n));
        sums_.clear();
        float *w = weights_.data();
        double total = 0.0;
        for (int64_t begin = 0; begin < n; begin += kBlock) {
            const int64_t end = std::min(begin + kBlock, n);
            for (int64_t i = begin; i < end; ++i) w[i] = exp_neg((x[i] - max) / temperature);
            if (floor > 0.0)
                for (int64_t i = begin; i < end; ++i)
                    w[i] = static_cast<double>(w[i]) >= floor ? w[i] : 0.0f;
            double lanes[4] = {};
            int64_t i = begin;
            for (; i + 4 <= end; i += 4)
                for (int j = 0; j < 4; ++j) lanes[j] += exact(w[i + j]);
            for (; i < end; ++i) lanes[0] += exact(w[i]);
            sums_.push_back((lanes[0] + lanes[1]) + (lanes[2] + lanes[3]));
            total += sums_.back();
        }
        return total;
    }

    // The first of weights_[begin, end) at which the running sum exceeds the target.
    int64_t walk(int64_t begin, int64_t end, double sum, double target) const {
        int64_t last = begin;
        for (int64_t i = begin; i < end; ++i) {
            const double w = exact(weights_[static_cast<size_t>(i)]);
            if (w == 0.0) continue;
            sum += w;
            last = i;
            if (sum > target) break;
        }
        return last;
    }

    // The smallest set of likeliest tokens that reaches top_p, into items_, in id order.
    void keep_nucleus(const Chain &chain, const float *x, float max, double total) {
        const size_t n = weights_.size();
        const double mass = chain.top_p * total;
        // Tokens below this weight add up to less than 1 - top_p, so none of them is in the set.
        const double floor = (total - mass) / static_cast<double>(n) * 0.999 - kUnit;
        items_.resize(n);
        size_t count = 0;
        for (size_t i = 0; i < n; ++i) { // without a branch: which ones pass is hard to guess
            items_[count] = {x[i], static_cast<int32_t>(i)};
            count += static_cast<double>(weights_[i]) >= floor;
        }
        items_.resize(count);
        const Item last = last_of_nucleus(max, chain.temperature, mass);
        items_.erase(std::remove_if(items_.begin(), items_.end(),
                                    [&](const Item &item) { return before(last, item); }),
                     items_.end());
    }

    // The item of items_ at which the sum over them, likeliest first, reaches the mass.
    Item last_of_nucleus(float max, float temperature, double mass) {
        // Eighths of a nat below the maximum; what is 32 nats below has no weight.
        const auto bucket_of = [=](const Item &item) {
            return static_cast<size_t>(std::min((max - item.logit) / temperature * 8.0f, 255.0f));
        };
        double bucket_sums[256] = {};
        for (const Item &item : items_) bucket_sums[bucket_of(item)] += weight_of(item);
        size_t b = 0;
        double sum = 0.0;
        while (b < 255 && sum + bucket_sums[b] < mass) sum += bucket_sums[b++];
        picked_.clear();
        for (const Item &item : items_)
            if (bucket_of(item) == b) picked_.push_back(item);
        return select_by_weight(sum, mass);
    }

    // The same within picked_, given the sum before them: each round halves what is left.
    Item select_by_weight(double sum, double mass) {
        size_t lo = 0, hi = picked_.size();
        const auto at = [this](size_t i) { return picked_.begin() + static_cast<int64_t>(i); };
        while (hi - lo > 1) {
            const size_t mid = lo + (hi - lo) / 2;
            std::nth_element(at(lo), at(mid), at(hi), before);
            double left = 0.0;
            for (size_t i = lo; i < mid; ++i) left += weight_of(picked_[i]);
            if (sum + left >= mass) {
                hi = mid;
            } else {
                sum += left;
                lo = mid;
            }
        }
        return picked_[lo];
    }

    double weight_of(const Item &item) const {
        return exact(weights_[static_cast<size_t>(item.id)]);
    }

    std::vector<float> maxima_, weights_, saved_, copy_;
    std::vector<double> sums_;
    std::vector<Item> items_, picked_;
};

} // namespace

PYBIND11_MODULE(_sampler, m) {
    m.doc() = "The choice of the next token over a whole vocabulary; sampling.py says what.";
    py::register_exception_translator([](std::exception_ptr p) {
        try {
            if (p) std::rethrow_exception(p);
        } catch (const std::domain_error &e) {
            const py::object error = py::module_::import("rllama.errors").attr("BackendError");
            PyErr_SetString(error.ptr(), e.what());
        }
    });
    m.def("uniform", &uniform, py::arg("seed"), py::arg("choice"), py::arg("position"));
    m.def("philox", &philox, py::arg("counter"), py::arg("key"));
    m.def("exp_neg", py::vectorize(exp_neg), py::arg("x"));
    py::class_<Chain>(m, "Chain")
        .def(py::init<int64_t, double, int64_t, double, double, double, uint64_t, uint32_t>(),
             py::kw_only(), py::arg("n_vocab"), py::arg("temperature"), py::arg("top_k"),
             py::arg("top_p"), py::arg("min_p"), py::arg("repetition_penalty"), py::arg("seed"),
             py::arg("choice"))
        .def("see", &Chain::see, py::arg("token_ids"));
    py::class_<Sampler>(m, "Sampler")
        .def(py::init<>())
        .def("draw", &Sampler::draw, py::arg("chain"), py::arg("logits").noconvert(),
             py::arg("row"), py::arg("position"))
        .def("logprobs", &Sampler::logprobs, py::arg("logits").noconvert(), py::arg("row"),
             py::arg("n_vocab"), py::arg("token_id"), py::arg("n_top"));
}
