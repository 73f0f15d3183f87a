// Sampling on a CPU: one token for each row of logits, without sorting the vocabulary.
//
// A token's weight is exp((logit - largest logit) / temperature): 1 for the likeliest. A row is cut
// into groups of tokens, and only two things are computed for all of it:
//
//   peaks    the largest logit of each group, hence of the row; a greedy row needs no more
//   sums     the weight of each group; only if every token may be drawn or top-p needs the total
//
// What top-k, top-p and min-p keep lies above a bound that follows from these few numbers:
//
//   top-k    k groups hold a token of at least the k-th largest peak: what weighs less is not among
//            the k likeliest
//   top-p    tokens below an equal share of what may go, (1 - p) total / vocab_size, do not add up
//            to it: the others reach p
//   min-p    is a bound
//
// Groups whose peak passes the bound are searched for candidates, usually some dozens in all, and
// the exact border is found among those, by bisection.
//
// Every sum adds the same numbers in the same order, whatever the neighbours of the row, the number
// of threads and the width of the vectors: a token depends on its row and draw alone.

#include <omp.h>

#include <algorithm>
#include <vector>

#include "simd.h"

extern "C" {

struct Draw {
  double temperature;  // 0: greedy, and nothing else matters
  double top_k;        // a whole number; 0 keeps all
  double top_p, min_p;
  double fraction;  // of the total weight, in [0, 1): the token is where the running sum passes it
};

}  // extern "C"

namespace {

constexpr int GROUP = 128;                // tokens
constexpr int64_t SHARE = 1 << 18;        // logits that are worth waking a thread for
constexpr double MIN_TEMPERATURE = 1e-5;  // lower ones are raised to it
constexpr float STEP = 16;                // between the bounds that are tried for top-p
// Weights are rounded: of two logits that nearly agree, the larger may get the smaller weight. A
// bound lowered by this factor misses neither.
constexpr float SLACK = 1 - 1e-6f;
// `fraction` has 53 bits. Tokens that weigh less than its last one over the size of the vocabulary
// do not add up to it; the likeliest weighs 1.
constexpr double LAST_BIT = 0x1p-53;

// One thread's working memory, kept over calls so that a step allocates nothing.
struct Scratch {
  float tail[GROUP];           // the logits of the last group, filled up with -inf
  std::vector<float> peaks;    // of the groups, filled up to a multiple of GROUP
  std::vector<double> sums;    // of the groups
  std::vector<float> weights;  // of the candidates, followed by zeros up to a multiple of GROUP
  std::vector<int32_t> tokens;
};

// The sum over a group of at(i), i = 0, LANES, 2 LANES …; as if there were always 16 lanes.
template <typename F>
double sum_group(F at) {
  constexpr int VECS = 16 / LANES;
  vec sum[VECS] = {};
  for (int i = 0; i < GROUP; i += 16)
    for (int v = 0; v < VECS; v++) sum[v] += at(i + v * LANES);
  for (int half = VECS / 2; half > 0; half /= 2)
    for (int v = 0; v < half; v++) sum[v] += sum[v + half];
  return horizontal_sum(sum[0]);
}

// Where the running sum of `amounts` passes `target`, of which what is left on arrival remains.
// The last that is not zero if rounding has brought the target up to the sum of all.
template <typename T>
int pass(const T* amounts, int count, double& target) {
  double before = 0;
  int last = 0;
  for (int i = 0; i < count; i++) {
    const double sum = before + amounts[i];
    if (sum > target) {
      target -= before;
      return i;
    }
    if (sum > before) last = i;
    before = sum;
  }
  return last;
}

inline float float_of(int32_t bits) {
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

const auto number = [](vec) { return broadcast(1); };
const auto mass = [](vec weights) { return weights; };

// The largest number for which the weights that are no smaller amount to `target`, which is one of
// the weights; 0 if not even all do. `weights` are at most 1, with zeros after the last.
//
// Positive floats are ordered as their bits are: it takes 30 steps of bisection. Rounding does not
// mislead it: additions come in a fixed order, so fewer weights never make a larger sum.
template <typename F>
float border(const std::vector<float>& weights, int count, double target, F amount) {
  const auto reached = [&](float lowest) {
    double sum = 0;
    for (int start = 0; start < count; start += GROUP)
      sum += sum_group([&](int i) {
        const vec w = load(&weights[start + i]);
        return w >= lowest ? amount(w) : vec{};
      });
    return sum >= target;
  };
  int32_t low = 0, high = 0x3f800001;  // the bits of 0 and of the first number above 1
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    (reached(float_of(middle)) ? low : high) = middle;
  }
  return float_of(low);
}

class Row {
 public:
  Row(const float* logits, int vocab_size, Scratch& scratch)
      : logits_(logits),
        vocab_size_(vocab_size),
        num_groups_((vocab_size + GROUP - 1) / GROUP),
        scratch_(scratch) {}

  // The token, or -1 if NaN or infinity is in the way.
  int pick(const Draw& draw) {
    find_maxima();
    if (!std::isfinite(largest_)) return -1;
    if (draw.temperature == 0) return first_of_the_largest();
    inverse_temperature_ = float(1 / std::max(draw.temperature, MIN_TEMPERATURE));
    weigh_peaks();
    const bool cuts_k = 0 < draw.top_k && draw.top_k < vocab_size_;
    const bool cuts_p = draw.top_p < 1;
    double total = 0;
    double bound = negligible();
    if (cuts_k) {
      bound = std::max<double>(bound, border(scratch_.peaks, num_groups_, draw.top_k, number));
    } else if (!cuts_p && draw.min_p <= bound) {
      return draw_from_all(draw.fraction);
    } else {
      if (cuts_p) total = sum_all();
      bound = std::max({bound, draw.min_p, cuts_p ? nucleus_bound(draw.top_p, total) : 0});
    }
    collect(float(bound) * SLACK);
    if (cuts_k) keep(border(scratch_.weights, num_candidates_, draw.top_k, number));
    if (cuts_k && cuts_p) total = sum_candidates();
    if (cuts_p) keep(border(scratch_.weights, num_candidates_, draw.top_p * total, mass));
    if (draw.min_p > 0) keep(float(draw.min_p));
    return draw_from_candidates(draw.fraction);
  }

 private:
  const float* group(int g) const {
    return (g + 1) * GROUP <= vocab_size_ ? logits_ + g * GROUP : scratch_.tail;
  }

  vec weigh(vec logits) const {
    return exp_nonpositive((logits - largest_) * inverse_temperature_);
  }

  double negligible() const { return LAST_BIT / vocab_size_; }

  void find_maxima() {
    const int begin = vocab_size_ / GROUP * GROUP;
    std::fill_n(scratch_.tail, GROUP, -INFINITY);
    std::copy(logits_ + begin, logits_ + vocab_size_, scratch_.tail);
    std::vector<float>& maxima = scratch_.peaks;
    maxima.assign((num_groups_ + GROUP - 1) / GROUP * GROUP, -INFINITY);
    for (int g = 0; g < num_groups_; g++) {
      const float* logits = group(g);
      vec highest = broadcast(-INFINITY);
      for (int i = 0; i < GROUP; i += LANES) {
        const vec x = load(logits + i);
        highest = maximum(x == x ? x : broadcast(INFINITY), highest);  // NaN counts as infinity
      }
      maxima[g] = horizontal_max(highest);
    }
    vec highest = broadcast(-INFINITY);
    for (size_t i = 0; i < maxima.size(); i += LANES) highest = maximum(load(&maxima[i]), highest);
    largest_ = horizontal_max(highest);
  }

  int first_of_the_largest() const {
    int g = 0, i = 0;
    while (scratch_.peaks[g] != largest_) g++;
    while (group(g)[i] != largest_) i++;
    return g * GROUP + i;
  }

  // Turns the groups' maxima into their weights.
  void weigh_peaks() {
    for (size_t i = 0; i < scratch_.peaks.size(); i += LANES) {
      const vec weights = weigh(load(&scratch_.peaks[i]));
      std::memcpy(&scratch_.peaks[i], &weights, sizeof weights);
    }
  }

  // The sum of what `of` makes of the weights, also by group. Groups below `bound` count as zero.
  template <typename F>
  double sum_groups(float bound, F of) {
    scratch_.sums.resize(num_groups_);
    double total = 0;
    for (int g = 0; g < num_groups_; g++) {
      const float* logits = group(g);
      scratch_.sums[g] = 0;
      if (scratch_.peaks[g] < bound * SLACK) continue;
      total += scratch_.sums[g] = sum_group([&](int i) { return of(weigh(load(logits + i))); });
    }
    return total;
  }

  double sum_all() { return sum_groups(float(negligible()), mass); }

  // The equal share, or a higher bound where the tokens above that already reach p. Trying those
  // from the top looks at few groups if few tokens make up the nucleus.
  double nucleus_bound(double top_p, double total) {
    const double share = (1 - top_p) * total / vocab_size_;
    for (float bound = 1.0f / STEP; bound > share; bound /= STEP)
      if (sum_groups(bound, [&](vec w) { return w >= bound ? w : vec{}; }) >= top_p * total)
        return bound;
    return share;
  }

  void weigh_group(int g, float* weights) const {
    const float* logits = group(g);
    for (int i = 0; i < GROUP; i += LANES) {
      const vec w = weigh(load(logits + i));
      std::memcpy(weights + i, &w, sizeof w);
    }
  }

  // The token of a group where the running sum passes `share` of the total. The total is added up
  // anew, token by token as the running sum: were it off by a rounding of vectors, the last token
  // would be drawn for the difference, however unlikely it is.
  static int draw_within(const float* weights, double share) {
    double total = 0;
    for (int i = 0; i < GROUP; i++) total += weights[i];
    double target = share * total;
    return pass(weights, GROUP, target);
  }

  int draw_from_all(double fraction) {
    double target = fraction * sum_all();
    const int g = pass(scratch_.sums.data(), num_groups_, target);
    float weights[GROUP];
    weigh_group(g, weights);
    return g * GROUP + draw_within(weights, target / scratch_.sums[g]);
  }

  // The candidates: tokens of at least the weight `bound`, in the vocabulary's order.
  void collect(float bound) {
    scratch_.weights.resize(num_groups_ * GROUP + GROUP);  // the last may all be rejected
    scratch_.tokens.resize(scratch_.weights.size());
    int count = 0;
    for (int g = 0; g < num_groups_; g++) {
      if (scratch_.peaks[g] < bound) continue;
      float weights[GROUP];
      weigh_group(g, weights);
      for (int i = 0; i < GROUP; i++) {
        scratch_.weights[count] = weights[i];
        scratch_.tokens[count] = g * GROUP + i;
        count += weights[i] >= bound;
      }
    }
    num_candidates_ = count;
    std::fill_n(&scratch_.weights[count], GROUP, 0.0f);
  }

  // Of the candidates, those of at least the weight `lowest`.
  void keep(float lowest) {
    int count = 0;
    for (int i = 0; i < num_candidates_; i++) {
      scratch_.weights[count] = scratch_.weights[i];
      scratch_.tokens[count] = scratch_.tokens[i];
      count += scratch_.weights[i] >= lowest;
    }
    num_candidates_ = count;
    std::fill_n(&scratch_.weights[count], GROUP, 0.0f);
  }

  double sum_candidates() {
    const int num_groups = (num_candidates_ + GROUP - 1) / GROUP;
    scratch_.sums.resize(num_groups);
    double total = 0;
    for (int g = 0; g < num_groups; g++)
      total += scratch_.sums[g] =
          sum_group([&](int i) { return load(&scratch_.weights[g * GROUP + i]); });
    return total;
  }

  int draw_from_candidates(double fraction) {
    double target = fraction * sum_candidates();
    const int g = pass(scratch_.sums.data(), int(scratch_.sums.size()), target);
    const float* weights = &scratch_.weights[g * GROUP];
    return scratch_.tokens[g * GROUP + draw_within(weights, target / scratch_.sums[g])];
  }

  const float* logits_;
  const int vocab_size_, num_groups_;
  Scratch& scratch_;
  float largest_, inverse_temperature_;
  int num_candidates_;
};

}  // namespace

// One token for each row of `logits` [num_rows, vocab_size], whose rows are `stride` elements
// apart; -1 for a row with NaN or +inf, or without a logit above -inf.
extern "C" void sample_tokens(const float* logits, int64_t stride, int32_t num_rows,
                              int32_t vocab_size, const Draw* draws, int32_t num_threads,
                              int32_t* tokens) {
  const int64_t shares = num_rows * int64_t(vocab_size) / SHARE;
  num_threads = int32_t(std::clamp<int64_t>(shares, 1, num_threads));
#pragma omp parallel for schedule(dynamic) num_threads(num_threads)
  for (int row = 0; row < num_rows; row++) {
    static thread_local Scratch scratch;
    tokens[row] = Row(logits + row * stride, vocab_size, scratch).pick(draws[row]);
  }
}
