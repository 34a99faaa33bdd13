"""Rounding of weights to a byte or to bfloat16, and lossless packing of weights of a byte.

A row is what the last axis runs over. The values of a rounded row are whole numbers from -127 to 127, times
one power of two. Packing stores the whole numbers in Huffman codes, of four to six bits each, and the
exponent in a byte. What is unpacked is equal on all machines.

Shape legend: L any leading axes, C values of one row, Z packed bytes.
"""

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError

Int8Array = npt.NDArray[np.int8]

_LARGEST = 127
_EXPONENTS = range(-120, 101)
"""Far from the numbers that are too small or too large for float32."""

_MEMORY_LEVEL = 9  # Huffman codes of their own for every 32,768 numbers


def round_rows(values_LC: Float32Array, steps: int) -> Float32Array:
    """Round rows to whole multiples of a power of two, about `steps` of which make their root mean square.

    Rows that are rounded already do not change. Neither do values that are not all finite, for which there
    is no such power.
    """
    if values_LC.size == 0 or not np.isfinite(values_LC).all():
        return values_LC
    smallest_L = _smallest_exponents(values_LC)
    wanted_L = np.log2(np.square(values_LC, dtype=np.float64).mean(axis=-1) + 1e-300) / 2 - np.log2(steps)
    is_rounded_L = (_multiples(_whole_numbers(values_LC, smallest_L), smallest_L) == values_LC).all(axis=-1)
    rounded_L = np.where(is_rounded_L, smallest_L, np.maximum(np.rint(wanted_L), smallest_L)).astype(np.int8)
    return _multiples(_whole_numbers(values_LC, rounded_L), rounded_L)


def round_to_bfloat16(values: Float32Array) -> Float32Array:
    """The nearest float32 numbers that bfloat16 has, ties to even: those that are stored in two bytes."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def pack_rows(values_LC: Float32Array) -> tuple[npt.NDArray[np.uint8], Int8Array] | None:
    """Packed bytes (Z,) and exponents (L) of rounded rows; None unless `unpack_rows` restores all values."""
    if values_LC.ndim == 0 or values_LC.size == 0 or not np.isfinite(values_LC).all():
        return None
    exponents_L = _smallest_exponents(values_LC)
    numbers_LC = _whole_numbers(values_LC, exponents_L)
    if _multiples(numbers_LC, exponents_L).tobytes() != values_LC.tobytes():
        return None
    numbers_LC, exponents_L = _coarsest_grid(numbers_LC, exponents_L)
    if exponents_L.max() not in _EXPONENTS:
        return None
    # Weights hardly repeat but for zeros. Without a search for other repetitions, fewer bytes come out.
    compressor = zlib.compressobj(memLevel=_MEMORY_LEVEL, strategy=zlib.Z_RLE)
    packed = compressor.compress(numbers_LC.tobytes()) + compressor.flush()
    return np.frombuffer(packed, np.uint8), exponents_L


def unpack_rows(packed_Z: npt.NDArray[Any], exponents_L: npt.NDArray[Any]) -> Float32Array:
    """Inverse of `pack_rows`: values (L, C).

    Raises:
        InvalidInputError: the arrays are not those of packed rows.
    """
    found = [(array.dtype.name, array.ndim) for array in (packed_Z, exponents_L)]
    if found[0] != ("uint8", 1) or found[1][0] != "int8" or exponents_L.size == 0:
        raise InvalidInputError(
            f"Got packed rows of types and axes {found}, {exponents_L.size} of them; expected uint8 with one "
            "axis, and int8 for at least one row."
        )
    limits = int(exponents_L.min()), int(exponents_L.max())
    if limits[0] not in _EXPONENTS or limits[1] not in _EXPONENTS:
        raise InvalidInputError(
            f"Got exponents from {limits[0]} to {limits[1]}; expected {_EXPONENTS[0]} to {_EXPONENTS[-1]}."
        )
    decompressor = zlib.decompressobj()
    try:
        numbers = np.frombuffer(decompressor.decompress(packed_Z.tobytes()), np.int8)
    except zlib.error as error:
        raise InvalidInputError(f"Got packed rows that cannot be decompressed ({error}).") from error
    if not decompressor.eof or decompressor.unused_data:
        raise InvalidInputError(f"Got {packed_Z.size} packed bytes, which is not what was packed.")
    if numbers.size == 0 or numbers.size % exponents_L.size:
        raise InvalidInputError(f"Got {numbers.size} packed numbers for {exponents_L.size} rows.")
    return _multiples(numbers.reshape(*exponents_L.shape, -1), exponents_L)


def _smallest_exponents(values_LC: Float32Array) -> Int8Array:
    """Exponents (L) of the finest grids whose whole numbers reach the largest values of finite rows."""
    mantissas_L, exponents_L = np.frexp(np.abs(values_LC).max(axis=-1))
    exponents_L = np.where(mantissas_L * 128 > _LARGEST, exponents_L - 6, exponents_L - 7)
    return np.asarray(np.maximum(exponents_L, _EXPONENTS[0]), dtype=np.int8)


def _whole_numbers(values_LC: Float32Array, exponents_L: Int8Array) -> Int8Array:
    """The values in units of their row's power of two, rounded."""
    powers_L = np.ldexp(np.float32(1), -exponents_L.astype(np.int32))
    return np.rint(values_LC * powers_L[..., None]).astype(np.int8)


def _coarsest_grid(numbers_LC: Int8Array, exponents_L: Int8Array) -> tuple[Int8Array, Int8Array]:
    """The same values as the smallest possible whole numbers, which have the shortest Huffman codes."""
    together_L = np.bitwise_or.reduce(numbers_LC, axis=-1).astype(np.int32)
    lowest_L = together_L & -together_L  # the lowest bit that any number of the row has
    spare_L = np.log2(np.maximum(lowest_L, 1)).astype(np.int8)
    return numbers_LC >> spare_L[..., None], exponents_L + spare_L


def _multiples(numbers_LC: Int8Array, exponents_L: Int8Array) -> Float32Array:
    """Inverse of `_whole_numbers`."""
    powers_L = np.ldexp(np.float32(1), exponents_L.astype(np.int32))
    return np.multiply(numbers_LC, powers_L[..., None], dtype=np.float32)
