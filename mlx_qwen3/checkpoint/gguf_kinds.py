"""The tensor types of GGUF and their conversion to MLX's packed layouts.

A GGUF block holds 32 or 256 values of a row with their scales. MLX stores the codes of a row, and one scale (in affine
mode also one bias) per group of 32: `w = scale * code + bias`. Most types convert exactly:

| type | MLX layout | scales |
| --- | --- | --- |
| Q4_0, Q4_1 | affine, 4 bits | float16 |
| Q5_0, Q5_1 | affine, 5 bits | float16 |
| Q8_0, IQ4_NL | affine, 8 bits | float16 |
| Q4_K | affine, 4 bits | float32 |
| Q5_K | affine, 5 bits | float32 |
| Q3_K, IQ4_XS | affine, 8 bits | float32 |
| MXFP4 | mxfp4 | 8-bit exponents |

Scales are float32 if they are products of a float16 and an integer of 6 or 8 bits. Q2_K and Q6_K have one scale per 16
values, so a group of 32 has two unrelated scales. They are decoded and rounded to 8 bits with an error of at most 1/510
of the range of the group. Source of the layouts: `ggml-common.h` and `ggml-quants.c` of ggml.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

GROUP = 32
_PIECE_VALUES = 1 << 18


class Packed(NamedTuple):
    """Groups of 32 values in MLX's packed layout.

    Attributes:
        words: codes (groups, bits) uint32.
        scales: (groups,) float16 or float32, or uint8 for mxfp4.
        biases: (groups,); None for mxfp4.
        error: largest absolute error of a value.
    """

    words: np.ndarray
    scales: np.ndarray
    biases: np.ndarray | None
    error: float = 0.0


@dataclass(frozen=True)
class Kind:
    """A GGUF tensor type.

    Attributes:
        name: name in llama.cpp.
        block: values per block.
        block_bytes: bytes per block.
        bits: bits of the packed layout; 0 for floating-point types.
        scales: safetensors dtype of the packed scales, or of the values of a floating-point type.
        pack: converts blocks (n, block_bytes) to groups in MLX's layout.
        mode: mode of the packed layout.
        widened: whether the packed layout has more bits than the type.
    """

    name: str
    block: int
    block_bytes: int
    bits: int
    scales: str
    pack: Callable[[np.ndarray], Packed] | None = None
    mode: str = "affine"
    widened: bool = False


def _take_bytes(blocks: np.ndarray, start: int, stop: int | None = None) -> np.ndarray:
    """Return bytes `start` to `stop` of each block as a contiguous array, which is several times faster to process."""
    return np.ascontiguousarray(blocks[:, start:stop])


def _read_half(blocks: np.ndarray, start: int) -> np.ndarray:
    """Return the float16 values (n,) at byte `start` of each block."""
    return _take_bytes(blocks, start, start + 2).view("<f2")[:, 0]


def _pack_affine(codes: np.ndarray, bits: int, scales: np.ndarray, biases: np.ndarray, error: float = 0.0) -> Packed:
    """Pack codes (groups, 32) uint8. A row becomes a little-endian bit stream in words of 32 bits."""
    raw = np.ascontiguousarray(codes)
    if bits < 8:
        # Compact eight codes in a 64-bit word at once: first pairs, then pairs of pairs, then both halves.
        eight, gap = raw.view("<u8"), np.uint64(8 - bits)
        eight = (eight & _u64(0x00FF00FF00FF00FF)) | ((eight & _u64(0xFF00FF00FF00FF00)) >> gap)
        eight = (eight & _u64(0x0000FFFF0000FFFF)) | ((eight & _u64(0xFFFF0000FFFF0000)) >> (gap * _u64(2)))
        eight = (eight & _u64(0x00000000FFFFFFFF)) | ((eight & _u64(0xFFFFFFFF00000000)) >> (gap * _u64(4)))
        raw = np.ascontiguousarray(eight.view(np.uint8).reshape(-1, 8)[:, :bits])
    return Packed(raw.reshape(len(codes), -1).view("<u4"), scales.reshape(-1), biases.reshape(-1), error)


_u64 = np.uint64


def _pack_nibbles(quants: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split bytes (..., 2m) into the packed runs (..., m) of their low and their high halves."""
    pairs = quants.view("<u2")
    low = ((pairs & 0x0F) | ((pairs >> 4) & 0xF0)).astype(np.uint8)
    high = (((pairs >> 4) & 0x0F) | ((pairs >> 8) & 0xF0)).astype(np.uint8)
    return low, high


def _halves_to_words(quants: np.ndarray) -> np.ndarray:
    """Convert 16 bytes per group to MLX's 4-bit words (n, 4). Byte j holds value j (low) and value j + 16 (high)."""
    return np.concatenate(_pack_nibbles(quants), axis=1).view("<u4")


def _unpack_halves(quants: np.ndarray) -> np.ndarray:
    """Unpack 16 bytes per group, laid out as in `_halves_to_words`, to codes (n, 32)."""
    return np.concatenate((quants & 15, quants >> 4), axis=1)


def _pack_q4_0(blocks: np.ndarray) -> Packed:
    scale = _read_half(blocks, 0)
    return Packed(_halves_to_words(_take_bytes(blocks, 2)), scale, scale * np.float16(-8))


def _pack_q4_1(blocks: np.ndarray) -> Packed:
    return Packed(_halves_to_words(_take_bytes(blocks, 4)), _read_half(blocks, 0), _read_half(blocks, 2))


def _unpack_fifth_bits(raw: np.ndarray) -> np.ndarray:
    """Unpack 4 bytes per group, with bit j for value j, to an array (n, 32) of 0 or 16."""
    return np.unpackbits(raw, axis=1, bitorder="little") << 4


def _pack_q5_0(blocks: np.ndarray) -> Packed:
    scale = _read_half(blocks, 0)
    codes = _unpack_halves(_take_bytes(blocks, 6)) | _unpack_fifth_bits(_take_bytes(blocks, 2, 6))
    return _pack_affine(codes, 5, scale, scale * np.float16(-16))


def _pack_q5_1(blocks: np.ndarray) -> Packed:
    codes = _unpack_halves(_take_bytes(blocks, 8)) | _unpack_fifth_bits(_take_bytes(blocks, 4, 8))
    return _pack_affine(codes, 5, _read_half(blocks, 0), _read_half(blocks, 2))


def _pack_q8_0(blocks: np.ndarray) -> Packed:
    scale = _read_half(blocks, 0)
    return _pack_affine(_take_bytes(blocks, 2) ^ np.uint8(128), 8, scale, scale * np.float16(-128))


_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]) + 128
_IQ4_CODES = _IQ4.astype(np.uint8)
"""The 16 values of IQ4_NL and IQ4_XS, as codes with bias -128."""


def _pack_iq4_nl(blocks: np.ndarray) -> Packed:
    scale = _read_half(blocks, 0)
    return _pack_affine(_IQ4_CODES[_unpack_halves(_take_bytes(blocks, 2))], 8, scale, scale * np.float16(-128))


def _pack_iq4_xs(blocks: np.ndarray) -> Packed:
    low = np.stack((blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4), axis=-1).reshape(-1, 8)
    high = (_take_bytes(blocks, 2, 4).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)) & 3
    steps = (low | (high << 4).astype(np.uint8)).astype(np.float32) - 32
    scale = _read_half(blocks, 0).astype(np.float32)[:, None] * steps
    codes = _IQ4_CODES[_unpack_halves(_take_bytes(blocks, 8).reshape(-1, 16))]
    return _pack_affine(codes, 8, scale, scale * np.float32(-128))


def _read_scales_and_minima(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the scales and biases (n, 8) of the groups of Q4_K or Q5_K blocks, exact in float32."""
    first, second, third = (blocks[:, start : start + 4] for start in (4, 8, 12))
    scales = np.concatenate((first & 63, (third & 15) | ((first >> 2) & 48)), axis=1)
    minima = np.concatenate((second & 63, (third >> 4) | ((second >> 2) & 48)), axis=1)
    scale = _read_half(blocks, 0).astype(np.float32)[:, None] * scales.astype(np.float32)
    bias = _read_half(blocks, 2).astype(np.float32)[:, None] * -minima.astype(np.float32)
    return scale, bias


def _pack_q4_k(blocks: np.ndarray) -> Packed:
    scale, bias = _read_scales_and_minima(blocks)
    # 32 bytes hold two groups: one in the low halves, the next in the high halves.
    groups = np.stack(_pack_nibbles(_take_bytes(blocks, 16).reshape(-1, 4, 32)), axis=2)
    return Packed(groups.reshape(-1, 16).view("<u4"), scale.reshape(-1), bias.reshape(-1))


def _pack_q5_k(blocks: np.ndarray) -> Packed:
    scale, bias = _read_scales_and_minima(blocks)
    quants, fifth = _take_bytes(blocks, 48).reshape(-1, 4, 32), _take_bytes(blocks, 16, 48)
    codes = np.empty((len(blocks), 8, 32), dtype=np.uint8)
    for group in range(8):
        half = quants[:, group // 2] & 15 if group % 2 == 0 else quants[:, group // 2] >> 4
        codes[:, group] = half | (((fifth >> group) & 1) << 4)
    return _pack_affine(codes.reshape(-1, GROUP), 5, scale, bias)


def _pack_q3_k(blocks: np.ndarray) -> Packed:
    packed = _take_bytes(blocks, 96, 108)
    low = np.concatenate((packed[:, :8] & 15, packed[:, :8] >> 4), axis=1)
    high = (packed[:, None, 8:] >> np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]) & 3
    steps = (low | (high.reshape(-1, 16) << 4)).astype(np.int16) - 32
    quants, third = _take_bytes(blocks, 32, 96).reshape(-1, 2, 32), _take_bytes(blocks, 0, 32)
    levels = np.empty((len(blocks), 8, 32), dtype=np.int16)
    for group in range(8):
        two = (quants[:, group // 4] >> (2 * (group % 4))) & 3
        levels[:, group] = (two | (((third >> group) & 1) << 2)).astype(np.int16) - 4
    # A level is -4 to 3 and a step -32 to 31: the products in one group span at most 252 integers, -124 to 128.
    codes = (levels.reshape(-1, 16, 16) * steps[:, :, None] + 124).astype(np.uint8).reshape(-1, GROUP)
    scale = np.repeat(_read_half(blocks, 108).astype(np.float32), 8)
    return _pack_affine(codes, 8, scale, scale * np.float32(-124))


def _pack_mxfp4(blocks: np.ndarray) -> Packed:
    # MLX has the same exponents and 4-bit values, except exponent 255: NaN in MLX, 2**127 in ggml.
    return Packed(_halves_to_words(_take_bytes(blocks, 1)), blocks[:, 0].copy(), None)


def _pack_q2_k(blocks: np.ndarray) -> Packed:
    quants, packed = _take_bytes(blocks, 16, 80).reshape(-1, 2, 32), _take_bytes(blocks, 0, 16)
    scale = _read_half(blocks, 80).astype(np.float32)[:, None] * (packed & 15).astype(np.float32)
    minimum = _read_half(blocks, 82).astype(np.float32)[:, None] * (packed >> 4).astype(np.float32)
    values = np.empty((len(blocks), 8, 32), dtype=np.float32)
    for group in range(8):
        values[:, group] = (quants[:, group // 4] >> (2 * (group % 4))) & 3
    values = values.reshape(-1, 16, 16)
    values *= scale[:, :, None]
    values -= minimum[:, :, None]
    return _round_to_8_bits(values.reshape(-1, GROUP), np.ones(1, np.float32))


def _pack_q6_k(blocks: np.ndarray) -> Packed:
    low, high = _take_bytes(blocks, 0, 128).reshape(-1, 2, 2, 32), _take_bytes(blocks, 128, 192).reshape(-1, 2, 32)
    levels = np.empty((len(blocks), 2, 4, 32), dtype=np.int16)
    for group in range(4):
        half = low[:, :, group % 2] & 15 if group < 2 else low[:, :, group % 2] >> 4
        levels[:, :, group] = (half | (((high >> (2 * group)) & 3) << 4)).astype(np.int16) - 32
    steps = _take_bytes(blocks, 192, 208).view(np.int8).astype(np.int16)
    levels = (levels.reshape(-1, 16, 16) * steps[:, :, None]).reshape(-1, GROUP)
    return _round_to_8_bits(levels.astype(np.float32), np.repeat(_read_half(blocks, 208).astype(np.float32), 8))


def _round_to_8_bits(levels: np.ndarray, unit: np.ndarray) -> Packed:
    """Quantize `levels` (groups, 32) times `unit` (groups,) to 8 bits between minimum and maximum of each group."""
    low, high = levels.min(axis=1), levels.max(axis=1)
    span = high - low
    inverse = np.divide(255, span, out=np.zeros_like(span), where=span > 0)
    levels -= low[:, None]
    levels *= inverse[:, None]
    codes = np.rint(levels)
    scale = span * unit / np.float32(255)
    levels -= codes
    error = (np.abs(levels, out=levels).max(axis=1) * np.abs(scale)).max(initial=0.0)
    return _pack_affine(codes.astype(np.uint8), 8, scale, np.broadcast_to(low * unit, scale.shape), float(error))


def pack_blocks(kind: Kind, blocks: np.ndarray) -> Packed:
    """Convert blocks (n, block_bytes) to MLX's layout, in pieces that fit in the CPU cache."""
    assert kind.pack is not None
    step = max(_PIECE_VALUES // kind.block, 1)
    with np.errstate(all="ignore"):
        pieces = [kind.pack(blocks[start : start + step]) for start in range(0, len(blocks), step)]
    if len(pieces) == 1:
        return pieces[0]
    words, scales = (
        np.concatenate([piece.words for piece in pieces]),
        np.concatenate([piece.scales for piece in pieces]),
    )
    biases = [piece.biases for piece in pieces if piece.biases is not None]
    return Packed(words, scales, np.concatenate(biases) if biases else None, max(piece.error for piece in pieces))


def decode(number: int, blocks: np.ndarray) -> np.ndarray:
    """Return the float32 values (n, block) of blocks (n, block_bytes), decoded by the `gguf` package.

    Args:
        number: number of the type in the tensor table.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):
        return dequantize(np.ascontiguousarray(blocks), GGMLQuantizationType(number))


KINDS: dict[int, Kind] = {
    0: Kind("F32", 1, 4, 0, "F32"),
    1: Kind("F16", 1, 2, 0, "F16"),
    30: Kind("BF16", 1, 2, 0, "BF16"),
    2: Kind("Q4_0", 32, 18, 4, "F16", _pack_q4_0),
    3: Kind("Q4_1", 32, 20, 4, "F16", _pack_q4_1),
    6: Kind("Q5_0", 32, 22, 5, "F16", _pack_q5_0),
    7: Kind("Q5_1", 32, 24, 5, "F16", _pack_q5_1),
    8: Kind("Q8_0", 32, 34, 8, "F16", _pack_q8_0),
    10: Kind("Q2_K", 256, 84, 8, "F32", _pack_q2_k, widened=True),
    11: Kind("Q3_K", 256, 110, 8, "F32", _pack_q3_k, widened=True),
    12: Kind("Q4_K", 256, 144, 4, "F32", _pack_q4_k),
    13: Kind("Q5_K", 256, 176, 5, "F32", _pack_q5_k),
    14: Kind("Q6_K", 256, 210, 8, "F32", _pack_q6_k, widened=True),
    20: Kind("IQ4_NL", 32, 18, 8, "F16", _pack_iq4_nl, widened=True),
    23: Kind("IQ4_XS", 256, 136, 8, "F32", _pack_iq4_xs, widened=True),
    39: Kind("MXFP4", 32, 17, 4, "U8", _pack_mxfp4, mode="mxfp4"),
}
"""Number in the tensor table -> type."""


def kind_name(number: int) -> str:
    """Return the name of a type of ggml, or "unknown", for messages."""
    from gguf import GGMLQuantizationType

    try:
        return GGMLQuantizationType(number).name
    except ValueError:
        return "unknown"
