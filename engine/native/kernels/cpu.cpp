// The engine's kernels for CPUs: packing of weights, single products, attention of a layer, and
// whole decoder steps. Plain functions on raw pointers; indices are trusted, since the caller has
// checked blocks, slots and lengths.

#include "attention.h"
#include "decoder.h"
#include "elementwise.h"
#include "linear.h"
#include "packing.h"

extern "C" {

// What the packed form of this build looks like, for whoever allocates it.
int64_t packed_weight_bytes(const Linear* l) { return num_panels(*l) * panel_bytes(*l); }
int64_t packed_num_scales(const Linear* l) { return num_scales(*l); }
int32_t vector_lanes() { return LANES; }

void pack_rows(const Linear* l, const Rows* rows, int32_t num_threads) {
  with_team(num_threads, [&](const Member& member) { packing::pack_rows(member, *l, *rows); });
}

void put_rows(const Linear* l, const QuantizedRows* rows, int32_t num_threads) {
  with_team(num_threads, [&](const Member& member) { packing::put_rows(member, *l, *rows); });
}

// Rows of the matrix, as float32 [num_outputs, num_inputs].
void unpack_rows(const Linear* l, const int64_t* outputs, int32_t num_outputs, float* to) {
  for (int i = 0; i < num_outputs; i++)
    packing::unpack_row(*l, outputs[i], to + int64_t(i) * l->num_inputs);
}

// y [num_rows, num_outputs] = x [num_rows, num_inputs] times the weights, plus the bias.
void linear_forward(const Linear* l, const float* x, int32_t num_rows, float* y,
                    int32_t num_threads) {
  static thread_local std::vector<rounded> words;
  static thread_local std::vector<float> scales;
  static thread_local std::vector<int32_t> starts;
  words.resize(int64_t(num_rows) * num_words(*l) * WORD_INPUTS);
  scales.resize(int64_t(num_rows) * num_groups(*l));
  starts.resize(int64_t(num_rows) * num_groups(*l));
  const Input input{const_cast<float*>(x), words.data(), scales.data(), starts.data()};
  with_team(num_threads, [&](const Member& member) {
    round_rows(member, *l, x, input, num_rows);
    multiply(member, *l, input, num_rows, y, REPLACE);
  });
}

void paged_attention(const Batch* batch, const Cache* cache, const Heads* heads,
                     int32_t num_threads) {
  static thread_local attention::Attention attention;
  attention::Attention& shared = attention;
  shared.start_step();
  shared.divide(*batch, *cache, *heads, num_threads);
  with_team(num_threads, [&](const Member& member) {
    attention::store_tokens(member, *batch, *cache, *heads);
    attention::attend(member, *batch, *cache, *heads, shared);
  });
}

void decoder_forward(const Decoder* decoder, const DecoderStep* step, int32_t num_threads) {
  static thread_local StepState state;
  StepState& shared = state;
  shared.start(*decoder, *step);
  with_team(num_threads, [&](const Member& member) {
    run_step(member, *decoder, *step, shared);
  });
}

}  // extern "C"
