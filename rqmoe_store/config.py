"""Settings: frozen, keyword-only, and checked when they are made."""

import dataclasses
import os
from typing import Any, Literal

from rqmoe_store.errors import InvalidInputError

CodecKind = Literal["rqmoe", "qinco", "rq"]
Metric = Literal["l2", "cosine", "dot"]
KeepVectors = Literal["none", "float16", "float32"]
Preselect = int | Literal["beam"] | None
TrainingPrecision = Literal["auto", "float32", "bfloat16"]

CODEC_KINDS: tuple[CodecKind, ...] = ("rqmoe", "qinco", "rq")
METRICS: tuple[Metric, ...] = ("l2", "cosine", "dot")
KEEP_VECTORS: tuple[KeepVectors, ...] = ("none", "float16", "float32")
TRAINING_PRECISIONS: tuple[TrainingPrecision, ...] = ("auto", "float32", "bfloat16")

MAX_CODEBOOK_SIZE = 256
"""A code is one byte per step."""

MAX_NETWORK_DIM = 384
"""Vectors wider than this run through a narrower network unless `network_dim` says otherwise."""

MIN_ROWS_FOR_PARTITIONS = 20_000
"""Below this many rows a full scan of the codes is cheaper than keeping partitions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Shape of a codec. Fields left at None are decided from the training rows by `resolve`."""

    kind: CodecKind = "rqmoe"
    """"rqmoe" (experts conditioned on the codes), "qinco" (conditioned on the reconstruction) or "rq"."""
    metric: Metric = "l2"
    """Distance that search uses; "cosine" normalizes every vector before encoding."""
    code_bytes: int = 16
    """Bytes per vector = quantization steps."""
    codebook_size: int = 256
    """Codewords per step, 2 to 256."""
    num_partitions: int | None = None
    """Coarse centroids; 0 for none, None to choose by row count."""
    num_experts: int = 4
    """Experts in the mixture (always 1 for "qinco")."""
    num_layers: int = 1
    """Residual blocks per expert."""
    hidden_dim: int | None = None
    """Hidden width of a block; None for 64 below 500,000 training rows and 256 from there on."""
    expert_dim: int | None = None
    """Width of a codeword's expert component; None for min(network_dim, 96) below 500,000 training
    rows and network_dim from there on."""
    network_dim: int | None = None
    """Width in which the experts work; None for min(dim, 384)."""
    beam: int = 3
    """Default number of partial encodings kept per vector: more take longer and lower the error."""
    preselect: Preselect = "beam"
    """Default number of (beam, codeword) pairs per vector and step that the experts score: "beam"
    for as many as are kept, which is where time is best spent; None scores all of them."""

    def __post_init__(self) -> None:
        _require_choice("kind", self.kind, CODEC_KINDS)
        _require_choice("metric", self.metric, METRICS)
        _require_int("code_bytes", self.code_bytes, 1, 4096)
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

    @property
    def least_training_rows(self) -> int:
        """Vectors without which such a codec cannot be trained; a good one takes many more."""
        return max(self.codebook_size, self.num_partitions or 0)

    def resolve(self, *, dim: int, rows: int) -> "CodecConfig":
        """This configuration with every None decided for `rows` training vectors of width `dim`."""
        large = rows >= 500_000
        network_dim = self.network_dim or min(dim, MAX_NETWORK_DIM)
        if network_dim > dim:
            raise InvalidInputError(
                f"network_dim={network_dim} is wider than the vectors ({dim}); use at most {dim}."
            )
        num_partitions = self.num_partitions
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

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a codec is trained.

    A run limited by `epochs` alone repeats bit for bit with the same seed on the same machine, with
    the same number of threads and the same versions of torch and numpy. Elsewhere sums are rounded in
    another order, and the same seed gives other weights and codes of much the same error; with
    `precision="auto"`, processors also differ in the number format. With `max_minutes` the
    learning-rate schedule follows the clock, so repeats differ slightly.
    """

    max_minutes: float | None = None
    """Wall-clock budget for everything `train` does: sampling, codebooks, experts, look-up tables, measuring.
    Codebooks are fitted to fewer vectors if need be (but 16 for each codeword), and so are tables, for which
    time is kept. In `CompressedTable.train` and `retrain`, encoding the rows comes afterwards."""
    epochs: int | None = None
    """Passes over the training sample; None for 30, or as many as `max_minutes` allows."""
    batch_size: int = 1024
    """Vectors per optimizer step, of all processes together."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW, after warm-up and before cosine decay; halved, up to five times, whenever
    training becomes NaN or infinite and goes back to its best weights."""
    weight_decay: float = 0.05
    """Decoupled weight decay of the expert networks; codebooks are not decayed."""
    clip_norm: float = 1.0
    """Gradient norm above which gradients are scaled down."""
    patience: int | None = None
    """Validations without improvement after which training stops; None to use epochs or minutes up.
    There is one validation an epoch, and never fewer than 50 steps between two."""
    warmup_fraction: float = 0.03
    """Share of the run over which the rate climbs from zero."""
    max_rows: int = 1_000_000
    """Rows sampled from the table at most; the rest of the table is never read."""
    validation_rows: int = 5_000
    """Rows held out of the sample at most (never more than a tenth of it)."""
    seed: int = 0
    """Seed of the sample, the codebooks, the network weights and the batch order."""
    device: str = "auto"
    """"auto" (CUDA when there is one; each of several processes has its own), "cpu", "cuda" or
    "cuda:1", ..."""
    precision: TrainingPrecision = "auto"
    """Number format of the experts' matrix products in training: "float32"; "bfloat16" (torch's
    autocast), which rounds more and is quicker on hardware made for it only; or "auto", bfloat16 on
    such hardware and float32 elsewhere. Weights and the optimizer stay float32; a trained codec
    encodes in float32 whatever it was trained in."""
    checkpoint_dir: str | os.PathLike[str] | None = None
    """Where progress is kept. With it, Ctrl-C returns the best codec so far and the next run with
    the same settings goes on where this one stopped, in as many processes as one likes."""
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
    """Pairs that the experts score at every step; None for all of them.

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
