// A whole step of a decoder of the Llama family (Llama, Mistral, Qwen2, Qwen3) in one parallel
// region: token ids in, logits of the rows that sample out. It computes what
// engine/native/models/decoder.py does, which is its reference.

#pragma once

#include "attention.h"
#include "elementwise.h"
#include "linear.h"
#include "packing.h"

namespace {

extern "C" {

struct DecoderLayer {
  const float *input_norm, *post_attention_norm;  // [hidden_size]
  const float *query_norm, *key_norm;             // [head_dim], or null
  Linear qkv, output, gate_up, down;
  Cache cache;
  int32_t window;  // 0: none
};

// Room for one step of the most tokens; overwritten by every step.
struct Workspace {
  float* hidden;     // [tokens, hidden_size]: the residual stream
  float* normed;     // [tokens, widest input of a product]
  float* projected;  // [tokens, widest output of a layer's product, the MLP gated]
  rounded* words;
  float* scales;
  int32_t* starts;
};

struct Decoder {
  const DecoderLayer* layers;
  Linear embedding;  // its rows are looked up; empty but in the first stage of a pipeline
  Linear head;       // empty, as the norm is null, but in the last stage
  const float* final_norm;
  int32_t num_layers, num_heads, num_kv_heads, head_dim, hidden_size, intermediate_size;
  float norm_eps;
  int32_t attends;  // 0: queries pass for attention's output, to measure the rest
  Workspace workspace;
};

struct DecoderStep {
  Batch batch;
  const int64_t* token_ids;              // [num_tokens]; null: the residual stream is there already
  const int64_t* positions;              // [num_tokens]
  const float* angles;                   // [longest, 2 * head_dim], see RotaryEmbedding
  const int64_t* sampled_tokens;         // [num_sampled]: rows whose logits are wanted
  int32_t num_sampled;
  float* logits;  // [num_sampled, vocabulary]
  int32_t keeps_hidden;  // 1: the residual stream of all tokens is wanted as well, at the end
};

}  // extern "C"

inline Heads heads_of(const Decoder& d, const DecoderLayer& layer) {
  const int64_t stride = int64_t(d.num_heads + 2 * d.num_kv_heads) * d.head_dim;
  const float* query = d.workspace.projected;
  const float* key = query + int64_t(d.num_heads) * d.head_dim;
  return {query,  key,    key + int64_t(d.num_kv_heads) * d.head_dim,
          stride, stride, stride,
          d.workspace.normed, d.num_heads, d.num_kv_heads, d.head_dim, layer.window};
}

inline Input input_of(const Decoder& d) {
  const Workspace& w = d.workspace;
  return {w.normed, w.words, w.scales, w.starts};
}

inline void round_row(const Linear& l, const float* x, const Input& input, int row, int first,
                      int end) {
  for (int g = first; g < end; g++) round_group(l, x, input, row, g);
}

// Rounds activations x [num_rows, num_inputs] where the product wants them so. A few groups are
// one item, so that a single row is shared too.
inline void round_rows(const Member& member, const Linear& l, const float* x, const Input& input,
                       int num_rows) {
  if (!l.rounds_activations) return;
  const int groups = num_groups(l), item_groups = LARGEST_GROUP / l.group;
  const int items = (groups + item_groups - 1) / item_groups;
  member.share(num_rows * items, [&](int i) {
    const int row = i / items, first = i % items * item_groups;
    round_row(l, x + int64_t(row) * l.num_inputs, input, row, first,
              std::min(first + item_groups, groups));
  });
}

// Norms rows `rows(i)` of the residual stream into the input of a product.
template <typename F>
void norm_rows(const Member& member, const Decoder& d, const float* weight, const Linear& l,
               int num_rows, F row_of) {
  const Input input = input_of(d);
  member.share(num_rows, [&](int row) {
    float* normed = input.values + int64_t(row) * d.hidden_size;
    rms_norm(d.workspace.hidden + row_of(row) * d.hidden_size, weight, d.hidden_size, d.norm_eps,
             normed);
    if (l.rounds_activations) round_row(l, normed, input, row, 0, num_groups(l));
  });
}

// Norms and rotates the queries and the key of one token and KV head, and stores key and value.
inline void place_head(const Decoder& d, const DecoderLayer& layer, const DecoderStep& step,
                       const Heads& heads, int token, int kv_head) {
  const int group = d.num_heads / d.num_kv_heads, dim = d.head_dim;
  const float* angles = step.angles + step.positions[token] * 2 * dim;
  float* row = d.workspace.projected + token * heads.query_stride;
  const auto place = [&](float* head, const float* norm) {
    if (norm) rms_norm(head, norm, dim, d.norm_eps, head);
    rotate(head, angles, dim);
  };
  for (int h = kv_head * group; h < (kv_head + 1) * group; h++)
    place(row + int64_t(h) * dim, layer.query_norm);
  place(row + int64_t(d.num_heads + kv_head) * dim, layer.key_norm);
}

// What the members of a team share in one step.
struct StepState {
  attention::Attention attention;
  Batch last_layer;  // the tokens whose outputs of the last layer are wanted: all, or the sampled
  std::vector<int32_t> query_start_loc;  // of the sampled alone

  void start(const Decoder& d, const DecoderStep& step) {
    attention.start_step();
    last_layer = step.batch;
    // The next stage wants all of them, and so does who measures layers without attention.
    if (!d.final_norm || !d.attends || step.keeps_hidden) return;
    if (step.num_sampled == step.batch.num_tokens || !find_sampled(step)) return;
    last_layer.query_start_loc = query_start_loc.data();
    last_layer.num_tokens = step.num_sampled;
  }

 private:
  // Fills `query_start_loc`; false where what is sampled is not, in order, the last tokens of
  // sequences.
  bool find_sampled(const DecoderStep& step) {
    query_start_loc.assign(1, 0);
    int end = 0;
    for (int s = 0; s < step.batch.num_seqs; s++) {
      const int end_token = step.batch.query_start_loc[s + 1];
      while (end < step.num_sampled && step.sampled_tokens[end] < end_token) end++;
      for (int row = query_start_loc.back(); row < end; row++)
        if (step.sampled_tokens[row] != end_token - (end - row)) return false;
      query_start_loc.push_back(end);
    }
    return end == step.num_sampled;
  }
};

// Moves queries and residual stream of the sampled tokens to the front. They ascend, so none is
// overwritten before it has been moved.
inline void gather_sampled(const Decoder& d, const DecoderStep& step, const Heads& heads) {
  const auto gather = [&](float* rows, int64_t stride, int64_t size) {
    for (int row = 0; row < step.num_sampled; row++)
      std::memmove(rows + row * stride, rows + step.sampled_tokens[row] * stride,
                   size * sizeof(float));
  };
  gather(d.workspace.projected, heads.query_stride, int64_t(d.num_heads) * d.head_dim);
  gather(d.workspace.hidden, d.hidden_size, d.hidden_size);
}

// Places and stores the heads of all tokens, and attends for those of `outputs`: all, or the
// sampled, which are gathered first.
inline void attend_rows(const Member& member, const Decoder& d, const DecoderLayer& layer,
                        const DecoderStep& step, const Batch& outputs, StepState& state) {
  const Heads heads = heads_of(d, layer);
  attention::Attention& attention = state.attention;
  const bool gathers = outputs.num_tokens < step.batch.num_tokens;
  if (d.attends && member.rank == 0 && outputs.num_tokens > 0) {
    if (gathers) attention.start_step();
    attention.divide(outputs, layer.cache, heads, member.team.size());
  }
  attention::with_types(layer.cache, heads, [&](auto element, auto) {
    member.share(step.batch.num_tokens * d.num_kv_heads, [&](int i) {
      const int token = i / d.num_kv_heads, kv_head = i % d.num_kv_heads;
      place_head(d, layer, step, heads, token, kv_head);
      if (d.attends)
        attention::store_token<decltype(element)>(step.batch, layer.cache, heads, token, kv_head);
    });
  });
  if (outputs.num_tokens == 0) return;
  if (gathers) member.share(1, [&](int) { gather_sampled(d, step, heads); });
  if (d.attends) return attention::attend(member, outputs, layer.cache, heads, attention);
  const int64_t size = int64_t(d.num_heads) * d.head_dim;
  member.share(outputs.num_tokens, [&](int token) {
    std::memcpy(heads.output + token * size, heads.query + token * heads.query_stride,
                size * sizeof(float));
  });
}

inline void run_step(const Member& member, const Decoder& d, const DecoderStep& step,
                     StepState& state) {
  const Workspace& w = d.workspace;
  const Input input = input_of(d);
  const auto itself = [](int row) { return int64_t(row); };
  if (step.token_ids) {
    member.share(step.batch.num_tokens, [&](int row) {
      packing::unpack_row(d.embedding, step.token_ids[row],
                          w.hidden + int64_t(row) * d.hidden_size);
    });
  }
  const bool gathers = state.last_layer.num_tokens < step.batch.num_tokens;
  for (int i = 0; i < d.num_layers; i++) {
    const DecoderLayer& layer = d.layers[i];
    norm_rows(member, d, layer.input_norm, layer.qkv, step.batch.num_tokens, itself);
    multiply(member, layer.qkv, input, step.batch.num_tokens, w.projected, REPLACE);
    // Nothing but their keys and values is wanted of other tokens from the last layer.
    const Batch& outputs = i == d.num_layers - 1 ? state.last_layer : step.batch;
    attend_rows(member, d, layer, step, outputs, state);
    const int rows = outputs.num_tokens;
    if (rows == 0) return;
    round_rows(member, layer.output, w.normed, input, rows);
    multiply(member, layer.output, input, rows, w.hidden, ADD);
    norm_rows(member, d, layer.post_attention_norm, layer.gate_up, rows, itself);
    multiply_gated(member, layer.gate_up, input, rows, w.projected);
    const Input gated{w.projected, w.words, w.scales, w.starts};
    round_rows(member, layer.down, w.projected, gated, rows);
    multiply(member, layer.down, gated, rows, w.hidden, ADD);
  }
  if (step.num_sampled == 0) return;
  norm_rows(member, d, d.final_norm, d.head, step.num_sampled,
            [&](int row) { return gathers ? row : step.sampled_tokens[row]; });
  multiply(member, d.head, input, step.num_sampled, step.logits, REPLACE);
}

}  // namespace
