// Vectors of floats as wide as the machine has them, by the compiler's own extension: the same code
// serves AVX-512, AVX2 and NEON. Every operation is per lane or in a fixed order over the lanes, so
// a result has the same bits wherever it is computed.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

// (Everything here is in an anonymous namespace: builds for several instruction sets may be loaded
// into one process, and must not find each other's functions.)
namespace {

#if defined(__AVX512BW__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;  // NEON, SSE
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef float vec_in_memory __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline vec load(const float* p) { return *reinterpret_cast<const vec_in_memory*>(p); }
inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }
inline vec broadcast(float x) { return x - vec{}; }
inline vec maximum(vec a, vec b) { return a > b ? a : b; }

template <int... I>
inline vec shuffle(vec a, vec b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, ivec{I...});
#endif
}

// A butterfly: lanes whose numbers differ in the bit `DISTANCE` meet.
template <int DISTANCE, int... I>
inline vec across(vec v, std::integer_sequence<int, I...>) {
  return shuffle<(I ^ DISTANCE)...>(v, v);
}
template <int DISTANCE = LANES / 2>
inline float horizontal_max(vec v) {
  v = maximum(v, across<DISTANCE>(v, std::make_integer_sequence<int, LANES>()));
  if constexpr (DISTANCE > 1) return horizontal_max<DISTANCE / 2>(v);
  return v[0];
}
template <int DISTANCE = LANES / 2>
inline float horizontal_sum(vec v) {
  v += across<DISTANCE>(v, std::make_integer_sequence<int, LANES>());
  if constexpr (DISTANCE > 1) return horizontal_sum<DISTANCE / 2>(v);
  return v[0];
}

// exp(x) for x <= 0 to about one unit in the last place; exactly 1 at 0, exactly 0 below -87.
// x = n ln 2 + r, |r| <= ln 2 / 2; the polynomial for exp(r) is that of Cephes' expf.
__attribute__((always_inline)) inline vec exp_nonpositive(vec x) {
  const float round_to_int = 12582912.0f;  // 1.5 * 2^23: adding it leaves no fraction bits
  const vec clamped = maximum(broadcast(-87.0f), x);  // in this order NaN stays NaN
  const vec shifted = clamped * 1.44269504f + round_to_int;
  const vec n = shifted - round_to_int;
  const vec r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  vec p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const ivec exponent = ((ivec)shifted - (ivec)broadcast(round_to_int) + 127) << 23;
  return x < -87.0f ? vec{} : p * (vec)exponent;
}

// exp(x) for any x that is a number, from that of the negative: x = -|x| for half of them.
inline vec sigmoid(vec x) {
  const vec e = exp_nonpositive(x > 0 ? -x : x);
  return (x > 0 ? vec{} + 1.0f : e) / (1.0f + e);
}

// Calls f with the number of rows as a compile-time constant, as few times as possible.
template <int ROWS, typename F>
inline void for_row_groups(int first, int num_rows, F f) {
  for (; first + ROWS <= num_rows; first += ROWS) f(first, std::integral_constant<int, ROWS>());
  if constexpr (ROWS > 1) for_row_groups<ROWS / 2>(first, num_rows, f);
}

// ------------------------------------------------------------------ 16-bit floats

inline float from_bfloat16(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}
// Half precision by hand, since compilers and processors differ in what they have of it: shifted
// into place, the exponent of a half is that of the float times 2^-112.
struct float16 {
  uint16_t bits;
};
inline float from_float16(float16 half) {
  const uint32_t magnitude = uint32_t(half.bits & 0x7fff) << 13;
  float value;
  std::memcpy(&value, &magnitude, 4);
  value *= 0x1p112f;
  if (magnitude >= 0x0f800000) {  // infinite or no number
    const uint32_t bits = magnitude | 0x7f800000;
    std::memcpy(&value, &bits, 4);
  }
  return half.bits & 0x8000 ? -value : value;
}
inline float16 to_float16(float value) {  // to nearest, ties to even
  const float scaled = std::fabs(value) * 0x1p-112f;
  uint32_t bits;
  std::memcpy(&bits, &scaled, 4);
  uint32_t half = value != value ? 0x7e00 : (bits + 0xfff + ((bits >> 13) & 1)) >> 13;
  half = std::min(half, value != value ? 0x7e00u : 0x7c00u);
  return {uint16_t(half | (std::signbit(value) ? 0x8000 : 0))};
}

}  // namespace
