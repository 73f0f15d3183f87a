// How the attention of a step is divided into pieces that threads take one by one.
//
// A tile is some queries of a sequence with the query heads that share a KV head, so that each
// block is read once for the whole group. Most tiles are one piece. The context of a tile consists
// of parts, whose softmaxes can be computed apart and merged in order (as in FlashDecoding), and
// there are two reasons to do so:
//
// - few sequences with long contexts would leave threads idle;
// - sequences that begin with the same blocks have parts in common (a system prompt, say). Such a
//   part is one piece for all of them, and its keys and values are read once instead of once for
//   each (as in Hydragen, arXiv 2402.05099).

#pragma once

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "cache.h"

namespace {

extern "C" {

struct Batch {
  const int32_t* query_start_loc;  // [num_seqs + 1]
  const int32_t* context_lens;     // [num_seqs], with the new tokens
  const int32_t* block_tables;     // [num_seqs, max_blocks]
  const int64_t* slot_mapping;     // [num_tokens]
  int32_t num_seqs, num_tokens, max_blocks;
};

struct Heads {
  const float *query, *key, *value;  // of the first token; heads lie one after the other
  int64_t query_stride, key_stride, value_stride;  // between tokens, in elements
  float* output;                                   // [num_tokens, num_heads, head_dim]
  int32_t num_heads, num_kv_heads, head_dim;
  int32_t window;  // tokens that a token sees, itself included; 0: all
};

}  // extern "C"

namespace attention {

constexpr int TILE_ROWS = 32;    // their queries and outputs stay in the first-level cache
constexpr int PART_VECTORS = 256 / LANES;
constexpr int THREAD_TILES = 4;  // at least, so that no thread waits long for another

// The context of a sequence as vectors of tokens, none of which lies in two blocks.
inline int vectors_in_block(const Cache& cache) { return cache.block_lanes / LANES; }
inline int vector_of(const Cache& cache, int position) {
  return position / cache.block_size * vectors_in_block(cache) +
         position % cache.block_size / LANES;
}
inline int position_of(const Cache& cache, int vector) {
  return vector / vectors_in_block(cache) * cache.block_size +
         vector % vectors_in_block(cache) * LANES;
}

struct Query {
  int token, position;
};

// Queries that read the same keys and values. For each KV head, row r is query r / group with head
// r % group of the group that shares it. Few queries read several KV heads, which lie side by side
// in a block: memory is fastest where it is read on and on.
struct Tile {
  int sequence;  // whose blocks are read
  int first_head, num_heads;  // KV heads
  int first, count;  // of the division's queries, in ascending order of their positions
};

// A whole tile, or one part of one.
struct Piece {
  Tile tile;
  int part;
  int softmax;  // where results of a part go, head by head; none: the piece is the whole tile
};
constexpr int NONE = -1;

// Rows from `first_row` on of a piece's softmax.
struct Source {
  int softmax, first_row;
};

// A tile of one KV head whose softmaxes, one for each part and in their order, are merged.
struct Merge {
  Tile tile;
  int first_source, end_source;
};

struct Division {
  std::vector<Query> queries;
  std::vector<Piece> pieces;
  std::vector<Merge> merges;
  std::vector<Source> sources;
  int num_softmaxes = 0;

  void divide(const Batch& batch, const Cache& cache, const Heads& heads, int num_threads) {
    queries.clear(), pieces.clear(), merges.clear(), sources.clear();
    num_softmaxes = 0;
    group_ = heads.num_heads / heads.num_kv_heads;
    num_kv_heads_ = heads.num_kv_heads;
    most_heads_ = std::max(1, batch.num_tokens * num_kv_heads_ / (THREAD_TILES * num_threads));
    for (int s = 0; s < batch.num_seqs; s++)
      for (int t = batch.query_start_loc[s]; t < batch.query_start_loc[s + 1]; t++)
        queries.push_back({t, batch.context_lens[s] - batch.query_start_loc[s + 1] + t});
    const int longest = *std::max_element(batch.context_lens, batch.context_lens + batch.num_seqs);
    shared_.resize(batch.num_seqs);
    for (auto& parts : shared_) parts.clear();
    if (heads.window == 0 || heads.window >= longest) share_parts(batch, cache);
    tiles_.clear();
    for (int s = 0; s < batch.num_seqs; s++)
      for_tiles(s, batch.query_start_loc[s], batch.query_start_loc[s + 1],
                [&](const Tile& tile) { tiles_.push_back(tile); });
    const bool threads_idle = num_threads > 1 && int(tiles_.size()) < 4 * num_threads &&
                              longest > position_of(cache, PART_VECTORS);
    for (const Tile& tile : tiles_)
      if (threads_idle || !shared_[tile.sequence].empty())
        split(cache, heads, tile);
      else
        pieces.push_back({tile, NONE, NONE});
  }

 private:
  int tile_queries() const { return std::max(1, TILE_ROWS / group_); }

  // Calls f with the tiles of queries `first` to `end`, all of which read what `sequence` reads.
  template <typename F>
  void for_tiles(int sequence, int first, int end, F f) const {
    const int rows = std::clamp(end - first, 1, tile_queries()) * group_;
    const int tile_heads = std::clamp(TILE_ROWS / rows, 1, std::min(most_heads_, num_kv_heads_));
    for (int h = 0; h < num_kv_heads_; h += tile_heads)
      for (int q = first; q < end; q += tile_queries())
        f(Tile{sequence, h, std::min(tile_heads, num_kv_heads_ - h), q,
               std::min(tile_queries(), end - q)});
  }

  // One piece for each part of a tile, but for those that are shared.
  void split(const Cache& cache, const Heads& heads, const Tile& tile) {
    const int lowest = queries[tile.first].position - (heads.window ? heads.window - 1 : 0);
    const int highest = queries[tile.first + tile.count - 1].position;
    const int first_part = heads.window ? vector_of(cache, std::max(0, lowest)) / PART_VECTORS : 0;
    parts_.clear();
    for (int part = first_part; part <= vector_of(cache, highest) / PART_VECTORS; part++) {
      const auto& shared = shared_[tile.sequence];
      if (part < int(shared.size())) {
        parts_.push_back({shared[part].softmax + tile.first_head, shared[part].first_row});
      } else {
        parts_.push_back({num_softmaxes, 0});
        add_piece(tile, part);
      }
    }
    for (int h = 0; h < tile.num_heads; h++) {
      const int first_source = sources.size();
      for (const Source& of_first : parts_)
        sources.push_back({of_first.softmax + h, of_first.first_row});
      merges.push_back({{tile.sequence, tile.first_head + h, 1, tile.first, tile.count},
                        first_source,
                        int(sources.size())});
    }
  }

  // A part of a tile, with a softmax for each head.
  void add_piece(const Tile& tile, int part) {
    pieces.push_back({tile, part, num_softmaxes});
    num_softmaxes += tile.num_heads;
  }

  // Finds what sequences with one new token have in common, part by part: those that do not share
  // a part share none behind it.
  void share_parts(const Batch& batch, const Cache& cache) {
    sharing_.clear();
    for (int s = 0; s < batch.num_seqs; s++)
      if (batch.query_start_loc[s + 1] - batch.query_start_loc[s] == 1) sharing_.push_back(s);
    for (int part = 0; sharing_.size() > 1; part++) {
      const int first_vector = part * PART_VECTORS, end_vector = first_vector + PART_VECTORS;
      const int first_block = first_vector / vectors_in_block(cache);
      const int end_block = (end_vector - 1) / vectors_in_block(cache) + 1;
      const int end_position = position_of(cache, end_vector);
      std::erase_if(sharing_, [&](int s) { return batch.context_lens[s] < end_position; });
      const auto block = [&](int s) {
        return batch.block_tables + int64_t(s) * batch.max_blocks + first_block;
      };
      std::sort(sharing_.begin(), sharing_.end(), [&](int a, int b) {
        if (*block(a) != *block(b)) return *block(a) < *block(b);
        return std::pair(batch.context_lens[a], a) < std::pair(batch.context_lens[b], b);
      });
      const auto alike = [&](int a, int b) {
        return std::memcmp(block(a), block(b), (end_block - first_block) * sizeof(int32_t)) == 0;
      };
      still_sharing_.clear();
      for (int i = 0, end; i < int(sharing_.size()); i = end) {
        for (end = i + 1; end < int(sharing_.size()) && alike(sharing_[i], sharing_[end]);) end++;
        if (end - i == 1) continue;
        still_sharing_.insert(still_sharing_.end(), &sharing_[i], &sharing_[end]);
        for (int first = i; first < end; first += tile_queries())
          share_part(batch, part, &sharing_[first], std::min(tile_queries(), end - first));
      }
      std::swap(sharing_, still_sharing_);
    }
  }

  // Pieces with the new tokens of `count` sequences.
  void share_part(const Batch& batch, int part, const int* sequences, int count) {
    const int first = queries.size();
    for (int i = 0; i < count; i++) {
      const Query query = queries[batch.query_start_loc[sequences[i]]];
      queries.push_back(query);
      shared_[sequences[i]].push_back({num_softmaxes, i * group_});
    }
    for_tiles(sequences[0], first, first + count, [&](const Tile& tile) { add_piece(tile, part); });
  }

  int group_ = 1, num_kv_heads_ = 1;
  int most_heads_ = 1;  // of a tile
  std::vector<Tile> tiles_;
  std::vector<Source> parts_;  // of one tile's first head
  std::vector<std::vector<Source>> shared_;  // of each sequence, by part; of the first KV head
  std::vector<int> sharing_, still_sharing_;
};

}  // namespace attention

}  // namespace
