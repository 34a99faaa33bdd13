"""Contenders: codecs to compare, ours and those of other libraries; and how they are timed.

Shape suffixes: N vectors, Q queries, K neighbors, D vector dimension, B vectors of a batch.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from rqmoe_store.codecs.base import Codec, load_codec
from rqmoe_store.codecs.device import select_device
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CODEC_KINDS, TRANSFORM_KINDS, CodecConfig, Metric, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.peer_names import (
    FAISS_RQ,
    FORMS,
    LANCEDB_PQ,
    PEERS,
    SCALARS,
    family_of,
    form_names,
    form_of,
    is_engine,
    is_peer,
    require_peers,
)
from rqmoe_store.evaluation.recall import Indices
from rqmoe_store.evaluation.scalar_codecs import BinaryCodec, Int8Codec
from rqmoe_store.training.trainer import add_refine_codes, train

REFERENCE = "rq"
"""Codec that is always measured, because errors are relative to its error."""

_OF_ANY_SIZE = (*PEERS, LANCEDB_PQ)
"""Other libraries' codecs that take any size."""

_MOST_BYTES = {FAISS_RQ: 64, "lsq": 16}
"""Codecs -> the largest total of bytes that they are compared at, as training takes them ever longer."""

BATCHES = (1, 64, 4096)
"""Vectors at a time: a single query, a small batch, bulk work."""

_WARM_UP = 64
_LEAST_REPEATS = 3
_ENOUGH_SECONDS = 0.5
_MOST_REPEATS = 100

Value = TypeVar("Value")


class MeasuredCodec(Protocol):
    """Interface through which all codecs are measured."""

    @property
    def artifact_bytes(self) -> int:
        """Size of the trained codec itself."""

    @property
    def epochs(self) -> float | None:
        """Passes of training over its vectors; None if training has no such passes."""

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that the codec was made with, as JSON-ready values."""

    def encode(self, vectors_ND: Float32Array) -> Any:
        """Encode vectors to codes, whose rows can be indexed like those of an array."""

    def decode(self, codes: Any) -> Float32Array:
        """Decode codes to reconstructions (N, D), float32."""

    def save(self, path: Path) -> None:
        """Save the codec at `path`."""


@dataclasses.dataclass(frozen=True)
class SearchedCodec:
    """A codec that is measured by the search of its own library, which does not decode its codes."""

    settings: dict[str, Any]
    """Settings that the codec was made with, as JSON-ready values."""
    search: Callable[[Float32Array, Float32Array, int], Indices]
    """Vectors (N, D), queries (Q, D), k -> positions of the k nearest vectors (Q, k), by an exhaustive search
    of their codes."""


@dataclasses.dataclass(frozen=True)
class OwnCodec:
    """A codec of this library."""

    codec: Codec

    @property
    def artifact_bytes(self) -> int:
        artifact = self.codec.to_artifact()
        return len(artifact.config_json.encode()) + len(artifact.weights)

    @property
    def epochs(self) -> float | None:
        return self.codec.report.epochs

    @property
    def settings(self) -> dict[str, Any]:
        return self.codec.config.to_dict()

    def encode(self, vectors_ND: Float32Array) -> Any:
        return self.codec.encode(vectors_ND)

    def decode(self, codes: Any) -> Float32Array:
        return self.codec.decode(codes)

    def save(self, path: Path) -> None:
        self.codec.save(path)


@dataclasses.dataclass(frozen=True)
class Contender:
    """A codec to measure."""

    name: str
    """Kind of codec, name of a codec of another library or a scalar one, or the folder of a codec."""
    code_bytes: int
    """All bytes that are kept per vector, such as factors and row ids that are part of an index."""
    is_trained: bool
    """Whether `prepare` trains the codec."""
    device: torch.device
    """Device that the codec runs on."""
    prepare: Callable[[Float32Array], MeasuredCodec | SearchedCodec]
    """Training vectors (N, D) -> the codec."""

    def __str__(self) -> str:
        return f"{self.name}, {self.code_bytes} bytes"


def plan_contenders(
    names: Sequence[str],
    code_bytes: Sequence[int],
    *,
    config: CodecConfig,
    training: TrainConfig,
    dim: int,
    training_rows: int,
    refine_bytes: Sequence[int] = (),
    total_bytes: Sequence[int] = (),
) -> list[Contender]:
    """The codecs to measure, ordered by size; `rq` is the first of every size of those that take any, except
    where transform codes are the only ones.

    Args:
        names: kinds of our codecs, names of other codecs, and folders of trained codecs, as `check_names`
            accepts them.
        code_bytes: sizes to train. A loaded codec has its own, and so has one whose size follows from bits.
        config: all other settings of our codecs.
        training: how to train our codecs.
        dim: dimension of the vectors.
        training_rows: vectors to train on.
        refine_bytes: sizes of refine codes. Every codec of ours is also measured with each of them, at the
            total of bytes; it is trained once for all of these.
        total_bytes: sizes to compare at. Transform codes and other libraries' codecs of any size have them
            instead of `code_bytes`, and to get to a size our codecs get refine codes, on the longest
            code that is shorter.

    Raises:
        InvalidInputError: a codec does not fit the data or the metric, or there are too few vectors for a
            FAISS codec.
        ArtifactError: a folder has no readable codec.
        RQMoEError: a library that is needed is not installed.
    """
    names = list(dict.fromkeys(names))
    require_peers(names)
    planner = _Planner(config, training, select_device(training.device), dim, training_rows)
    planner.most_rq_bytes = max([*code_bytes, *_totals_of(FAISS_RQ, total_bytes)], default=1)
    at_totals = [name for name in names if total_bytes and name in (*_OF_ANY_SIZE, *TRANSFORM_KINDS)]
    trained = [name for name in names if name in (*CODEC_KINDS, *_OF_ANY_SIZE) and name not in at_totals]
    loaded = [planner.loaded(name) for name in names if name not in CODEC_KINDS and not is_peer(name)]
    sizes = {*(code_bytes if trained else ()), *(contender.code_bytes for contender in loaded)}
    contenders = []
    for size in sorted(sizes):
        wanted = [name for name in trained if name != REFERENCE and size in code_bytes]
        # Transform codes take seconds, plain RQ of many bytes minutes.
        if not wanted or REFERENCE in trained or not set(wanted) <= set(TRANSFORM_KINDS):
            wanted = [REFERENCE, *wanted]
        contenders += [planner.of_size(name, size) for name in wanted]
        contenders += [contender for contender in loaded if contender.code_bytes == size]
    # Not plain RQ where it is but the reference.
    asked = {(name, size) for name in trained for size in code_bytes if name in CODEC_KINDS}
    own = [each for each in contenders if each in loaded or (each.name, each.code_bytes) in asked]
    fixed = [planner.of_own_size(name) for name in names if is_peer(name) and name not in _OF_ANY_SIZE]
    fixed += [_refined(each, size, config) for each in own for size in refine_bytes]
    fixed += [_refined(each, size, config) for each, size in _up_to(own, total_bytes)]
    fixed += [planner.of_size(*each) for each in _sizes_at(at_totals, total_bytes, dim)]
    return sorted([*contenders, *fixed], key=lambda contender: contender.code_bytes)


def plan_asked(names: Sequence[str], code_bytes: Sequence[int], **settings: Any) -> list[Contender]:
    """The codecs that `plan_contenders` plans, without plain RQ where it is but a reference of errors."""
    planned = plan_contenders(names, code_bytes, **settings)
    return [each for each in planned if each.name != REFERENCE or REFERENCE in names]


def _up_to(own: Sequence[Contender], total_bytes: Sequence[int]) -> Iterator[tuple[Contender, int]]:
    """For every codec and total, the contender with the longest code below it, and the bytes to the total."""
    for total in total_bytes:
        for name in dict.fromkeys(each.name for each in own):
            shorter = [each for each in own if each.name == name and each.code_bytes <= total]
            if shorter and (longest := max(shorter, key=lambda each: each.code_bytes)).code_bytes < total:
                yield longest, total - longest.code_bytes


def _sizes_at(names: Sequence[str], total_bytes: Sequence[int], dim: int) -> Iterator[tuple[str, int]]:
    """Names of codecs with the code sizes that make totals, or come closest below."""
    for name in names:
        if name != LANCEDB_PQ:
            yield from ((name, total) for total in _totals_of(name, total_bytes))
            continue
        from rqmoe_store.evaluation.lancedb_peers import pq_sub_vectors

        found = [pq_sub_vectors(total, dim) for total in total_bytes]
        yield from ((name, size) for size in dict.fromkeys(found) if size is not None)


def _totals_of(name: str, total_bytes: Sequence[int]) -> list[int]:
    """The totals that a codec is measured at: not those that take it too long to train."""
    return [total for total in total_bytes if total <= _MOST_BYTES.get(name, total)]


@dataclasses.dataclass
class _Planner:
    """What contenders are made of."""

    config: CodecConfig
    training: TrainConfig
    device: torch.device
    dim: int
    training_rows: int
    most_rq_bytes: int = 1
    """Most bytes that "faiss-rq" is measured with. One training is enough for all of its sizes."""
    _trained_rq: list[Any] = dataclasses.field(default_factory=list)

    def of_size(self, name: str, size: int) -> Contender:
        """One of our kinds, or another library's codec that takes any size."""
        config = dataclasses.replace(self.config, code_bytes=size)
        if name in PEERS:
            return self._peer(name, config)
        if name == LANCEDB_PQ:
            return _lancedb_pq(config, self.dim)
        return _own(dataclasses.replace(config, kind=name), self.training, self.device)  # type: ignore[arg-type]

    def of_own_size(self, name: str) -> Contender:
        """A codec whose size follows from the dimension."""
        if name in SCALARS:
            return _scalar(name, self.dim)
        if is_engine(name):
            return _engine(name, self.config.metric, self.dim)
        if name.startswith("faiss-"):
            return _faiss_with_bits(name, self.config.metric, self.dim)
        return _lancedb_rq(name, self.config.metric, self.dim)

    def _peer(self, name: str, config: CodecConfig) -> Contender:
        from rqmoe_store.evaluation.faiss_peers import check_trainable, first_steps, train_peer, train_rq

        check_trainable(name, self.training_rows)

        def prepare(training_ND: Float32Array) -> MeasuredCodec:
            if name != FAISS_RQ:
                return train_peer(name, training_ND, code_bytes=config.code_bytes, beam=config.beam)
            if not self._trained_rq:
                self._trained_rq.append(train_rq(training_ND, self.most_rq_bytes))
            return first_steps(self._trained_rq[0], config.code_bytes, config.beam)

        return Contender(name, config.code_bytes, True, torch.device("cpu"), prepare)

    def loaded(self, folder: str) -> Contender:
        """The codec in a folder."""
        return _loaded(folder, self.config, self.dim, self.training.device)


def check_names(names: Sequence[str]) -> None:
    """Raise InvalidInputError unless every name is a kind, another known codec, or an existing folder."""
    for name in names:
        if name in CODEC_KINDS or is_peer(name) or (name and Path(name).expanduser().is_dir()):
            continue
        known = (*CODEC_KINDS, *_OF_ANY_SIZE, *SCALARS)
        raise InvalidInputError(
            f"Codec {name!r} is unknown; choose some of {', '.join(known)}, {form_names(FORMS)}, "
            "or give the folder of a codec that was saved."
        )


def check_contenders(
    names: Sequence[str], code_bytes: Sequence[int], refine_bytes: Sequence[int], config: CodecConfig
) -> None:
    """Raise InvalidInputError unless all names are known, and codecs of these settings can have the sizes."""
    check_names(names)
    for size in code_bytes:
        dataclasses.replace(config, code_bytes=size)  # checks it
    for size in refine_bytes:
        dataclasses.replace(config, refine_bytes=size)


def _faiss_with_bits(name: str, metric: Metric, dim: int) -> Contender:
    from rqmoe_store.evaluation.faiss_peers import bits_index, check_metric, train_with_bits

    family, bits = family_of(name), int(form_of(name))
    check_metric(name, family, metric)
    code_bytes = bits_index(family, bits, dim, metric).sa_code_size()

    def prepare(training_ND: Float32Array) -> MeasuredCodec | SearchedCodec:
        return train_with_bits(family, bits, training_ND, metric=metric)

    return Contender(name, code_bytes, True, torch.device("cpu"), prepare)


def _lancedb_rq(name: str, metric: Metric, dim: int) -> Contender:
    from rqmoe_store.evaluation.lancedb_peers import check_rq_dim, rq_code_bytes, searched_rq

    check_rq_dim(dim, name)
    bits = int(form_of(name))
    return _searched(name, rq_code_bytes(dim, bits), searched_rq(bits, metric))


def _lancedb_pq(config: CodecConfig, dim: int) -> Contender:
    from rqmoe_store.evaluation.lancedb_peers import check_pq_dim, pq_code_bytes, searched_pq

    check_pq_dim(dim, [config.code_bytes], LANCEDB_PQ)
    codec = searched_pq(config.code_bytes, config.metric)
    return _searched(LANCEDB_PQ, pq_code_bytes(config.code_bytes), codec)


def _engine(name: str, metric: Metric, dim: int) -> Contender:
    from rqmoe_store.evaluation.engine_peers import check_engine, engine_code_bytes, searched_engine

    check_engine(name, metric, dim)
    return _searched(name, engine_code_bytes(name, dim), searched_engine(name, metric))


def _searched(name: str, code_bytes: int, codec: SearchedCodec) -> Contender:
    """A codec whose training is part of building its index, over the vectors that are searched."""
    return Contender(name, code_bytes, False, torch.device("cpu"), lambda _: codec)


def _own(config: CodecConfig, training: TrainConfig, device: torch.device) -> Contender:
    trained: list[OwnCodec] = []

    def prepare(training_ND: Float32Array) -> MeasuredCodec:
        if not trained:  # refine codes are added to the same codec
            trained.append(OwnCodec(train(training_ND, config=config, training=training)))
        return trained[0]

    return Contender(config.kind, config.code_bytes, True, device, prepare)


def _refined(base: Contender, refine_bytes: int, config: CodecConfig) -> Contender:
    """The contender with refine codes; `prepare` fits these alone, if the contender was measured before."""

    def prepare(training_ND: Float32Array) -> MeasuredCodec:
        codec = base.prepare(training_ND)
        assert isinstance(codec, OwnCodec), "only ours have refine codes"
        kind, where = config.refine_kind, config.refine_base
        refined = add_refine_codes(
            codec.codec, training_ND, refine_bytes=refine_bytes, refine_kind=kind, refine_base=where
        )
        return OwnCodec(refined)

    size = f"-{base.code_bytes}"  # the folder of a codec may be named so, as by `--save`
    name = f"{base.name.removesuffix(size)}{size}+{config.refine_kind}"
    return Contender(name, base.code_bytes + refine_bytes, True, base.device, prepare)


def load_matching(folder: str, *, dim: int | None, metric: Metric, device: str) -> Codec:
    """Load the codec in `folder`, and check that it is for such vectors; None for those of any dimension.

    Raises:
        InvalidInputError: the codec is for another dimension or metric.
        ArtifactError: the folder has no readable codec.
    """
    codec = load_codec(Path(folder).expanduser(), device=device)
    dim = codec.dim if dim is None else dim
    if codec.dim != dim or codec.config.metric != metric:
        raise InvalidInputError(
            f"The codec in {folder!r} is for vectors of dimension {codec.dim} and metric "
            f"{codec.config.metric!r}; the vectors have dimension {dim} and the metric is {metric!r}. "
            "Give the vectors and the metric it was trained for."
        )
    return codec


def _loaded(folder: str, config: CodecConfig, dim: int, device: str) -> Contender:
    codec = load_matching(folder, dim=dim, metric=config.metric, device=device)
    return Contender(folder, codec.config.code_bytes, False, codec.device, lambda _: OwnCodec(codec))


def _scalar(name: str, dim: int) -> Contender:
    fit: Callable[[Float32Array], MeasuredCodec]
    fit, code_bytes = (Int8Codec.fit, dim) if name == "int8" else (BinaryCodec.fit, (dim + 7) // 8)
    return Contender(name, code_bytes, True, torch.device("cpu"), fit)


def time_codec(codec: MeasuredCodec, vectors_ND: Float32Array) -> tuple[dict[int, float], dict[int, float]]:
    """Microseconds per vector of encoding and of decoding, by batch size."""
    encoding, decoding = {}, {}
    codec.decode(codec.encode(cyclic(vectors_ND, _WARM_UP)))
    for batch in BATCHES:
        batch_BD = cyclic(vectors_ND, batch)
        # Slow encoders need seconds for the largest batch. One run is then long enough.
        least = 1 if batch == max(BATCHES) else _LEAST_REPEATS
        encode_seconds, codes = time_call(lambda: codec.encode(batch_BD), least=least)  # noqa: B023
        decode_seconds, _ = time_call(lambda: codec.decode(codes), least=least)  # noqa: B023
        encoding[batch] = 1e6 * encode_seconds / batch
        decoding[batch] = 1e6 * decode_seconds / batch
    return encoding, decoding


def time_call(work: Callable[[], Value], *, least: int = _LEAST_REPEATS) -> tuple[float, Value]:
    """Time `work`; returns the median of its seconds over some runs, and its result.

    Runs it for half a second, but at least `least` and at most 100 times, without a warm-up.
    """
    seconds: list[float] = []
    while len(seconds) < least or (sum(seconds) < _ENOUGH_SECONDS and len(seconds) < _MOST_REPEATS):
        started = time.perf_counter()
        value = work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), value


def cyclic(vectors_ND: Float32Array, rows: int) -> Float32Array:
    """`rows` vectors, repeated if there are fewer."""
    return vectors_ND[np.arange(rows) % len(vectors_ND)]
