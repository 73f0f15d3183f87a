// The paged cache of one layer: its layout, and the types that it holds.
//
// Scores are sums over dimensions with tokens in the lanes, and outputs are
// sums over tokens with dimensions in the lanes, so keys are kept transposed and neither is ever
// rearranged again:
//
//     keys    [num_blocks, num_kv_heads, head_dim, block_lanes]    block_lanes: block_size rounded
//     values  [num_blocks, num_kv_heads, block_size, head_dim]                  up to whole vectors
//     scales  [num_blocks, num_kv_heads, block_lanes] of keys and of values, of an int8 cache

#pragma once

#include <type_traits>

#include "linear.h"

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

template <typename T>
void store_head(const float* from, int count, T* to, int64_t stride, float* scale) {
  float inverse = 1.0f;
  if constexpr (SCALED<T>) {
    float amax = 0;
    for (int d = 0; d < count; d++) amax = std::max(amax, std::fabs(from[d]));
    // (What is no number is lost here: the row it came from has gone through the layer's output
    // as well, where the sampler will meet it.)
    inverse = amax > 1e-30f && amax < INFINITY ? 127.0f / amax : 0.0f;
    *scale = inverse > 0 ? amax / 127.0f : 0.0f;
    for (int d = 0; d < count; d++)
      store_as(to + d * stride, inverse > 0 ? from[d] * inverse : 0.0f);
  } else {
    for (int d = 0; d < count; d++) store_as(to + d * stride, from[d]);
  }
}

}  // namespace attention

}  // namespace
