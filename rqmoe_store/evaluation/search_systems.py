"""Compressed tables of ours as a search system to compare.

Shape suffixes: N vectors, Q queries, D vector dimension, P partitions.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.parallel import num_threads, set_num_threads
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig
from rqmoe_store.evaluation.recall import Indices
from rqmoe_store.evaluation.search_measurement import (
    ID,
    NEIGHBORS,
    VECTOR,
    Corpus,
    IndexResult,
    Scan,
    SearchedIndex,
    SearchSetting,
    positions_of,
    probe_counts,
)
from rqmoe_store.search.request import DEFAULT_SHORTLIST
from rqmoe_store.search.scan import scan
from rqmoe_store.search.segments import Selection
from rqmoe_store.search.source import CacheSetting, shared_codes
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress


class Reconstructions:
    """Decoded vectors (N, D) in the order of the original ones, decoded when they are read."""

    def __init__(self, store: CompressedTable) -> None:
        """Read the codes of a table with a code in every row and positions in the column ID."""
        rows = store.table.search().select([ID, *store.columns.names]).to_arrow()
        codes, _ = store.codecs.read(rows)
        self._codecs = store.codecs
        self._codes = codes[np.argsort(rows[ID].to_numpy())]

    def __len__(self) -> int:
        return len(self._codes)

    def __getitem__(self, rows: slice) -> Float32Array:
        return self._codecs.decode(self._codes[rows])


def build_own(
    corpus: Corpus, codec: Codec, *, shortlists: tuple[int, ...], training_seconds: float
) -> SearchedIndex:
    """Compress the corpus to a table of ours.

    Args:
        corpus: the vectors.
        codec: a codec that fits the vectors and the metric.
        shortlists: shortlists to search with, at least NEIGHBORS each. With refine codes, the default is
            measured, too.
        training_seconds: time that training the codec took; 0 if it was loaded.
    """
    started = time.perf_counter()
    name, refined = f"codes_{_code_bytes(codec)}", codec.config.refine_bytes > 0
    store = compress(corpus.docs, codec, into=name, vector_column=VECTOR, progress=False)
    seconds = training_seconds + time.perf_counter() - started

    def search(queries_QD: Float32Array, setting: SearchSetting) -> Indices:
        query = store.search(queries_QD).limit(NEIGHBORS).select([ID])
        if setting.nprobes is not None:
            query = query.nprobes(setting.nprobes)
        if setting.shortlist is not None:
            query = query.shortlist(setting.shortlist)
        return positions_of(query.to_arrow(), len(queries_QD))

    resident = shared_codes(store.snapshots, store.columns).state(CacheSetting()).resident
    partitioned = codec.num_partitions > 1
    return SearchedIndex(
        result=_result(store, seconds),
        settings=[
            SearchSetting(nprobes=nprobes, shortlist=shortlist)
            for shortlist in (*shortlists, *([None] if refined else []))
            for nprobes in (probe_counts(corpus.nprobes, codec.num_partitions) if partitioned else [None])
        ],
        search=search,
        reconstructions=Reconstructions(store),
        scan=None if resident is None else _scan(store.codecs, resident.selections),
    )


def _scan(codecs: TableCodec, selections: Sequence[Selection]) -> Scan:
    def prepare(queries_QD: Float32Array, share: float, threads: int) -> Callable[[], int]:
        nprobes = max(1, round(share * codecs.num_partitions))
        probed_QP = codecs.probed(queries_QD, nprobes, codecs.generations)
        rows = sum(int((probed_QP * np.diff(each.segment.starts_P)).sum()) for each in selections)

        def work() -> int:
            before = num_threads()
            set_num_threads(threads)
            try:
                tables = codecs.lookup_tables(queries_QD, codecs.generations)
                scan(selections, tables, probed_QP, DEFAULT_SHORTLIST, device=codecs.device)
            finally:
                set_num_threads(before)
            return rows

        return work

    return prepare


def name_of(config: CodecConfig) -> str:
    """The kind of a codec; with the size of its first code and the kind of its refine code, if it has one."""
    refine = f"-{config.code_bytes}+{config.refine_kind}" if config.refine_bytes else ""
    return f"{config.kind}{refine}"


def _code_bytes(codec: Codec) -> int:
    """Bytes of a code and its refine code."""
    return codec.config.code_bytes + codec.config.refine_bytes


def _result(store: CompressedTable, build_seconds: float) -> IndexResult:
    stats = store.stats()
    index_bytes = stats.code_disk_bytes + sum(index.size_bytes or 0 for index in store.table.list_indices())
    return IndexResult(
        system=name_of(store.codec.config),
        code_bytes=_code_bytes(store.codec),
        num_partitions=store.codec.config.num_partitions or 0,
        build_seconds=build_seconds,
        index_bytes=index_bytes / stats.rows,
        raw_bytes=0.0,
        total_bytes=(index_bytes + stats.codec_bytes) / stats.rows,
        resident_bytes=stats.resident_bytes / stats.rows if stats.resident_bytes else None,
        exhaustive_recall=None,
    )
