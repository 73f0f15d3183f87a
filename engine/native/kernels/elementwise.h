// What a decoder does between its products: norms and rotary positions.

#pragma once

#include "simd.h"

namespace {

// y = x / sqrt(mean(x^2) + eps) * weight
inline void rms_norm(const float* x, const float* weight, int size, float eps, float* y) {
  vec sums = {};
  const int whole = size / LANES * LANES;
  for (int k = 0; k < whole; k += LANES) sums += load(x + k) * load(x + k);
  float sum = horizontal_sum(sums);
  for (int k = whole; k < size; k++) sum += x[k] * x[k];
  const float scale = 1.0f / std::sqrt(sum / size + eps);
  for (int k = 0; k < whole; k += LANES) store(y + k, load(x + k) * scale * load(weight + k));
  for (int k = whole; k < size; k++) y[k] = x[k] * scale * weight[k];
}

// Rotates a head in place: the first half against the second, (a, b) -> (ac - bs, bc + as).
// `angles` is a row of RotaryEmbedding's table: cos, cos, -sin, sin, each half a head long.
inline void rotate(float* head, const float* angles, int head_dim) {
  const int half = head_dim / 2, whole = half / LANES * LANES;
  const float *cos = angles, *sin = angles + head_dim + half;
  for (int d = 0; d < whole; d += LANES) {
    const vec a = load(head + d), b = load(head + half + d), c = load(cos + d), s = load(sin + d);
    store(head + d, a * c - b * s);
    store(head + half + d, b * c + a * s);
  }
  for (int d = whole; d < half; d++) {
    const float a = head[d], b = head[half + d];
    head[d] = a * cos[d] - b * sin[d];
    head[half + d] = b * cos[d] + a * sin[d];
  }
}

}  // namespace
