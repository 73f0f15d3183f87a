// Brings the rows of a checkpoint's matrix into the packed form of linear.h, and back.

#pragma once

#include "weights.h"

namespace {

enum Source : int32_t { FROM_FLOAT32, FROM_BFLOAT16, FROM_FLOAT16 };

extern "C" {

// Rows of a matrix as the checkpoint stores them: [num_rows, num_inputs].
struct Rows {
  const void* values;
  Source type;
  int32_t first_output;  // that the first row is the weights of
  int32_t num_rows;
};

// Rows of a matrix that was quantized beforehand, in the format of the packed one.
struct QuantizedRows {
  const int8_t* values;  // [num_rows, num_inputs]: integers from -8 or -128 on, or bytes of e4m3;
                         // inputs in the order of the matrix
  const void* scales;    // [num_rows, scale groups] in the scales' format
  const int8_t* zeros;   // [num_rows, scale groups]: values that stand for 0, or null
  int32_t first_output;
  int32_t num_rows;
};

}  // extern "C"

namespace packing {

constexpr int LARGEST_BYTE = 127, LARGEST_NIBBLE = 7, LOWEST_NIBBLE = -8;
constexpr float LARGEST_FLOAT8 = 448;

inline void read_row(const Rows& rows, int64_t row, int count, float* to) {
  const int64_t at = row * count;
  if (rows.type == FROM_FLOAT32) {
    std::memcpy(to, static_cast<const float*>(rows.values) + at, sizeof(float) * count);
    return;
  }
  const uint16_t* from = static_cast<const uint16_t*>(rows.values) + at;
  for (int k = 0; k < count; k++)
    to[k] = rows.type == FROM_BFLOAT16 ? from_bfloat16(from[k]) : from_float16({from[k]});
}

inline uint16_t to_bfloat16(float value) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;  // not a number
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
inline uint16_t to_bfloat16_above(float value) {  // for value >= 0: the least that is not below
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return (bits + 0xffff) >> 16;
}
inline uint8_t to_float8(float value) {  // of e4m3 to nearest, ties to even, within its range
  const float magnitude = std::min(std::fabs(value), LARGEST_FLOAT8);
  uint32_t bits;
  std::memcpy(&bits, &magnitude, 4);
  bits = (bits + 0x7ffff + ((bits >> 20) & 1)) >> 20;  // the exponent and 3 bits of the mantissa
  // Below the smallest normal number are multiples of 2^-9.
  const bool is_normal = magnitude >= 0.015625f;
  const int code = is_normal ? int(bits) - (120 << 3) : int(std::nearbyint(magnitude * 512));
  return uint8_t(code | (std::signbit(value) ? 0x80 : 0));
}
// Where the weight of (output, input) stands: its byte, from the panel's beginning.
inline int64_t byte_at(const Linear& l, int lane, int input) {
  const int word = input / WORD_INPUTS, k = input % WORD_INPUTS;
  const int in_vector = lane % LANES * WORD_INPUTS + k;
  if (l.format == FLOAT8) return int64_t(input) * PANEL + lane;
  if (l.format == INT4) return int64_t(word) * VECTOR_BYTES + in_vector;
  return int64_t(word) * 2 * VECTOR_BYTES + lane / LANES * VECTOR_BYTES + in_vector;
}

// `w` reads as zeros up to the next whole vector.
inline float squared_error(const float* w, int count, float scale, int lowest, int highest) {
  const float inverse = 1.0f / scale;
  const float round_to_int = 12582912.0f;  // 1.5 * 2^23: adding it leaves no fraction bits
  const vec low = broadcast(lowest), high = broadcast(highest);
  vec errors = {};
  for (int k = 0; k < count; k += LANES) {
    const vec value = load(w + k);
    vec q = (value * inverse + round_to_int) - round_to_int;
    q = q < low ? low : q > high ? high : q;
    const vec error = value - q * scale;
    errors += error * error;
  }
  return horizontal_sum(errors);
}

// The scale of a group of 4-bit weights with the least squared error among a few: the group's
// largest weight may lie on either end of the range (the lower one reaches further, so the scale
// may be negative), or outside of it where that serves the others.
inline uint16_t nibble_scale(const float* w, int count, float largest) {
  constexpr int STEPS = 12;
  constexpr float SHRINK = 0.035f;
  uint16_t best = 0;
  float least = INFINITY;
  for (int end : {LOWEST_NIBBLE, LARGEST_NIBBLE}) {
    for (int step = 0; step < STEPS; step++) {
      const uint16_t scale = to_bfloat16(largest / end * (1 - SHRINK * step));
      const float value = from_bfloat16(scale);
      if (value == 0) continue;
      const float error = squared_error(w, count, value, LOWEST_NIBBLE, LARGEST_NIBBLE);
      if (error < least) least = error, best = scale;
    }
  }
  return best;
}

inline uint16_t scale_of(const Linear& l, const float* w, int count) {
  float largest = 0;  // with its sign
  for (int k = 0; k < count; k++)
    if (std::fabs(w[k]) > std::fabs(largest)) largest = w[k];
  if (l.format == INT8) return to_bfloat16_above(std::fabs(largest) / LARGEST_BYTE);
  if (l.format == FLOAT8) return to_bfloat16_above(std::fabs(largest) / LARGEST_FLOAT8);
  return nibble_scale(w, count, largest);
}

inline int quantize(const Linear& l, float w, float inverse_scale) {
  if (l.format == FLOAT8) return to_float8(w * inverse_scale);
  const int lowest = l.format == INT4 ? LOWEST_NIBBLE : -LARGEST_BYTE;
  const int highest = l.format == INT4 ? LARGEST_NIBBLE : LARGEST_BYTE;
  return std::min(std::max(int(std::nearbyint(w * inverse_scale)), lowest), highest);
}

inline void put(const Linear& l, uint8_t* panel, int lane, int input, int q) {
  uint8_t& at = panel[byte_at(l, lane, input)];
  if (l.format == FLOAT8) at = uint8_t(q);
  else if (l.format == INT8) at = uint8_t(q + BYTE_OFFSET);
  else if (lane < LANES) at = (at & 0xf0) | uint8_t(q + NIBBLE_OFFSET);
  else at = (at & 0x0f) | uint8_t((q + NIBBLE_OFFSET) << 4);
}

inline int get(const Linear& l, const uint8_t* panel, int lane, int input) {
  const uint8_t at = panel[byte_at(l, lane, input)];
  if (l.format == INT4) return (lane < LANES ? at & 15 : at >> 4) - NIBBLE_OFFSET;
  return BYTE_OFFSET ? int(at) - BYTE_OFFSET : int(int8_t(at));
}

inline float scale_at(const Linear& l, int64_t at) {
  if (l.scale_format == FLOAT32) return static_cast<const float*>(l.scales)[at];
  if (l.scale_format == FLOAT16) return from_float16(static_cast<const float16*>(l.scales)[at]);
  return from_bfloat16(static_cast<const uint16_t*>(l.scales)[at]);
}

// Scales of our own making are in bfloat16, and there are no zero points beside them.
inline void pack_row(const Linear& l, int output, const float* w) {
  const int panel_index = panel_of(l, output), lane = output % PANEL;
  uint8_t* panel = l.weights + panel_index * panel_bytes(l);
  if (!has_scales(l)) {
    for (int k = 0; k < l.num_inputs; k++) {
      const int64_t at = int64_t(k) * PANEL + lane;
      if (l.format == FLOAT32) reinterpret_cast<float*>(panel)[at] = w[k];
      else
        reinterpret_cast<uint16_t*>(panel)[at] =
            l.format == BFLOAT16 ? to_bfloat16(w[k]) : to_float16(w[k]).bits;
    }
    return;
  }
  const int groups = num_scale_groups(l), length = l.scale_by_group ? l.group : l.num_inputs;
  uint16_t* scales = static_cast<uint16_t*>(l.scales) + first_scale(l, panel_index);
  for (int g = 0; g < groups; g++) {
    const int first = g * length, count = std::min(length, l.num_inputs - first);
    const uint16_t scale = scale_of(l, w + first, count);
    scales[g * PANEL + lane] = scale;
    const float value = from_bfloat16(scale), inverse = value == 0 ? 0 : 1.0f / value;
    for (int k = first; k < first + count; k++)
      put(l, panel, lane, k, quantize(l, w[k], inverse));
  }
}

inline void unpack_row(const Linear& l, int output, float* w) {
  const int panel_index = panel_of(l, output), lane = output % PANEL;
  const uint8_t* panel = l.weights + panel_index * panel_bytes(l);
  for (int k = 0; k < l.num_inputs; k++) {
    const int64_t at = int64_t(k) * PANEL + lane;
    if (l.format == FLOAT32) w[k] = reinterpret_cast<const float*>(panel)[at];
    else if (l.format == BFLOAT16)
      w[k] = from_bfloat16(reinterpret_cast<const uint16_t*>(panel)[at]);
    else if (l.format == FLOAT16)
      w[k] = from_float16(reinterpret_cast<const float16*>(panel)[at]);
    else {
      const int64_t scale =
          first_scale(l, panel_index) + (l.scale_by_group ? k / l.group * PANEL : 0) + lane;
      const float value =
          l.format == FLOAT8
              ? from_float16({float8_as_float16(panel[byte_at(l, lane, k)])}) * FLOAT8_UNIT
              : get(l, panel, lane, k) - (l.zeros ? l.zeros[scale] : 0);
      w[l.order ? l.order[k] : k] = value * scale_at(l, scale);
    }
  }
}

// The row of a matrix quantized beforehand: nothing is rounded.
inline void put_row(const Linear& l, int output, const QuantizedRows& rows) {
  const int panel_index = panel_of(l, output), lane = output % PANEL;
  const int row = output - rows.first_output;
  uint8_t* panel = l.weights + panel_index * panel_bytes(l);
  const int8_t* values = rows.values + int64_t(row) * l.num_inputs;
  for (int k = 0; k < l.num_inputs; k++) put(l, panel, lane, k, values[k]);
  const int groups = num_scale_groups(l);
  const int scale_bytes = l.scale_format == FLOAT32 ? 4 : 2;
  for (int g = 0; g < groups; g++) {
    const int64_t to = first_scale(l, panel_index) + g * PANEL + lane;
    const int64_t from = int64_t(row) * groups + g;
    std::memcpy(static_cast<char*>(l.scales) + to * scale_bytes,
                static_cast<const char*>(rows.scales) + from * scale_bytes, scale_bytes);
    if (l.zeros) l.zeros[to] = rows.zeros[from];
  }
}

// Calls f for each of these outputs. Threads take whole panels: outputs of one share bytes.
template <typename F>
void for_outputs(const Member& member, int first_output, int num_rows, F f) {
  const int end_output = first_output + num_rows;
  const int first = first_output / PANEL, end = (end_output + PANEL - 1) / PANEL;
  member.share(end - first, [&](int item) {
    const int block = first + item;
    for (int output = std::max(block * PANEL, first_output);
         output < std::min((block + 1) * PANEL, end_output); output++)
      f(output);
  });
}

inline void pack_rows(const Member& member, const Linear& l, const Rows& rows) {
  std::vector<float> w(l.num_inputs + LANES);  // zeros behind the row
  for_outputs(member, rows.first_output, rows.num_rows, [&](int output) {
    read_row(rows, output - rows.first_output, l.num_inputs, w.data());
    pack_row(l, output, w.data());
  });
}

inline void put_rows(const Member& member, const Linear& l, const QuantizedRows& rows) {
  for_outputs(member, rows.first_output, rows.num_rows,
              [&](int output) { put_row(l, output, rows); });
}

}  // namespace packing

}  // namespace
