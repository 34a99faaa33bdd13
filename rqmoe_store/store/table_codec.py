"""Table codec: all codecs of a table, one per generation of rows, behind the interface of one codec.

Every generation has partition ids of its own, so the partition id of a row says which codec decodes it.

Shape legend: n codes, D components, Q queries, P partitions of all generations.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.table import LanceTable

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.codes import Codes, check_codes
from rqmoe_store.codecs.device import PrecisionChoice
from rqmoe_store.codecs.frame import ScoreUnits, shared_score_units
from rqmoe_store.codecs.refine import RefineTables
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric
from rqmoe_store.errors import ArtifactError, InvalidInputError, TableError
from rqmoe_store.store import databases, registry
from rqmoe_store.store.columns import CodeColumns, Vectors
from rqmoe_store.store.metadata import GenerationMetadata, MultiVector, TableMetadata
from rqmoe_store.store.multivector import RowMeans, decode_lists, encode_lists, row_means
from rqmoe_store.store.ragged import Ragged, RowCodes, merged_vectors

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class Generation:
    """One codec of a table and its partition ids."""

    metadata: GenerationMetadata
    first_partition: int
    load: Callable[[], Codec] = dataclasses.field(repr=False, compare=False)
    """Loads the codec; called once, when it is first needed."""
    load_token_codec: Callable[[], Codec] | None = dataclasses.field(default=None, repr=False, compare=False)
    """Loads the codec of a row's vectors, where rows have many; None where they have one."""

    @functools.cached_property
    def codec(self) -> Codec:
        """The codec of what scans score: the vectors of rows, or their fixed dimensional encodings. Once no
        row has a code of it, it may be missing from the database.

        Raises:
            ArtifactError: the codec is missing, damaged, or not what the metadata describes.
        """
        return self.load()

    @functools.cached_property
    def vector_codec(self) -> Codec:
        """The codec of the user's vectors. Raises as `codec`."""
        return self.codec if self.load_token_codec is None else self.load_token_codec()

    def row_means(self, codes: Codes, many: MultiVector) -> RowMeans | None:
        """What was taken off the vectors of rows before they were encoded; None for nothing.

        Args:
            codes: codes of the encodings of B rows of this generation, with partition ids of the table.
            many: how the table's rows have many vectors.
        """
        return row_means(local_codes(codes, self), many, self.codec)

    @property
    def partitions(self) -> slice:
        """Slice of arrays over all partitions."""
        return slice(self.first_partition, self.first_partition + self.metadata.num_partitions)


def generations_of(metadata: TableMetadata, codecs: list[Codec]) -> list[Generation]:
    """The generations of `metadata`, oldest first, with codecs that are in memory; rows have one vector each.

    Raises:
        ArtifactError: a codec is not what the metadata describes.
    """
    generations = []
    for each, first, codec in zip(metadata.generations, metadata.first_partitions[:-1], codecs, strict=True):
        require_match(codec, each, metadata)
        generations.append(Generation(each, first, functools.partial(_identity, codec)))
    return generations


def generations_in(db: DBConnection, metadata: TableMetadata, device: str = "auto") -> list[Generation]:
    """The generations of `metadata`, oldest first, with codecs to load from the registry of `db` to a
    device."""
    return [
        Generation(
            each,
            first,
            functools.partial(_load, db, each, metadata, device),
            functools.partial(_load_token_codec, db, each, metadata, device) if each.token_codec else None,
        )
        for each, first in zip(metadata.generations, metadata.first_partitions[:-1], strict=True)
    ]


def generation_metadata(codec: Codec, token_codec: Codec | None = None) -> GenerationMetadata:
    """The entry for a codec in the metadata of a table, and that of the vectors if rows have many."""
    return GenerationMetadata(
        codec.fingerprint,
        codec.num_partitions,
        codec.config.refine_bytes,
        token_codec="" if token_codec is None else token_codec.fingerprint,
        tuned="" if codec.correction is None else codec.fingerprint,
    )


def require_match(codec: Codec, generation: GenerationMetadata, metadata: TableMetadata) -> None:
    """Raise ArtifactError unless `codec` is what the metadata of a table says of one of its generations."""
    expected = {
        "dim": metadata.dim,
        "metric": metadata.config.metric,
        "code_bytes": metadata.config.code_bytes,
        "num_partitions": generation.num_partitions,
        "refine_bytes": generation.refine_bytes,
    }
    found = {
        "dim": codec.dim,
        "metric": codec.config.metric,
        "code_bytes": codec.config.code_bytes,
        "num_partitions": codec.num_partitions,
        "refine_bytes": codec.config.refine_bytes,
    }
    for name, value in expected.items():
        if found[name] != value:
            raise ArtifactError(
                f"The table was written with a codec of {name} {value!r}; got "
                f"{generation.reader[:12]!r} of {name} {found[name]!r}. "
                "Use the codec it was made with, or restore an earlier version."
            )


def _identity(codec: Codec) -> Codec:
    return codec


def _load(db: DBConnection, generation: GenerationMetadata, metadata: TableMetadata, device: str) -> Codec:
    codec = registry.load(db, generation.reader, device=device)
    require_match(codec, generation, metadata)
    return codec


def _copy_on(generation: Generation, device: str) -> Codec:
    return generation.codec.copy_on(device)


def _token_copy_on(generation: Generation, device: str) -> Codec:
    return generation.vector_codec.copy_on(device)


def _load_token_codec(
    db: DBConnection, generation: GenerationMetadata, metadata: TableMetadata, device: str
) -> Codec:
    codec = registry.load(db, generation.token_codec, device=device)
    require_token_match(codec, metadata)
    return codec


def require_token_match(codec: Codec, metadata: TableMetadata) -> None:
    """Raise ArtifactError unless `codec` can encode the vectors of rows that have many."""
    many = metadata.multi_vector
    assert many is not None, "rows have many vectors"
    expected = {"dim": many.dim, "metric": many.token_metric, "num_partitions": 1}
    found = {"dim": codec.dim, "metric": codec.config.metric, "num_partitions": codec.num_partitions}
    for name, value in expected.items():
        if found[name] != value:
            raise ArtifactError(
                f"The vectors of the table's rows are encoded by codecs of {name} {value!r}; got "
                f"{codec.fingerprint[:12]!r} of {name} {found[name]!r}. Restore an earlier version."
            )


class TableCodec:
    """Encodes with the newest codec of a table, and decodes what any of them encoded."""

    def __init__(
        self, metadata: TableMetadata, generations: Sequence[Generation], chosen_device: str = "auto"
    ) -> None:
        """Wrap all generations of `metadata`; use `of` or `load` instead of calling this."""
        self.metadata = metadata
        self.chosen_device = chosen_device
        """The device that codecs are loaded to, "cpu" or "cuda:<number>", or "auto" for one that suits."""
        self.num_partitions: int = metadata.first_partitions[-1]
        """Number of partition ids of all generations together."""
        self.generations = tuple(generations)
        """Oldest first."""
        self.columns: CodeColumns = metadata.columns
        """The columns that have codes."""
        self.metric: Metric = metadata.config.metric
        """The metric that scans score by, for which all codecs of what they score were trained."""
        self.code_bytes: int = metadata.config.code_bytes
        """Bytes of a code, M."""
        self.are_corrected = any(each.metadata.tuned for each in generations)
        """Whether any codec that rows may need corrects distances."""
        self.most_partitions = max((each.metadata.num_partitions for each in generations), default=0)
        """Number of partitions of the generation that has most."""

    @classmethod
    def of(cls, metadata: TableMetadata, codecs: list[Codec]) -> "TableCodec":
        """Wrap codecs of all generations of `metadata`, oldest first, that are in memory.

        Raises:
            ArtifactError: the codecs are not what the metadata describes.
        """
        return cls(metadata, generations_of(metadata, codecs))

    @classmethod
    def load(
        cls,
        db: DBConnection,
        metadata: TableMetadata,
        known: "TableCodec | None" = None,
        *,
        device: str = "auto",
    ) -> "TableCodec":
        """Load the codecs that `metadata` names from the registry of `db`, except those that `known` has.

        They are loaded to the device that was chosen for `known`, or without that to `device`.

        The newest codec is loaded now. Older ones are loaded when a row needs them, since the registry may
        have lost those that no row needs any more.

        Raises:
            ArtifactError: the newest is missing, damaged, or not what the metadata describes.
        """
        if known is not None and known.metadata == metadata:
            return known
        have = {each: each for each in known.generations} if known else {}
        device = known.chosen_device if known else device
        generations = [have.get(each, each) for each in generations_in(db, metadata, device)]
        codecs = cls(metadata, generations, device)
        if codecs.generations:
            require_match(codecs.generations[-1].codec, metadata.generations[-1], metadata)
        _ = codecs.newest  # raises if it cannot be loaded
        return codecs

    def on(self, device: str) -> "TableCodec":
        """These codecs on a chosen device: copies, unless it was chosen for them already."""
        if device == self.chosen_device:
            return self
        copies = [
            Generation(
                each.metadata,
                each.first_partition,
                functools.partial(_copy_on, each, device),
                functools.partial(_token_copy_on, each, device) if each.metadata.token_codec else None,
            )
            for each in self.generations
        ]
        return TableCodec(self.metadata, copies, device)

    @property
    def dim(self) -> int:
        """Components of what scans score: a vector, or the fixed dimensional encoding of a row's vectors."""
        return self.metadata.dim

    @property
    def newest(self) -> Codec | None:
        """The codec that encodes the user's vectors; None in a table without a codec."""
        return self.generations[-1].vector_codec if self.generations else None

    @property
    def device(self) -> str:
        """Name of the device of the newest codec of what scans score."""
        return self.generations[-1].codec.device_name if self.generations else "cpu"

    def encode(self, vectors_nD: Vectors) -> Codes:
        """Encode checked vectors with the newest codec, with refine codes if it has any.

        Raises:
            TableError: the table has no codec yet.
        """
        if not self.generations:
            raise TableError("The table has no codec yet; train one with train(), or add rows unencoded.")
        newest, many = self.generations[-1], self.metadata.multi_vector
        if many is None:
            codes = newest.codec.encode(vectors_nD)
        else:
            codes = encode_lists(vectors_nD, many, newest.codec, newest.vector_codec)
        return dataclasses.replace(codes, partitions=codes.partitions + np.int32(newest.first_partition))

    def decode(self, codes: Codes, *, precision: PrecisionChoice = "float32") -> Float32Array:
        """Decode each code with the codec that encoded it, to float32 (n, D).

        Codes that have refine codes decode to the refined vectors, where their codec has any. `precision` is
        that of `Codec.decode`.

        Raises:
            TableError: no codec of the table has a code or partition id.
        """
        self.check(codes)
        decoded_nD = np.empty((len(codes), self.dim), dtype=np.float32)
        for generation, rows in self.by_generation(codes):
            local = local_codes(codes[rows], generation)
            decoded_nD[rows] = generation.codec.decode(local, precision=precision)
        return decoded_nD

    def decode_on_gpu(self, codes: Codes) -> "torch.Tensor | None":
        """Decode each code as `decode` does, to vectors (n, D) on a GPU.

        None unless all codecs that the codes are of are on the same GPU.

        Raises:
            TableError: no codec of the table has a code or partition id.
            torch.OutOfMemoryError: the GPU has no memory for the vectors.
        """
        if self.device == "cpu" or len(codes) == 0:
            return None
        parts = self.by_generation(codes)
        if {generation.codec.device_name for generation, _ in parts} != {self.device}:
            return None
        import torch

        self.check(codes)
        decoded = [
            generation.codec.decode_checked(local_codes(codes[rows], generation))
            for generation, rows in parts
        ]
        if len(parts) == 1:
            return decoded[0]
        decoded_nD = torch.empty(len(codes), self.dim, dtype=torch.float32, device=self.device)
        for (_, rows), part in zip(parts, decoded, strict=True):
            decoded_nD[torch.from_numpy(rows).to(self.device)] = part
        return decoded_nD

    def decode_rows(self, codes: Codes, *, precision: PrecisionChoice = "float32") -> Vectors:
        """Decode the user's vectors: as `decode`, or all vectors of every row where rows have many."""
        if self.metadata.multi_vector is None:
            return self.decode(codes, precision=precision)
        self.check(codes)
        assert isinstance(codes, RowCodes), "codes of rows with many vectors"
        many = self.metadata.multi_vector
        parts, order = [self.metadata.kept.none], [np.empty(0, np.int64)]
        for generation, rows in self.by_generation(codes) if len(codes) else ():
            some = codes[rows]
            means = generation.row_means(some, many)
            parts.append(decode_lists(some.tokens, generation.vector_codec, precision, means=means))
            order.append(np.arange(len(codes))[rows])
        return Ragged.joined(parts)[np.argsort(np.concatenate(order))]

    def raw_or_decoded(
        self,
        raw: Vectors,
        raw_N: npt.NDArray[np.bool_],
        codes: Codes,
        coded_N: npt.NDArray[np.bool_],
    ) -> tuple[Vectors, npt.NDArray[np.bool_]]:
        """The user's vectors of N rows, raw where there are raw ones and decoded otherwise, and which rows
        have any.

        Args:
            raw: vectors of the rows where `raw_N` is True.
            raw_N: which rows have raw vectors.
            codes: codes of the rows where `coded_N` is True.
            coded_N: which rows have codes.

        Raises as `decode_rows`.
        """
        decoded_N = coded_N & ~raw_N
        decoded = self.decode_rows(codes[~raw_N[coded_N]])
        return merged_vectors(raw, raw_N, decoded, decoded_N), raw_N | coded_N

    def distances_on_gpu(
        self,
        codes: Codes,
        queries_QD: Float32Array,
        queries_n: npt.NDArray[np.int64],
        *,
        precision: PrecisionChoice = "float32",
    ) -> npt.NDArray[np.float64] | None:
        """Distances (n,) of decoded codes, each to a query of its own; inner products under "dot".

        None unless all codecs that the codes are of decode on a GPU. Refine codes are not used.

        Raises:
            TableError: no codec of the table has a code or partition id.
        """
        if self.device == "cpu" or len(codes) == 0:
            return None
        parts = self.by_generation(codes)
        found = [generation.codec.gpu_distances(precision) for generation, _ in parts]
        on_gpu = [each for each in found if each is not None]
        if len(on_gpu) < len(parts):
            return None
        self.check(codes)
        started = [
            distances.start(local_codes(codes[rows], generation).unrefined, queries_QD, queries_n[rows])
            for (generation, rows), distances in zip(parts, on_gpu, strict=True)
        ]
        values_n = np.empty(len(codes))
        for (_, rows), each in zip(parts, started, strict=True):
            values_n[rows] = each.wait()
        return values_n

    def read_by(self, codec: Codec) -> "TableCodec":
        """These codecs, with another one in place of the newest that has the same codes."""
        (*older, newest) = self.generations
        metadata = self.metadata.with_tuned_codec("" if codec.correction is None else codec.fingerprint)
        own = Generation(
            metadata.generations[-1], newest.first_partition, functools.partial(_identity, codec)
        )
        return TableCodec(metadata, [*older, own], self.chosen_device)

    def corrections(
        self, codes: Codes, queries_QD: Float32Array, queries_n: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """What is taken off the distances (n,) of codes, each to a query of its own; 0 for untuned codecs."""
        amounts_n = np.zeros(len(codes))
        for generation, rows in self.by_generation(codes) if len(codes) else ():
            if generation.metadata.tuned and generation.codec.correction is not None:
                local = local_codes(codes[rows], generation)
                amounts_n[rows] = generation.codec.correction.amounts(queries_QD, queries_n[rows], local)
        return amounts_n

    def read(self, rows: pa.Table | pa.RecordBatch) -> tuple[Codes, npt.NDArray[np.bool_]]:
        """Read codes as `CodeColumns.from_arrow` does, and check them.

        Raises:
            TableError: a column is missing or has another type, no codec of the table has a code or partition
                id, or a row lacks the refine code that its codec gave it.
        """
        codes, valid_N = self.columns.from_arrow(rows)
        self.check(codes)
        if codes.refine is not None:
            self.require_refined(codes, self.columns.refined(rows, valid_N))
        return codes, valid_N

    def require_refined(self, codes: Codes, refined_n: npt.NDArray[np.bool_]) -> None:
        """Raise TableError if a stored row lacks the refine code that its codec gave it.

        Args:
            codes: codes of stored rows, which `check` has accepted.
            refined_n: which of them have refine codes.
        """
        for generation, rows in self.by_generation(codes):
            lacking = int(np.count_nonzero(~refined_n[rows])) if generation.metadata.refine_bytes else 0
            if lacking:
                raise TableError(
                    f"The table has {lacking:,} rows without the refine code of "
                    f"{generation.metadata.refine_bytes} bytes that their codec gave them. Delete these rows "
                    "or restore an earlier version of the table, and write to it through this package only."
                )

    def check(self, codes: Codes) -> None:
        """Raise TableError if a stored code is out of range; it would score as another codeword."""
        if len(codes) == 0:
            return
        try:
            self._check_each(codes)
        except InvalidInputError as error:
            raise TableError(
                f"The table has codes that none of its codecs wrote. {error} Delete these rows or restore an "
                "earlier version of the table, and write to it through this package only."
            ) from error

    def _check_each(self, codes: Codes) -> None:
        if codes.partitions.min() < 0 or codes.partitions.max() >= self.num_partitions:
            check_codes(  # names the partition id
                codes.unrefined,
                num_steps=self.code_bytes,
                codebook_size=256 if self.generations else 0,
                num_partitions=self.num_partitions,
            )
        for generation, rows in self.by_generation(codes):
            config = generation.codec.config
            if codes.codes[rows].max() >= config.codebook_size:
                check_codes(
                    local_codes(codes[rows], generation).unrefined,
                    num_steps=self.code_bytes,
                    codebook_size=config.codebook_size,
                    num_partitions=config.num_partitions or 0,
                )

    def probed(
        self, queries_QD: Float32Array, nprobes: int, generations: Sequence[Generation]
    ) -> npt.NDArray[np.bool_]:
        """The partitions that checked queries probe, bool (Q, P): the nearest `nprobes` of every generation.

        Generations that are not among those given have no rows; their partitions count as probed.
        """
        probed_QP = np.ones((len(queries_QD), self.num_partitions), dtype=bool)
        for generation in generations:
            if nprobes >= generation.metadata.num_partitions:
                continue  # all of them, in whatever order
            probed_QP[:, generation.partitions] = generation.codec.probed(queries_QD, nprobes)
        return probed_QP

    def lookup_tables(
        self, queries_QD: Float32Array, generations: Sequence[Generation]
    ) -> Mapping[int, LookupTables]:
        """First partition of a generation -> look-up tables of checked queries for it."""
        units = None
        if len(generations) > 1:
            units = shared_score_units([each.codec.framed(queries_QD) for each in generations])
        return {each.first_partition: each.codec.lookup_tables(queries_QD, units) for each in generations}

    def refine_tables(
        self, queries_QD: Float32Array, generations: Sequence[Generation], units: ScoreUnits
    ) -> Mapping[int, RefineTables]:
        """First partition of a generation with refine codes -> tables that add them to scores of queries.

        Args:
            queries_QD: checked queries.
            generations: generations of `lookup_tables`.
            units: units of the scores of `lookup_tables`.
        """
        return {
            each.first_partition: each.codec.refine_tables(queries_QD, units)
            for each in generations
            if each.metadata.refine_bytes
        }

    def by_generation(self, codes: Codes) -> "list[tuple[Generation, Any]]":
        """Each generation that has any of the codes, and the index of its codes."""
        if len(self.generations) == 1:
            return [(self.generations[0], slice(None))]
        firsts = [generation.first_partition for generation in self.generations]
        owners_n = np.searchsorted(firsts, codes.partitions, side="right") - 1
        return [
            (generation, np.flatnonzero(owners_n == place))
            for place, generation in enumerate(self.generations)
            if (owners_n == place).any()
        ]


def codecs_of(table: LanceTable, known: TableCodec) -> TableCodec:
    """The codecs of the version that `table` is at; loads those that `known` lacks. Raises as `load`."""
    metadata = TableMetadata.read(table.schema, table.name)
    return (
        known
        if known.metadata == metadata
        else TableCodec.load(databases.database_of(table), metadata, known)
    )


def metadata_of(codec: Codec, vector_column: str, keep_vectors: str) -> TableMetadata:
    """The metadata of a table with one codec."""
    return TableMetadata(
        vector_column=vector_column,
        dim=codec.dim,
        keep_vectors=keep_vectors,
        # Open again, as they may have been: a codec trained later will be for other rows.
        config=dataclasses.replace(codec.config, num_partitions=None, hidden_dim=None, expert_dim=None),
        generations=(generation_metadata(codec),),
        refine_bytes=codec.config.refine_bytes,
    )


def local_codes(codes: Codes, generation: Generation) -> Codes:
    """Codes with the partition ids of their codec, which begin at 0, and with refine codes if it has any."""
    codes = codes if generation.metadata.refine_bytes else codes.unrefined
    if generation.first_partition == 0:
        return codes
    return dataclasses.replace(codes, partitions=codes.partitions - np.int32(generation.first_partition))
