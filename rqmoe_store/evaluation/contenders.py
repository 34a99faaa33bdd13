"""Contenders: codecs to compare, ours and FAISS's, behind one interface; and how they are timed.

Shape suffixes: N vectors, D vector dimension, B vectors of a batch.
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
from rqmoe_store.config import CODEC_KINDS, CodecConfig, Metric, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.machine import require_bench
from rqmoe_store.evaluation.scalar_codecs import BinaryCodec, Int8Codec
from rqmoe_store.training.trainer import train

REFERENCE = "rq"
"""Codec that is always measured, because errors are relative to its error."""

PEERS = ("opq", "faiss-rq", "lsq")
"""Codecs of FAISS."""

SCALARS = ("int8", "binary")
"""Codecs of a byte or a bit per component, whatever sizes the others have."""

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
    """Kind of codec, name of a FAISS codec or a scalar one, or the folder of a codec."""
    code_bytes: int
    is_trained: bool
    """Whether `prepare` trains the codec, rather than returns a loaded one."""
    device: torch.device
    """Device that the codec runs on."""
    prepare: Callable[[Float32Array], MeasuredCodec]
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
) -> list[Contender]:
    """The codecs to measure, ordered by size; `rq` is the first of every size but those of scalar codecs.

    Args:
        names: kinds of our codecs, names of FAISS codecs and scalar ones, and folders of trained codecs, as
            `check_names` accepts them.
        code_bytes: sizes to train. A loaded codec has its own, and so has a scalar one.
        config: all other settings of our codecs.
        training: how to train our codecs.
        dim: dimension of the vectors.
        training_rows: vectors to train on.

    Raises:
        InvalidInputError: the codec in a folder does not fit the data or the metric, or there are too few
            vectors for a FAISS codec.
        ArtifactError: a folder has no readable codec.
        RQMoEError: FAISS is needed and not installed.
    """
    trained = [name for name in dict.fromkeys(names) if name in (*CODEC_KINDS, *PEERS)]
    device = select_device(training.device)
    loaded = [
        _loaded(name, config, dim, training.device)
        for name in dict.fromkeys(names)
        if name not in (*trained, *SCALARS)
    ]
    sizes = {*(code_bytes if trained else ()), *(contender.code_bytes for contender in loaded)}
    contenders = []
    for size in sorted(sizes):
        wanted = [REFERENCE, *(name for name in trained if name != REFERENCE and size in code_bytes)]
        for name in wanted:
            chosen = dataclasses.replace(config, code_bytes=size)
            contenders.append(
                _peer(name, chosen, dim, training_rows)
                if name in PEERS
                else _own(dataclasses.replace(chosen, kind=name), training, device)  # type: ignore[arg-type]
            )
        contenders += [contender for contender in loaded if contender.code_bytes == size]
    return contenders + [_scalar(name, dim) for name in SCALARS if name in names]


def check_names(names: Sequence[str]) -> None:
    """Raise InvalidInputError unless every name is a kind, another known codec, or an existing folder."""
    known = (*CODEC_KINDS, *PEERS, *SCALARS)
    for name in names:
        if name not in known and not (name and Path(name).expanduser().is_dir()):
            raise InvalidInputError(
                f"Codec {name!r} is unknown; choose some of {', '.join(known)}, "
                "or give the folder of a codec that was saved."
            )


def _own(config: CodecConfig, training: TrainConfig, device: torch.device) -> Contender:
    def prepare(training_ND: Float32Array) -> MeasuredCodec:
        return OwnCodec(train(training_ND, config=config, training=training))

    return Contender(config.kind, config.code_bytes, True, device, prepare)


def load_matching(folder: str, *, dim: int, metric: Metric, device: str) -> Codec:
    """Load the codec in `folder`, and check that it is for such vectors.

    Raises:
        InvalidInputError: the codec is for another dimension or metric.
        ArtifactError: the folder has no readable codec.
    """
    codec = load_codec(Path(folder).expanduser(), device=device)
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
