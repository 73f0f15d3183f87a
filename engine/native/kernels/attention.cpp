// Paged attention on a CPU: writes the step's keys and values to their slots, then attends through
// the block table. One call serves one layer of a mixed batch of ragged sequences.
//
// Work is cut into (sequence, KV head, tile of queries). A tile's rows are its queries times the
// query heads that share the KV head, so each block is streamed once for the whole group. The
// context is walked in steps of LANES tokens, from the start or from the window's border, with an
// online softmax (Milakov and Gimelshein, arXiv 1805.02867). Both products have the form
//
//     acc[row] += a[row][k] * B[k][0..LANES)        one fused multiply-add per row and k
//
// with B the transposed keys (lanes are tokens) or the values (lanes are dimensions). So every
// row adds in one fixed order, of tokens and of dimensions, and its result has the same bits
// whatever stands beside it: another batch, another chunk, another tile, other threads. That is
// why this file is compiled without -ffast-math, which would let the compiler reorder sums.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, MAX_ROWS = 8;  // 8 rows in flight cover the latency of two FMA units
#elif defined(__AVX__)
constexpr int LANES = 8, MAX_ROWS = 8;
#else
constexpr int LANES = 4, MAX_ROWS = 8;  // NEON, SSE
#endif
constexpr int TILE_ROWS = 32;  // their queries and outputs stay in the first-level cache

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef float vec_in_memory __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline vec load(const float* p) { return *reinterpret_cast<const vec_in_memory*>(p); }
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

// Transposes LANES x LANES by swapping, for each bit, the quadrants in which row and column
// differ in that bit.
template <int BIT, int... I>
inline void swap_quadrants(vec& upper, vec& lower, std::integer_sequence<int, I...>) {
  const vec u = upper, l = lower;
  upper = shuffle<((I & BIT) ? I - BIT + LANES : I)...>(u, l);
  lower = shuffle<((I & BIT) ? I + LANES : I + BIT)...>(u, l);
}
template <int BIT = 1>
inline void transpose(vec* rows) {
  for (int i = 0; i < LANES; i++)
    if (!(i & BIT))
      swap_quadrants<BIT>(rows[i], rows[i + BIT], std::make_integer_sequence<int, LANES>());
  if constexpr (2 * BIT < LANES) transpose<2 * BIT>(rows);
}

// exp(x) for x <= 0 to about one unit in the last place; exactly 1 at 0, exactly 0 below -87.
// x = n ln 2 + r, |r| <= ln 2 / 2; the polynomial for exp(r) is that of Cephes' expf.
inline vec exp_nonpositive(vec x) {
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

// Calls f with the number of rows as a compile-time constant, as few times as possible.
template <int ROWS = MAX_ROWS, typename F>
inline void for_row_groups(int first, int num_rows, F f) {
  for (; first + ROWS <= num_rows; first += ROWS) f(first, std::integral_constant<int, ROWS>());
  if constexpr (ROWS > 1) for_row_groups<ROWS / 2>(first, num_rows, f);
}

struct Tile {
  int sequence, kv_head, first_query, num_queries;
  int64_t cost;
};

}  // namespace

extern "C" {

struct Batch {
  const int32_t* query_start_loc;  // [num_seqs + 1]
  const int32_t* context_lens;     // [num_seqs]
  const int32_t* block_tables;     // [num_seqs, max_blocks]
  const int64_t* slot_mapping;     // [num_tokens]
  int32_t num_seqs, num_tokens, max_blocks, num_threads;
};

struct Layer {
  const float *query, *key, *value;                   // [num_tokens, heads, head_dim]
  int64_t query_stride, key_stride, value_stride;     // between tokens, in elements
  float *keys, *values;                               // the cache of this layer
  float* output;                                      // [num_tokens, num_heads, head_dim]
  int32_t num_heads, num_kv_heads, head_dim, block_size;
  int32_t window;                                     // 0: none
};

}  // extern "C"

namespace {

// Scratch of one thread; reused over calls so that a step allocates nothing.
struct Scratch {
  std::vector<vec> query, output, keys, padded, sum, weights;
  std::vector<float> maximum;
};

// DIM is the head size, or 0 where it is not known at compile time.
template <int DIM>
void attend(const Batch& batch, const Layer& layer, const Tile& tile, Scratch& scratch) {
  const int dim = DIM ? DIM : layer.head_dim;
  const int num_vecs = (dim + LANES - 1) / LANES, padded_dim = num_vecs * LANES;
  const bool is_padded = dim != padded_dim;
  const int group = layer.num_heads / layer.num_kv_heads, num_rows = tile.num_queries * group;
  const int first_token = batch.query_start_loc[tile.sequence] + tile.first_query;
  const int num_new = batch.query_start_loc[tile.sequence + 1] - batch.query_start_loc[tile.sequence];
  const int first_position = batch.context_lens[tile.sequence] - num_new + tile.first_query;
  const int end = first_position + tile.num_queries;
  const int window = layer.window ? layer.window : end;
  const int32_t* block_table = batch.block_tables + int64_t(tile.sequence) * batch.max_blocks;

  scratch.query.assign(num_rows * num_vecs, vec{});
  scratch.output.assign(num_rows * num_vecs, vec{});
  scratch.keys.resize(padded_dim);
  scratch.padded.assign(is_padded ? 2 * LANES * num_vecs : 0, vec{});
  scratch.sum.assign(num_rows, vec{});
  scratch.weights.resize(num_rows);
  scratch.maximum.assign(num_rows, -1e30f);  // finite: a fully masked step must change nothing
  float* query = reinterpret_cast<float*>(scratch.query.data());
  float* weights = reinterpret_cast<float*>(scratch.weights.data());
  float* padded = reinterpret_cast<float*>(scratch.padded.data());
  vec* output = scratch.output.data();
  vec* keys = scratch.keys.data();

  const float scale = 1.0f / std::sqrt(float(dim));
  for (int row = 0; row < num_rows; row++) {
    const float* from = layer.query + (first_token + row / group) * layer.query_stride +
                        (tile.kv_head * group + row % group) * dim;
    for (int d = 0; d < dim; d++) query[row * padded_dim + d] = from[d] * scale;
  }

  ivec lane_number;
  for (int i = 0; i < LANES; i++) lane_number[i] = i;

  const int first_seen = std::max(0, first_position - window + 1) / LANES * LANES;
  for (int start = first_seen; start < end; start += LANES) {
    const int num_tokens = std::min(LANES, end - start);
    const float *key[LANES], *value[LANES];
    for (int t = 0; t < LANES; t++) {
      // Lanes past the end repeat its last token: what the cache holds there may not be a number.
      const int position = std::min(start + t, end - 1);
      const int64_t block = block_table[position / layer.block_size];
      const int64_t offset = ((block * layer.num_kv_heads + tile.kv_head) * layer.block_size +
                              position % layer.block_size) * dim;
      key[t] = layer.keys + offset;
      value[t] = layer.values + offset;
      if (is_padded) {
        float *k = padded + t * padded_dim, *v = k + LANES * padded_dim;
        std::memcpy(k, key[t], dim * sizeof(float));
        std::memcpy(v, value[t], dim * sizeof(float));
        key[t] = k, value[t] = v;
      }
    }
    for (int d = 0; d < padded_dim; d += LANES) {
      for (int t = 0; t < LANES; t++) keys[d + t] = load(key[t] + d);
      transpose(keys + d);
    }

    for_row_groups(0, num_rows, [&](int row, auto rows) {
      vec acc[rows] = {};
      for (int d = 0; d < dim; d++)
        for (int i = 0; i < rows; i++) acc[i] += query[(row + i) * padded_dim + d] * keys[d];
      for (int i = 0; i < rows; i++) scratch.weights[row + i] = acc[i];
    });

    const ivec token = lane_number + start;
    for (int row = 0; row < num_rows; row++) {
      const int position = first_position + row / group;
      const ivec hidden = (token > position) | (token <= position - window);
      const vec scores = hidden ? broadcast(-INFINITY) : scratch.weights[row];
      const float highest = horizontal_max(scores);
      if (highest > scratch.maximum[row]) {
        const float rescale =
            exp_nonpositive(broadcast(scratch.maximum[row] - highest))[0];
        scratch.maximum[row] = highest;
        scratch.sum[row] *= rescale;
        for (int i = 0; i < num_vecs; i++) output[row * num_vecs + i] *= rescale;
      }
      scratch.weights[row] = exp_nonpositive(scores - scratch.maximum[row]);
      scratch.sum[row] += scratch.weights[row];
    }

    for_row_groups(0, num_rows, [&](int row, auto rows) {
      for (int j = 0; j < num_vecs; j++) {
        vec acc[rows];
        for (int i = 0; i < rows; i++) acc[i] = output[(row + i) * num_vecs + j];
        for (int t = 0; t < num_tokens; t++) {
          const vec v = load(value[t] + j * LANES);
          for (int i = 0; i < rows; i++) acc[i] += weights[(row + i) * LANES + t] * v;
        }
        for (int i = 0; i < rows; i++) output[(row + i) * num_vecs + j] = acc[i];
      }
    });
  }

  for (int row = 0; row < num_rows; row++) {
    const float total = horizontal_sum(scratch.sum[row]);
    const float* from = reinterpret_cast<const float*>(output + row * num_vecs);
    float* to = layer.output + (int64_t(first_token + row / group) * layer.num_heads +
                                tile.kv_head * group + row % group) * dim;
    for (int d = 0; d < dim; d++) to[d] = from[d] / total;
  }
}

// The longest first, so that no thread starts a long one when the others have finished.
std::vector<Tile> cut_into_tiles(const Batch& batch, const Layer& layer) {
  const int tile_queries = std::max(1, TILE_ROWS / (layer.num_heads / layer.num_kv_heads));
  std::vector<Tile> tiles;
  for (int s = 0; s < batch.num_seqs; s++) {
    const int num_queries = batch.query_start_loc[s + 1] - batch.query_start_loc[s];
    for (int first = 0; first < num_queries; first += tile_queries) {
      const int count = std::min(tile_queries, num_queries - first);
      const int64_t cost = int64_t(count) * (batch.context_lens[s] - num_queries + first + count);
      for (int h = 0; h < layer.num_kv_heads; h++) tiles.push_back({s, h, first, count, cost});
    }
  }
  std::stable_sort(tiles.begin(), tiles.end(),
                   [](const Tile& a, const Tile& b) { return a.cost > b.cost; });
  return tiles;
}

void store(const Batch& batch, const Layer& layer, int token) {
  const int64_t block = batch.slot_mapping[token] / layer.block_size;
  const int64_t offset = batch.slot_mapping[token] % layer.block_size;
  for (int h = 0; h < layer.num_kv_heads; h++) {
    const int64_t to =
        ((block * layer.num_kv_heads + h) * layer.block_size + offset) * layer.head_dim;
    const size_t bytes = layer.head_dim * sizeof(float);
    std::memcpy(layer.keys + to, layer.key + token * layer.key_stride + h * layer.head_dim, bytes);
    std::memcpy(layer.values + to, layer.value + token * layer.value_stride + h * layer.head_dim,
                bytes);
  }
}

}  // namespace

// Indices are trusted: the caller has checked blocks, slots and lengths.
extern "C" void paged_attention(const Batch* batch, const Layer* layer) {
  const std::vector<Tile> tiles = cut_into_tiles(*batch, *layer);
#pragma omp parallel num_threads(batch->num_threads)
  {
    static thread_local Scratch scratch;
#pragma omp for schedule(static)
    for (int token = 0; token < batch->num_tokens; token++) store(*batch, *layer, token);
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < tiles.size(); i++) {
      switch (layer->head_dim) {
        case 64: attend<64>(*batch, *layer, tiles[i], scratch); break;
        case 128: attend<128>(*batch, *layer, tiles[i], scratch); break;
        default: attend<0>(*batch, *layer, tiles[i], scratch);
      }
    }
  }
}
