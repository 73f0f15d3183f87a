// Paged attention: writes a step's keys and values to their slots, then attends through the block
// table. A batch is mixed and ragged: sequences with one new token beside others with hundreds.
//
// Work is cut into tiles, and these into parts, see division.h. A tile walks the context in steps
// of two vectors of tokens with an online softmax (Milakov and Gimelshein, arXiv 1805.02867). Every
// part of the context starts a softmax of its own, and these are merged in order, whether or not
// they were computed apart.
//
// Steps and parts begin at fixed positions, and a step that a row may not see changes nothing of
// it. So a row's result has the same bits whatever stands beside it: another batch, another chunk,
// another tile, other threads.

#pragma once

#include <vector>

#include "cache.h"
#include "division.h"
#include "team.h"

namespace {

namespace attention {

constexpr float NOTHING = -1e30f;  // maximum before anything was seen; finite, so that a step that
                                   // sees nothing changes nothing

// ------------------------------------------------------------------ storing

// Where the key of a token begins, and how far apart its dimensions lie.
template <typename T>
int64_t key_at(const Cache& cache, const Heads& heads, int64_t block, int offset, int head) {
  return step_at(block, cache.block_lanes, offset, heads.num_kv_heads, head, heads.head_dim) +
         offset % STEP_LANES * Arithmetic<T>::TERMS;
}
template <typename T>
int key_stride(const Cache& cache, int offset) {
  return step_tokens(cache.block_lanes, offset) * Arithmetic<T>::TERMS;
}

// Where the row begins that holds the value of a token, alone or with others.
template <typename T>
int64_t value_at(const Cache& cache, const Heads& heads, int64_t block, int offset, int head) {
  constexpr int TERMS = Arithmetic<T>::TERMS;
  const int dim = heads.head_dim;
  return step_at(block, block_rows(cache), offset, heads.num_kv_heads, head, dim) +
         offset % STEP_LANES / TERMS * TERMS * dim;
}

// Writes a token's key and value of one head to their slot.
template <typename T>
void store_token(const Batch& batch, const Cache& cache, const Heads& heads, int token, int h) {
  const int64_t slot = batch.slot_mapping[token];
  const int64_t block = slot / cache.block_size;
  const int offset = slot % cache.block_size, dim = heads.head_dim;
  const float* key = heads.key + token * heads.key_stride + int64_t(h) * dim;
  const float* value = heads.value + token * heads.value_stride + int64_t(h) * dim;
  const int64_t scale = (block * heads.num_kv_heads + h) * cache.block_lanes + offset;
  constexpr int TERMS = Arithmetic<T>::TERMS;
  T* keys = static_cast<T*>(cache.keys) + key_at<T>(cache, heads, block, offset, h);
  T* values =
      static_cast<T*>(cache.values) + value_at<T>(cache, heads, block, offset, h) + offset % TERMS;
  store_head<TERMS>(key, dim, keys, key_stride<T>(cache, offset),
                    SCALED<T> ? cache.key_scales + scale : nullptr);
  store_head<1>(value, dim, values, TERMS, SCALED<T> ? cache.value_scales + scale : nullptr);
}

// ------------------------------------------------------------------ tiles

// A softmax over what some rows have seen so far: output / sum are the weighted values.
struct Softmax {
  std::vector<vec> output, sum;
  std::vector<float> maximum;

  void reset(int num_rows, int num_vecs) {
    output.assign(num_rows * num_vecs, vec{});
    sum.assign(num_rows, vec{});
    maximum.assign(num_rows, NOTHING);
  }

  // Becomes `num_rows` rows of another one.
  void copy(const Softmax& other, int first_row, int num_rows) {
    const int num_vecs = other.output.size() / other.sum.size();
    const auto begin = other.output.begin() + first_row * num_vecs;
    output.assign(begin, begin + num_rows * num_vecs);
    sum.assign(&other.sum[first_row], &other.sum[first_row] + num_rows);
    maximum.assign(&other.maximum[first_row], &other.maximum[first_row] + num_rows);
  }

  // Takes in what the same rows, which begin at `first_row` there, have seen later.
  void merge(const Softmax& later, int first_row = 0) {
    const int num_rows = sum.size(), num_vecs = output.size() / num_rows;
    const vec* other = &later.output[first_row * num_vecs];
    for (int row = 0; row < num_rows; row++) {
      const float second = later.maximum[first_row + row];
      const float highest = std::max(maximum[row], second);
      const float ours = exp_nonpositive(vec{} + (maximum[row] - highest))[0];
      const float theirs = exp_nonpositive(vec{} + (second - highest))[0];
      maximum[row] = highest;
      sum[row] = sum[row] * ours + later.sum[first_row + row] * theirs;
      for (int j = row * num_vecs; j < (row + 1) * num_vecs; j++)
        output[j] = output[j] * ours + other[j] * theirs;
    }
  }
};

// One thread's working memory, kept over calls so that a step allocates nothing.
template <typename T>
struct Scratch {
  std::vector<float> query;  // of one row
  std::vector<typename Arithmetic<T>::Factor> queries, weights;
  std::vector<vec> scores;
  std::vector<Softmax> part, all;  // of each head
  Softmax merged;
};

// A vector of consecutive tokens of one block.
template <typename T>
struct Tokens {
  const T *keys, *values;
  int key_stride;
  const float *key_scales, *value_scales;
  int first, count;  // position of the first, and how many a tile sees of it at most
};

template <typename T>
struct Step {
  Tokens<T> vectors[STEP_VECTORS];

  const Tokens<T>& operator[](int i) const { return vectors[i]; }
};

// Attention of one tile. DIM is the head size, or 0 where it is not known at compile time.
template <int DIM, typename T>
class TileAttention {
  typedef Arithmetic<T> Products;
  typedef typename Products::Factor Factor;
  static constexpr int TERMS = Products::TERMS;
  static constexpr int LINE = 64 / sizeof(T);  // numbers in a line of the processor's caches
  static constexpr int STEP_FACTORS = STEP_VECTORS * LANES / TERMS;

 public:
  TileAttention(const Batch& batch, const Cache& cache, const Heads& heads,
                const Division& division, const Tile& tile, Scratch<T>& scratch)
      : cache_(cache),
        heads_(heads),
        scratch_(scratch),
        queries_(&division.queries[tile.first]),
        first_head_(tile.first_head),
        tile_heads_(tile.num_heads),
        group_(heads.num_heads / heads.num_kv_heads),
        num_rows_(tile.count * group_),
        end_(queries_[tile.count - 1].position + 1),
        window_(heads.window ? heads.window : end_),
        block_table_(batch.block_tables + int64_t(tile.sequence) * batch.max_blocks) {}

  void load_queries() {
    const float scale = 1.0f / std::sqrt(float(dim()));
    scratch_.query.assign(padded_dim(), 0.0f);
    scratch_.queries.resize(tile_heads_ * num_rows_ * query_factors());
    scratch_.scores.resize(num_rows_ * STEP_VECTORS);
    scratch_.weights.resize(num_rows_ * STEP_FACTORS);
    float* query = scratch_.query.data();
    Factor* to = scratch_.queries.data();
    for (int head = 0; head < tile_heads_; head++)
      for (int row = 0; row < num_rows_; row++, to += query_factors()) {
        const float* from = heads_.query + offset_in_batch(head, row, heads_.query_stride);
        for (int d = 0; d < dim(); d++) query[d] = from[d] * scale;
        for (int d = 0; d < padded_dim(); d += 2 * LANES)
          Products::store_factors(load(query + d), load(query + d + LANES), to + d / TERMS);
      }
  }

  // `after` is what is read after this part; `to` is a softmax for each head.
  void run_part(int part, const Step<T>& after, Softmax* to) {
    for (int head = 0; head < tile_heads_; head++) to[head].reset(num_rows_, num_vecs());
    const int end = std::min((part + 1) * PART_VECTORS, end_vector());
    for (int v = std::max(part * PART_VECTORS, first_vector()); v < end; v += STEP_VECTORS) {
      const bool second = v + 1 < end, last = v + STEP_VECTORS >= end;
      Step<T> tokens = step(v, end, 0);
      for (int head = 0; head < tile_heads_; head++) {
        const Step<T> next = head + 1 < tile_heads_ ? step(v, end, head + 1)
                             : last                 ? after
                                                    : step(v + STEP_VECTORS, end, 0);
        score(head, tokens, next);
        weigh(tokens, second, to[head]);
        add_values(tokens, second, next, to[head]);
        tokens = next;
      }
    }
  }

  // `after` is what is read after this tile.
  void run(const Step<T>& after) {
    for (auto* softmaxes : {&scratch_.all, &scratch_.part})
      if (int(softmaxes->size()) < tile_heads_) softmaxes->resize(tile_heads_);
    Softmax *all = scratch_.all.data(), *later = scratch_.part.data();
    const int first_part = first_vector() / PART_VECTORS;
    const int end_part = (end_vector() + PART_VECTORS - 1) / PART_VECTORS;
    for (int part = first_part; part < end_part; part++) {
      const Step<T> next = part + 1 < end_part ? first_step(part + 1) : after;
      run_part(part, next, part == first_part ? all : later);
      for (int head = 0; part > first_part && head < tile_heads_; head++)
        all[head].merge(later[head]);
    }
    for (int head = 0; head < tile_heads_; head++) write_output(head, all[head]);
  }

  void write_output(int head, const Softmax& softmax) {
    const float* output = reinterpret_cast<const float*>(softmax.output.data());
    for (int row = 0; row < num_rows_; row++) {
      const float scale = 1.0f / horizontal_sum(softmax.sum[row]);
      float* to = heads_.output + offset_in_batch(head, row, int64_t(heads_.num_heads) * dim());
      for (int d = 0; d < dim(); d++) to[d] = output[row * num_vecs() * LANES + d] * scale;
    }
  }

  Step<T> first_step(int part) const {
    return step(std::max(part * PART_VECTORS, first_vector()), end_vector(), 0);
  }

  int num_rows() const { return num_rows_; }  // of each head

 private:
  int dim() const { return DIM ? DIM : heads_.head_dim; }
  int padded_dim() const { return (dim() + 2 * LANES - 1) / (2 * LANES) * (2 * LANES); }
  int query_factors() const { return padded_dim() / TERMS; }

  int num_vecs() const { return (dim() + LANES - 1) / LANES; }

  int64_t offset_in_batch(int head, int row, int64_t stride) const {
    const int query_head = (first_head_ + head) * group_ + row % group_;
    return queries_[row / group_].token * stride + query_head * dim();
  }

  int first_vector() const {
    const int first = std::max(0, queries_[0].position - window_ + 1);
    return vector_of(cache_, first) / STEP_VECTORS * STEP_VECTORS;
  }
  int end_vector() const { return vector_of(cache_, end_ - 1) + 1; }

  Step<T> step(int vector, int end, int head) const {
    return {find(vector, head), find(std::min(vector + 1, end - 1), head)};
  }

  Tokens<T> find(int vector, int head) const {
    const int in_block = vectors_in_block(cache_);
    const int index = vector / in_block, offset = vector % in_block * LANES;
    const int64_t block = block_table_[index];
    const int kv_head = first_head_ + head;
    const int64_t scale = (block * heads_.num_kv_heads + kv_head) * cache_.block_lanes + offset;
    const int first = index * cache_.block_size + offset;
    return {static_cast<const T*>(cache_.keys) +
                key_at<T>(cache_, heads_, block, offset, kv_head),
            static_cast<const T*>(cache_.values) +
                value_at<T>(cache_, heads_, block, offset, kv_head),
            key_stride<T>(cache_, offset),
            cache_.key_scales + scale,
            cache_.value_scales + scale,
            first,
            std::min({LANES, cache_.block_size - offset, end_ - first})};
  }

  // scores[row] = query[row] · keys
  void score(int head, const Step<T>& tokens, const Step<T>& next) {
    vec* scores = scratch_.scores.data();
    vec scales[STEP_VECTORS];
    if constexpr (SCALED<T>)
      for (int s = 0; s < STEP_VECTORS; s++) scales[s] = load(tokens[s].key_scales);
    for_row_groups<LINEAR_ROWS>(0, num_rows_, [&](int row, auto rows) {
      constexpr int ROWS = decltype(rows)::value;
      const Factor* query = scratch_.queries.data() + (head * num_rows_ + row) * query_factors();
      vec acc[ROWS][STEP_VECTORS] = {};
      for (int d = 0; d < dim() / TERMS; d++) {
        const auto k0 = Products::load(tokens[0].keys + d * tokens[0].key_stride);
        const auto k1 = Products::load(tokens[1].keys + d * tokens[1].key_stride);
        __builtin_prefetch(next[0].keys + d * next[0].key_stride);
        __builtin_prefetch(next[1].keys + d * next[1].key_stride);
        for (int i = 0; i < ROWS; i++) {
          acc[i][0] = Products::add(acc[i][0], query[i * query_factors() + d], k0);
          acc[i][1] = Products::add(acc[i][1], query[i * query_factors() + d], k1);
        }
      }
      for (int i = 0; i < ROWS; i++)
        for (int s = 0; s < STEP_VECTORS; s++) {
          if constexpr (SCALED<T>) acc[i][s] *= scales[s];
          scores[(row + i) * STEP_VECTORS + s] = acc[i][s];
        }
    });
  }

  // weights[row] = exp(scores[row] - maximum[row]), after raising the maximum where needed
  void weigh(const Step<T>& tokens, bool second, Softmax& to) {
    const int last = tokens[1].first + tokens[1].count - 1;
    const bool all_visible = second && tokens[0].count == LANES && tokens[1].count == LANES &&
                             last <= queries_[0].position && tokens[0].first > end_ - 1 - window_;
    if (all_visible)
      weigh_visible(tokens, to, [](int, int, vec scores) { return scores; });
    else
      weigh_visible(tokens, to, [&](int position, int s, vec scores) {
        ivec lane;
        for (int t = 0; t < LANES; t++) lane[t] = t;
        const ivec token = lane + tokens[s].first;
        const int count = s == 0 || second ? tokens[s].count : 0;
        const ivec hidden = (lane >= count) | (token > position) | (token <= position - window_);
        return hidden ? vec{} - INFINITY : scores;
      });
  }

  template <typename F>
  void weigh_visible(const Step<T>& tokens, Softmax& to, F visible) {
    int query = 0, head = 0;
    for (int row = 0; row < num_rows_; row++) {
      vec weights[STEP_VECTORS];
      for (int s = 0; s < STEP_VECTORS; s++)
        weights[s] = visible(queries_[query].position, s, scratch_.scores[row * STEP_VECTORS + s]);
      const float highest = horizontal_max(maximum(weights[0], weights[1]));
      if (highest > to.maximum[row]) {
        const float rescale = exp_nonpositive(vec{} + (to.maximum[row] - highest))[0];
        to.maximum[row] = highest;
        to.sum[row] *= rescale;
        for (int j = 0; j < num_vecs(); j++) to.output[row * num_vecs() + j] *= rescale;
      }
      for (int s = 0; s < STEP_VECTORS; s++) {
        weights[s] = exp_nonpositive(weights[s] - to.maximum[row]);
        to.sum[row] += weights[s];
        if constexpr (SCALED<T>) weights[s] *= finite_scales(tokens[s]);
      }
      Products::store_factors(weights[0], weights[1],
                              scratch_.weights.data() + row * STEP_FACTORS);
      if (++head == group_) head = 0, query++;
    }
  }

  // Lanes behind the last token hold anything, and a weight of zero does not make a number of it.
  static vec finite_scales(const Tokens<T>& tokens) {
    ivec lane;
    for (int t = 0; t < LANES; t++) lane[t] = t;
    return lane < tokens.count ? load(tokens.value_scales) : vec{};
  }

  // Vector v of a row of values whose vector j is at `values`, and what it lacks as zeros.
  typename Products::Operand load_dims(const T* values, int j, int v) const {
    const int left = (dim() - (j + v) * LANES) * TERMS;
    const T* from = values + v * LANES * TERMS;
    if ((DIM && DIM % LANES == 0) || left >= LANES * TERMS) return Products::load(from);
    T padded[LANES * TERMS] = {};
    for (int d = 0; d < left; d++) padded[d] = from[d];
    return Products::load(padded);
  }

  // output[row] += weights[row] · values
  void add_values(const Step<T>& tokens, bool second, const Step<T>& next, Softmax& to) {
    for_row_groups<LINEAR_ROWS>(0, num_rows_, [&](int row, auto rows) {
      constexpr int ROWS = decltype(rows)::value;
      // With few rows more vectors at a time: an addition takes longer than starting the next.
      constexpr int VECS = std::max(2, 2 * LINEAR_ROWS / ROWS);
      constexpr bool DIVIDES = DIM && DIM % (VECS * LANES) == 0;
      int j = 0;
      for (; j + VECS <= num_vecs(); j += VECS)
        add_dims<ROWS, VECS>(tokens, second, next, to, row, j);
      if constexpr (!DIVIDES)
        for (; j < num_vecs(); j++) add_dims<ROWS, 1>(tokens, second, next, to, row, j);
    });
  }

  template <int ROWS, int VECS>
  void add_dims(const Step<T>& tokens, bool second, const Step<T>& next, Softmax& to, int row,
                int j) {
    const Factor* weights = scratch_.weights.data() + row * STEP_FACTORS;
    vec acc[ROWS][VECS];
    for (int i = 0; i < ROWS; i++)
      for (int v = 0; v < VECS; v++) acc[i][v] = to.output[(row + i) * num_vecs() + j + v];
    const auto add = [&](const Factor* weight, const T* values, auto prepare) {
      typename Products::Operand value[VECS];
      for (int v = 0; v < VECS; v++) value[v] = prepare(load_dims(values, j, v));
      for (int i = 0; i < ROWS; i++)
        for (int v = 0; v < VECS; v++)
          acc[i][v] = Products::add(acc[i][v], weight[i * STEP_FACTORS], value[v]);
    };
    for (int s = 0; s <= int(second); s++) {
      const T *values = tokens[s].values + j * LANES * TERMS;
      const T *later = next[s].values + j * LANES * TERMS;
      const Factor* weight = weights + s * LANES / TERMS;
      const Factor* const end = weight + tokens[s].count / TERMS;
      for (; weight < end; weight++, values += dim() * TERMS, later += dim() * TERMS) {
        for (int v = 0; v < VECS; v += std::max(1, LINE / (LANES * TERMS)))
          __builtin_prefetch(later + v * LANES * TERMS);
        add(weight, values, [](auto value) { return value; });
      }
      if (tokens[s].count % TERMS) add(weight, values, Products::first_term);
    }
    for (int i = 0; i < ROWS; i++)
      for (int v = 0; v < VECS; v++) to.output[(row + i) * num_vecs() + j + v] = acc[i][v];
  }

  const Cache& cache_;
  const Heads& heads_;
  Scratch<T>& scratch_;
  const Query* const queries_;
  const int first_head_, tile_heads_, group_, num_rows_, end_, window_;
  const int32_t* block_table_;
};

// ------------------------------------------------------------------ the team's share

// Calls f with a type of the cache and a head size that are known at compile time.
template <typename F>
void with_types(const Cache& cache, const Heads& heads, F f) {
  const auto with_dim = [&](auto element) {
    switch (heads.head_dim) {
      case 64: return f(element, std::integral_constant<int, 64>());
      case 128: return f(element, std::integral_constant<int, 128>());
      default: return f(element, std::integral_constant<int, 0>());
    }
  };
  switch (cache.type) {
    case CACHE_FLOAT32: return with_dim(float());
    case CACHE_BFLOAT16: return with_dim(uint16_t());
    case CACHE_INT8: return with_dim(int8_t());
  }
}

// What a team computes the attention of a step with; kept over steps.
struct Attention {
  Division division;
  std::vector<Softmax> softmaxes;
  int window = -1;  // of the layers that the division is for

  void start_step() { window = -1; }

  // To be called by one member before the team attends.
  void divide(const Batch& batch, const Cache& cache, const Heads& heads, int num_threads) {
    if (window == heads.window) return;
    window = heads.window;
    division.divide(batch, cache, heads, num_threads);
    if (int(softmaxes.size()) < division.num_softmaxes) softmaxes.resize(division.num_softmaxes);
  }
};

// Attention of one layer whose keys and values are stored.
inline void attend(const Member& member, const Batch& batch, const Cache& cache,
                   const Heads& heads, Attention& attention) {
  with_types(cache, heads, [&](auto element, auto dim) {
    typedef decltype(element) T;
    static thread_local Scratch<T> scratch;
    const Division& division = attention.division;
    const auto tile_attention = [&](const Tile& tile) {
      return TileAttention<dim(), T>(batch, cache, heads, division, tile, scratch);
    };
    const int last = division.pieces.size() - 1;
    member.share(division.pieces.size(), [&](int i) {
      const Piece &piece = division.pieces[i], &following = division.pieces[std::min(i + 1, last)];
      const Step<T> after = tile_attention(following.tile).first_step(following.part);
      auto tile = tile_attention(piece.tile);
      tile.load_queries();
      if (piece.part == NONE)
        tile.run(after);
      else
        tile.run_part(piece.part, after, &attention.softmaxes[piece.softmax]);
    });
    if (division.merges.empty()) return;
    member.share(division.merges.size(), [&](int i) {
      const Merge& merge = division.merges[i];
      const Source* source = &division.sources[merge.first_source];
      const Source* const end = source + (merge.end_source - merge.first_source);
      auto tile = tile_attention(merge.tile);
      Softmax& all = scratch.merged;
      all.copy(attention.softmaxes[source->softmax], source->first_row, tile.num_rows());
      while (++source < end) all.merge(attention.softmaxes[source->softmax], source->first_row);
      tile.write_output(0, all);
    });
  });
}

inline void store_tokens(const Member& member, const Batch& batch, const Cache& cache,
                         const Heads& heads) {
  with_types(cache, heads, [&](auto element, auto) {
    member.share(batch.num_tokens, [&](int token) {
      for (int h = 0; h < heads.num_kv_heads; h++)
        store_token<decltype(element)>(batch, cache, heads, token, h);
    });
  });
}

}  // namespace attention

}  // namespace
