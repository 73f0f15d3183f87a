// Checks the kernels from within, without Python: so that they can be tried on another processor,
// emulated. Prints what is wrong, and nothing when all is well.

#include "cpu.cpp"

#include <cstdio>
#include <random>

static int failures = 0;
static void expect(bool holds, const char* what, int format, int inputs) {
  if (holds) return;
  failures++;
  std::printf("format %d, %d inputs: %s\n", format, inputs, what);
}

static void check(Format format, int group, bool by_group, bool rounds, int outputs, int inputs) {
  Linear l{nullptr, nullptr, nullptr, outputs, inputs, format, group, by_group, rounds,
           BFLOAT16, nullptr, nullptr};
  std::vector<uint8_t> weights(packed_weight_bytes(&l));
  std::vector<uint16_t> scales(packed_num_scales(&l) + 1);
  l.weights = weights.data();
  l.scales = scales.data();
  std::mt19937 generator(7);
  std::normal_distribution<float> normal;
  std::vector<float> w(outputs * inputs);
  for (float& value : w) value = 0.02f * normal(generator);
  const Rows rows{w.data(), FROM_FLOAT32, 0, outputs};
  pack_rows(&l, &rows, 2);
  std::vector<int64_t> all(outputs);
  for (int i = 0; i < outputs; i++) all[i] = i;
  std::vector<float> held(outputs * inputs);
  unpack_rows(&l, all.data(), outputs, held.data());

  constexpr int ROWS = 13;
  std::vector<float> x(ROWS * inputs), y(ROWS * outputs), alone(outputs);
  for (float& value : x) value = normal(generator);
  linear_forward(&l, x.data(), ROWS, y.data(), 2);
  double error = 0, size = 0;
  for (int r = 0; r < ROWS; r++) {
    linear_forward(&l, &x[r * inputs], 1, alone.data(), 1);
    expect(!std::memcmp(alone.data(), &y[r * outputs], outputs * sizeof(float)),
           "a row alone has other bits", format, inputs);
    for (int n = 0; n < outputs; n++) {
      double exact = 0;
      for (int k = 0; k < inputs; k++) exact += double(x[r * inputs + k]) * held[n * inputs + k];
      error += (y[r * outputs + n] - exact) * (y[r * outputs + n] - exact);
      size += exact * exact;
    }
  }
  expect(std::sqrt(error / size) < (rounds ? 0.012 : 1e-5), "the product is wrong", format, inputs);
}

// Weights that were quantized beforehand: held as they are, zero points and the order of their
// inputs included.
static void check_quantized(Format format, int group, bool by_group, bool rounds, Format scales_in,
                            bool has_zeros, int outputs, int inputs) {
  Linear l{nullptr, nullptr, nullptr, outputs, inputs, format, group, by_group, rounds,
           scales_in, nullptr, nullptr};
  std::vector<int32_t> order(inputs);
  for (int k = 0; k < inputs; k++) order[k] = inputs - 1 - k;
  if (has_zeros || format == FLOAT8) l.order = order.data();
  const int groups = num_scale_groups(l), size = scales_in == FLOAT32 ? 4 : 2;
  std::vector<uint8_t> weights(packed_weight_bytes(&l)), scales(packed_num_scales(&l) * size);
  std::vector<int8_t> zeros(packed_num_scales(&l));
  l.weights = weights.data();
  l.scales = scales.data();
  if (has_zeros) l.zeros = zeros.data();
  std::mt19937 generator(7);
  const int low = format == INT4 ? -8 : -128, high = format == INT4 ? 7 : 127;
  std::uniform_int_distribution<int> integer(low, high);
  std::vector<int8_t> values(outputs * inputs), stored_zeros(outputs * groups);
  for (int8_t& v : values) {
    do v = integer(generator);
    while (format == FLOAT8 && (v & 0x7f) == 0x7f);  // not a number
  }
  for (int8_t& z : stored_zeros) z = integer(generator);
  std::vector<uint8_t> stored_scales(outputs * groups * size);
  std::vector<float> meant(outputs * groups);
  for (int i = 0; i < outputs * groups; i++) {
    meant[i] = std::ldexp(1.0f + i % 5 * 0.25f, -9);  // exact in all three types
    const float16 half = to_float16(meant[i]);
    uint32_t bits;
    std::memcpy(&bits, &meant[i], 4);
    const uint16_t bfloat16 = bits >> 16;
    const void* from = scales_in == FLOAT32   ? static_cast<const void*>(&meant[i])
                       : scales_in == FLOAT16 ? static_cast<const void*>(&half)
                                              : static_cast<const void*>(&bfloat16);
    std::memcpy(&stored_scales[i * size], from, size);
  }
  const QuantizedRows rows{values.data(), stored_scales.data(), stored_zeros.data(), 0, outputs};
  put_rows(&l, &rows, 2);
  std::vector<int64_t> all(outputs);
  for (int i = 0; i < outputs; i++) all[i] = i;
  std::vector<float> held(outputs * inputs);
  unpack_rows(&l, all.data(), outputs, held.data());
  for (int n = 0; n < outputs; n++)
    for (int k = 0; k < inputs; k++) {
      const int8_t v = values[n * inputs + k];
      const int at = n * groups + (by_group ? k / group : 0);
      const int exponent = v >> 3 & 15, mantissa = v & 7;
      const float float8 = exponent ? std::ldexp(8.0f + mantissa, exponent - 10)
                                    : std::ldexp(float(mantissa), -9);
      const float value = format == FLOAT8 ? (v < 0 ? -float8 : float8)
                                           : v - (has_zeros ? stored_zeros[at] : 0);
      expect(held[n * inputs + (l.order ? order[k] : k)] == value * meant[at],
             "a weight is not what was stored", format, inputs);
    }
  constexpr int ROWS = 13;
  std::normal_distribution<float> normal;
  std::vector<float> x(ROWS * inputs), y(ROWS * outputs);
  for (float& value : x) value = normal(generator);
  linear_forward(&l, x.data(), ROWS, y.data(), 2);
  double error = 0, total = 0;
  for (int r = 0; r < ROWS; r++)
    for (int n = 0; n < outputs; n++) {
      double exact = 0;
      for (int k = 0; k < inputs; k++) exact += double(x[r * inputs + k]) * held[n * inputs + k];
      error += (y[r * outputs + n] - exact) * (y[r * outputs + n] - exact);
      total += exact * exact;
    }
  expect(std::sqrt(error / total) < (rounds ? 0.012 : 1e-5), "the product is wrong", format, inputs);
}

int main() {
  for (int inputs : {5, 128, 200})
    for (int outputs : {3, 70}) {
      for (Format format : {FLOAT32, BFLOAT16, FLOAT16})
        check(format, 128, false, false, outputs, inputs);
      for (bool rounds : {false, true}) {
        check(INT8, 128, false, rounds, outputs, inputs);
        check(INT8, 128, true, rounds, outputs, inputs);
        check(INT4, 32, true, rounds, outputs, inputs);
        check(INT4, 128, true, rounds, outputs, inputs);
        for (Format scales : {FLOAT32, BFLOAT16, FLOAT16})
          for (bool zeros : {false, true}) {
            check_quantized(INT4, 32, true, rounds, scales, zeros, outputs, inputs);
            check_quantized(INT8, 128, false, rounds, scales, zeros, outputs, inputs);
          }
      }
      for (bool by_group : {false, true})
        check_quantized(FLOAT8, 64, by_group, false, FLOAT32, false, outputs, inputs);
    }
  return failures;
}
