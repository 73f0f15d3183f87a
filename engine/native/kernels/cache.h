// The paged cache of one layer: its layout, the types that it holds, and how they are multiplied.
//
// Scores are sums over dimensions with tokens in the lanes, and outputs are sums over tokens with
// dimensions in the lanes, so keys are kept transposed and neither is ever rearranged again. What
// attention reads in a row lies in a row: all KV heads of a step, which is two vectors of tokens
// (the last one of a block may be shorter):
//
//     keys    [num_blocks, steps, num_kv_heads, head_dim, tokens of the step in whole vectors]
//     values  [num_blocks, steps, num_kv_heads, tokens of the step, head_dim]
//     scales  [num_blocks, num_kv_heads, block_lanes] of keys and of values, of an int8 cache;
//             block_lanes is block_size rounded up to whole vectors
//
// Where a multiplication takes two terms at once (see Arithmetic), two dimensions of a key and two
// tokens of a value lie side by side, and the tokens of a step are rounded up to an even number:
//
//     keys    [num_blocks, steps, num_kv_heads, head_dim / 2, tokens, 2]
//     values  [num_blocks, steps, num_kv_heads, tokens / 2, head_dim, 2]

#pragma once

#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "weights.h"

namespace {

enum CacheType : int32_t { CACHE_FLOAT32, CACHE_BFLOAT16, CACHE_INT8 };

extern "C" {

struct Cache {
  void *keys, *values;
  float *key_scales, *value_scales;  // null unless int8
  CacheType type;
  int32_t block_size, block_lanes;
};

}  // extern "C"

namespace attention {

constexpr int STEP_VECTORS = 2;  // vectors of tokens
constexpr int STEP_LANES = STEP_VECTORS * LANES;

inline int block_rows(const Cache& cache) { return (cache.block_size + 1) / 2 * 2; }

// Of a block of so many tokens, those of the step that holds the one at `offset`.
inline int step_tokens(int block_tokens, int offset) {
  return std::min(STEP_LANES, block_tokens - offset / STEP_LANES * STEP_LANES);
}
// Where a head's numbers of that step begin, which are `dim` for each token.
inline int64_t step_at(int64_t block, int block_tokens, int offset, int num_heads, int head,
                       int dim) {
  const int64_t first_token = block * block_tokens + offset / STEP_LANES * STEP_LANES;
  return (first_token * num_heads + head * step_tokens(block_tokens, offset)) * dim;
}

inline vec load_as_float(const int8_t* p) {
#if defined(__AVX512BW__)
  const ivec wide = (ivec)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
  const ivec wide = (ivec)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  typedef int8_t quarter __attribute__((vector_size(LANES), aligned(1), may_alias));
  const ivec wide = __builtin_convertvector(*reinterpret_cast<const quarter*>(p), ivec);
#endif
  return __builtin_convertvector(wide, vec);
}
using ::load_as_float;

inline void store_as(float* p, float value) { *p = value; }
inline void store_as(uint16_t* p, float value) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  *p = value != value ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
inline void store_as(int8_t* p, float value) { *p = int8_t(std::nearbyint(value)); }

template <typename T>
constexpr bool SCALED = std::is_same_v<T, int8_t>;

// How a sum over many terms is computed, with another sum in each lane. A factor, the same for all
// lanes, stands against TERMS numbers of each lane.
template <typename T>
struct Arithmetic {
  static constexpr int TERMS = 1;
  typedef float Factor;
  typedef vec Operand;

  static Operand load(const T* p) { return load_as_float(p); }
  // The first term alone: what would be the second may be anything.
  static Operand first_term(Operand x) { return x; }
  static vec add(vec sum, Factor factor, Operand x) { return sum + factor * x; }
  // Two vectors of numbers that follow each other, as factors.
  static void store_factors(vec first, vec second, Factor* to) {
    std::memcpy(to, &first, sizeof first);
    std::memcpy(to + LANES, &second, sizeof second);
  }
};

#if defined(__AVX512BF16__)
// Twice as fast as in float32. Factors are rounded to bfloat16 as the cache is; sums are float32.
template <>
struct Arithmetic<uint16_t> {
  static constexpr int TERMS = 2;
  typedef uint32_t Factor;
  typedef __m512i Operand;

  static Operand load(const uint16_t* p) { return _mm512_loadu_si512(p); }
  static Operand first_term(Operand x) { return _mm512_and_si512(x, _mm512_set1_epi32(0xffff)); }
  static vec add(vec sum, Factor factor, Operand x) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(factor), (__m512bh)x);
  }
  static void store_factors(vec first, vec second, Factor* to) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
  }
};
#endif

// Rounds a head to the cache's type. Its dimension d goes to (d / TERMS, d % TERMS) of an array
// whose first index has this stride.
template <int TERMS, typename T>
void store_head(const float* from, int count, T* to, int64_t stride, float* scale) {
  float inverse = 1.0f;
  if constexpr (SCALED<T>) {
    float amax = 0;
    for (int d = 0; d < count; d++) amax = std::max(amax, std::fabs(from[d]));
    // (What is no number is lost here: the row it came from has gone through the layer's output
    // as well, where the sampler will meet it.)
    inverse = amax > 1e-30f && amax < INFINITY ? 127.0f / amax : 0.0f;
    *scale = inverse > 0 ? amax / 127.0f : 0.0f;
  }
  constexpr int SIZE = 64;  // rounded in one go, which vectors can, and then scattered
  T head[SIZE];
  for (int first = 0; first < count; first += SIZE) {
    const int size = std::min(SIZE, count - first);
    for (int d = 0; d < size; d++)
      store_as(head + d, SCALED<T> && inverse == 0 ? 0.0f : from[first + d] * inverse);
    for (int d = 0; d < size; d += TERMS)
      std::memcpy(to + (first + d) / TERMS * stride, head + d, TERMS * sizeof(T));
  }
}

}  // namespace attention

}  // namespace
