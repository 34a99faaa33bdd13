"""Configuration: settings of codecs and of training, frozen, keyword-only and checked on creation."""

import dataclasses
import os
from typing import Any, Literal

from rqmoe_store.errors import InvalidInputError

CodecKind = Literal["rqmoe", "qinco", "rq", "pq", "saq", "turboquant"]
TransformKind = Literal["pq", "saq", "turboquant"]
RefineBase = Literal["additive", "decoded"]
Metric = Literal["l2", "cosine", "dot"]
KeepVectors = Literal["none", "float16", "float32"]
Preselect = int | Literal["beam"] | None
TrainingPrecision = Literal["auto", "float32", "bfloat16"]

TRANSFORM_KINDS: tuple[TransformKind, ...] = ("pq", "saq", "turboquant")
CODEC_KINDS: tuple[CodecKind, ...] = ("rqmoe", "qinco", "rq", *TRANSFORM_KINDS)
REFINE_BASES: tuple[RefineBase, ...] = ("additive", "decoded")
METRICS: tuple[Metric, ...] = ("l2", "cosine", "dot")
KEEP_VECTORS: tuple[KeepVectors, ...] = ("none", "float16", "float32")
TRAINING_PRECISIONS: tuple[TrainingPrecision, ...] = ("auto", "float32", "bfloat16")

MAX_CODEBOOK_SIZE = 256
"""A code has one byte per step."""

MAX_NETWORK_DIM = 384
"""Default width of the experts' networks for vectors that are wider."""

MIN_ROWS_FOR_PARTITIONS = 20_000
"""With fewer rows, a full scan of the codes is cheaper than maintaining partitions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Shape of a codec. `resolve` decides fields that are None from the training vectors."""

    kind: CodecKind = "rqmoe"
    """"rqmoe" (experts conditioned on the codes), "qinco" (conditioned on the reconstruction), "rq", or a
    transform code, which takes seconds to train: "pq" (k-means per byte over principal components), "saq"
    (scalar levels of principal components) or "turboquant" (scalar levels after a random rotation)."""
    metric: Metric = "l2"
    """Distance that search uses. "cosine" normalizes every vector before encoding."""
    code_bytes: int = 16
    """Bytes per vector, which is the number of quantization steps. A transform code has at most one per
    dimension."""
    refine_bytes: int = 0
    """Bytes of the refine code, a transform code of what the first code leaves over; 0 for none. Searches
    order a shortlist by both. At most one per dimension, and two more for lengths unless the metric is
    "dot". `preset(recall=)` estimates how many a recall takes."""
    refine_kind: TransformKind = "pq"
    """Kind of the refine code."""
    refine_base: RefineBase = "additive"
    """What the refine code is added to: "additive" (the approximation that look-up tables score, so that no
    network runs in a search) or "decoded" (the decoded vector, which is a little nearer)."""
    codebook_size: int = 256
    """Codewords per step, 2 to 256."""
    num_partitions: int | None = None
    """Coarse centroids; 0 for none. None chooses by the number of rows."""
    num_experts: int = 4
    """Experts in the mixture (always 1 for "qinco")."""
    num_layers: int = 1
    """Residual blocks per expert."""
    hidden_dim: int | None = None
    """Hidden width of a block. None means 64 below 500,000 training rows, and 256 from there on."""
    expert_dim: int | None = None
    """Width of a codeword's expert component. None means min(network_dim, 96) below 500,000 training rows,
    and network_dim from there on."""
    network_dim: int | None = None
    """Width in which the experts work. None means min(dim, 384)."""
    beam: int = 3
    """Default number of partial encodings kept per vector. A wider beam is slower and lowers the error."""
    preselect: Preselect = "beam"
    """Default number of (beam entry, codeword) pairs per vector and step that the experts score. "beam" means
    as many as the beam keeps, which is the best use of time; None means all of them."""

    def __post_init__(self) -> None:
        _require_choice("kind", self.kind, CODEC_KINDS)
        _require_choice("metric", self.metric, METRICS)
        _require_int("code_bytes", self.code_bytes, 1, 4096)
        _require_choice("refine_kind", self.refine_kind, TRANSFORM_KINDS)
        _require_choice("refine_base", self.refine_base, REFINE_BASES)
        _require_int("refine_bytes", self.refine_bytes, 0, 2**16)
        if 0 < self.refine_bytes < self._least_refine_bytes:
            raise InvalidInputError(
                f"Got refine_bytes={self.refine_bytes}, two of which are for lengths; expected 0 or at least "
                f"{self._least_refine_bytes}."
            )
        _require_int("codebook_size", self.codebook_size, 2, MAX_CODEBOOK_SIZE)
        _require_int("num_experts", self.num_experts, 1, 1024)
        _require_int("num_layers", self.num_layers, 1, 64)
        _require_int("beam", self.beam, 1, MAX_CODEBOOK_SIZE)
        if self.num_partitions is not None:
            _require_int("num_partitions", self.num_partitions, 0, 2**24)
        for name in ("hidden_dim", "expert_dim", "network_dim"):
            if getattr(self, name) is not None:
                _require_int(name, getattr(self, name), 1, 65_536)
        scored_pairs(self.beam, self.preselect)
        if self.is_transform and (self.codebook_size != MAX_CODEBOOK_SIZE or self.num_partitions):
            raise InvalidInputError(
                f"Got kind={self.kind!r} with codebook_size={self.codebook_size} and "
                f"num_partitions={self.num_partitions}; a transform code has {MAX_CODEBOOK_SIZE} codewords "
                "per byte and no partitions. Leave both out, or use another kind."
            )

    @property
    def is_transform(self) -> bool:
        """Whether the code is a transform code, without experts and partitions."""
        return self.kind in TRANSFORM_KINDS

    @property
    def _least_refine_bytes(self) -> int:
        return 1 if self.metric == "dot" else 3

    @property
    def least_training_rows(self) -> int:
        """Fewest vectors that such a codec can be trained on. A good codec needs many more."""
        return 2 if self.is_transform else max(self.codebook_size, self.num_partitions or 0)

    def resolve(self, *, dim: int, rows: int) -> "CodecConfig":
        """This configuration with every None decided for `rows` training vectors of width `dim`."""
        large = rows >= 500_000
        network_dim = self.network_dim or min(dim, MAX_NETWORK_DIM)
        if network_dim > dim:
            raise InvalidInputError(
                f"network_dim={network_dim} is wider than the vectors ({dim}); use at most {dim}."
            )
        self.require_bytes_for(dim)
        num_partitions = 0 if self.is_transform else self.num_partitions
        if num_partitions is None:
            num_partitions = 0 if rows < MIN_ROWS_FOR_PARTITIONS else round(rows**0.5)
        return dataclasses.replace(
            self,
            network_dim=network_dim,
            num_partitions=num_partitions,
            num_experts=1 if self.kind == "qinco" else self.num_experts,
            hidden_dim=self.hidden_dim or (256 if large else 64),
            expert_dim=self.expert_dim or (network_dim if large else min(network_dim, 96)),
        )

    def without_partitions(self) -> "CodecConfig":
        """This configuration for the vectors of rows that have many, which partitions cannot find.

        Raises:
            InvalidInputError: it asks for partitions.
        """
        if self.num_partitions:
            raise InvalidInputError(
                f"Got num_partitions={self.num_partitions} for rows of many vectors each; expected 0 or "
                "None, as rows are not found by single vectors."
            )
        return dataclasses.replace(self, num_partitions=0)

    def require_bytes_for(self, dim: int) -> None:
        """Raise InvalidInputError if a transform code has more than 8 bits a dimension."""
        most = {"refine_bytes": dim + self._least_refine_bytes - 1}
        if self.is_transform:
            most["code_bytes"] = dim
        for name, limit in most.items():
            if getattr(self, name) > limit:
                raise InvalidInputError(
                    f"Got {name}={getattr(self, name)} for vectors of dimension {dim}; a transform code has "
                    f"at most 8 bits a dimension. Use at most {limit}, or keep the raw vectors."
                )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiVectorConfig:
    """How tables whose rows have many vectors each find rows: by one fixed dimensional encoding a row.

    Inner products of these encodings approximate the similarity of a row to a query (MaxSim). Scans score
    their codes, and the rows of the shortlist are scored by all their vectors.
    """

    code_bytes: int = 256
    """Bytes of the code of a row's encoding."""
    num_repetitions: int = 8
    """Independent partitions of space, whose encodings follow each other."""
    num_hyperplanes: int = 1
    """Hyperplanes of each repetition, which divide space into 2 ** num_hyperplanes parts."""
    projected_dim: int | None = 128
    """Components to which the vectors of a part are projected; None for all. Never more than they have."""
    final_dim: int | None = None
    """Components to which the whole encoding is projected, which costs much recall; None for all. Never more
    than it has."""
    fill_empty_partitions: bool = True
    """Whether a part without any vector of the row gets its nearest one."""
    seed: int = 0
    """Seed of hyperplanes and projections."""
    subtract_mean: bool = True
    """Whether the codes of a row's vectors are of what their mean leaves over. The mean takes no bytes of its
    own, as it follows from the code of the row's encoding."""

    def __post_init__(self) -> None:
        _require_int("code_bytes", self.code_bytes, 1, 4096)
        _require_int("num_repetitions", self.num_repetitions, 1, 1024)
        _require_int("num_hyperplanes", self.num_hyperplanes, 0, 12)
        for name in ("projected_dim", "final_dim"):
            if getattr(self, name) is not None:
                _require_int(name, getattr(self, name), 1, 2**16)
        for name in ("fill_empty_partitions", "subtract_mean"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInputError(f"{name}={getattr(self, name)!r} must be True or False.")
        _require_int("seed", self.seed, 0, 2**31 - 1)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a codec is trained.

    A run limited by `epochs` alone repeats bit for bit with the same seed, on the same machine, with the same
    number of threads and the same versions of torch and numpy. Other machines round sums in another order, so
    the same seed gives other weights and codes there, with about the same error. With `precision="auto"`,
    processors also differ in the number format. With `max_minutes` the learning rate follows the clock, so
    repeated runs differ slightly.
    """

    max_minutes: float | None = None
    """Wall-clock budget of `train`: sampling, codebooks, experts, look-up tables, refine codes, measuring.
    Some time is reserved for tables and refine codes. If needed, these and codebooks are fitted to fewer
    vectors (codebooks to at least 16 per codeword). `CompressedTable.train` and `retrain` encode the rows
    afterwards, on top of it."""
    epochs: int | None = None
    """Passes over the training sample. None means 30, or as many as `max_minutes` allows."""
    batch_size: int = 1024
    """Vectors per optimizer step, over all processes together."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW, after warm-up and before cosine decay. It is halved, up to five times, whenever the
    loss becomes NaN or infinite and training returns to its best weights."""
    weight_decay: float = 0.05
    """Decoupled weight decay of the expert networks. Codebooks are not decayed."""
    clip_norm: float = 1.0
    """Gradient norm above which gradients are scaled down."""
    patience: int | None = None
    """Validations without improvement after which training stops. None means to use all epochs or minutes.
    There is one validation per epoch, and at least 50 steps between two of them."""
    warmup_fraction: float = 0.03
    """Share of the run during which the learning rate rises from about zero."""
    max_rows: int = 1_000_000
    """Most rows sampled from the table. The other rows are never read."""
    validation_rows: int = 5_000
    """Most rows held out of the sample, and never more than a tenth of it."""
    seed: int = 0
    """Seed of the sample, the codebooks, the network weights and the batch order."""
    device: str = "auto"
    """"auto" (a GPU if there is one; several processes get one each), "cpu", "cuda" or "cuda:1", ..."""
    precision: TrainingPrecision = "auto"
    """Number format of the matrix products in training. "float32"; "bfloat16" (torch's autocast),
    which rounds more and is faster only on hardware that supports it; or "auto", which is bfloat16 on such
    hardware and float32 elsewhere. Weights and optimizer stay in float32, and the trained codec encodes in
    float32 in any case."""
    cuda_graphs: bool = True
    """Record the training step on a GPU as a CUDA graph, which is launched as a whole: several times as many
    steps a second, with the same weights. Several processes do not record."""
    checkpoint_dir: str | os.PathLike[str] | None = None
    """Directory for checkpoints. With it, Ctrl-C returns the best codec so far, and the next run with the
    same settings continues where this one stopped, in any number of processes."""
    checkpoint_minutes: float = 5.0
    """Time between checkpoints."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        _require_choice("precision", self.precision, TRAINING_PRECISIONS)
        if self.epochs is not None:
            _require_int("epochs", self.epochs, 0, 10**9)
        _require_int("batch_size", self.batch_size, 1, 2**24)
        _require_int("max_rows", self.max_rows, 2, 2**40)
        _require_int("validation_rows", self.validation_rows, 1, 2**24)
        _require_int("seed", self.seed, 0, 2**31 - 1)
        for name in ("learning_rate", "clip_norm", "checkpoint_minutes"):
            _require_positive(name, getattr(self, name))
        if self.max_minutes is not None:
            _require_positive("max_minutes", self.max_minutes)
        if self.patience is not None:
            _require_int("patience", self.patience, 1, 10**9)
        _require_place(self.device, self.checkpoint_dir)
        for name in ("weight_decay", "warmup_fraction"):
            if not _is_number(getattr(self, name)) or not 0 <= getattr(self, name) < 1:
                raise InvalidInputError(f"{name}={getattr(self, name)!r} must lie in [0, 1).")


def _require_place(device: object, checkpoint_dir: object) -> None:
    if not isinstance(device, str):
        raise InvalidInputError(
            f"device={device!r} is unknown; use 'auto', 'cpu', 'cuda' or 'cuda:<number>'."
        )
    if checkpoint_dir is not None and not isinstance(checkpoint_dir, str | os.PathLike):
        raise InvalidInputError(f"checkpoint_dir={checkpoint_dir!r} must be the path of a folder, or None.")


def scored_pairs(beam: int, preselect: Preselect) -> int | None:
    """Pairs of beam entry and codeword that the experts score at every step; None for all of them.

    Raises:
        InvalidInputError: `beam` and `preselect` cannot be used together.
    """
    _require_int("beam", beam, 1, MAX_CODEBOOK_SIZE)
    if isinstance(preselect, str) and preselect == "beam":
        return beam
    if preselect is not None:
        _require_int("preselect", preselect, 1, 2**16)
        if preselect < beam:
            raise InvalidInputError(
                f"preselect={preselect} is smaller than beam={beam}: a beam can only be filled from "
                f"preselected candidates. Use preselect >= {beam}, 'beam' for as many, or None for all."
            )
    return preselect


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        options = ", ".join(repr(choice) for choice in choices)
        raise InvalidInputError(f"{name}={value!r} is unknown; choose one of {options}.")


def _require_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidInputError(f"{name}={value!r} must be a whole number from {low} to {high}.")


def _require_positive(name: str, value: float) -> None:
    if not _is_number(value) or not 0 < value < float("inf"):
        raise InvalidInputError(f"{name}={value!r} must be a positive, finite number.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
