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
//
// The next step's keys are fetched while this step's are transposed, the next values while these
// are added: the hardware cannot guess where the following block lies.

#include <omp.h>

#include <algorithm>
#include <vector>

#include "simd.h"

namespace {

// Rows times chains are the sums in flight: enough to cover the latency of two multiply-add units,
// few enough for the registers.
#if defined(__AVX__) && !defined(__AVX512F__)
constexpr int MAX_ROWS = 4, CHAINS = 2;
#else
constexpr int MAX_ROWS = 8, CHAINS = 2;
#endif
static_assert(CHAINS == 2, "score() adds up two");
constexpr int TILE_ROWS = 32;  // their queries and outputs stay in the first-level cache
constexpr int64_t SMALL = 1 << 18;  // multiply-adds that are done before other threads wake up

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
  const float *query, *key, *value;                // [num_tokens, heads, head_dim]
  int64_t query_stride, key_stride, value_stride;  // between tokens, in elements
  float *keys, *values;  // the cache: [num_blocks, num_kv_heads, block_size, head_dim]
  float* output;         // [num_tokens, num_heads, head_dim]
  int32_t num_heads, num_kv_heads, head_dim, block_size;
  int32_t window;  // 0: none
};

}  // extern "C"

namespace {

struct Tile {
  int sequence, kv_head, first_query, num_queries;
  int64_t cost;  // multiply-adds, up to a constant
};

// One thread's working memory, kept over calls so that a step allocates nothing.
struct Scratch {
  std::vector<vec> query, output, keys, padded, sum, weights;
  std::vector<float> maximum;
};

// LANES tokens of the context, and where the next ones lie.
struct Tokens {
  const float *key[LANES], *value[LANES], *next_key[LANES], *next_value[LANES];
};

// Attention of one tile. DIM is the head size, or 0 where it is not known at compile time.
template <int DIM>
class TileAttention {
 public:
  TileAttention(const Batch& batch, const Layer& layer, const Tile& tile, Scratch& scratch)
      : layer_(layer),
        scratch_(scratch),
        kv_head_(tile.kv_head),
        group_(layer.num_heads / layer.num_kv_heads),
        num_rows_(tile.num_queries * group_),
        first_token_(batch.query_start_loc[tile.sequence] + tile.first_query),
        first_position_(batch.context_lens[tile.sequence] + first_token_ -
                        batch.query_start_loc[tile.sequence + 1]),
        end_(first_position_ + tile.num_queries),
        window_(layer.window ? layer.window : end_),
        block_table_(batch.block_tables + int64_t(tile.sequence) * batch.max_blocks) {}

  void run() {
    load_queries();
    for (int start = std::max(0, first_position_ - window_ + 1) / LANES * LANES; start < end_;
         start += LANES) {
      const Tokens tokens = find(start);
      transpose_keys(tokens);
      score();
      weigh(start);
      add_values(tokens, std::min(LANES, end_ - start));
    }
    write_output();
  }

 private:
  int dim() const { return DIM ? DIM : layer_.head_dim; }
  int num_vecs() const { return (dim() + LANES - 1) / LANES; }
  int padded_dim() const { return num_vecs() * LANES; }

  // Row r is query r / group, head r % group of the KV head's group.
  int64_t offset_in_batch(int row, int64_t stride) const {
    return (first_token_ + row / group_) * stride + (kv_head_ * group_ + row % group_) * dim();
  }

  void load_queries() {
    scratch_.query.assign(num_rows_ * num_vecs(), vec{});
    scratch_.output.assign(num_rows_ * num_vecs(), vec{});
    scratch_.keys.resize(padded_dim());
    scratch_.padded.assign(dim() == padded_dim() ? 0 : 2 * LANES * num_vecs(), vec{});
    scratch_.sum.assign(num_rows_, vec{});
    scratch_.weights.resize(num_rows_);
    scratch_.maximum.assign(num_rows_, -1e30f);  // finite: steps that see nothing change nothing
    const float scale = 1.0f / std::sqrt(float(dim()));
    float* query = reinterpret_cast<float*>(scratch_.query.data());
    for (int row = 0; row < num_rows_; row++) {
      const float* from = layer_.query + offset_in_batch(row, layer_.query_stride);
      for (int d = 0; d < dim(); d++) query[row * padded_dim() + d] = from[d] * scale;
    }
  }

  int64_t offset_in_cache(int position) const {
    const int64_t block = block_table_[position / layer_.block_size];
    return ((block * layer_.num_kv_heads + kv_head_) * layer_.block_size +
            position % layer_.block_size) * dim();
  }

  Tokens find(int start) {
    Tokens tokens;
    float* padded = reinterpret_cast<float*>(scratch_.padded.data());
    for (int t = 0; t < LANES; t++) {
      // Lanes past the end repeat its last token: what the cache holds there may be no number.
      const int64_t offset = offset_in_cache(std::min(start + t, end_ - 1));
      const int64_t next = offset_in_cache(std::min(start + t + LANES, end_ - 1));
      tokens.key[t] = layer_.keys + offset;
      tokens.value[t] = layer_.values + offset;
      tokens.next_key[t] = layer_.keys + next;
      tokens.next_value[t] = layer_.values + next;
      if (dim() != padded_dim()) {
        float *key = padded + t * padded_dim(), *value = key + LANES * padded_dim();
        std::memcpy(key, tokens.key[t], dim() * sizeof(float));
        std::memcpy(value, tokens.value[t], dim() * sizeof(float));
        tokens.key[t] = key;
        tokens.value[t] = value;
      }
    }
    return tokens;
  }

  void transpose_keys(const Tokens& tokens) {
    vec* keys = scratch_.keys.data();
    for (int d = 0; d < padded_dim(); d += LANES) {
      for (int t = 0; t < LANES; t++) {
        keys[d + t] = load(tokens.key[t] + d);
        __builtin_prefetch(tokens.next_key[t] + d);
      }
      transpose(keys + d);
    }
  }

  // weights[row] = query[row] · keys
  void score() {
    const float* query = reinterpret_cast<const float*>(scratch_.query.data());
    const vec* keys = scratch_.keys.data();
    vec* weights = scratch_.weights.data();
    for_row_groups<MAX_ROWS>(0, num_rows_, [&](int row, auto rows) {
      vec acc[CHAINS][rows] = {};
      for (int d = 0; d < padded_dim(); d += CHAINS)
        for (int c = 0; c < CHAINS; c++)
          for (int i = 0; i < rows; i++)
            acc[c][i] += query[(row + i) * padded_dim() + d + c] * keys[d + c];
      for (int i = 0; i < rows; i++) weights[row + i] = acc[0][i] + acc[1][i];
    });
  }

  // weights[row] = exp(weights[row] - maximum[row]), after raising the maximum where needed
  void weigh(int start) {
    ivec token;
    for (int t = 0; t < LANES; t++) token[t] = start + t;
    vec *weights = scratch_.weights.data(), *sum = scratch_.sum.data();
    vec* output = scratch_.output.data();
    float* maximum = scratch_.maximum.data();
    for (int row = 0; row < num_rows_; row++) {
      const int position = first_position_ + row / group_;
      const ivec hidden = (token > position) | (token <= position - window_);
      const vec scores = hidden ? broadcast(-INFINITY) : weights[row];
      const float highest = horizontal_max(scores);
      if (highest > maximum[row]) {
        const float rescale = exp_nonpositive(broadcast(maximum[row] - highest))[0];
        maximum[row] = highest;
        sum[row] *= rescale;
        for (int j = 0; j < num_vecs(); j++) output[row * num_vecs() + j] *= rescale;
      }
      weights[row] = exp_nonpositive(scores - maximum[row]);
      sum[row] += weights[row];
    }
  }

  // output[row] += weights[row] · values
  void add_values(const Tokens& tokens, int num_tokens) {
    const float* weights = reinterpret_cast<const float*>(scratch_.weights.data());
    vec* output = scratch_.output.data();
    for_row_groups<MAX_ROWS>(0, num_rows_, [&](int row, auto rows) {
      for (int j = 0; j < num_vecs(); j++) {
        vec acc[rows];
        for (int i = 0; i < rows; i++) acc[i] = output[(row + i) * num_vecs() + j];
        for (int t = 0; t < num_tokens; t++) {
          const vec value = load(tokens.value[t] + j * LANES);
          if (row == 0) __builtin_prefetch(tokens.next_value[t] + j * LANES);
          for (int i = 0; i < rows; i++) acc[i] += weights[(row + i) * LANES + t] * value;
        }
        for (int i = 0; i < rows; i++) output[(row + i) * num_vecs() + j] = acc[i];
      }
    });
  }

  void write_output() {
    const float* output = reinterpret_cast<const float*>(scratch_.output.data());
    for (int row = 0; row < num_rows_; row++) {
      const float total = horizontal_sum(scratch_.sum[row]);
      float* to = layer_.output + offset_in_batch(row, int64_t(layer_.num_heads) * dim());
      for (int d = 0; d < dim(); d++) to[d] = output[row * padded_dim() + d] / total;
    }
  }

  const Layer& layer_;
  Scratch& scratch_;
  const int kv_head_, group_, num_rows_;
  const int first_token_, first_position_, end_, window_;
  const int32_t* block_table_;
};

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
  const size_t bytes = layer.head_dim * sizeof(float);
  for (int h = 0; h < layer.num_kv_heads; h++) {
    const int64_t to =
        ((block * layer.num_kv_heads + h) * layer.block_size + offset) * layer.head_dim;
    const int64_t from = h * layer.head_dim;
    std::memcpy(layer.keys + to, layer.key + token * layer.key_stride + from, bytes);
    std::memcpy(layer.values + to, layer.value + token * layer.value_stride + from, bytes);
  }
}

}  // namespace

// Indices are trusted: the caller has checked blocks, slots and lengths.
extern "C" void paged_attention(const Batch* batch, const Layer* layer) {
  const std::vector<Tile> tiles = cut_into_tiles(*batch, *layer);
  int64_t work = 0;
  for (const Tile& tile : tiles) work += tile.cost;
  work *= layer->num_heads / layer->num_kv_heads * layer->head_dim;
#pragma omp parallel num_threads(work < SMALL ? 1 : batch->num_threads)
  {
    static thread_local Scratch scratch;
#pragma omp for schedule(static)
    for (int token = 0; token < batch->num_tokens; token++) store(*batch, *layer, token);
    // (All threads wait here: tiles read what others have stored.)
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < tiles.size(); i++) {
      switch (layer->head_dim) {
        case 64: TileAttention<64>(*batch, *layer, tiles[i], scratch).run(); break;
        case 128: TileAttention<128>(*batch, *layer, tiles[i], scratch).run(); break;
        default: TileAttention<0>(*batch, *layer, tiles[i], scratch).run();
      }
    }
  }
}
