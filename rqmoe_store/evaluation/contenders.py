"""Contenders: codecs to compare, ours and those of other libraries; and how they are timed.

Shape suffixes: N vectors, Q queries, K neighbors, D vector dimension, B vectors of a batch.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from rqmoe_store.codecs.base import Codec, load_codec
from rqmoe_store.codecs.device import select_device
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CODEC_KINDS, TRANSFORM_KINDS, CodecConfig, Metric, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.machine import require_bench
from rqmoe_store.evaluation.recall import Indices
from rqmoe_store.evaluation.scalar_codecs import BinaryCodec, Int8Codec
from rqmoe_store.training.trainer import add_refine_codes, train

REFERENCE = "rq"
"""Codec that is always measured, because errors are relative to its error."""

PEERS = ("opq", "faiss-rq", "lsq")
"""Codecs of FAISS."""

SCALARS = ("int8", "binary")
"""Codecs of a byte or a bit per component, whatever sizes the others have."""

LANCEDB_RQ = "lancedb-ivf-rq"

BITS: dict[str, tuple[int, ...]] = {
    "faiss-rabitq": tuple(range(1, 10)),
    "faiss-eden": tuple(range(1, 9)),
    "faiss-turboquant": (1, 2, 3, 4, 8),
    "faiss-sq": (4, 6, 8),
    LANCEDB_RQ: tuple(range(1, 10)),
}
"""Families of codecs of FAISS and LanceDB whose size follows from bits per component -> bits that they can
have. "faiss-rabitq-2" has two."""

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

    Raises:
        InvalidInputError: a codec does not fit the data or the metric, or there are too few vectors for a
            FAISS codec.
        ArtifactError: a folder has no readable codec.
        RQMoEError: FAISS is needed and not installed.
    """
    names = list(dict.fromkeys(names))
    trained = [name for name in names if name in (*CODEC_KINDS, *PEERS)]
    device = select_device(training.device)
    fixed = [_scalar(name, dim) for name in SCALARS if name in names]
    fixed += [_with_bits(name, config.metric, dim) for name in names if _is_with_bits(name)]
    others = {*trained, *(contender.name for contender in fixed)}
    loaded = [_loaded(name, config, dim, training.device) for name in names if name not in others]
    sizes = {*(code_bytes if trained else ()), *(contender.code_bytes for contender in loaded)}
    contenders = []
    for size in sorted(sizes):
        wanted = [name for name in trained if name != REFERENCE and size in code_bytes]
        # Transform codes take seconds, plain RQ of many bytes minutes.
        if not wanted or REFERENCE in trained or not set(wanted) <= set(TRANSFORM_KINDS):
            wanted = [REFERENCE, *wanted]
        for name in wanted:
            chosen = dataclasses.replace(config, code_bytes=size)
            contenders.append(
                _peer(name, chosen, dim, training_rows)
                if name in PEERS
                else _own(dataclasses.replace(chosen, kind=name), training, device)  # type: ignore[arg-type]
            )
        contenders += [contender for contender in loaded if contender.code_bytes == size]
    # Not plain RQ where it is but the reference.
    asked = {(name, size) for name in trained for size in code_bytes if name in CODEC_KINDS}
    own = [each for each in contenders if each in loaded or (each.name, each.code_bytes) in asked]
    fixed += [_refined(each, size, config) for each in own for size in refine_bytes]
    return sorted([*contenders, *fixed], key=lambda contender: contender.code_bytes)


def check_names(names: Sequence[str]) -> None:
    """Raise InvalidInputError unless every name is a kind, another known codec, or an existing folder."""
    known = (*CODEC_KINDS, *PEERS, *SCALARS)
    for name in names:
        if name in known or _is_with_bits(name) or (name and Path(name).expanduser().is_dir()):
            continue
        with_bits = [f"{family}-{'|'.join(map(str, bits))}" for family, bits in BITS.items()]
        raise InvalidInputError(
            f"Codec {name!r} is unknown; choose some of {', '.join((*known, *with_bits))}, "
            "or give the folder of a codec that was saved."
        )


def family_of(name: str) -> str:
    """The name without its bits per component, if it is that of a codec whose size follows from bits."""
    return name.rpartition("-")[0] if _is_with_bits(name) else name


def needs_faiss(names: Sequence[str]) -> bool:
    """Whether some of these codecs are FAISS's."""
    return any(name in PEERS or (_is_with_bits(name) and _is_faiss(name)) for name in names)


def _is_with_bits(name: str) -> bool:
    family, _, bits = name.rpartition("-")
    return bits in map(str, BITS.get(family, ()))


def _is_faiss(name: str) -> bool:
    return name.startswith("faiss-")


def _with_bits(name: str, metric: Metric, dim: int) -> Contender:
    family, _, bits = name.rpartition("-")
    plan = _faiss_with_bits if _is_faiss(name) else _lancedb_rq
    return plan(name, family, int(bits), metric, dim)


def _faiss_with_bits(name: str, family: str, bits: int, metric: Metric, dim: int) -> Contender:
    require_bench("faiss")
    from rqmoe_store.evaluation.faiss_peers import bits_index, check_metric, train_with_bits

    check_metric(name, family, metric)
    code_bytes = bits_index(family, bits, dim, metric).sa_code_size()

    def prepare(training_ND: Float32Array) -> MeasuredCodec | SearchedCodec:
        return train_with_bits(family, bits, training_ND, metric=metric)

    return Contender(name, code_bytes, True, torch.device("cpu"), prepare)


def _lancedb_rq(name: str, family: str, bits: int, metric: Metric, dim: int) -> Contender:
    from rqmoe_store.evaluation.lancedb_peers import check_rq_dim, rq_code_bytes, searched_rq

    check_rq_dim(dim, name)
    # Training is part of building its index, over the vectors that are searched.
    return Contender(
        name, rq_code_bytes(dim, bits), False, torch.device("cpu"), lambda _: searched_rq(bits, metric)
    )


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

    name, size = f"{base.name}-{base.code_bytes}+{config.refine_kind}", base.code_bytes + refine_bytes
    return Contender(name, size, True, base.device, prepare)


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


def _peer(name: str, config: CodecConfig, dim: int, training_rows: int) -> Contender:
    require_bench("faiss")
    from rqmoe_store.evaluation.faiss_peers import check_trainable, train_peer

    check_trainable(name, training_rows)

    def prepare(training_ND: Float32Array) -> MeasuredCodec:
        return train_peer(name, training_ND, code_bytes=config.code_bytes, beam=config.beam)

    return Contender(name, config.code_bytes, True, torch.device("cpu"), prepare)


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
