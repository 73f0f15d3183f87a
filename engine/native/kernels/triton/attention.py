"""Attention over a paged cache, in Triton: storing, decoding in parts, and whole chunks.

The cache of a layer is two tensors [num_blocks, num_kv_heads, block_size, head_dim], in int8 with
one float32 scale for each token and head, [num_blocks, num_kv_heads, block_size].

Sums have one fixed order for each row: tiles and parts begin at fixed positions of the sequence,
whatever else is in the batch and wherever a chunk begins. Softmaxes are computed online (Milakov
and Gimelshein, arXiv 1805.02867) with powers of two, and parts are merged as in Flash-Decoding
(Dao et al., 2023).
"""

from __future__ import annotations

import triton
import triton.language as tl

# The context is decoded in parts of SHORT_PART tokens, beyond the first NUM_SHORT_PARTS in parts
# of LONG_PART: enough of them to occupy a device, few enough to keep their results small.
SHORT_PART = tl.constexpr(256)
NUM_SHORT_PARTS = tl.constexpr(32)
LONG_PART = tl.constexpr(4096)
_MERGED_AT_ONCE = tl.constexpr(16)


def num_parts(context_len: int) -> int:
    """Parts that a context of so many tokens is decoded in."""
    short, count, long = SHORT_PART.value, NUM_SHORT_PARTS.value, LONG_PART.value
    if context_len <= short * count:
        return -(-context_len // short)
    return int(count - (short * count - context_len) // long)


def part_end(part: int) -> int:
    """The first token after a part."""
    short, count, long = SHORT_PART.value, NUM_SHORT_PARTS.value, LONG_PART.value
    return int(min(part + 1, count) * short + max(0, part + 1 - count) * long)


@triton.jit
def _part_start(part):
    short = tl.minimum(part, NUM_SHORT_PARTS)
    return short * SHORT_PART + (part - short) * LONG_PART


@triton.jit(do_not_specialize=["num_kv_heads"])
def store_kernel(
    key,  # [num_tokens, num_kv_heads, HEAD_DIM], heads dense
    value,
    keys,
    values,
    key_scales,
    value_scales,
    slot_mapping,  # int64 [num_tokens]; negative: nothing is stored
    key_stride,
    value_stride,
    num_kv_heads,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    LARGEST: tl.constexpr,  # value of a type of 8 bits; 0 where there is no need to look
    HAS_SCALES: tl.constexpr,
):
    """One program for each (token, KV head)."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    slot = tl.load(slot_mapping + token)
    if slot >= 0:
        place = (slot // BLOCK_SIZE * num_kv_heads + head) * BLOCK_SIZE + slot % BLOCK_SIZE
        dims = tl.arange(0, PADDED_DIM)
        mask = dims < HEAD_DIM
        k = tl.load(key + token * key_stride + head * HEAD_DIM + dims, mask=mask, other=0.0)
        v = tl.load(value + token * value_stride + head * HEAD_DIM + dims, mask=mask, other=0.0)
        if HAS_SCALES:
            k, k_scale = _rounded(k.to(tl.float32), LARGEST)
            v, v_scale = _rounded(v.to(tl.float32), LARGEST)
            tl.store(key_scales + place, k_scale)
            tl.store(value_scales + place, v_scale)
        elif LARGEST > 0:
            k = tl.minimum(tl.maximum(k.to(tl.float32), -LARGEST), LARGEST)
            v = tl.minimum(tl.maximum(v.to(tl.float32), -LARGEST), LARGEST)
        tl.store(keys + place * HEAD_DIM + dims, k.to(keys.dtype.element_ty), mask=mask)
        tl.store(values + place * HEAD_DIM + dims, v.to(values.dtype.element_ty), mask=mask)


@triton.jit
def _rounded(x, LARGEST: tl.constexpr):
    """``x`` in whole units of a scale that maps the largest of it to ``LARGEST``; the scale."""
    largest = tl.max(tl.abs(x), 0)
    units = tl.floor(x * tl.where(largest > 0, LARGEST / largest, 0.0) + 0.5)
    return tl.minimum(tl.maximum(units, -LARGEST), LARGEST), largest / LARGEST


@triton.jit
def _load(pointers, mask, OTHER: tl.constexpr, MASKED: tl.constexpr):
    if MASKED:
        loaded = tl.load(pointers, mask=mask, other=OTHER)
    else:
        loaded = tl.load(pointers)
    return loaded


# Arguments stand in lines by what they belong to.
# fmt: off
@triton.jit
def _attend(
    accumulated, maximum, total,  # float32 [rows, PADDED_DIM], [rows], [rows]
    query, positions,  # [rows, PADDED_DIM], [rows]
    begin, end,
    keys, values, key_scales, value_scales, block_table,
    kv_head, num_kv_heads, scale, window,
    HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
    MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SCALES: tl.constexpr,
):
    """Takes tokens ``begin`` to ``end`` of a sequence into the running softmax of some rows.

    Unless ``MASKED``, all rows see all of the tokens, and they are whole tiles.
    """
    dims = tl.arange(0, PADDED_DIM)
    in_head = dims < HEAD_DIM
    PARTIAL: tl.constexpr = MASKED or HEAD_DIM != PADDED_DIM
    for start in range(begin, end, TILE):
        tokens = start + tl.arange(0, TILE)
        # What lies behind the end of the sequence is not even finite.
        exists = tokens < end
        blocks = _load(block_table + tokens // BLOCK_SIZE, exists, 0, MASKED)
        places = blocks.to(tl.int64) * num_kv_heads + kv_head
        places = places * BLOCK_SIZE + tokens % BLOCK_SIZE
        key_pointers = keys + places[None, :] * HEAD_DIM + dims[:, None]
        key = _load(key_pointers, exists[None, :] & in_head[:, None], 0.0, PARTIAL)
        scores = tl.dot(query, key.to(query.dtype), input_precision="ieee") * scale
        if HAS_SCALES:
            scores *= _load(key_scales + places, exists, 0.0, MASKED)[None, :]
        if MASKED:
            seen = (tokens[None, :] <= positions[:, None]) & exists[None, :]
            if HAS_WINDOW:
                seen &= tokens[None, :] > positions[:, None] - window
            scores = tl.where(seen, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        # A row that has seen nothing yet keeps the maximum -inf, and -inf - -inf is not a number.
        finite = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        weights = tl.exp2(scores - finite[:, None])
        rescale = tl.exp2(maximum - finite)
        total = total * rescale + tl.sum(weights, 1)
        maximum = new_maximum
        value_pointers = values + places[:, None] * HEAD_DIM + dims[None, :]
        value = _load(value_pointers, exists[:, None] & in_head[None, :], 0.0, PARTIAL)
        if HAS_SCALES:
            weights *= _load(value_scales + places, exists, 0.0, MASKED)[None, :]
        accumulated = tl.dot(
            weights.to(query.dtype),
            value.to(query.dtype),
            accumulated * rescale[:, None],
            input_precision="ieee",
        )
    return accumulated, maximum, total


@triton.jit
def _attend_range(
    query, positions, begin, whole, end,
    keys, values, key_scales, value_scales, block_table,
    kv_head, num_kv_heads, scale, window,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SCALES: tl.constexpr,
):
    """Attends to tokens ``begin`` to ``end``, of which all rows see those before ``whole``."""
    accumulated = tl.zeros([ROWS, PADDED_DIM], tl.float32)
    maximum = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if not HAS_WINDOW:
        accumulated, maximum, total = _attend(
            accumulated, maximum, total, query, positions, begin, whole,
            keys, values, key_scales, value_scales, block_table,
            kv_head, num_kv_heads, scale, window,
            HEAD_DIM, PADDED_DIM, BLOCK_SIZE, TILE, False, HAS_WINDOW, HAS_SCALES,
        )
        begin = whole
    return _attend(
        accumulated, maximum, total, query, positions, begin, end,
        keys, values, key_scales, value_scales, block_table,
        kv_head, num_kv_heads, scale, window,
        HEAD_DIM, PADDED_DIM, BLOCK_SIZE, TILE, True, HAS_WINDOW, HAS_SCALES,
    )


@triton.jit(do_not_specialize=["num_kv_heads", "most_parts", "window"])
def decode_kernel(
    query,  # [num_tokens, num_kv_heads * GROUP, HEAD_DIM], heads dense
    keys, values, key_scales, value_scales,
    block_tables, query_start_loc, context_lens,
    partial_outputs,  # float32 [num_seqs, num_kv_heads * GROUP, most_parts, HEAD_DIM]
    partial_maxima, partial_totals,  # float32 [num_seqs, num_kv_heads * GROUP, most_parts]
    query_stride, block_tables_stride, num_kv_heads, most_parts, scale, window,
    GROUP: tl.constexpr, ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SCALES: tl.constexpr,
):
    """One program for each (part, KV head, sequence); those with one query token are attended."""
    part = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = tl.program_id(2).to(tl.int64)
    token = tl.load(query_start_loc + sequence).to(tl.int64)
    num_queries = tl.load(query_start_loc + sequence + 1) - token
    context_len = tl.load(context_lens + sequence)
    begin = _part_start(part)
    end = tl.minimum(_part_start(part + 1), context_len)
    if HAS_WINDOW:
        first_seen = tl.maximum(0, context_len - window)
        begin = tl.maximum(begin, first_seen // TILE * TILE)
    if (num_queries == 1) & (begin < end):
        rows = tl.arange(0, ROWS)
        dims = tl.arange(0, PADDED_DIM)
        heads = kv_head * GROUP + rows
        mask = (rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
        pointers = query + token * query_stride + heads[:, None] * HEAD_DIM + dims[None, :]
        accumulated, maximum, total = _attend_range(
            tl.load(pointers, mask=mask, other=0.0),
            tl.zeros([ROWS], tl.int32) + (context_len - 1),
            begin, begin + (end - begin) // TILE * TILE, end,
            keys, values, key_scales, value_scales, block_tables + sequence * block_tables_stride,
            kv_head, num_kv_heads, scale, window,
            ROWS, HEAD_DIM, PADDED_DIM, BLOCK_SIZE, TILE, HAS_WINDOW, HAS_SCALES,
        )
        results = (sequence * num_kv_heads * GROUP + heads) * most_parts + part
        tl.store(partial_maxima + results, maximum, mask=rows < GROUP)
        tl.store(partial_totals + results, total, mask=rows < GROUP)
        outputs = partial_outputs + results[:, None] * HEAD_DIM + dims[None, :]
        tl.store(outputs, accumulated, mask=mask)
# fmt: on


@triton.jit(do_not_specialize=["num_heads", "most_parts", "window"])
def merge_kernel(
    output,  # [num_tokens, num_heads, HEAD_DIM]
    partial_outputs,
    partial_maxima,
    partial_totals,
    query_start_loc,
    context_lens,
    num_heads,
    most_parts,
    window,
    HEAD_DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """Merges the parts of one (sequence, head) in order; an empty sequence gets zeros."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    token = tl.load(query_start_loc + sequence).to(tl.int64)
    num_queries = tl.load(query_start_loc + sequence + 1) - token
    context_len = tl.load(context_lens + sequence)
    first_seen = 0
    if HAS_WINDOW:
        first_seen = tl.maximum(0, context_len - window) // TILE * TILE
    if num_queries == 1:
        dims = tl.arange(0, PADDED_DIM)
        results = (sequence * num_heads + head) * most_parts
        accumulated = tl.zeros([PADDED_DIM], tl.float32)
        # As scalars of one element, so that the types of a loop's variables stay what they are.
        maximum = tl.full([1], float("-inf"), tl.float32)
        total = tl.zeros([1], tl.float32)
        for start in range(0, most_parts, _MERGED_AT_ONCE):
            parts = start + tl.arange(0, _MERGED_AT_ONCE)
            computed = (parts < most_parts) & (_part_start(parts) < context_len)
            if HAS_WINDOW:
                computed &= _part_start(parts + 1) > first_seen
            maxima = tl.load(partial_maxima + results + parts, mask=computed, other=float("-inf"))
            totals = tl.load(partial_totals + results + parts, mask=computed, other=0.0)
            outputs = tl.load(
                partial_outputs + (results + parts)[:, None] * HEAD_DIM + dims[None, :],
                mask=computed[:, None] & (dims < HEAD_DIM)[None, :],
                other=0.0,
            )
            new_maximum = tl.maximum(maximum, tl.max(maxima, 0))
            finite = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
            weights = tl.exp2(maxima - finite)
            rescale = tl.exp2(maximum - finite)
            total = total * rescale + tl.sum(totals * weights, 0)
            accumulated = accumulated * rescale + tl.sum(outputs * weights[:, None], 0)
            maximum = new_maximum
        result = tl.where(total == 0.0, 0.0, accumulated / total)
        tl.store(
            output + (token * num_heads + head) * HEAD_DIM + dims,
            result.to(output.dtype.element_ty),
            mask=dims < HEAD_DIM,
        )


# fmt: off
@triton.jit(do_not_specialize=["num_seqs", "num_kv_heads", "window"])
def chunk_kernel(
    query,  # [num_tokens, num_kv_heads * GROUP, HEAD_DIM], heads dense
    output,  # the same, dense
    keys, values, key_scales, value_scales,
    block_tables, query_start_loc, context_lens,
    query_stride, block_tables_stride, num_seqs, num_kv_heads, scale, window,
    GROUP: tl.constexpr, ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr, PADDED_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SCALES: tl.constexpr,
):
    """One program for each (ROWS // GROUP queries, KV head) of sequences with several queries.

    Sequence ``i`` has the programs from ``query_start_loc[i] // queries + i`` on, as many as it
    can need; one of them finds it by bisection, so the host has nothing to prepare.
    """
    QUERIES: tl.constexpr = ROWS // GROUP
    # Later queries see more: begin with them, so that no long one is left for the end.
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    low, high = 0, num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(query_start_loc + middle) // QUERIES + middle <= program:
            low = middle
        else:
            high = middle
    start = tl.load(query_start_loc + low)
    num_queries = tl.load(query_start_loc + low + 1) - start
    first_query = (program - (start // QUERIES + low)) * QUERIES
    if (num_queries > 1) & (first_query < num_queries):
        num_known = tl.load(context_lens + low) - num_queries
        rows = tl.arange(0, ROWS)
        dims = tl.arange(0, PADDED_DIM)
        queries = first_query + rows // GROUP
        heads = kv_head * GROUP + rows % GROUP
        in_use = (rows < QUERIES * GROUP) & (queries < num_queries)
        mask = in_use[:, None] & (dims < HEAD_DIM)[None, :]
        tokens = (start + queries).to(tl.int64)
        pointers = query + (tokens * query_stride + heads * HEAD_DIM)[:, None] + dims[None, :]
        first_position = num_known + first_query
        begin = 0
        if HAS_WINDOW:
            begin = tl.maximum(0, first_position - window + 1) // TILE * TILE
        accumulated, _maximum, total = _attend_range(
            tl.load(pointers, mask=mask, other=0.0),
            num_known + queries,
            begin,
            (first_position + 1) // TILE * TILE,
            tl.minimum(first_position + QUERIES, num_known + num_queries),
            keys, values, key_scales, value_scales, block_tables + low * block_tables_stride,
            kv_head, num_kv_heads, scale, window,
            ROWS, HEAD_DIM, PADDED_DIM, BLOCK_SIZE, TILE, HAS_WINDOW, HAS_SCALES,
        )
        result = accumulated / tl.where(total == 0.0, 1.0, total)[:, None]
        places = (tokens * num_kv_heads * GROUP + heads) * HEAD_DIM
        tl.store(
            output + places[:, None] + dims[None, :],
            result.to(output.dtype.element_ty),
            mask=mask,
        )
# fmt: on
