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
           BFLOAT16, nullptr};
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
      }
    }
  return failures;
}
