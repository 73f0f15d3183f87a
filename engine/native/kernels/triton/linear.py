"""Products with quantized weights, and the rounding of activations that some of them want.

A weight lies as ``linear/quantized_matrix.py`` says: bytes [spans, outputs, bytes of a span], where
a span is 32 inputs, so that any tile of outputs and inputs reads whole lines of memory. Inputs are
padded with zeros to whole tiles. Scales and zero points are [groups, outputs].

The product is computed transposed, outputs by rows: few rows then are the narrow side of the matrix
instructions, and decoded weights can go to them from registers (Hopper's take their left operand
from there). Integers and floats of 8 bits and their differences from zero points are exact in 16
bits, sums are in float32 (or int32), and scales come after the sums: nothing but those is rounded.

A row's sums are divided by ``INPUTS``, ``splits`` and nothing else. Both follow from the number of
rows by classes (``linear/tiles.py``): within a class a row does not depend on the rows beside it.
"""

from __future__ import annotations

import triton
import triton.language as tl

_SPAN = tl.constexpr(32)
_HALF_SPAN = tl.constexpr(16)
_ROUND_TO_INT = tl.constexpr(12582912.0)
"""1.5 * 2^23: adding it to a small float32 leaves no fraction bits."""
_FLOAT8_UNIT = tl.constexpr(2.0**120)
"""A number of e4m3 whose bits stand in float32's exponent and mantissa is so many times too small,
subnormal ones too."""
_FLOAT8_NORMAL = tl.constexpr(2.0**-6)
_FLOAT8_STEPS = tl.constexpr(512.0)
"""Subnormal numbers of e4m3 are multiples of its inverse."""
_FLOAT8_REBIAS = tl.constexpr((127 - 7) << 3)


@triton.jit
def _nibbles_minus_zero(nibbles, zero, DTYPE: tl.constexpr):
    """``nibbles - 8 - zero`` for stored ones (from 0 on), exact.

    In 16 bits a nibble is set into the mantissa of a power of two whose last place counts 1: that
    takes an instruction, a conversion several, and a step reads some 10^10 nibbles.
    """
    if DTYPE.is_bf16():
        shifted = (nibbles.to(tl.int16) | 0x4300).to(tl.bfloat16, bitcast=True)  # 128 + nibble
        result = shifted - (zero + 136.0).to(tl.bfloat16)
    elif DTYPE.is_fp16():
        shifted = (nibbles.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True)  # 1024 + nibble
        result = shifted - (zero + 1032.0).to(tl.float16)
    else:
        result = nibbles.to(DTYPE) - (zero + 8.0)
    return result


@triton.jit
def _float8_as_float(stored):
    """Bytes of e4m3 (uint8) as float32, exact, on devices that have no such type as well."""
    bits = ((stored & 0x80).to(tl.int32) << 24) | ((stored & 0x7F).to(tl.int32) << 20)
    return bits.to(tl.float32, bitcast=True) * _FLOAT8_UNIT


@triton.jit
def _as_float8(values):
    """The nearest numbers of e4m3, ties to even, as bytes; for float32 of at most 448.

    By hand, since Triton's interpreter rounds otherwise than the hardware.
    """
    bits = values.to(tl.int32, bitcast=True)
    sign = (bits >> 24) & 0x80
    bits &= 0x7FFFFFFF
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - _FLOAT8_REBIAS
    magnitude = bits.to(tl.float32, bitcast=True)
    steps = ((magnitude * _FLOAT8_STEPS + _ROUND_TO_INT) - _ROUND_TO_INT).to(tl.int32)
    return (tl.where(magnitude < _FLOAT8_NORMAL, steps, normal) | sign).to(tl.uint8)


@triton.jit
def _store(
    result,  # float32 [OUTPUTS, ROWS]
    bias, output, split, outputs, rows, num_outputs, num_rows, IS_PART: tl.constexpr,
):  # fmt: skip
    """To [num_rows, num_outputs], or a part of the sums to [splits, num_rows, num_outputs]."""
    in_use = outputs < num_outputs
    if bias is not None and not IS_PART:
        result += tl.load(bias + outputs, mask=in_use, other=0.0).to(tl.float32)[:, None]
    places = (split.to(tl.int64) * num_rows + rows)[None, :] * num_outputs + outputs[:, None]
    mask = in_use[:, None] & (rows < num_rows)[None, :]
    tl.store(output + places, result.to(output.dtype.element_ty), mask=mask)


@triton.jit
def _scale_and_zero(
    scales, zeros, start, outputs, num_outputs, num_inputs, GROUP: tl.constexpr,
):  # fmt: skip
    """Of the group that a tile begins in, float32 [OUTPUTS]; 0 behind the last one."""
    # As a tensor, since newer interpreters take a number's comparison for no mask.
    mask = (outputs < num_outputs) & (start + outputs * 0 < num_inputs)
    places = outputs
    if GROUP != 0:
        places += start // GROUP * num_outputs
    scale = tl.load(scales + places, mask=mask, other=0.0).to(tl.float32)
    zero = scale * 0.0
    if zeros is not None:
        zero = tl.load(zeros + places, mask=mask, other=0).to(tl.float32)
    return scale, zero


# fmt: off
@triton.jit(do_not_specialize=["num_rows", "tiles_per_split"])
def weight_only_kernel(
    x,  # [num_rows, num_inputs]
    values, scales, zeros, bias,
    output,  # see ``_store``
    num_rows, num_outputs, num_inputs, x_stride, tiles_per_split,
    GROUP: tl.constexpr,  # inputs that share a scale, whole tiles; 0 is all of them
    NIBBLES: tl.constexpr, FLOATS: tl.constexpr, IS_PART: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):
    """One program for each (ROWS rows, OUTPUTS outputs, split of the inputs)."""
    COLUMNS: tl.constexpr = INPUTS // 2 if NIBBLES else INPUTS
    IN_SPAN: tl.constexpr = _HALF_SPAN if NIBBLES else _SPAN
    DTYPE: tl.constexpr = x.dtype.element_ty
    # Rows come first: programs that run together share weights, which so are read once.
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    outputs = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    split = tl.program_id(2)
    in_use = outputs < num_outputs
    columns = tl.arange(0, COLUMNS)
    x_rows = x + rows.to(tl.int64)[None, :] * x_stride
    row_mask = (rows < num_rows)[None, :]
    sums = tl.zeros([OUTPUTS, ROWS], tl.float32)
    first = split * tiles_per_split
    end = tl.minimum(first + tiles_per_split, (num_inputs + INPUTS - 1) // INPUTS)
    scale, zero = _scale_and_zero(
        scales, zeros, first * INPUTS, outputs, num_outputs, num_inputs, GROUP
    )
    # Counted in tiles, so that the compiler knows how inputs are aligned; else it loads bytes.
    for tile in range(first, end):
        start = tile * INPUTS
        # Too small to be fetched ahead by the compiler: the next tile's come while this one's work
        # is done.
        next_scale, next_zero = scale, zero
        if GROUP != 0:
            next_scale, next_zero = _scale_and_zero(
                scales, zeros, start + INPUTS, outputs, num_outputs, num_inputs, GROUP
            )
        place = start // (INPUTS // COLUMNS) + columns
        spans = (place // IN_SPAN).to(tl.int64) * num_outputs
        pointers = values + (spans[None, :] + outputs[:, None]) * IN_SPAN
        pointers += (place % IN_SPAN)[None, :]
        stored = tl.load(pointers, mask=in_use[:, None], other=0)
        inputs = start + columns // IN_SPAN * _SPAN + columns % IN_SPAN
        inputs_mask = (inputs < num_inputs)[:, None] & row_mask
        seen = tl.load(x_rows + inputs[:, None], mask=inputs_mask, other=0.0)
        product = sums if GROUP == 0 else tl.zeros([OUTPUTS, ROWS], tl.float32)
        if NIBBLES:
            low = _nibbles_minus_zero(stored & 15, zero[:, None], DTYPE)
            product = tl.dot(low, seen, product, input_precision="ieee")
            inputs += _HALF_SPAN
            inputs_mask = (inputs < num_inputs)[:, None] & row_mask
            seen = tl.load(x_rows + inputs[:, None], mask=inputs_mask, other=0.0)
            high = _nibbles_minus_zero(stored >> 4, zero[:, None], DTYPE)
            product = tl.dot(high, seen, product, input_precision="ieee")
        else:
            if FLOATS:
                weights = _float8_as_float(stored).to(DTYPE)
            else:
                weights = stored.to(tl.int8, bitcast=True).to(DTYPE)
                if zeros is not None:
                    weights -= zero.to(DTYPE)[:, None]
            product = tl.dot(weights, seen, product, input_precision="ieee")
        sums = product if GROUP == 0 else sums + product * scale[:, None]
        scale, zero = next_scale, next_zero
    if GROUP == 0:
        sums *= scale[:, None]
    _store(sums, bias, output, split, outputs, rows, num_outputs, num_rows, IS_PART)


@triton.jit(do_not_specialize=["num_rows", "tiles_per_split"])
def rounded_kernel(
    x,  # int8 or e4m3 [num_rows, num_inputs], whole tiles of inputs
    x_scales,  # float32 [num_rows, groups]
    values,  # of the type of x
    scales, bias, output, num_rows, num_outputs, num_inputs, tiles_per_split,
    GROUP: tl.constexpr, IS_PART: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):
    """The same with activations of 8 bits: products of integers are summed up exactly."""
    FLOATS: tl.constexpr = x.dtype.element_ty == tl.float8e4nv
    SUM: tl.constexpr = tl.float32 if FLOATS else tl.int32
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    outputs = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    split = tl.program_id(2)
    in_use, row_mask = outputs < num_outputs, rows < num_rows
    columns = tl.arange(0, INPUTS)
    x_rows = x + rows.to(tl.int64)[None, :] * num_inputs
    groups = 1 if GROUP == 0 else (num_inputs + GROUP - 1) // GROUP
    sums = tl.zeros([OUTPUTS, ROWS], SUM)
    first = split * tiles_per_split
    for tile in range(first, tl.minimum(first + tiles_per_split, num_inputs // INPUTS)):
        start = tile * INPUTS
        inputs = start + columns
        spans = (inputs // _SPAN).to(tl.int64) * num_outputs
        pointers = values + (spans[None, :] + outputs[:, None]) * _SPAN + (inputs % _SPAN)[None, :]
        weights = tl.load(pointers, mask=in_use[:, None], other=0.0)
        seen = tl.load(x_rows + inputs[:, None], mask=row_mask[None, :], other=0.0)
        if GROUP == 0 and not FLOATS:
            sums = tl.dot(weights, seen, sums, out_dtype=tl.int32)
        elif GROUP == 0:
            # Hopper adds up FP8 products in some 14 bits (DeepSeek-V3, arXiv 2412.19437, 3.3.2),
            # so each tile's sum is taken out and added in float32.
            sums = tl.dot(weights, seen, sums, max_num_imprecise_acc=INPUTS)
        else:
            group = start // GROUP
            scale = tl.load(scales + group * num_outputs + outputs, mask=in_use, other=0.0)
            x_scale = tl.load(x_scales + rows * groups + group, mask=row_mask, other=0.0)
            sums += tl.dot(weights, seen) * (scale.to(tl.float32)[:, None] * x_scale[None, :])
    result = sums.to(tl.float32)
    if GROUP == 0:
        scale = tl.load(scales + outputs, mask=in_use, other=0.0).to(tl.float32)
        x_scale = tl.load(x_scales + rows, mask=row_mask, other=0.0)
        result *= scale[:, None] * x_scale[None, :]
    _store(result, bias, output, split, outputs, rows, num_outputs, num_rows, IS_PART)
# fmt: on


@triton.jit(do_not_specialize=["num_rows"])
def sum_splits_kernel(
    parts,  # float32 [splits, num_rows, num_outputs]
    bias,
    output,  # [num_rows, num_outputs]
    num_rows,
    num_outputs,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program for each (row, TILE outputs): adds up in the order of the splits."""
    row = tl.program_id(0).to(tl.int64)
    outputs = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = outputs < num_outputs
    result = tl.zeros([TILE], tl.float32)
    for split in range(SPLITS):
        result += tl.load(
            parts + (split * num_rows + row) * num_outputs + outputs, mask=mask, other=0.0
        )
    if bias is not None:
        result += tl.load(bias + outputs, mask=mask, other=0.0).to(tl.float32)
    tl.store(output + row * num_outputs + outputs, result.to(output.dtype.element_ty), mask=mask)


@triton.jit
def round_kernel(
    x,  # [num_rows, num_inputs]
    output,  # int8, or the bytes of e4m3: [num_rows, padded_inputs]
    scales,  # float32 [num_rows, groups]
    num_inputs,
    padded_inputs,
    x_stride,
    GROUP: tl.constexpr,  # whole tiles; 0 is all inputs
    FLOATS: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program for each (row, group): ``value = rounded * scale``, the largest at the end of the
    range. Where one of them is not finite, the scale is no number."""
    LARGEST: tl.constexpr = 448.0 if FLOATS else 127.0
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first = group * GROUP
    end = padded_inputs
    if GROUP != 0:
        end = tl.minimum(first + GROUP, padded_inputs)
    columns = tl.arange(0, TILE)
    # Magnitudes are compared as integers: so a value that is no number is the largest of all.
    highest = tl.zeros([TILE], tl.int32)
    for start in range(first, end, TILE):
        mask = start + columns < num_inputs
        values = tl.load(x + row * x_stride + start + columns, mask=mask, other=0.0).to(tl.float32)
        highest = tl.maximum(highest, values.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    largest = tl.max(highest, 0)
    magnitude = largest.to(tl.float32, bitcast=True)
    finite = largest < 0x7F800000
    some = finite & (magnitude > 1e-30)
    inverse = tl.where(some, LARGEST / tl.where(some, magnitude, 1.0), 0.0)
    for start in range(first, end, TILE):
        mask = start + columns < num_inputs
        values = tl.load(x + row * x_stride + start + columns, mask=mask, other=0.0).to(tl.float32)
        scaled = tl.where(finite, values, 0.0) * inverse
        if FLOATS:
            rounded = _as_float8(scaled)
        else:
            rounded = ((scaled + _ROUND_TO_INT) - _ROUND_TO_INT).to(tl.int8)
        tl.store(
            output + row * padded_inputs + start + columns,
            rounded,
            mask=start + columns < padded_inputs,
        )
    scale = tl.where(finite, tl.where(some, magnitude / LARGEST, 0.0), float("nan"))
    tl.store(scales + row * tl.num_programs(1) + group, scale)
