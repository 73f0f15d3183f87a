// Products with packed weights (`weights.h`), for any number of rows.
//
// Two families of arithmetic, each with a result that does not depend on the rows beside it:
//
//   integer  activations are rounded to 8 bits, for each row in groups of inputs. Integer sums are
//            exact in any order; the sum of each group is scaled and added in the order of groups.
//   float    weights are decoded to float32 and multiplied in the order of the inputs.

#pragma once

#include <algorithm>
#include <vector>

#include "team.h"
#include "weights.h"

namespace {

// ------------------------------------------------------------------ rounded activations

// The input of a product in the form that its family wants; rows lie one after the other.
struct Input {
  float* values;      // [rows, num_inputs]: the float family's
  rounded* words;     // [rows, num_words * WORD_INPUTS]: the integer family's
  float* scales;      // [rows, num_groups]
  int32_t* starts;    // [rows, num_groups]: minus the sum of the group's words, times the offset
                      // where that is the same for all weights (there are no zero points)
};

// Rounds a group of one row, `inputs` [num_inputs]: value = word * scale.
inline void round_group(const Linear& l, const float* inputs, const Input& input, int row,
                        int group) {
  const int first = group * l.group, count = std::min(l.group, l.num_inputs - first);
  const float* x = inputs + first;
  float collected[LARGEST_GROUP];
  if (l.order) {
    for (int k = 0; k < count; k++) collected[k] = inputs[l.order[first + k]];
    x = collected;
  }
  rounded* words = input.words + int64_t(row) * num_words(l) * WORD_INPUTS + first;
  const int whole = count / LANES * LANES;
  // Magnitudes are compared as integers: so a value that is no number is the largest of all.
  ivec highest = {};
  const ivec magnitude = ivec{} + 0x7fffffff;
  for (int k = 0; k < whole; k += LANES) {
    const ivec bits = (ivec)load(x + k) & magnitude;
    highest = bits > highest ? bits : highest;
  }
  int32_t largest = 0;
  for (int i = 0; i < LANES; i++) largest = std::max(largest, highest[i]);
  for (int k = whole; k < count; k++) {
    int32_t bits;
    std::memcpy(&bits, x + k, 4);
    largest = std::max(largest, bits & 0x7fffffff);
  }
  float amax;
  std::memcpy(&amax, &largest, 4);
  const bool finite = largest < 0x7f800000;
  const float inverse = finite && amax > 1e-30f ? 127.0f / amax : 0.0f;
  const float round_to_int = 12582912.0f;  // 1.5 * 2^23: adding it leaves no fraction bits
  ivec sums = {};
  for (int k = 0; k < whole; k += LANES) {
    const vec shifted = (finite ? load(x + k) : vec{}) * inverse + round_to_int;
    const ivec q = (ivec)shifted - (ivec)broadcast(round_to_int);
    typedef rounded words_of_vec __attribute__((vector_size(LANES * sizeof(rounded))));
    const words_of_vec narrow = __builtin_convertvector(q, words_of_vec);
    std::memcpy(words + k, &narrow, sizeof narrow);
    sums += q;
  }
  int32_t sum = 0;
  for (int i = 0; i < LANES; i++) sum += sums[i];
  for (int k = whole; k < count; k++) {
    words[k] = finite ? rounded(std::nearbyint(x[k] * inverse)) : 0;
    sum += words[k];
  }
  for (int k = count; first + k < num_words(l) * WORD_INPUTS && k < l.group; k++) words[k] = 0;
  const int64_t at = int64_t(row) * num_groups(l) + group;
  input.scales[at] = !finite ? NAN : inverse > 0 ? amax / 127.0f : 0.0f;
  input.starts[at] = l.zeros ? -sum : -offset_of(l) * sum;
}

// ------------------------------------------------------------------ one tile

// Weights that are wanted soon: while the rows pass a panel, the next one is fetched, a little with
// each word, so that memory and multipliers work at the same time.
struct Ahead {
  const uint8_t* next;
  int stride;  // bytes for each word
};

// `sums` of ROWS rows of a panel, in the integer family. SCALE_BY_GROUP: also of the weights.
template <int ROWS, bool NIBBLES, bool SCALE_BY_GROUP, bool FETCHES_AHEAD>
__attribute__((noinline)) void multiply_rounded(const Linear& l, const uint8_t* weights,
                                                int64_t scale_at, const Input& input, int row,
                                                Ahead ahead, vec (&sums)[ROWS][2]) {
  constexpr int STEP = NIBBLES ? VECTOR_BYTES : 2 * VECTOR_BYTES;
  const int groups = num_groups(l), words_in_all = num_words(l);
  const int group_words = l.group / WORD_INPUTS;
  const rounded* x[ROWS];
  for (int i = 0; i < ROWS; i++)
    x[i] = input.words + int64_t(row + i) * words_in_all * WORD_INPUTS;
  for (int i = 0; i < ROWS; i++) sums[i][0] = sums[i][1] = vec{};
  for (int g = 0; g < groups; g++) {
    const int64_t at = scale_at + (SCALE_BY_GROUP ? g * PANEL : 0);
    ivec acc[ROWS][2];
    for (int i = 0; i < ROWS; i++)
      acc[i][0] = acc[i][1] = ivec{} + input.starts[int64_t(row + i) * groups + g];
    if (l.zeros)
      for (int v = 0; v < 2; v++) {
        const ivec zero = load_zeros(l, at + v * LANES);
        for (int i = 0; i < ROWS; i++) acc[i][v] *= zero;
      }
    const int end = std::min(words_in_all, (g + 1) * group_words);
    for (int word = g * group_words; word < end; word++) {
      bytes w[2];
      load_bytes<NIBBLES>(weights, w);
      weights += STEP;
      if constexpr (FETCHES_AHEAD) {
        for (int line = 0; line < STEP; line += 64) __builtin_prefetch(ahead.next + line);
        ahead.next += ahead.stride;
      }
      const factors w0 = widen(w[0]), w1 = widen(w[1]);
      for (int i = 0; i < ROWS; i++) {
        int32_t bits;
        std::memcpy(&bits, x[i] + word * WORD_INPUTS, 4);
        const ivec xs = ivec{} + bits;
        acc[i][0] = dot(acc[i][0], w0, xs);
        acc[i][1] = dot(acc[i][1], w1, xs);
      }
    }
    vec own[2];  // scales of the weights
    if constexpr (SCALE_BY_GROUP)
      for (int v = 0; v < 2; v++) own[v] = load_scales(l, at + v * LANES);
    for (int i = 0; i < ROWS; i++) {
      const float scale = input.scales[int64_t(row + i) * groups + g];
      for (int v = 0; v < 2; v++) {
        vec value = __builtin_convertvector(acc[i][v], vec);
        if constexpr (SCALE_BY_GROUP) value *= own[v];
        sums[i][v] += value * scale;
      }
    }
  }
  if constexpr (!SCALE_BY_GROUP)
    for (int i = 0; i < ROWS; i++)
      for (int v = 0; v < 2; v++) sums[i][v] *= load_scales(l, scale_at + v * LANES);
}

// The same in the float family, of weights stored as floats.
template <int ROWS, Format FORMAT>
inline void multiply_floats(const Linear& l, const uint8_t* weights, const Input& input, int row,
                            vec (&sums)[ROWS][2]) {
  typedef typename Stored<FORMAT>::type stored;
  const stored* w = reinterpret_cast<const stored*>(weights);
  const float* x = input.values + int64_t(row) * l.num_inputs;
  for (int i = 0; i < ROWS; i++) sums[i][0] = sums[i][1] = vec{};
  for (int k = 0; k < l.num_inputs; k++, w += PANEL) {
    const vec w0 = load_as_float(w), w1 = load_as_float(w + LANES);
    for (int i = 0; i < ROWS; i++) {
      const float xs = x[int64_t(i) * l.num_inputs + k];
      sums[i][0] += xs * w0;
      sums[i][1] += xs * w1;
    }
  }
}

// The same in the float family, of integer weights. ORDERED: inputs have another order than x.
template <int ROWS, bool NIBBLES, bool SCALE_BY_GROUP, bool ORDERED>
inline void multiply_decoded(const Linear& l, const uint8_t* weights, int64_t scale_at,
                             const Input& input, int row, vec (&sums)[ROWS][2]) {
  constexpr int STEP = NIBBLES ? VECTOR_BYTES : 2 * VECTOR_BYTES;
  constexpr int OFFSET = NIBBLES ? NIBBLE_OFFSET : BYTE_OFFSET;
  const float* x = input.values + int64_t(row) * l.num_inputs;
  for (int i = 0; i < ROWS; i++) sums[i][0] = sums[i][1] = vec{};
  for (int g = 0; g < num_groups(l); g++) {
    const int64_t at = scale_at + (SCALE_BY_GROUP ? g * PANEL : 0);
    const ivec zero[2] = {load_zeros(l, at), load_zeros(l, at + LANES)};
    vec acc[ROWS][2] = {};
    const int end = std::min(l.num_inputs, (g + 1) * l.group);
    for (int k = g * l.group; k < end; k += WORD_INPUTS, weights += STEP) {
      bytes w[2];
      load_bytes<NIBBLES>(weights, w);
      for (int j = 0; j < WORD_INPUTS && k + j < end; j++) {
        const vec w0 = decode_bytes<OFFSET>(w[0], j, zero[0]);
        const vec w1 = decode_bytes<OFFSET>(w[1], j, zero[1]);
        const int place = ORDERED ? l.order[k + j] : k + j;
        for (int i = 0; i < ROWS; i++) {
          const float xs = x[int64_t(i) * l.num_inputs + place];
          acc[i][0] += xs * w0;
          acc[i][1] += xs * w1;
        }
      }
    }
    const vec scales[2] = {load_scales(l, at), load_scales(l, at + LANES)};
    for (int i = 0; i < ROWS; i++)
      for (int v = 0; v < 2; v++) sums[i][v] += acc[i][v] * scales[v];
  }
}

// The same in the float family, of 8-bit floats.
template <int ROWS, bool ORDERED>
inline void multiply_float8(const Linear& l, const uint8_t* weights, int64_t scale_at,
                            const Input& input, int row, vec (&sums)[ROWS][2]) {
  const float* x = input.values + int64_t(row) * l.num_inputs;
  for (int i = 0; i < ROWS; i++) sums[i][0] = sums[i][1] = vec{};
  for (int g = 0; g < num_groups(l); g++) {
    vec acc[ROWS][2] = {};
    const int end = std::min(l.num_inputs, (g + 1) * l.group);
    for (int k = g * l.group; k < end; k++, weights += PANEL) {
      const vec w0 = load_float8(weights), w1 = load_float8(weights + LANES);
      const int place = ORDERED ? l.order[k] : k;
      for (int i = 0; i < ROWS; i++) {
        const float xs = x[int64_t(i) * l.num_inputs + place];
        acc[i][0] += xs * w0;
        acc[i][1] += xs * w1;
      }
    }
    const int64_t at = scale_at + (l.scale_by_group ? g * PANEL : 0);
    for (int v = 0; v < 2; v++) {
      const vec scale = load_scales(l, at + v * LANES) * FLOAT8_UNIT;
      for (int i = 0; i < ROWS; i++) sums[i][v] += acc[i][v] * scale;
    }
  }
}

// ------------------------------------------------------------------ the whole product

// What becomes of a product: y = it, y += it (a residual) or y = silu(y) * it (a gated MLP).
enum Effect { REPLACE, ADD, GATE };

// y [rows, stride], whose first column takes output `first` of the matrix.
struct Output {
  float* y;
  int64_t stride;
  Effect effect;
  int first = 0;
};

inline vec take_effect(Effect effect, const float* y, vec product) {
  if (effect == REPLACE) return product;
  return effect == ADD ? load(y) + product : load(y) * sigmoid(load(y)) * product;
}

template <int ROWS>
inline void write_tile(const Linear& l, int panel, int row, const Output& out,
                       const vec (&sums)[ROWS][2]) {
  for (int v = 0; v < 2; v++) {
    const int first = first_output(l, panel) + v * LANES;
    const int count = std::min(LANES, l.num_outputs - first);
    if (count <= 0) return;
    float padded[LANES] = {};
    if (l.bias) std::memcpy(padded, l.bias + first, count * sizeof(float));
    const vec bias = load(padded);
    for (int i = 0; i < ROWS; i++) {
      float* y = out.y + (row + i) * out.stride + first - out.first;
      const vec product = l.bias ? sums[i][v] + bias : sums[i][v];
      if (count == LANES) {
        store(y, take_effect(out.effect, y, product));
      } else {
        std::memcpy(padded, y, count * sizeof(float));
        store(padded, take_effect(out.effect, padded, product));
        std::memcpy(y, padded, count * sizeof(float));
      }
    }
  }
}

// 4-bit weights of a panel as bytes: worth the trouble when many rows use them. The arithmetic
// is the same, integers, so it changes no bit of the result.
inline const uint8_t* spread_nibbles(const Linear& l, const uint8_t* weights) {
  static thread_local std::vector<bytes> spread;
  spread.resize(2 * num_words(l));
  for (int word = 0; word < num_words(l); word++) {
    bytes w[2];
    load_bytes<true>(weights + int64_t(word) * VECTOR_BYTES, w);
    spread[2 * word] = w[0];
    spread[2 * word + 1] = w[1];
  }
  return reinterpret_cast<const uint8_t*>(spread.data());
}
constexpr int SPREAD_ROWS = 3 * LINEAR_ROWS;
constexpr int FETCHING_TILES = 8;

// Rows `first` to `end` of a panel.
inline void multiply_panel(const Linear& l, const Input& input, int panel, int first, int end,
                           const Output& out) {
  const uint8_t* weights = l.weights + panel * panel_bytes(l);
  const int64_t scale_at = first_scale(l, panel);
  bool nibbles = l.format == INT4;
  if (nibbles && l.rounds_activations && end - first >= SPREAD_ROWS) {
    weights = spread_nibbles(l, weights);
    nibbles = false;
  }
  const int64_t tiles = std::max(1, (end - first) / LINEAR_ROWS);
  const int stride = panel_bytes(l) / tiles / num_words(l);
  for_row_groups<LINEAR_ROWS>(first, end, [&](int row, auto rows) {
    constexpr int ROWS = decltype(rows)::value;
    const int64_t tile = (row - first) / LINEAR_ROWS;
    const Ahead ahead{l.weights + (panel + 1) * panel_bytes(l) + tile * stride * num_words(l),
                      stride};
    vec sums[ROWS][2];
    const auto integers = [&](auto nibbles, auto by_group) {
      // A single row is a stream, which the hardware fetches ahead by itself; and beyond some
      // rows the memory is idle most of the time.
      if (l.rounds_activations && ROWS > 1 && tiles <= FETCHING_TILES)
        multiply_rounded<ROWS, nibbles(), by_group(), (ROWS > 1)>(l, weights, scale_at, input, row,
                                                                  ahead, sums);
      else if (l.rounds_activations)
        multiply_rounded<ROWS, nibbles(), by_group(), false>(l, weights, scale_at, input, row,
                                                             ahead, sums);
      else if (l.order)
        multiply_decoded<ROWS, nibbles(), by_group(), true>(l, weights, scale_at, input, row, sums);
      else
        multiply_decoded<ROWS, nibbles(), by_group(), false>(l, weights, scale_at, input, row,
                                                             sums);
    };
    const std::true_type yes;
    const std::false_type no;
    if (l.format == FLOAT32) multiply_floats<ROWS, FLOAT32>(l, weights, input, row, sums);
    else if (l.format == BFLOAT16) multiply_floats<ROWS, BFLOAT16>(l, weights, input, row, sums);
    else if (l.format == FLOAT16) multiply_floats<ROWS, FLOAT16>(l, weights, input, row, sums);
    else if (l.format == FLOAT8 && l.order)
      multiply_float8<ROWS, true>(l, weights, scale_at, input, row, sums);
    else if (l.format == FLOAT8)
      multiply_float8<ROWS, false>(l, weights, scale_at, input, row, sums);
    else if (nibbles) l.scale_by_group ? integers(yes, yes) : integers(yes, no);
    else l.scale_by_group ? integers(no, yes) : integers(no, no);
    write_tile(l, panel, row, out, sums);
  });
}

// Calls f(panel, first row, end row) for every panel of `panels`, shared by the team. A panel's
// weights stay in the first caches while all rows pass by; rows are divided too where there are
// more threads than panels to go round.
template <typename F>
void share_panels(const Member& member, int panels, int num_rows, F f) {
  const int wanted = std::max(1, 4 * member.team.size() / panels);
  const int most = std::max(1, num_rows / (4 * LINEAR_ROWS));
  const int blocks = member.team.size() == 1 ? 1 : std::min(wanted, most);
  member.share(panels * blocks, [&](int item) {
    const auto start = [&](int b) {
      return b == blocks ? num_rows
                         : int(int64_t(num_rows) * b / blocks / LINEAR_ROWS * LINEAR_ROWS);
    };
    const int block = item % blocks;
    f(item / blocks, start(block), start(block + 1));
  });
}

// y [rows, num_outputs] = input · weights, or what else becomes of it.
inline void multiply(const Member& member, const Linear& l, const Input& input, int num_rows,
                     float* y, Effect effect) {
  share_panels(member, num_panels(l), num_rows, [&](int panel, int first, int end) {
    multiply_panel(l, input, panel, first, end, Output{y, l.num_outputs, effect});
  });
}

// y [rows, num_outputs / 2] = silu(first half of the outputs) * second half: the gate goes no
// further than the caches. The halves must alternate.
inline void multiply_gated(const Member& member, const Linear& l, const Input& input, int num_rows,
                           float* y) {
  const int size = l.num_outputs / 2;
  share_panels(member, num_panels(l) / 2, num_rows, [&](int pair, int first, int end) {
    multiply_panel(l, input, 2 * pair, first, end, Output{y, size, REPLACE});
    multiply_panel(l, input, 2 * pair + 1, first, end, Output{y, size, GATE, size});
  });
}

}  // namespace
