"""The codecs of a table, as if they were one.

Every generation has partition ids of its own, so a row's partition says which codec decodes it.
Shapes: n codes, D components, Q queries, P partitions of all generations.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from lancedb.db import DBConnection

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.codes import Codes, check_codes
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric
from rqmoe_store.errors import ArtefactError, InvalidInputError, TableError
from rqmoe_store.store import registry
from rqmoe_store.store.metadata import GenerationMark, TableMarks


@dataclasses.dataclass(frozen=True)
class Generation:
    """One codec of a table and the partition ids it owns."""

    codec: Codec
    mark: GenerationMark
    first_partition: int

    @property
    def partitions(self) -> slice:
        """Its places in arrays over all partitions."""
        return slice(self.first_partition, self.first_partition + self.mark.num_partitions)


class TableCodec:
    """Encodes with the newest codec of a table, and decodes what any of them encoded."""

    def __init__(self, marks: TableMarks, codecs: Sequence[Codec]) -> None:
        """Wrap the codecs of all generations of `marks`.

        Raises:
            ArtefactError: they are not what the marks describe.
        """
        self.marks = marks
        firsts = np.cumsum([0, *(mark.num_partitions for mark in marks.generations)]).tolist()
        self.num_partitions: int = firsts[-1]
        """Partition ids of all generations together."""
        self.generations = tuple(
            Generation(codec, mark, first)
            for codec, mark, first in zip(codecs, marks.generations, firsts[:-1], strict=True)
        )
        """Oldest first."""
        for generation in self.generations:
            _require_match(generation, marks)

    @classmethod
    def load(cls, db: DBConnection, marks: TableMarks, known: "TableCodec | None" = None) -> "TableCodec":
        """The codecs that `marks` name, from the registry of `db`, but for those that `known` has.

        Raises:
            ArtefactError: one is not in the database, is damaged, or is not what the marks describe.
        """
        if known is not None and known.marks == marks:
            return known
        have = {each.mark.fingerprint: each.codec for each in known.generations} if known else {}
        codecs = [
            have.get(mark.fingerprint) or registry.load(db, mark.fingerprint) for mark in marks.generations
        ]
        return cls(marks, codecs)

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return self.marks.dim

    @property
    def metric(self) -> Metric:
        """The distance that all of them were trained for."""
        return self.marks.config.metric

    @property
    def code_bytes(self) -> int:
        """Bytes of a code."""
        return self.marks.config.code_bytes

    @property
    def newest(self) -> Codec | None:
        """The codec that encodes; None in a table that has none yet."""
        return self.generations[-1].codec if self.generations else None

    @property
    def device(self) -> torch.device:
        """Where the newest codec decodes."""
        return torch.device("cpu") if self.newest is None else self.newest.device

    @property
    def most_partitions(self) -> int:
        """Partitions of the generation that has most."""
        return max((each.mark.num_partitions for each in self.generations), default=0)

    def encode(self, vectors_nD: Float32Array) -> Codes:
        """Codes of checked vectors, by the newest codec.

        Raises:
            TableError: the table has no codec yet.
        """
        if not self.generations:
            raise TableError("The table has no codec yet; train one with train(), or add rows unencoded.")
        newest = self.generations[-1]
        codes = newest.codec.encode(vectors_nD)
        return Codes(codes.codes, codes.partitions + np.int32(newest.first_partition))

    def decode(self, codes: Codes) -> Float32Array:
        """Reconstructions (n, D), float32, each by the codec that encoded it.

        Raises:
            TableError: a code or partition that no codec of the table has.
        """
        self.check(codes)
        if len(self.generations) == 1:
            return self.generations[0].codec.decode(codes)
        decoded_nD = np.empty((len(codes), self.dim), dtype=np.float32)
        for generation, rows in self._by_generation(codes):
            decoded_nD[rows] = generation.codec.decode(_local(codes[rows], generation))
        return decoded_nD

    def check(self, codes: Codes) -> None:
        """Raise TableError when a stored code is out of range: it would score as another codeword."""
        if len(codes) == 0:
            return
        smallest = min((each.codec.config.codebook_size for each in self.generations), default=0)
        lowest, highest = codes.partitions.min(), codes.partitions.max()
        if codes.codes.max() < smallest and lowest >= 0 and highest < self.num_partitions:
            return
        try:
            self._check_each(codes)
        except InvalidInputError as error:
            raise TableError(
                f"The table has codes that none of its codecs wrote. {error} Delete these rows or restore an "
                "earlier version of the table, and write to it through this package only."
            ) from error

    def _check_each(self, codes: Codes) -> None:
        check_codes(  # names the code or partition that none of them has
            codes,
            num_steps=self.code_bytes,
            codebook_size=max((each.codec.config.codebook_size for each in self.generations), default=0),
            num_partitions=self.num_partitions,
        )
        for generation, rows in self._by_generation(codes):
            config = generation.codec.config
            check_codes(
                _local(codes[rows], generation),
                num_steps=self.code_bytes,
                codebook_size=config.codebook_size,
                num_partitions=config.num_partitions or 0,
            )

    def probed(self, queries_QD: Float32Array, nprobes: int) -> npt.NDArray[np.bool_]:
        """The partitions that checked queries consider, bool (Q, P): the nearest of every generation."""
        probed_QP = np.zeros((len(queries_QD), self.num_partitions), dtype=bool)
        for generation in self.generations:
            nearest = generation.codec.probe(queries_QD, min(nprobes, generation.mark.num_partitions))
            np.put_along_axis(probed_QP, nearest + generation.first_partition, True, axis=1)
        return probed_QP

    def lookup_tables(
        self, queries_QD: Float32Array, generations: Sequence[Generation]
    ) -> Mapping[int, LookupTables]:
        """Look-up tables of checked queries for some of the generations, by their first partition."""
        return {each.first_partition: each.codec.lookup_tables(queries_QD) for each in generations}

    def _by_generation(self, codes: Codes) -> "list[tuple[Generation, npt.NDArray[np.int64]]]":
        firsts = [generation.first_partition for generation in self.generations]
        owners_n = np.searchsorted(firsts, codes.partitions, side="right") - 1
        return [
            (generation, np.flatnonzero(owners_n == place))
            for place, generation in enumerate(self.generations)
            if (owners_n == place).any()
        ]


def mark_of(codec: Codec) -> GenerationMark:
    """How the marks of a table name a codec."""
    return GenerationMark(codec.fingerprint, codec.num_partitions)


def marks_of(codec: Codec, vector_column: str, keep_vectors: str) -> TableMarks:
    """The marks of a table whose `vector_column` is kept as codes of one codec, and raw as said."""
    return TableMarks(
        vector_column=vector_column,
        dim=codec.dim,
        keep_vectors=keep_vectors,
        # Left open as they may have been: a codec trained later will be for other rows.
        config=dataclasses.replace(codec.config, num_partitions=None, hidden_dim=None, expert_dim=None),
        generations=(mark_of(codec),),
    )


def _local(codes: Codes, generation: Generation) -> Codes:
    """Codes with partition ids as their codec counts them."""
    return Codes(codes.codes, codes.partitions - np.int32(generation.first_partition))


def _require_match(generation: Generation, marks: TableMarks) -> None:
    codec, mark = generation.codec, generation.mark
    expected = {
        "dim": marks.dim,
        "metric": marks.config.metric,
        "code_bytes": marks.config.code_bytes,
        "num_partitions": mark.num_partitions,
    }
    found = {
        "dim": codec.dim,
        "metric": codec.config.metric,
        "code_bytes": codec.config.code_bytes,
        "num_partitions": codec.num_partitions,
    }
    for name, value in expected.items():
        if found[name] != value:
            raise ArtefactError(
                f"The table was written with a codec of {name} {value!r}; got {mark.fingerprint[:12]!r} "
                f"of {name} {found[name]!r}. Use the codec it was made with, or restore an earlier version."
            )
