"""Encoders for the GGUF K-quant formats that gguf-py can only decode.

Each encoder takes float32 rows whose length is a multiple of 256 and returns
the packed bytes, row by row.  Scales come from the extremes of each sub-block:
the encodings are valid, not optimal.  `gguf.quants.dequantize` reads them back.
"""

from collections.abc import Callable

import numpy as np
from gguf import GGMLQuantizationType as QuantType
from gguf.quants import quantize as gguf_quantize

SUPER_BLOCK = 256
MAX_SCALE_6BIT = 63


def quantize(rows: np.ndarray, kind: QuantType) -> np.ndarray:
    """Encode `rows` as `kind`, with gguf-py where it has an encoder."""
    encode = K_ENCODERS.get(kind)
    if encode is None:
        return gguf_quantize(rows, kind)
    blocks = rows.astype(np.float32).reshape(-1, SUPER_BLOCK)
    return encode(blocks).reshape(*rows.shape[:-1], -1)


def encode_q2_k(blocks: np.ndarray) -> np.ndarray:
    """Sixteen sub-blocks of 16 values, `d * scale * code - dmin * min`, both factors of 4 bits."""
    subs = blocks.reshape(-1, 16, 16)
    lowest = np.minimum(subs.min(-1), 0)
    unit, scales = small_scales((subs.max(-1).clip(min=0) - lowest) / 3, 15)
    min_unit, mins = small_scales(-lowest, 15)
    step = unit.astype(np.float32) * scales
    offset = min_unit.astype(np.float32) * mins
    codes = np.rint(divide(subs + offset[..., None], step[..., None])).clip(0, 3).astype(np.uint8)
    return np.concatenate(
        [scales | (mins << 4), pack_pairs(codes), unit.view(np.uint8), min_unit.view(np.uint8)], axis=-1
    )


def encode_q3_k(blocks: np.ndarray) -> np.ndarray:
    """Sixteen sub-blocks of 16 values, each `d * scale * (code - 4)` with a signed scale of 6 bits."""
    subs = blocks.reshape(-1, 16, 16)
    extreme = np.take_along_axis(subs, np.abs(subs).argmax(-1, keepdims=True), axis=-1)
    wanted = -extreme[..., 0] / 4
    unit = (np.abs(wanted).max(-1, keepdims=True) / 31).astype(np.float16)
    scales = np.rint(divide(wanted, unit)).clip(-32, 31).astype(np.int8)
    step = unit.astype(np.float32) * scales
    codes = (np.rint(divide(subs, step[..., None])).clip(-4, 3).astype(np.int8) + 4).astype(np.uint8)
    # The third bit of weight `l` of the quarter `q` of the 256 that are cut in eight is bit `q` of byte `l`.
    eighths = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    high = np.bitwise_or.reduce((codes.reshape(-1, 8, 32) >> 2) << eighths, axis=1)
    stored = (scales + 32).astype(np.uint8)
    low = (stored[:, :8] & 0x0F) | ((stored[:, 8:] & 0x0F) << 4)
    fourths = np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 4, 1)
    top = np.bitwise_or.reduce((stored.reshape(-1, 4, 4) >> 4) << fourths, axis=1)
    return np.concatenate([high, pack_pairs(codes & 3), low, top, unit.view(np.uint8)], axis=-1)


def encode_q4_k(blocks: np.ndarray) -> np.ndarray:
    header, codes = affine_codes(blocks, levels=15)
    return np.concatenate([header, pack_nibble_pairs(codes)], axis=-1)


def encode_q5_k(blocks: np.ndarray) -> np.ndarray:
    header, codes = affine_codes(blocks, levels=31)
    sub_block = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    high_bits = np.bitwise_or.reduce((codes >> 4) << sub_block, axis=1)
    return np.concatenate([header, high_bits, pack_nibble_pairs(codes & 0x0F)], axis=-1)


def encode_q6_k(blocks: np.ndarray) -> np.ndarray:
    """Sixteen sub-blocks of 16 values, each `d * scale * (code - 32)` with a signed scale."""
    subs = blocks.reshape(-1, 16, 16)
    extreme = np.take_along_axis(subs, np.abs(subs).argmax(-1, keepdims=True), axis=-1)
    wanted = -extreme[..., 0] / 32
    unit = (np.abs(wanted).max(-1, keepdims=True) / 127).astype(np.float16)
    scales = np.rint(divide(wanted, unit)).clip(-128, 127).astype(np.int8)
    step = unit.astype(np.float32) * scales
    codes = np.rint(divide(subs, step[..., None])).clip(-32, 31).astype(np.int8) + 32
    codes = codes.astype(np.uint8).reshape(-1, 2, 4, 32)
    low = codes & 0x0F
    low = low[:, :, :2] | (low[:, :, 2:] << 4)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1)
    high = np.bitwise_or.reduce((codes >> 4) << shifts, axis=2)
    count = len(blocks)
    return np.concatenate(
        [low.reshape(count, -1), high.reshape(count, -1), scales.view(np.uint8), unit.view(np.uint8)],
        axis=-1,
    )


def affine_codes(blocks: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Header bytes and codes of eight sub-blocks of 32 values, `d * scale * code - dmin * min`."""
    subs = blocks.reshape(-1, 8, 32)
    lowest = np.minimum(subs.min(-1), 0)
    unit, scales = small_scales((subs.max(-1).clip(min=0) - lowest) / levels, MAX_SCALE_6BIT)
    min_unit, mins = small_scales(-lowest, MAX_SCALE_6BIT)
    step = unit.astype(np.float32) * scales
    offset = min_unit.astype(np.float32) * mins
    codes = divide(subs + offset[..., None], step[..., None])
    codes = np.rint(codes).clip(0, levels).astype(np.uint8)
    header = [unit.view(np.uint8), min_unit.view(np.uint8), pack_six_bit(scales, mins)]
    return np.concatenate(header, axis=-1), codes


def small_scales(wanted: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """A float16 unit per super-block and the multiples of it nearest to `wanted`, `most` at most."""
    unit = (wanted.max(-1, keepdims=True) / most).astype(np.float16)
    multiples = np.rint(divide(wanted, unit)).clip(0, most)
    return unit, multiples.astype(np.uint8)


def pack_pairs(codes: np.ndarray) -> np.ndarray:
    """256 codes of two bits: of each 128 the four quarters share 32 bytes, quarter `q` in bits `2q`."""
    quarters = codes.reshape(-1, 2, 4, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 1, 4, 1)
    return np.bitwise_or.reduce(quarters << shifts, axis=2).reshape(len(quarters), -1)


def pack_six_bit(scales: np.ndarray, mins: np.ndarray) -> np.ndarray:
    """Eight 6-bit scales and eight 6-bit minima in 12 bytes."""
    first = scales[:, :4] | ((scales[:, 4:] >> 4) << 6)
    second = mins[:, :4] | ((mins[:, 4:] >> 4) << 6)
    third = (scales[:, 4:] & 0x0F) | ((mins[:, 4:] & 0x0F) << 4)
    return np.concatenate([first, second, third], axis=-1)


def pack_nibble_pairs(codes: np.ndarray) -> np.ndarray:
    """Even sub-blocks in the low nibbles, odd ones in the high nibbles."""
    return (codes[:, 0::2] | (codes[:, 1::2] << 4)).reshape(len(codes), -1)


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient in float32, 0 where the denominator is 0."""
    denominator = np.broadcast_to(denominator.astype(np.float32), numerator.shape)
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


K_ENCODERS: dict[QuantType, Callable[[np.ndarray], np.ndarray]] = {
    QuantType.Q2_K: encode_q2_k,
    QuantType.Q3_K: encode_q3_k,
    QuantType.Q4_K: encode_q4_k,
    QuantType.Q5_K: encode_q5_k,
    QuantType.Q6_K: encode_q6_k,
}
