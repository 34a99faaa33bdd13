"""Candidates for advice: which sizes are tried, and how each is trained, encoded and timed.

Plain RQ and RQ-MoE are trained once each, at the bytes of a default code. Half of that code is a candidate,
too, and refine codes of growing size are added to the whole one until recall is enough. All sizes share the
codes of the first stage, so that a further size takes seconds.

Shape legend: E encoded rows, n training vectors, D vector dimension, Q queries, P partitions.
"""

import dataclasses
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from rqmoe_store.advice.estimate import (
    Distances,
    Mask,
    confidence_interval,
    recalls_at_full_size,
    recalls_in_sample,
    shortlists,
)
from rqmoe_store.advice.result import FLOAT_BYTES, Candidate, CandidateKind, PartitionError, break_even
from rqmoe_store.advice.sample import Sample
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.coder import refine_base
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.evaluation.contenders import OwnCodec
from rqmoe_store.evaluation.scalar_codecs import BinaryCodec, Int8Codec
from rqmoe_store.search.request import DEFAULT_NPROBES, DEFAULT_SHORTLIST, SHORTLIST_PER_ROW
from rqmoe_store.search.scan import scan
from rqmoe_store.search.segments import CodeBatch, Selection, grouped
from rqmoe_store.training.trainer import train
from rqmoe_store.training.transform import FITTED_ROWS, fit_refiner

_CODE_BYTES, _WIDE = 16, 1_024
"""Bytes of the first code, and the dimension from which on there are twice as many, as in presets."""
_REFINE_BYTES = (8, 16, 32, 48, 80, 112, 144, 176, 240, 386)
"""Bytes of refine codes for 384 dimensions; for more dimensions in proportion."""
_MEASURED_DIM = 384
_STEP = 8
_ROWS_PER_PARTITION = 16
"""Training vectors per partition; with fewer vectors there are fewer partitions than the table will have."""

_TIMED_QUERIES = 11
_SCANNED_ROWS = 2**20
"""Codes that are scanned to time a query; more rows take longer in proportion."""


def code_sizes(dim: int) -> tuple[int, ...]:
    """Bytes of codes without refine codes, ascending."""
    most = min(dim, _CODE_BYTES if dim < _WIDE else 2 * _CODE_BYTES)
    return tuple(sorted({max(1, most // 2), most}))


def refine_sizes(dim: int, metric: str) -> tuple[int, ...]:
    """Bytes of refine codes, ascending; the last is the most that there can be."""
    most = dim if metric == "dot" else dim + 2
    scale = max(1.0, dim / _MEASURED_DIM)
    sizes = {_STEP * round(scale * size / _STEP) for size in _REFINE_BYTES[:-1]}
    return (*sorted(size for size in sizes if size < most), most)


def between(smaller: int, larger: int) -> int | None:
    """A size halfway between two refine codes; None if there is none worth a try."""
    middle = _STEP * round((smaller + larger) / 2 / _STEP)
    return middle if smaller < middle < larger else None


@dataclasses.dataclass(frozen=True)
class Workbench:
    """The sample, and what all candidates are compared with."""

    sample: Sample
    exact: Distances
    variance: float
    """Mean squared distance of the random sample to its mean."""
    seed: int

    @classmethod
    def of(cls, sample: Sample, seed: int) -> "Workbench":
        """Measure the distances of the vectors themselves."""
        random_SD = sample.encoded_ED[: sample.random_rows]
        variance = float(np.square(random_SD - random_SD.mean(axis=0)).sum(axis=1, dtype=np.float64).mean())
        return cls(sample, Distances.of(sample, sample.encoded_ED), variance, seed)

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return int(self.sample.encoded_ED.shape[1])

    def quality(self, decoded_ED: Float32Array) -> dict[str, Any]:
        """The figures of a candidate that follow from what its codes decode to."""
        sample, distances = self.sample, Distances.of(self.sample, decoded_ED)
        recalls_Q = recalls_at_full_size(sample, distances)
        low, high = confidence_interval(recalls_Q, self.seed)
        errors_SD = (sample.encoded_ED - decoded_ED)[: sample.random_rows]
        error = float(np.square(errors_SD).sum(axis=1, dtype=np.float64).mean())
        return {
            "recall": float(recalls_Q.mean()),
            "recall_low": low,
            "recall_high": high,
            "sample_recall": float(recalls_in_sample(sample, self.exact, distances).mean()),
            "relative_error": error / self.variance if self.variance else 0.0,
        }

    def partition_errors(
        self, codec: Codec, codes: Codes, decoded_ED: Float32Array
    ) -> tuple[PartitionError, ...]:
        """The errors of rows of the random sample by partition; none without partitions."""
        if not codec.config.num_partitions or not self.variance:
            return ()
        rows = self.sample.random_rows
        squares_S = np.square(self.sample.encoded_ED[:rows] - decoded_ED[:rows]).sum(axis=1, dtype=np.float64)
        counts_P = np.bincount(codes.partitions[:rows], minlength=codec.num_partitions)
        sums_P = np.bincount(codes.partitions[:rows], squares_S, codec.num_partitions)
        return tuple(
            PartitionError(
                partition=int(each),
                rows=int(counts_P[each]),
                relative_error=float(sums_P[each] / counts_P[each] / self.variance),
            )
            for each in np.flatnonzero(counts_P)
        )

    def sizes(self, bytes_per_vector: float, codec_bytes: int) -> dict[str, Any]:
        """The figures of a candidate that follow from its bytes."""
        return {
            "bytes_per_vector": bytes_per_vector,
            "codec_bytes": codec_bytes,
            "table_bytes": round(bytes_per_vector * self.sample.all_rows) + codec_bytes,
            "break_even_rows": break_even(codec_bytes, FLOAT_BYTES * self.dim, bytes_per_vector),
        }

    def for_all_rows(self, seconds: float) -> float:
        """The time that all rows of the table take, if the encoded ones take so many seconds."""
        return seconds * self.sample.all_rows / len(self.sample.encoded_ED)

    def scalar(self, kind: CandidateKind) -> Candidate:
        """Measure a scalar codec."""
        fit = Int8Codec.fit if kind == "int8" else BinaryCodec.fit
        started = time.perf_counter()
        codec = fit(self.sample.training_nD)
        fitted = time.perf_counter()
        codes = codec.encode(self.sample.encoded_ED)
        seconds = time.perf_counter() - fitted
        return Candidate(
            kind=kind,
            code_bytes=codes.shape[1],
            refine_bytes=0,
            config=None,
            default_search_recall=None,
            query_seconds=None,
            encode_seconds=self.for_all_rows(seconds),
            training_seconds=fitted - started,
            minutes=None,
            **self.quality(codec.decode(codes)),
            **self.sizes(codes.shape[1], codec.artifact_bytes),
        )


@dataclasses.dataclass(frozen=True)
class TrainedCode:
    """A codec without refine codes, and the codes of all rows that are encoded."""

    bench: Workbench
    kind: CandidateKind
    minutes: float
    codec: Codec
    training_seconds: float
    codes: Codes
    encode_seconds: float
    """Seconds for the encoded rows."""

    @classmethod
    def train(cls, bench: Workbench, kind: CandidateKind, minutes: float) -> "TrainedCode":
        """Train a codec as for the whole table, on the training vectors of the sample."""
        sample, started = bench.sample, time.perf_counter()
        config = CodecConfig(kind=kind, metric=sample.metric, code_bytes=code_sizes(bench.dim)[-1])  # type: ignore[arg-type]
        resolved = config.resolve(dim=bench.dim, rows=sample.all_rows)
        most = len(sample.training_nD) // _ROWS_PER_PARTITION
        config = dataclasses.replace(resolved, num_partitions=min(resolved.num_partitions or 0, most))
        training = TrainConfig(max_minutes=minutes, seed=bench.seed, progress=False)
        codec = train(sample.training_nD, config=config, training=training)
        return cls._encoded(bench, kind, minutes, codec, time.perf_counter() - started)

    @classmethod
    def _encoded(
        cls, bench: Workbench, kind: CandidateKind, minutes: float, codec: Codec, seconds: float
    ) -> "TrainedCode":
        codec.encode(bench.sample.encoded_ED[:1])  # loads what encoding needs
        started = time.perf_counter()
        codes = codec.encode(bench.sample.encoded_ED)
        return cls(bench, kind, minutes, codec, seconds, codes, time.perf_counter() - started)

    def shorter(self, code_bytes: int) -> "TrainedCode":
        """The code of the first bytes alone."""
        codec = self.codec.truncate(code_bytes)
        return self._encoded(self.bench, self.kind, self.minutes, codec, self.training_seconds)

    def plain(self) -> Candidate:
        """Measure it without a refine code."""
        return self._candidate(self.codec, self.codes, self.training_seconds, self.encode_seconds)

    def refined(self, fitting: "Fitting", refine_bytes: int) -> Candidate:
        """Measure it with a refine code."""
        started = time.perf_counter()
        codec, refiner = fitting.add(self.codec, refine_bytes, self.bench.seed)
        fitted, coder = time.perf_counter(), codec.coder
        vectors_ED = coder.clamp(codec.frame, self.bench.sample.encoded_ED)
        squares_E = coder.estimate_squares(self.codes)
        refine = refiner.encode(vectors_ED, refine_base(coder, self.codes), squares_E)
        codes = dataclasses.replace(self.codes, refine=refine)
        encode_seconds = self.encode_seconds + time.perf_counter() - fitted
        return self._candidate(
            codec, codes, self.training_seconds + fitted - started + fitting.seconds, encode_seconds
        )

    def _candidate(
        self, codec: Codec, codes: Codes, training_seconds: float, encode_seconds: float
    ) -> Candidate:
        bench, config = self.bench, codec.config
        decoded_ED = codec.decode(codes)
        allowed = self._default_search(codec, codes)
        found_Q = recalls_at_full_size(bench.sample, Distances.of(bench.sample, decoded_ED).only(*allowed))
        partition_bytes = np.log2(codec.num_partitions) / 8
        return Candidate(
            kind=self.kind,
            code_bytes=config.code_bytes,
            refine_bytes=config.refine_bytes,
            config=CodecConfig(
                kind=config.kind,
                metric=config.metric,
                code_bytes=config.code_bytes,
                refine_bytes=config.refine_bytes,
            ),
            default_search_recall=float(found_Q.mean()),
            query_seconds=time_query(codec, codes, bench.sample),
            encode_seconds=bench.for_all_rows(encode_seconds),
            training_seconds=training_seconds,
            minutes=self.minutes,
            epochs=codec.report.epochs,
            partition_errors=bench.partition_errors(codec, codes, decoded_ED),
            **bench.quality(decoded_ED),
            **bench.sizes(
                config.code_bytes + config.refine_bytes + partition_bytes, OwnCodec(codec).artifact_bytes
            ),
        )

    def _default_search(self, codec: Codec, codes: Codes) -> tuple[Mask, Mask]:
        """Near rows, and rows of the sample, that searches with default parameters rank."""
        sample = self.bench.sample
        probed_QP = probed_partitions(codec, sample.queries_QD)
        rows_Q1 = np.arange(len(probed_QP))[:, None]
        near_QK = probed_QP[rows_Q1, codes.partitions[sample.near_QK]]
        random_QS = probed_QP[:, codes.partitions[: sample.random_rows]]
        coarse = table_scores(codec, codes.unrefined, sample).only(near_QK, random_QS)
        listed_QK, listed_QS = shortlists(sample, coarse, default_shortlist(codec, sample.k))
        return near_QK & listed_QK, random_QS & listed_QS


@dataclasses.dataclass(frozen=True)
class Fitting:
    """Training vectors with their codes, which refine codes of all sizes are fitted to."""

    vectors_nD: Float32Array
    codes: Codes
    seconds: float
    """Time that encoding took."""

    @classmethod
    def of(cls, code: TrainedCode) -> "Fitting":
        """Encode the training vectors."""
        codec, started = code.codec, time.perf_counter()
        training_nD = code.bench.sample.training_nD[:FITTED_ROWS]
        codes = codec.encode(training_nD)
        return cls(codec.frame.transform(training_nD), codes, time.perf_counter() - started)

    def add(self, codec: Codec, refine_bytes: int, seed: int) -> tuple[Codec, Any]:
        """The codec with refine codes, and what encodes these."""
        config = dataclasses.replace(codec.config, refine_bytes=refine_bytes)
        config.require_bytes_for(codec.dim)
        coder = codec.coder.with_config(config)
        refiner = fit_refiner(coder, self.vectors_nD, seed, codes=self.codes)
        return Codec(coder, codec.calibration, codec.report, codec.frame, refiner), refiner


def measured_sizes(code: TrainedCode, target_recall: float, sizes: tuple[int, ...]) -> Iterator[Candidate]:
    """Yield the code alone, then with refine codes of growing size until one reaches the target, and then
    with one halfway between the last two."""
    yield code.plain()
    fitting, smaller = Fitting.of(code), 0
    for size in sizes:
        candidate = code.refined(fitting, size)
        yield candidate
        if candidate.recall >= target_recall:
            middle = between(smaller, size)
            if middle is not None and smaller:
                yield code.refined(fitting, middle)
            return
        smaller = size


def default_shortlist(codec: Codec, k: int) -> int:
    """Rows that a search for k ranks by default."""
    per_row = SHORTLIST_PER_ROW["refined" if codec.config.refine_bytes else "decoded"]
    return max(per_row * k, DEFAULT_SHORTLIST)


def table_scores(codec: Codec, codes: Codes, sample: Sample) -> Distances:
    """Scores by look-up tables, by which a scan chooses the shortlist, in place of distances."""
    tables, first_E = codec.lookup_tables(sample.queries_QD), np.zeros(len(codes), np.int64)
    scores_QE = np.stack(
        [
            tables.select(slice(query, query + 1)).score_each(first_E, codes)
            for query in range(len(sample.queries_QD))
        ]
    ).astype(np.float64)
    near_QK = np.take_along_axis(scores_QE, sample.near_QK, axis=1)
    return Distances(near_QK, scores_QE[:, : sample.random_rows])


def probed_partitions(codec: Codec, queries_QD: Float32Array) -> Mask:
    """The partitions (Q, P) that each query probes by default."""
    probed_QP = np.zeros((len(queries_QD), codec.num_partitions), dtype=bool)
    nearest = codec.probe(queries_QD, min(DEFAULT_NPROBES, codec.num_partitions))
    np.put_along_axis(probed_QP, nearest, True, axis=1)
    return probed_QP


def time_query(codec: Codec, codes: Codes, sample: Sample) -> float:
    """Median seconds of one query among all rows, with codes in memory and default parameters.

    The codes of the encoded rows are repeated until they are as many as the table has, up to a million. The
    scan of more rows takes longer in proportion.
    """
    rows = min(sample.all_rows, _SCANNED_ROWS)
    tiled = codes[np.arange(rows) % len(codes)]
    batch = CodeBatch(np.arange(rows, dtype=np.uint64), tiled)
    selection = Selection(grouped(batch, codec.num_partitions))
    size, seconds = default_shortlist(codec, sample.k), list[float]()
    for query in range(min(_TIMED_QUERIES, len(sample.queries_QD))):
        query_1D, started = sample.queries_QD[query : query + 1], time.perf_counter()
        tables = codec.lookup_tables(query_1D)
        (found,) = scan([selection], {0: tables}, probed_partitions(codec, query_1D), size)
        scanned = time.perf_counter()
        if codec.config.refine_bytes:
            refine = codec.refine_tables(query_1D)
            codec.refined_scores(tables, refine, np.zeros(len(found.rows), np.int64), found.rows.codes)
        else:
            codec.decode(found.rows.codes)
        reranked = time.perf_counter() - scanned
        seconds.append((scanned - started) * sample.all_rows / rows + reranked)
    return statistics.median(seconds[1:] or seconds)  # the first one compiles
