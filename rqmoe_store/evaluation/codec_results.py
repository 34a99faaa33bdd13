"""Results of the codec benchmark, as JSON-ready values. Optional figures are None if they do not apply."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recalls:
    """Recall of exhaustive search over codes, compared with the vectors themselves."""

    one_recall_1: float
    """Share of queries whose true nearest vector comes first."""
    one_recall_10: float
    """Share of queries whose true nearest vector is among the first 10."""
    one_recall_100: float
    """Share of queries whose true nearest vector is among the first 100."""
    ten_recall_10: float
    """Mean share of the 10 true neighbors among the first 10."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecResult:
    """Figures of one codec. One that only its own library searches has no error, no times and no size."""

    codec: str
    """Kind of codec, name of a codec of another library, or the folder that the codec was loaded from."""
    code_bytes: int
    """All bytes that are kept per vector."""
    settings: dict[str, Any]
    """Settings that the codec was made with."""
    recall: Recalls
    """Recall over the codes of all vectors."""
    unseen_recall: Recalls
    """Recall over the codes of the held-out vectors alone."""
    training_seconds: float | None
    """Wall-clock time of training, codebook initialization included; None for a loaded codec, and for one
    whose training is part of building an index."""
    peak_memory_bytes: int
    """Largest growth of resident memory while training, encoding and decoding all vectors; while training,
    indexing and searching them if only its own library searches the codec."""
    peak_cuda_bytes: int | None
    """Largest growth of the memory allocated on the GPU meanwhile; None on a CPU."""
    epochs: float | None = None
    """Passes over the training vectors; None for other libraries."""
    mse: float | None = None
    """Mean of ||x - x_hat||^2 over the held-out vectors."""
    relative_to_rq: float | None = None
    """The same, divided by that of the codec `rq` of the same size; None if that is 0 or was not measured."""
    encode_microseconds: dict[int, float] | None = None
    """Vectors encoded at a time -> time per vector."""
    decode_microseconds: dict[int, float] | None = None
    """Codes decoded at a time -> time per vector."""
    artifact_bytes: int | None = None
    """Size of the trained codec itself, needed once per table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianBound:
    """Rate-distortion function of a Gaussian with the covariance of the training vectors."""

    code_bytes: int
    mse: float
    """Distortion at 8 bits per code byte."""
    relative_to_rq: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """One way to encode or decode with one of our codecs. All rows of a codec are from one run."""

    codec: str
    code_bytes: int
    work: str
    """"encode" or "decode"."""
    form: str
    """The way. The first row of a codec's encoding or decoding is the default."""
    vectors: int
    """Vectors timed."""
    microseconds: float
    """Time per vector."""
    times_default: float
    """Time as a multiple of the default's."""
    mse: float
    """Error over a few held-out vectors, the same ones for all rows of a codec."""
    multiply_adds: int | None = None
    """Multiply-adds to decode one vector, counted from shapes."""
    matmul_share: float | None = None
    """Multiply-adds per second, as a share of those of a large float32 matrix product."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingRow:
    """Encoding of many vectors from a file."""

    codec: str
    code_bytes: int
    vectors: int
    vectors_per_second: float
    memory_growth_bytes: int
    """Largest growth of resident memory. The codes count, pages of the file do not."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundBy:
    """What a codec finds."""

    codec: str
    code_bytes: int
    recall: float
    """10-recall@10 over the codes of all vectors."""
    unseen_recall: float
    """The same over the codes of the held-out vectors alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestAtSize:
    """The best codecs of at most so many bytes per vector."""

    total_bytes: int
    ours: FoundBy | None
    """The codec of ours that finds most; None if none is so small."""
    best_peer: FoundBy | None
    """The same of other libraries' codecs and scalar ones."""
    better_peers: list[FoundBy]
    """All of these that find more than ours, of all vectors or of the held-out ones."""


@dataclasses.dataclass(kw_only=True)
class BenchmarkReport:
    """All results so far. It grows while codecs are measured."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    results: list[CodecResult] = dataclasses.field(default_factory=list)
    bounds: list[GaussianBound] = dataclasses.field(default_factory=list)
    speed: list[SpeedRow] = dataclasses.field(default_factory=list)
    scaling: list[ScalingRow] = dataclasses.field(default_factory=list)
    best: list[BestAtSize] = dataclasses.field(default_factory=list)
    """Comparison at each total of bytes, if any was asked for."""
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    """Codecs whose library is not installed -> the command that installs it."""

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-ready values."""
        return dataclasses.asdict(self)
