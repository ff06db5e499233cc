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

#include "_sampler_picked.h"
#include "_sampler_rows.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace {

using rows::kBlock;
using rows::kInf;
using rows::Picked;
using rows::Range;

constexpr int64_t kMaxVocab = int64_t{1} << 19;
constexpr int64_t kSampled = 4; // logits of a block that the guess of a nucleus looks at
constexpr size_t kFew = 64;     // tokens that are sorted rather than divided further

struct Item {
    float logit;
    int32_t id;
};

// Likeliest first; of equal ones the lower id first.
inline bool before(const Item &a, const Item &b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
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
          greedy(temperature_ == 0.0 || top_k_ == 1), top_k(top_k_), top_p(top_p_),
          least(at_least(min_p_)), penalty(static_cast<float>(penalty_)), seed(seed_),
          choice(choice_) {
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
    const double top_p;
    const float least; // the weight that min-p asks for
    const float penalty;
    const uint64_t seed;
    const uint32_t choice;
    std::vector<uint8_t> is_seen;
    std::vector<int32_t> seen;

  private:
    // The smallest f32 that is no less: what f32 weights compare with it as they do with min_p.
    static float at_least(double min_p) {
        const float near = static_cast<float>(min_p);
        return static_cast<double>(near) < min_p ? std::nextafter(near, kInf) : near;
    }
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

const rows::Level &level_by_name(const std::string &name) {
    const auto levels = rows::usable_levels();
    if (name.empty()) return *levels.back();
    for (const rows::Level *level : levels)
        if (name == level->name) return *level;
    throw std::invalid_argument("no such level of instructions here: " + name);
}

std::vector<std::string> level_names() {
    std::vector<std::string> names;
    for (const rows::Level *level : rows::usable_levels()) names.emplace_back(level->name);
    return names;
}

float exp_neg(float x) { return rows::exp_neg(x); }

// The scratch of all choices; one per engine.
class Sampler {
  public:
    explicit Sampler(const std::string &level) : pass_(level_by_name(level)) {}

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
        pass_.maxima(x, n, maxima_.data());
        float best = -kInf;
        bool is_nan = false;
        for (const float m : maxima_) {
            is_nan |= m != m;
            best = std::max(best, m);
        }
        if (is_nan || !std::isfinite(best)) throw std::domain_error("logits are not finite");
        return best;
    }

    int64_t first_of(const float *x, int64_t n, float value) const {
        size_t b = 0;
        while (maxima_[b] != value) ++b;
        int64_t i = static_cast<int64_t>(b) * kBlock;
        while (i < n && x[i] != value) ++i;
        return i;
    }

    double sum_exp(const float *x, int64_t n, float max) const {
        double sum = 0.0;
        for (int64_t begin = 0; begin < n; begin += kBlock) {
            // 2^19 times e^-50 is less than the last bit of a sum that is at least 1.
            if (maxima_[static_cast<size_t>(begin / kBlock)] - max < -50.0f) continue;
            sum += pass_.sum_exp(x + begin, std::min(kBlock, n - begin), max);
        }
        return sum;
    }

    // The k likeliest into items_, in no order. Needs the block maxima of the row.
    //
    // No token below the k-th of the block maxima is among them. A buffer of a few times k takes
    // the others; when it is full it is cut to its k likeliest, and from then on only what beats
    // the worst of these gets in, whole blocks being passed over by their maxima. Ids come in
    // rising order, so an equal logit that comes later never displaces one.
    void select(const float *x, int64_t n, int64_t k) {
        const size_t kept = static_cast<size_t>(std::min(k, n)), limit = 4 * kept + kBlock;
        items_.clear();
        float worst = kth_maximum(kept); // what does not beat it stays out
        bool is_cut = worst > -kInf;
        if (is_cut) worst = std::nextafter(worst, -kInf);
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

    // The k-th largest of the block maxima, -inf where there are fewer.
    float kth_maximum(size_t k) {
        if (k > maxima_.size()) return -kInf;
        sorted_.assign(maxima_.begin(), maxima_.end());
        const auto kth = sorted_.begin() + static_cast<int64_t>(k) - 1;
        std::nth_element(sorted_.begin(), kth, sorted_.end(), std::greater<float>());
        return *kth;
    }

    // Leaves the likeliest of items_; the logit of the worst of them back.
    float cut_items(size_t kept) {
        const auto last = items_.begin() + static_cast<int64_t>(kept) - 1;
        std::nth_element(items_.begin(), last, items_.end(), before);
        const float worst = last->logit;
        items_.resize(kept);
        return worst;
    }

    int64_t draw_top_k(const Chain &chain, const float *x, float max, double u) {
        select(x, chain.n_vocab, chain.top_k);
        const auto weight_of = [&](const Item &item) {
            return static_cast<double>(rows::weigh(item.logit, max, chain.temperature));
        };
        if (chain.top_p < 1.0) {
            std::sort(items_.begin(), items_.end(), before);
            double total = 0.0, sum = 0.0;
            for (const Item &item : items_) total += weight_of(item);
            size_t n = 0;
            while (n < items_.size() && (n == 0 || sum < chain.top_p * total))
                sum += weight_of(items_[n++]);
            items_.resize(n);
        }
        std::sort(items_.begin(), items_.end(),
                  [](const Item &a, const Item &b) { return a.id < b.id; });
        double total = 0.0;
        for (const Item &item : items_)
            if (weight_of(item) >= chain.least) total += weight_of(item);
        return first_beyond(u * total, 0.0, items_.size(), [&](size_t i) {
            const double w = weight_of(items_[i]);
            return std::pair<double, int64_t>(w >= chain.least ? w : 0.0, items_[i].id);
        });
    }

    // The first of n weights at which the running sum exceeds the target; each comes with an id.
    template <class At>
    static int64_t first_beyond(double target, double sum, size_t n, At at) {
        int64_t last = 0;
        for (size_t i = 0; i < n && sum <= target; ++i) {
            const auto [weight, id] = at(i);
            if (weight == 0.0) continue;
            sum += weight;
            last = id;
        }
        return last;
    }

    int64_t draw_all(const Chain &chain, const float *x, float max, double u) {
        const bool has_nucleus = chain.top_p < 1.0;
        double total = weigh_all(chain, x, max, has_nucleus ? 0.0f : chain.least);
        Item last = {-kInf, static_cast<int32_t>(chain.n_vocab)}; // of those that are in
        if (has_nucleus) {
            last = last_of_nucleus(chain, x, max, total);
            total = sum_nucleus(chain, x, max, last);
        }
        const double target = u * total;
        double sum = 0.0;
        size_t b = 0;
        for (; b + 1 < sums_.size() && sum + sums_[b] <= target; ++b) sum += sums_[b];
        const int64_t begin = static_cast<int64_t>(b) * kBlock;
        const int64_t len = std::min(kBlock, chain.n_vocab - begin);
        return first_beyond(target, sum, static_cast<size_t>(len), [&](size_t i) {
            const int64_t id = begin + static_cast<int64_t>(i);
            const float w = weights_[static_cast<size_t>(id)];
            const bool is_in = w >= chain.least && !before(last, {x[id], static_cast<int32_t>(id)});
            return std::pair<double, int64_t>(is_in ? w : 0.0, id);
        });
    }

    // Weights of the row, those under least being 0, sums of its blocks, and their total. Blocks
    // that have no weight, by their maxima, are passed over.
    double weigh_all(const Chain &chain, const float *x, float max, float least) {
        const int64_t n = chain.n_vocab;
        // e^-25 is less than half a unit; a hundredth is more than the error of a weight.
        const float lowest = least > 1e-6f ? std::log(least) - 0.01f : -25.0f;
        weights_.resize(static_cast<size_t>(n));
        sums_.assign(maxima_.size(), 0.0);
        double total = 0.0;
        for (size_t b = 0; b < sums_.size(); ++b) {
            const int64_t begin = static_cast<int64_t>(b) * kBlock,
                          len = std::min(kBlock, n - begin);
            float *w = weights_.data() + begin;
            if ((maxima_[b] - max) / chain.temperature < lowest)
                std::fill(w, w + len, 0.0f);
            else
                total += sums_[b] = pass_.weigh(x + begin, len, max, chain.temperature, least, w);
        }
        return total;
    }

    // The last token of the smallest set of likeliest ones that reaches top_p.
    //
    // A sample says between which logits it lies, about; one pass over the row sums the weights
    // above these and picks what is between; that is halved until it is few.
    Item last_of_nucleus(const Chain &chain, const float *x, float max, double total) {
        const double mass = chain.top_p * total;
        const float below = std::nextafter(max - 32.0f * chain.temperature, -kInf);
        const Range all = {below, max}; // what is out of it has no weight
        Range range = guess(x, all, total, mass);
        double above = pick(x, range);
        if (above >= mass) {
            range = {range.high, all.high};
            above = pick(x, range);
        } else if (above + sum_above(picked_, range.low) < mass) {
            range = {all.low, range.low};
            above = pick(x, range);
        }
        const Picked *tokens = &picked_;
        for (bool by_bits = false; tokens->size > kFew && !range.is_one(); by_bits = !by_bits) {
            const Range half = halved(*tokens, range, mass - above, 8, by_bits);
            above += sum_above(*tokens, half.high);
            rest_.take(*tokens, half);
            range = half, tokens = &rest_;
        }
        return last_of(*tokens, mass - above);
    }

    // Where the sum over tokens, likeliest first, reaches the mass: halves a range that holds it.
    Range halved(const Picked &tokens, Range range, double mass, int n_rounds, bool by_bits) const {
        const int64_t n = static_cast<int64_t>(tokens.size);
        const float *x = tokens.logits.data(), *w = tokens.weights.data();
        for (int round = 0; round < n_rounds && !range.is_one(); ++round) {
            const float mid = range.middle(by_bits);
            (pass_.sum_above(x, w, n, mid, 0.0f) >= mass ? range.low : range.high) = mid;
        }
        return range;
    }

    // By a few tokens of each block. They say little of the likeliest, of which there are few, but
    // much of the rest, so what is compared is the mass that the nucleus leaves out.
    Range guess(const float *x, Range all, double total, double mass) {
        constexpr double margin = 0.08;
        constexpr int n_rounds = 10; // to a thirtieth of a nat
        sample_.size = 0;
        double sum = 0.0;
        for (size_t b = 0; b < maxima_.size(); ++b) {
            const size_t begin = b * static_cast<size_t>(kBlock);
            if (sums_[b] == 0.0 || begin + kSampled > weights_.size()) continue;
            sample_.reserve_block();
            for (size_t i = begin; i < begin + kSampled; ++i, ++sample_.size) {
                sample_.logits[sample_.size] = x[i];
                sample_.weights[sample_.size] = weights_[i];
                sum += static_cast<double>(weights_[i]);
            }
        }
        const double left_out = (total - mass) * kSampled / kBlock;
        Range range = all;
        if (sum > (1.0 + margin) * left_out)
            range.high =
                halved(sample_, all, sum - (1.0 + margin) * left_out, n_rounds, false).high;
        if (sum > (1.0 - margin) * left_out)
            range.low = halved(sample_, all, sum - (1.0 - margin) * left_out, n_rounds, false).low;
        return range;
    }

    // Tokens of the range into picked_; the weights above it, block by block into tops_, their sum
    // back.
    double pick(const float *x, Range range) {
        const int64_t n = static_cast<int64_t>(weights_.size());
        double above = 0.0;
        picked_.size = 0;
        tops_.assign(sums_.size(), 0.0);
        ends_.resize(sums_.size());
        for (size_t b = 0; b < sums_.size(); ++b) {
            ends_[b] = picked_.size;
            if (sums_[b] == 0.0 || maxima_[b] <= range.low) continue;
            const int64_t begin = static_cast<int64_t>(b) * kBlock,
                          len = std::min(kBlock, n - begin);
            const float *w = weights_.data() + begin;
            if (maxima_[b] > range.high)
                above += tops_[b] = pass_.sum_above(x + begin, w, len, range.high, 0.0f);
            uint8_t marks[kBlock] = {};
            pass_.mark(x + begin, len, range.low, range.high, marks);
            picked_.add(x + begin, w, begin, marks);
            ends_[b] = picked_.size;
        }
        return above;
    }

    double sum_above(const Picked &tokens, float bound) const {
        return pass_.sum_above(tokens.logits.data(), tokens.weights.data(),
                               static_cast<int64_t>(tokens.size), bound, 0.0f);
    }

    // The one of some at which the sum over them, likeliest first, reaches the mass. Where they
    // are many, all are equal and in order.
    Item last_of(const Picked &tokens, double mass) {
        order_.resize(tokens.size);
        for (size_t i = 0; i < order_.size(); ++i) order_[i] = i;
        const auto item = [&](size_t i) { return Item{tokens.logits[i], tokens.ids[i]}; };
        if (order_.size() <= kFew)
            std::sort(order_.begin(), order_.end(),
                      [&](size_t a, size_t b) { return before(item(a), item(b)); });
        double sum = 0.0;
        size_t n = 0;
        do sum += static_cast<double>(tokens.weights[order_[n++]]);
        while (sum < mass && n < order_.size());
        return item(order_[n - 1]);
    }

    // Sums of the blocks over the nucleus, less what min-p drops, and their total.
    double sum_nucleus(const Chain &chain, const float *x, float max, Item last) {
        const int64_t n = chain.n_vocab;
        const float below = std::nextafter(last.logit, -kInf);
        const auto n_blocks = static_cast<size_t>(std::count_if(
            maxima_.begin(), maxima_.end(), [below](float most) { return most > below; }));
        // Nobody of it is under min-p; weights of rising logits may fall by their last bit.
        const bool is_whole = chain.least < 0.99f * rows::weigh(last.logit, max, chain.temperature);
        if (is_whole && picked_.size < n_blocks * (kBlock / 4)) return sum_picked_nucleus(last);
        double total = 0.0;
        for (size_t b = 0; b < sums_.size(); ++b) {
            const int64_t begin = static_cast<int64_t>(b) * kBlock,
                          len = std::min(kBlock, n - begin);
            const int64_t n_low = std::clamp<int64_t>(last.id + 1 - begin, 0, len); // equals are in
            const bool is_in = sums_[b] > 0.0 && maxima_[b] > below;
            const float *w = weights_.data() + begin;
            sums_[b] = 0.0;
            if (is_in && n_low > 0)
                sums_[b] += pass_.sum_above(x + begin, w, n_low, below, chain.least);
            if (is_in && n_low < len)
                sums_[b] += pass_.sum_above(x + begin + n_low, w + n_low, len - n_low, last.logit,
                                            chain.least);
            total += sums_[b];
        }
        return total;
    }

    // The same out of what `pick` has left, without another pass over the row.
    double sum_picked_nucleus(Item last) {
        const float *logits = picked_.logits.data(), *w = picked_.weights.data();
        const int32_t *ids = picked_.ids.data();
        double total = 0.0;
        size_t i = 0;
        for (size_t b = 0; b < sums_.size(); ++b) {
            double sum = tops_[b];
            for (; i < ends_[b]; ++i) { // without a branch: who is in is hard to guess
                const uint32_t is_in = uint32_t{logits[i] > last.logit} |
                                       (uint32_t{logits[i] == last.logit} &
                                        uint32_t{ids[i] <= last.id});
                sum += static_cast<double>(rows::float_of(rows::bits_of(w[i]) & (0u - is_in)));
            }
            total += sums_[b] = sum;
        }
        return total;
    }

    const rows::Level &pass_;
    std::vector<float> maxima_, weights_, saved_, copy_, sorted_;
    std::vector<double> sums_, tops_;
    std::vector<Item> items_;
    std::vector<size_t> order_, ends_; // ends_: of each block, in picked_
    Picked sample_, picked_, rest_;
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
    m.def("levels", &level_names);
    py::class_<Chain>(m, "Chain")
        .def(py::init<int64_t, double, int64_t, double, double, double, uint64_t, uint32_t>(),
             py::kw_only(), py::arg("n_vocab"), py::arg("temperature"), py::arg("top_k"),
             py::arg("top_p"), py::arg("min_p"), py::arg("repetition_penalty"), py::arg("seed"),
             py::arg("choice"))
        .def("see", &Chain::see, py::arg("token_ids"));
    py::class_<Sampler>(m, "Sampler")
        .def(py::init<const std::string &>(), py::arg("level") = "")
        .def("draw", &Sampler::draw, py::arg("chain"), py::arg("logits").noconvert(),
             py::arg("row"), py::arg("position"))
        .def("logprobs", &Sampler::logprobs, py::arg("logits").noconvert(), py::arg("row"),
             py::arg("n_vocab"), py::arg("token_id"), py::arg("n_top"));
}
