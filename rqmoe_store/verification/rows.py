"""Verify rows, keys and codecs: read every row and check codes, vectors, row ids and key values.

Shape legend: N rows of a batch, C of them with a code, V of them with a vector, D components, M code bytes.
"""

import collections
import dataclasses
import datetime
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.db import DBConnection
from pandas.util import hash_array

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.errors import ArtifactError, TableError
from rqmoe_store.store import registry
from rqmoe_store.store.metadata import TableMetadata
from rqmoe_store.store.multivector import token_codes
from rqmoe_store.store.ragged import Ragged, RowCodes
from rqmoe_store.store.registry import GRACE, places_in_use, unused_codecs
from rqmoe_store.store.statistics import readable
from rqmoe_store.store.table_codec import generations_in
from rqmoe_store.verification.report import Findings, RowCounts

_CHUNK = 2**20
"""Sorted values compared at a time."""
_MOST_SUSPECTS = 1000
"""Most repeated hashes whose key values are compared."""
_KEYS_LISTED = 3
_DECODED_PER_BATCH = 64
"""Rows of every batch that are decoded, as a sample."""
_OTHER_ROWS = 1024
"""Rows of a batch of other columns, which may be long texts."""

Advance = Callable[[int], object]
RowIds = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]


class Duplicates:
    """Finds repeated values among up to a given number of 64-bit values, which it keeps in a file."""

    def __init__(self, path: Path, most: int) -> None:
        """Create the file.

        Args:
            path: path of the file.
            most: most values to keep; further values are ignored.
        """
        self._values = np.memmap(path, dtype=np.uint64, mode="w+", shape=(max(1, most),))
        self._count = 0

    def add(self, values_N: npt.NDArray[np.uint64]) -> None:
        """Add values."""
        values_N = values_N[: len(self._values) - self._count]
        self._values[self._count : self._count + len(values_N)] = values_N
        self._count += len(values_N)

    def repeated(self) -> npt.NDArray[np.uint64]:
        """The values that were added more than once, in ascending order."""
        values = self._values[: self._count]
        values.sort()
        found = [np.empty(0, dtype=np.uint64)]
        for start in range(0, self._count, _CHUNK):
            part = values[start : start + _CHUNK + 1]
            found.append(part[1:][part[1:] == part[:-1]])
        return np.unique(np.concatenate(found))


class KeyCheck:
    """Finds values of the unique key that several rows have.

    A first pass collects 64-bit hashes of all values; a second one compares the values whose hashes repeat.
    """

    def __init__(self, name: str, path: Path, most: int, findings: Findings) -> None:
        """Prepare for the first pass.

        Args:
            name: name of the key column.
            path: path of a file to create.
            most: most rows to check.
            findings: records repeated values.
        """
        self.name = name
        """Name of the key column."""
        self._hashes, self._findings = Duplicates(path, most), findings

    def add(self, batch: pa.RecordBatch) -> None:
        """Add N rows that have the key column."""
        self._hashes.add(_hashes(_values(batch[self.name])))

    def find_repeated(self, dataset: lance.LanceDataset) -> None:
        """Read the key column again, and record the values that more than one row has."""
        suspects = self._hashes.repeated()
        some, counts = suspects[:_MOST_SUSPECTS], collections.Counter[Any]()
        if len(some) == 0:
            return
        for batch in dataset.scanner(columns=[self.name]).to_batches():
            values = _values(batch[self.name])
            counts.update(values[np.isin(_hashes(values), some)].tolist())
        repeated = [(value, count) for value, count in counts.most_common() if count > 1]
        if repeated:
            shown = ", ".join(f"{value!r} ({count} rows)" for value, count in repeated[:_KEYS_LISTED])
            more = " and others" if len(repeated) > _KEYS_LISTED else ""
            number = len(repeated) + len(suspects) - len(some)
            self._findings.problems.append(
                f"{number:,} values of the key {self.name!r} are there more than once: {shown}{more}"
            )


def _values(column: pa.Array) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = column.drop_null().to_numpy(zero_copy_only=False)
    return values


def _hashes(values: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    hashes: npt.NDArray[np.uint64] = hash_array(values, categorize=False)
    return hashes


@dataclasses.dataclass(frozen=True)
class VerifiedCodec:
    """A codec that rows of the table need."""

    first_partition: int
    num_partitions: int
    codec: Codec | None
    """None if the codec is missing or damaged."""
    refine_bytes: int = 0
    """Bytes of its refine codes; 0 if it has none."""
    token_codec: Codec | None = None
    """The codec of the vectors of rows that have many; None if they have one, or it is missing or damaged."""


def verify_codecs(
    db: DBConnection, dataset: lance.LanceDataset, metadata: TableMetadata, findings: Findings
) -> list[VerifiedCodec]:
    """Load every codec that rows need, which checks its fingerprint, its weights and the table's metadata."""
    places = list(range(len(metadata.generations)))
    with findings.recording("cannot tell which codecs rows need"):
        places = places_in_use(dataset, metadata)
    generations, verified = generations_in(db, metadata), []
    for place in places:
        generation = generations[place]
        codec, token_codec, many = None, None, metadata.multi_vector is not None
        with findings.recording(f"codec {place + 1} of {len(generations)}"):
            codec = generation.codec
            _find_damaged_copies(db, codec, findings)
        with findings.recording(f"codec {place + 1} of {len(generations)}, of the vectors of rows"):
            if many:
                token_codec = generation.vector_codec
                _find_damaged_copies(db, token_codec, findings)
        first, made = generation.first_partition, generation.metadata
        verified.append(VerifiedCodec(first, made.num_partitions, codec, made.refine_bytes, token_codec))
    return verified


def _find_damaged_copies(db: DBConnection, codec: Codec, findings: Findings) -> None:
    table = registry.open_registry(db)
    copies = (
        [] if table is None else registry.stored_artifacts(table, registry.codec_condition(codec.fingerprint))
    )
    damaged = len(copies) - copies.count(codec.to_artifact())
    if damaged:
        findings.advice.append(
            f"{damaged} of {len(copies)} copies of codec {codec.fingerprint[:12]} in the database are "
            "damaged; another one is used"
        )


def find_unused_codecs(db: DBConnection, findings: Findings) -> None:
    """Record the codecs in the registry of `db` that no version of any table needs."""
    try:
        table = registry.open_registry(db)
        if table is None:
            return
        saved = registry.saved_at(table)
        unused = unused_codecs(db, saved, datetime.datetime.now(datetime.UTC) - GRACE)
        sizes = [
            len(each.weights)
            for name in unused
            for each in registry.stored_artifacts(table, registry.codec_condition(name))
        ]
    except (ArtifactError, TableError) as error:
        findings.advice.append(f"cannot tell which codecs the database keeps for nothing: {error}")
        return
    if unused:
        findings.advice.append(
            f"{len(unused)} codecs in the database ({readable(sum(sizes))}) are needed by no table; "
            "optimize() removes them"
        )


class RowChecks:
    """Checks codes and vectors of rows against the metadata and codecs of their table."""

    def __init__(self, metadata: TableMetadata, codecs: Sequence[VerifiedCodec], findings: Findings) -> None:
        self.columns = metadata.columns
        """Names of the code columns."""
        self._metadata, self._codecs, self._findings = metadata, codecs, findings

    @property
    def names(self) -> list[str]:
        """Columns that a batch must have: those with codes, and the vector."""
        return [*self.columns.names, self._metadata.vector_column]

    @property
    def rows_per_batch(self) -> int:
        """Rows of a batch, so that its memory is bounded."""
        return self._metadata.rows_per_batch

    def check(self, batch: pa.RecordBatch) -> RowCounts:
        """Check N rows that have the columns `names` and `_rowid`, record problems, and return counts."""
        row_ids_N = batch["_rowid"].to_numpy()
        of_code = [_valid(batch[name]) for name in self.columns.scanned]
        code_N, partition_N, vector_N = *of_code, _valid(batch[self._metadata.vector_column])
        coded_N, raw_N = code_N & partition_N, vector_N & ~code_N & ~partition_N
        self._findings.add_rows(
            "rows have a code without a partition, or a partition without a code",
            row_ids_N[code_N != partition_N],
        )
        self._check_vectors(batch[self._metadata.vector_column], vector_N, row_ids_N)
        if self._metadata.keep_vectors != "none":
            self._findings.add_rows(
                "rows have a code and no vector, which this table keeps", row_ids_N[coded_N & ~vector_N]
            )
        if self.columns.many:
            self._findings.add_rows(
                "rows have a code and no codes of their vectors, or these and no code",
                row_ids_N[code_N != _valid(batch[self.columns.tokens])],
            )
        codes, valid_N = self.columns.from_arrow(batch)
        refined_C = self.columns.refined(batch, valid_N)
        older, decoded = self._check_codes(codes, refined_C, row_ids_N[valid_N])
        return RowCounts(
            rows=len(batch), coded=int(coded_N.sum()), raw=int(raw_N.sum()), older=older, decoded=decoded
        )

    def _check_vectors(self, column: pa.Array, vector_N: Mask, row_ids_N: RowIds) -> None:
        row_ids_V = row_ids_N[vector_N]
        if self._metadata.multi_vector is not None:
            for row, problem in self._metadata.kept.unusable(column).items():
                self._findings.add_rows(f"rows have a vector with {problem}", row_ids_N[[row]])
            return
        # A null component becomes NaN.
        components = column.drop_null().flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
        vectors_VD = components.reshape(len(row_ids_V), self._metadata.dim)
        finite_V = np.isfinite(vectors_VD).all(axis=1)
        self._findings.add_rows(
            "rows have a vector with missing, NaN or infinite values", row_ids_V[~finite_V]
        )
        if self._metadata.config.metric == "cosine":
            self._findings.add_rows(
                "rows have a vector that is zero, which has no direction", row_ids_V[~vectors_VD.any(axis=1)]
            )

    def _check_codes(self, codes: Codes, refined_C: Mask, row_ids_C: RowIds) -> tuple[int, int]:
        """Check codes. Return how many are of older codecs, and how many were decoded."""
        known_C, decoded = np.zeros(len(codes), dtype=bool), 0
        for verified in self._codecs:
            first, stop = verified.first_partition, verified.first_partition + verified.num_partitions
            own_C = (codes.partitions >= first) & (codes.partitions < stop)
            known_C |= own_C
            self._findings.add_rows(
                "rows lack the refine code that their codec gave them"
                if verified.refine_bytes
                else "rows have a refine code, and their codec has none",
                row_ids_C[own_C & (refined_C != bool(verified.refine_bytes))],
            )
            if verified.codec is not None and own_C.any():
                own = codes[own_C] if verified.refine_bytes else codes.unrefined[own_C]
                local = dataclasses.replace(own, partitions=own.partitions - np.int32(first))
                decoded += self._decode(verified, local, row_ids_C[own_C])
            if verified.token_codec is not None and isinstance(codes, RowCodes):
                self._check_tokens(codes.tokens[own_C], verified.token_codec, row_ids_C[own_C])
        self._findings.add_rows("rows are in a partition that no codec of the table has", row_ids_C[~known_C])
        newest = self._metadata.first_partitions[-2] if self._metadata.generations else 0
        return int((codes.partitions < newest).sum()), decoded

    def _check_tokens(self, tokens: Ragged, codec: Codec, row_ids_C: RowIds) -> None:
        """Check the codes of all vectors of rows, and decode a sample of them."""
        width = codec.config.code_bytes + codec.config.refine_bytes
        whole_C = (tokens.lengths_B % width == 0) & (tokens.lengths_B > 0)
        self._findings.add_rows("rows have parts of codes of their vectors, or none", row_ids_C[~whole_C])
        codes, lengths_C = token_codes(tokens[whole_C], codec)
        good_T = (codes.codes < codec.config.codebook_size).all(axis=1)
        rows_T = np.repeat(row_ids_C[whole_C], lengths_C)
        self._findings.add_rows(
            "rows have a code of a vector that their codec does not have", np.unique(rows_T[~good_T])
        )
        sample = np.flatnonzero(good_T)
        sample = sample[:: max(1, len(sample) // _DECODED_PER_BATCH)][:_DECODED_PER_BATCH]
        finite = np.isfinite(codec.decode(codes[sample])).all(axis=1)
        self._findings.add_rows(
            "rows have vectors that decode to NaN or infinite values", np.unique(rows_T[sample[~finite]])
        )

    def _decode(self, verified: VerifiedCodec, codes: Codes, row_ids_C: RowIds) -> int:
        """Check codes of one codec and decode a sample of them. Return the size of the sample."""
        assert verified.codec is not None, "checked by the caller"
        good_C = (codes.codes < verified.codec.config.codebook_size).all(axis=1)
        self._findings.add_rows("rows have a code that their codec does not have", row_ids_C[~good_C])
        sample = np.flatnonzero(good_C)
        sample = sample[:: max(1, len(sample) // _DECODED_PER_BATCH)][:_DECODED_PER_BATCH]
        if len(sample) == 0:
            return 0
        finite = np.isfinite(verified.codec.decode(codes[sample])).all(axis=1)
        self._findings.add_rows("rows decode to NaN or infinite values", row_ids_C[sample[~finite]])
        return len(sample)


def read_rows(
    dataset: lance.LanceDataset,
    checks: RowChecks | None,
    row_ids: Duplicates,
    key: KeyCheck | None,
    findings: Findings,
    advance: Advance,
) -> RowCounts:
    """Read every column of every row, codes and vectors first, and continue after failures.

    Args:
        dataset: the version to read.
        checks: checks of the rows; None if code columns are missing, so that rows are only read.
        row_ids: receives all row ids.
        key: receives the rows of the key column; None in a table without a key.
        findings: records problems.
        advance: called with the number of rows read since its last call; every row counts twice.
    """
    ours = [] if checks is None else checks.names
    others = [name for name in dataset.schema.names if name not in ours]
    rows = _OTHER_ROWS if checks is None else checks.rows_per_batch
    counts = RowCounts()
    for fragment in dataset.get_fragments():
        where = f"fragment {fragment.fragment_id} ({', '.join(file.path for file in fragment.data_files())})"
        read, expected = 0, fragment.count_rows()
        with findings.recording(f"{where}: codes and vectors cannot be read"):
            for batch in _batches(dataset, fragment, ours, rows):
                row_ids.add(batch["_rowid"].to_numpy())
                counts += RowCounts(rows=len(batch)) if checks is None else checks.check(batch)
                read += len(batch)
                advance(len(batch))
            if read != expected:
                findings.problems.append(f"{where}: has {read:,} rows; the table counts {expected:,}")
        for name in others:
            with findings.recording(f"{where}: column {name!r} cannot be read"):
                for batch in _batches(dataset, fragment, [name], _OTHER_ROWS):
                    if key is not None and key.name == name:
                        key.add(batch)
        advance(expected)
    if counts.rows != dataset.count_rows():
        findings.problems.append(f"read {counts.rows:,} rows; the table counts {dataset.count_rows():,}")
    return counts


def _batches(
    dataset: lance.LanceDataset, fragment: lance.LanceFragment, names: list[str], rows: int
) -> Iterator[pa.RecordBatch]:
    scanner = dataset.scanner(
        columns=names, fragments=[fragment], with_row_id=True, batch_size=rows, batch_readahead=2
    )
    yield from scanner.to_batches()


def _valid(array: pa.Array) -> Mask:
    valid: Mask = array.is_valid().to_numpy(zero_copy_only=False)
    return valid
