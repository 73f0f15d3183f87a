// Products with weights that are packed once, in the order in which they are read.
//
// Outputs are cut into panels of two vectors. Within a panel, the weights of WORD_INPUTS
// consecutive inputs stand together for each output, so that one 32-bit word of activations,
// broadcast, meets one 32-bit lane of each output:
//
//     panel p:  word 0                                   word 1 …
//               vector 0              vector 1
//               |o0 o0|o1 o1| … |     |oL oL|oL+1 … |    inputs of a word side by side
//
// 4-bit weights hold vector 0 in the low and vector 1 in the high half of each byte.
//
// Two families of arithmetic, each with a result that does not depend on the rows beside it:
//
//   integer  activations are rounded to 8 bits, for each row in groups of inputs. Integer sums are
//            exact in any order; the sum of each group is scaled and added in the order of groups.
//   float    weights are decoded to float32 and multiplied in the order of the inputs.
//
// Integer weights are stored with an offset where the instruction wants them unsigned: with stored
// u = w + offset, sum(w x) = sum(u x) - offset sum(x), and the last term, known once the
// activations are rounded, is where the sum starts. Where a weight z other than 0 stands for zero
// (a zero point, of each output and group), it is added to the offset.

#pragma once

#include <algorithm>
#include <vector>

#include "simd.h"
#include "team.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace {

constexpr int PANEL = 2 * LANES;  // outputs
#if defined(__AVX2__) && !defined(__AVX512BW__)
constexpr int LINEAR_ROWS = 4;  // 16 registers: 8 sums, 2 weights, and their parts
#else
constexpr int LINEAR_ROWS = 8;  // 32 registers
#endif

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
// vpdpbusd: unsigned bytes times signed bytes, four at a time.
typedef int8_t rounded;
constexpr int BYTE_OFFSET = 128;
#elif defined(__AVX2__)
// vpmaddwd: 16-bit words, two at a time. (vpmaddubsw takes bytes but saturates at 16 bits, and
// the two instructions that it needs afterwards leave nothing of its advantage.)
typedef int16_t rounded;
constexpr int BYTE_OFFSET = 0;
#else
typedef int8_t rounded;  // NEON's sdot: signed bytes; elsewhere plain C++
constexpr int BYTE_OFFSET = 0;
#endif
constexpr int WORD_INPUTS = 4 / sizeof(rounded);
constexpr int VECTOR_BYTES = LANES * WORD_INPUTS;  // of 8-bit weights that meet one word
constexpr int NIBBLE_OFFSET = 8;

typedef uint8_t bytes __attribute__((vector_size(VECTOR_BYTES)));
typedef uint8_t bytes_in_memory __attribute__((vector_size(VECTOR_BYTES), aligned(1), may_alias));

enum Format : int32_t { FLOAT32, BFLOAT16, FLOAT16, INT8, INT4, FLOAT8 };  // FLOAT8: e4m3

extern "C" {

struct Linear {
  uint8_t* weights;  // see `panel_bytes`
  void* scales;      // [panels, scale groups, PANEL]; formats of 8 and 4 bits
  const float* bias;  // [num_outputs], or null
  int32_t num_outputs, num_inputs;
  Format format;
  int32_t group;          // inputs whose activations share a scale, a multiple of LANES
  int32_t scale_by_group; // whether weights have a scale for each group too, or one for all
  int32_t rounds_activations;  // the integer family
  Format scale_format;    // BFLOAT16, FLOAT16 or FLOAT32
  int8_t* zeros;  // [panels, scale groups, PANEL]: weights that stand for 0, or null: 0 itself
};

}  // extern "C"

inline int round_up(int n, int to) { return (n + to - 1) / to * to; }
inline int num_panels(const Linear& l) { return (l.num_outputs + PANEL - 1) / PANEL; }
// Where it can be, panels of the first and of the second half of the outputs alternate: what
// belongs together in a gated MLP lies side by side.
inline bool halves_alternate(const Linear& l) { return l.num_outputs % (2 * PANEL) == 0; }
inline int panel_of(const Linear& l, int output) {
  const int block = output / PANEL, half = num_panels(l) / 2;
  if (!halves_alternate(l)) return block;
  return block < half ? 2 * block : 2 * (block - half) + 1;
}
inline int first_output(const Linear& l, int panel) {
  if (!halves_alternate(l)) return panel * PANEL;
  return panel % 2 * (l.num_outputs / 2) + panel / 2 * PANEL;
}
inline int num_groups(const Linear& l) { return (l.num_inputs + l.group - 1) / l.group; }
inline int num_scale_groups(const Linear& l) { return l.scale_by_group ? num_groups(l) : 1; }
inline int num_words(const Linear& l) { return round_up(l.num_inputs, WORD_INPUTS) / WORD_INPUTS; }
inline bool has_scales(const Linear& l) { return l.format >= INT8; }
inline int64_t num_scales(const Linear& l) {
  return has_scales(l) ? int64_t(num_panels(l)) * num_scale_groups(l) * PANEL : 0;
}
// Where the scales of a panel begin.
inline int64_t first_scale(const Linear& l, int panel) {
  return int64_t(panel) * num_scale_groups(l) * PANEL;
}
inline int offset_of(const Linear& l) { return l.format == INT4 ? NIBBLE_OFFSET : BYTE_OFFSET; }

inline int64_t panel_bytes(const Linear& l) {
  switch (l.format) {
    case FLOAT32: return int64_t(4) * PANEL * l.num_inputs;
    case BFLOAT16:
    case FLOAT16: return int64_t(2) * PANEL * l.num_inputs;
    case FLOAT8: return int64_t(PANEL) * l.num_inputs;
    case INT8: return int64_t(2) * VECTOR_BYTES * num_words(l);
    default: return int64_t(VECTOR_BYTES) * num_words(l);
  }
}

// ------------------------------------------------------------------ rounded activations

// The input of a product in the form that its family wants; rows lie one after the other.
struct Input {
  float* values;      // [rows, num_inputs]: the float family's
  rounded* words;     // [rows, num_words * WORD_INPUTS]: the integer family's
  float* scales;      // [rows, num_groups]
  int32_t* starts;    // [rows, num_groups]: minus the sum of the group's words, times the offset
                      // where that is the same for all weights (there are no zero points)
};

// Rounds inputs `first` to `end` (a group) of one row: value = word * scale.
inline void round_group(const Linear& l, const float* x, const Input& input, int row, int group) {
  const int first = group * l.group, count = std::min(l.group, l.num_inputs - first);
  rounded* words = input.words + int64_t(row) * num_words(l) * WORD_INPUTS + first;
  const int whole = count / LANES * LANES;
  // Magnitudes are compared as integers: so a value that is no number is the largest of all.
  ivec highest = {};
  const ivec magnitude = ivec{} + 0x7fffffff;
  for (int k = 0; k < whole; k += LANES) {
    const ivec bits = (ivec)load(x + first + k) & magnitude;
    highest = bits > highest ? bits : highest;
  }
  int32_t largest = 0;
  for (int i = 0; i < LANES; i++) largest = std::max(largest, highest[i]);
  for (int k = whole; k < count; k++) {
    int32_t bits;
    std::memcpy(&bits, x + first + k, 4);
    largest = std::max(largest, bits & 0x7fffffff);
  }
  float amax;
  std::memcpy(&amax, &largest, 4);
  const bool finite = largest < 0x7f800000;
  const float inverse = finite && amax > 1e-30f ? 127.0f / amax : 0.0f;
  const float round_to_int = 12582912.0f;  // 1.5 * 2^23: adding it leaves no fraction bits
  ivec sums = {};
  for (int k = 0; k < whole; k += LANES) {
    const vec shifted = (finite ? load(x + first + k) : vec{}) * inverse + round_to_int;
    const ivec q = (ivec)shifted - (ivec)broadcast(round_to_int);
    typedef rounded words_of_vec __attribute__((vector_size(LANES * sizeof(rounded))));
    const words_of_vec narrow = __builtin_convertvector(q, words_of_vec);
    std::memcpy(words + k, &narrow, sizeof narrow);
    sums += q;
  }
  int32_t sum = 0;
  for (int i = 0; i < LANES; i++) sum += sums[i];
  for (int k = whole; k < count; k++) {
    words[k] = finite ? rounded(std::nearbyint(x[first + k] * inverse)) : 0;
    sum += words[k];
  }
  for (int k = count; first + k < num_words(l) * WORD_INPUTS && k < l.group; k++) words[k] = 0;
  const int64_t at = int64_t(row) * num_groups(l) + group;
  input.scales[at] = !finite ? NAN : inverse > 0 ? amax / 127.0f : 0.0f;
  input.starts[at] = l.zeros ? -sum : -offset_of(l) * sum;
}

// ------------------------------------------------------------------ loading weights

template <Format FORMAT>
struct Stored;
template <>
struct Stored<FLOAT32> {
  typedef float type;
};
template <>
struct Stored<BFLOAT16> {
  typedef uint16_t type;
};
template <>
struct Stored<FLOAT16> {
  typedef float16 type;
};

inline vec load_bfloat16(const uint16_t* p) {
#if defined(__AVX512BW__)  // (GCC 12 makes two halves of the general form)
  return (vec)((ivec)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)) << 16);
#else
  typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
  return (vec)(__builtin_convertvector(*reinterpret_cast<const halves*>(p), ivec) << 16);
#endif
}
inline vec load_as_float(const float* p) { return load(p); }
inline vec load_as_float(const uint16_t* p) { return load_bfloat16(p); }
inline vec load_as_float(const float16* p) {
#if defined(__AVX512BW__)
  return (vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__) && defined(__AVX__)
  return (vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  vec v;
  for (int i = 0; i < LANES; i++) v[i] = from_float16(p[i]);
  return v;
#endif
}

// Read as a float16, a number of e4m3 (sign, 4 bits of exponent, 3 of mantissa: OCP 8-bit floating
// point specification, revision 1.0) is this many times too small, subnormal ones too.
constexpr float FLOAT8_UNIT = 256;
inline uint16_t float8_as_float16(uint8_t byte) { return (byte & 0x80) << 8 | (byte & 0x7f) << 7; }

inline vec load_float8(const uint8_t* p) {
  typedef uint8_t narrow __attribute__((vector_size(LANES)));
  typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
  narrow stored;
  std::memcpy(&stored, p, sizeof stored);
  const halves wide = __builtin_convertvector(stored, halves);
  const halves bits = (wide & 0x80) << 8 | (wide & 0x7f) << 7;
  float16 values[LANES];
  std::memcpy(values, &bits, sizeof bits);
  return load_as_float(values);
}

inline vec load_scales(const Linear& l, int64_t at) {
  if (l.scale_format == FLOAT32) return load(static_cast<const float*>(l.scales) + at);
  if (l.scale_format == FLOAT16) return load_as_float(static_cast<const float16*>(l.scales) + at);
  return load_bfloat16(static_cast<const uint16_t*>(l.scales) + at);
}

// What stands for 0 in the stored form of integer weights, whose scales are those at `at`.
inline ivec load_zeros(const Linear& l, int64_t at) {
  if (!l.zeros) return ivec{} + offset_of(l);
  typedef int8_t narrow __attribute__((vector_size(LANES)));
  narrow zeros;
  std::memcpy(&zeros, l.zeros + at, sizeof zeros);
  return __builtin_convertvector(zeros, ivec) + offset_of(l);
}

// Both vectors of weights of one word, as bytes with their offset.
template <bool NIBBLES>
inline void load_bytes(const uint8_t* p, bytes (&w)[2]) {
  const bytes first = *reinterpret_cast<const bytes_in_memory*>(p);
  if constexpr (NIBBLES) {
    w[0] = first & 15;
    w[1] = first >> 4;
  } else {
    w[0] = first;
    w[1] = *reinterpret_cast<const bytes_in_memory*>(p + VECTOR_BYTES);
  }
}

#if defined(__AVX512VNNI__)
typedef bytes factors;
inline factors widen(bytes w) { return w; }
inline ivec dot(ivec sum, factors w, ivec x) {
  return (ivec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
}
#elif defined(__AVXVNNI__)
typedef bytes factors;
inline factors widen(bytes w) { return w; }
inline ivec dot(ivec sum, factors w, ivec x) {
  return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
}
#elif defined(__AVX512BW__)
typedef __m512i factors;
inline factors widen(bytes w) { return _mm512_cvtepi8_epi16((__m256i)w); }
inline ivec dot(ivec sum, factors w, ivec x) {
  return sum + (ivec)_mm512_madd_epi16(w, (__m512i)x);
}
#elif defined(__AVX2__)
typedef __m256i factors;
inline factors widen(bytes w) { return _mm256_cvtepi8_epi16((__m128i)w); }
inline ivec dot(ivec sum, factors w, ivec x) {
  return sum + (ivec)_mm256_madd_epi16(w, (__m256i)x);
}
#elif defined(__ARM_FEATURE_DOTPROD)
typedef int8x16_t factors;
inline factors widen(bytes w) { return (int8x16_t)w; }
inline ivec dot(ivec sum, factors w, ivec x) {
  return (ivec)vdotq_s32((int32x4_t)sum, w, (int8x16_t)x);
}
#else
typedef int8_t factors __attribute__((vector_size(VECTOR_BYTES)));
inline factors widen(bytes w) { return (factors)w; }
inline ivec dot(ivec sum, factors w, ivec x) {
  const factors y = (factors)x;
  for (int i = 0; i < LANES; i++)
    for (int k = 0; k < WORD_INPUTS; k++)
      sum[i] += int(w[i * WORD_INPUTS + k]) * int(y[i * WORD_INPUTS + k]);
  return sum;
}
#endif

// The weights of the k-th input of a word as floats, for the float family; `zero` stands for 0.
template <int OFFSET>
inline vec decode_bytes(bytes w, int k, ivec zero) {
#if defined(__AVX2__) && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
  typedef uint16_t pairs __attribute__((vector_size(VECTOR_BYTES)));
  ivec value = __builtin_convertvector((pairs)w, ivec);
#else
  ivec value = (ivec)w;
#endif
  value = (value >> (8 * k)) & 255;
  if constexpr (OFFSET == 0) value = (value ^ 128) - 128;  // signed
  return __builtin_convertvector(value - zero, vec);
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

// The same in the float family, of integer weights.
template <int ROWS, bool NIBBLES, bool SCALE_BY_GROUP>
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
        for (int i = 0; i < ROWS; i++) {
          const float xs = x[int64_t(i) * l.num_inputs + k + j];
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
template <int ROWS>
inline void multiply_float8(const Linear& l, const uint8_t* weights, int64_t scale_at,
                            const Input& input, int row, vec (&sums)[ROWS][2]) {
  const float* x = input.values + int64_t(row) * l.num_inputs;
  for (int i = 0; i < ROWS; i++) sums[i][0] = sums[i][1] = vec{};
  for (int g = 0; g < num_groups(l); g++) {
    vec acc[ROWS][2] = {};
    const int end = std::min(l.num_inputs, (g + 1) * l.group);
    for (int k = g * l.group; k < end; k++, weights += PANEL) {
      const vec w0 = load_float8(weights), w1 = load_float8(weights + LANES);
      for (int i = 0; i < ROWS; i++) {
        const float xs = x[int64_t(i) * l.num_inputs + k];
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
      else
        multiply_decoded<ROWS, nibbles(), by_group()>(l, weights, scale_at, input, row, sums);
    };
    const std::true_type yes;
    const std::false_type no;
    if (l.format == FLOAT32) multiply_floats<ROWS, FLOAT32>(l, weights, input, row, sums);
    else if (l.format == BFLOAT16) multiply_floats<ROWS, BFLOAT16>(l, weights, input, row, sums);
    else if (l.format == FLOAT16) multiply_floats<ROWS, FLOAT16>(l, weights, input, row, sums);
    else if (l.format == FLOAT8) multiply_float8<ROWS>(l, weights, scale_at, input, row, sums);
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
