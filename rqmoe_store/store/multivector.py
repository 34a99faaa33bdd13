"""Rows with many vectors each: codes of their vectors, and of the fixed dimensional encoding of each row.

Shape legend: B rows, T vectors of all rows, D components of a vector, F of an encoding, W bytes of all codes
of a vector.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.coder import TransformCoder
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.device import PrecisionChoice
from rqmoe_store.codecs.frame import to_float32
from rqmoe_store.codecs.products import product
from rqmoe_store.codecs.transform import TransformQuantizer
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.config import CodecConfig, MultiVectorConfig
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.multivector.fixed_dimensional import FixedDimensionalEncoder
from rqmoe_store.multivector.vector_lists import as_vector_lists
from rqmoe_store.store.embeddings import embedding_description, metadata_with_moved_embedding
from rqmoe_store.store.metadata import MULTI_VECTOR_FORMAT_VERSION, MultiVector, TableMetadata
from rqmoe_store.store.ragged import Ragged, RowCodes
from rqmoe_store.store.vector_lists import unit_vectors

ENCODINGS_FITTED = 16_384
"""Rows whose fixed dimensional encodings the codec of encodings is fitted to."""


@functools.lru_cache(maxsize=16)
def encoder_of(many: MultiVector) -> FixedDimensionalEncoder:
    """What makes the fixed dimensional encodings of a table's rows and queries."""
    settings = many.encoding
    whole = FixedDimensionalEncoder(
        many.dim,
        num_repetitions=settings.num_repetitions,
        num_hyperplanes=settings.num_hyperplanes,
        projected_dim=_least(settings.projected_dim, many.dim),
        fill_empty_partitions=settings.fill_empty_partitions,
        seed=settings.seed,
    )
    return dataclasses.replace(whole, final_dim=_least(settings.final_dim, whole.fde_dim))


def _least(dim: int | None, given: int) -> int | None:
    """The dimension to project to; None unless it is smaller than the given one."""
    return None if dim is None or dim >= given else dim


def multi_vector_metadata(
    vector_column: str,
    keep_vectors: str,
    dim: int,
    config: CodecConfig | None,
    encoding: MultiVectorConfig | None,
) -> TableMetadata:
    """The metadata of a table without codecs whose rows have many vectors each.

    Args:
        vector_column: the column of lists of vectors.
        keep_vectors: as for `create_table`.
        dim: dimension of the vectors.
        config: configuration of their codecs; None for the defaults.
        encoding: how a row's vectors become one encoding; None for the defaults.

    Raises:
        InvalidInputError: a metric without inner products, or a codec with partitions.
    """
    config = CodecConfig(metric="cosine") if config is None else config
    if config.metric == "l2":
        raise InvalidInputError(
            f"Got metric='l2' for column {vector_column!r}, whose rows have many vectors each; expected "
            "'cosine' or 'dot', as rows are compared by inner products. Say CodecConfig(metric='cosine')."
        )
    config = config.without_partitions()
    config.require_bytes_for(dim)
    many = MultiVector(dim=dim, config=config, encoding=encoding or MultiVectorConfig())
    encoded_dim = encoder_of(many).fde_dim
    code_bytes = min(many.encoding.code_bytes, encoded_dim)
    return TableMetadata(
        format_version=MULTI_VECTOR_FORMAT_VERSION,
        vector_column=vector_column,
        dim=encoded_dim,
        keep_vectors=keep_vectors,
        config=CodecConfig(kind="pq", metric="dot", code_bytes=code_bytes),
        multi_vector=many,
    )


def require_no_encoding(encoding: MultiVectorConfig | None, vector_column: str) -> None:
    """Raise InvalidInputError for settings of many vectors a row, where each row has one."""
    if encoding is not None:
        raise InvalidInputError(
            f"Got multi_vector={encoding!r} for column {vector_column!r}, whose rows have one vector each; "
            "leave it out, or make it a list of vectors, such as pa.list_(pa.list_(pa.float32(), 128))."
        )


def require_no_embedding(schema: pa.Schema, vector_column: str, table_name: str) -> None:
    """Raise InvalidInputError if an embedding function is described for a column of lists of vectors."""
    moved = metadata_with_moved_embedding(schema.metadata, vector_column, table_name)
    if embedding_description(moved) is not None:
        raise InvalidInputError(
            f"Got an embedding function for column {vector_column!r}, whose rows have many vectors each; "
            "expected none. Leave it out of the schema, and add rows with their vectors."
        )


def encodings_of(vectors: Ragged, many: MultiVector) -> Float32Array:
    """The fixed dimensional encodings (B, F) of rows."""
    vectors_TD = unit_vectors(vectors.values, many.config.metric)
    return encoder_of(many).encode_documents(vectors_TD, vectors.lengths_B)


def as_lists(matrices: Any, many: MultiVector) -> Ragged:
    """The vectors of several rows, given as a list of matrices (n, D) or an array (B, n, D).

    Raises:
        InvalidInputError: another form, or vectors of another dimension, NaN or infinite.
    """
    vectors_TD, lengths_B = as_vector_lists(matrices, dim=many.dim)
    return Ragged(vectors_TD, lengths_B)


@dataclasses.dataclass(frozen=True)
class RowMeans:
    """What is taken off the vectors of rows before they are encoded, computed where it is needed.

    It is what `estimate_means` gives of decoded encodings, which are not decoded for it.
    """

    codes: Codes
    """Codes of the rows' encodings."""
    many: MultiVector
    """How rows have many vectors."""
    codec: Codec
    """The codec of encodings."""

    def __getitem__(self, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> "RowMeans":
        return dataclasses.replace(self, codes=self.codes[rows])

    @functools.cached_property
    def values_BD(self) -> Float32Array:
        """The means (B, D)."""
        rotated_FD, mean_1D, offset_1D = _mean_decoder(self.many, self.codec)
        products_BD = _encoding_quantizer(self.codec).decode_products(self.codes.codes, rotated_FD)
        return self._out_of_frame(products_BD + mean_1D, offset_1D)

    def products(self, queries_DP: Float32Array) -> Float32Array:
        """Inner products (B, P) of the means with query vectors in columns. The means are not computed for
        it, which would be most of the work."""
        rotated_FP, mean_1P, offset_1P = (
            product(each, queries_DP) for each in _mean_decoder(self.many, self.codec)
        )
        products_BP = _encoding_quantizer(self.codec).sum_products(self.codes.codes, rotated_FP)
        return self._out_of_frame(products_BP + mean_1P, offset_1P)

    def _out_of_frame(self, values_BE: Float32Array, offset_1E: Float32Array) -> Float32Array:
        """What values in the frame of the codec stand for."""
        exponent = self.codec.frame.exponent
        if exponent == 0:
            return np.asarray(values_BE + offset_1E)
        return to_float32(np.ldexp(values_BE.astype(np.float64), exponent) + offset_1E)


def row_means(codes: Codes, many: MultiVector, codec: Codec) -> RowMeans | None:
    """What is taken off the vectors of rows before they are encoded; None for nothing.

    Args:
        codes: codes of the rows' encodings, by `codec`.
        many: how rows have many vectors.
        codec: the codec of encodings.
    """
    return RowMeans(codes, many, codec) if many.encoding.subtract_mean else None


@functools.lru_cache(maxsize=16)
def _mean_decoder(many: MultiVector, codec: Codec) -> tuple[Float32Array, Float32Array, Float32Array]:
    """The matrix (F, D) from coordinates of encodings to means, and the means (1, D) that those of the
    codec's mean and of its frame have."""
    quantizer, means_FD = _encoding_quantizer(codec), encoder_of(many).means_FD
    both_2D = product(np.stack([quantizer.mean_D, codec.frame.offset_D]), means_FD)
    return quantizer.rotated_matrix(means_FD), both_2D[:1], both_2D[1:]


def _encoding_quantizer(codec: Codec) -> TransformQuantizer:
    assert isinstance(codec.coder, TransformCoder), "as all codecs of encodings"
    return codec.coder.quantizer


def left_over(vectors: Ragged, means: RowMeans | None, many: MultiVector) -> Float32Array:
    """What codecs of vectors encode (T, D): the vectors, of length 1 under cosine, without means if there are
    any.

    Raises:
        InvalidInputError: a vector is zero under cosine.
    """
    vectors_TD = as_vectors(vectors.values, metric=many.config.metric)
    return vectors_TD if means is None else vectors_TD - np.repeat(means.values_BD, vectors.lengths_B, axis=0)


def encode_lists(vectors: Ragged, many: MultiVector, codec: Codec, token_codec: Codec) -> RowCodes:
    """Encode rows: their encodings by `codec`, and all their vectors by `token_codec`."""
    codes = codec.encode(encodings_of(vectors, many))
    tokens = token_codec.encode(left_over(vectors, row_means(codes, many, codec), many))
    bytes_TW = tokens.codes
    if tokens.refine is not None:
        bytes_TW = np.concatenate([tokens.codes, tokens.refine], axis=1)
    width = token_codec.config.code_bytes + token_codec.config.refine_bytes
    return RowCodes(
        codes.codes,
        codes.partitions,
        codes.refine,
        Ragged(np.ascontiguousarray(bytes_TW).ravel(), vectors.lengths_B * width),
    )


def decode_lists(
    tokens: Ragged,
    token_codec: Codec,
    precision: PrecisionChoice = "auto",
    *,
    refined: bool = True,
    means: RowMeans | None = None,
) -> Ragged:
    """Decode all vectors of rows.

    Args:
        tokens: the bytes of the codes of all vectors of every row.
        token_codec: the codec that encoded them.
        precision: as in `Codec.decode`.
        refined: whether to use their refine codes, if there are any.
        means: what was taken off the vectors of every row; None for nothing.

    Raises:
        TableError: the bytes are not codes of the codec.
    """
    codes, lengths_B = token_codes(tokens, token_codec)
    with codes_of_tables():
        decoded_TD = token_codec.decode(codes if refined else codes.unrefined, precision=precision)
    if means is not None:
        decoded_TD += np.repeat(means.values_BD, lengths_B, axis=0)
    return Ragged(decoded_TD, lengths_B)


@contextlib.contextmanager
def codes_of_tables() -> Iterator[None]:
    """Raise TableError where a codec refuses codes, as these are a table's."""
    try:
        yield
    except InvalidInputError as error:
        if error.__cause__ is not None:  # a GPU without memory: the codes may be right
            raise
        raise TableError(
            f"The table has codes that none of its codecs wrote. {error} Delete these rows or restore an "
            "earlier version of the table, and write to it through this package only."
        ) from error


def token_codes(
    tokens: Ragged, token_codec: Codec
) -> tuple[Codes, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """The codes of all vectors of rows, and how many each row has.

    Raises:
        TableError: a row has a part of a code, or none.
    """
    config = token_codec.config
    width = config.code_bytes + config.refine_bytes
    if (tokens.lengths_B % width).any() or not tokens.lengths_B.all():
        raise TableError(
            f"The table has rows whose vectors have no codes, or codes of other than {width} bytes each, "
            "as their codec writes them. Delete these rows or restore an earlier version of the table, and "
            "write to it through this package only."
        )
    bytes_TW = tokens.values.reshape(-1, width)
    refine_TR = bytes_TW[:, config.code_bytes :] if config.refine_bytes else None
    partitions_T = np.zeros(len(bytes_TW), np.int32)
    return Codes(bytes_TW[:, : config.code_bytes], partitions_T, refine_TR), tokens.lengths_B // width
