// Weights of a matrix product, packed once in the order in which they are read.
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
// Integer weights are stored with an offset where the instruction wants them unsigned: with stored
// u = w + offset, sum(w x) = sum(u x) - offset sum(x), and the last term, known once the
// activations are rounded, is where the sum starts. Where a weight z other than 0 stands for zero
// (a zero point, of each output and group), it is added to the offset.

#pragma once

#include "simd.h"

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
constexpr int LARGEST_GROUP = 1024;

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
  int32_t group;          // inputs whose activations share a scale: a multiple of LANES, up to
                          // LARGEST_GROUP
  int32_t scale_by_group; // whether weights have a scale for each group too, or one for all
  int32_t rounds_activations;  // the integer family
  Format scale_format;    // BFLOAT16, FLOAT16 or FLOAT32
  int8_t* zeros;  // [panels, scale groups, PANEL]: weights that stand for 0, or null: 0 itself
  const int32_t* order;  // [num_inputs]: the place in x of each input that the matrix has, or null:
                         // its own; of weights of 8 and 4 bits
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

}  // namespace
