"""What to compare when searching, and whether it fits the data."""

import dataclasses
from pathlib import Path
from typing import Any

from rqmoe_store.codecs.device import select_device
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.search_index import (
    FAISS_PQ,
    LANCEDB_PQ,
    LANCEDB_RQ,
    NEIGHBOURS,
    PARTITION_ROWS,
    SYSTEMS,
    default_partitions,
)
from rqmoe_store.evaluation.search_lancedb import RQ_DIMENSIONS

_DEFAULT_CONFIG, _TRAINING = CodecConfig(), TrainConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What to compare, and how."""

    systems: tuple[str, ...] = SYSTEMS
    code_bytes: tuple[int, ...] = (8, 16, 32)
    """Sizes; LanceDB's IVF_RQ has the one that follows from the dimension."""
    codecs: Path | None = None
    """Folder of our codecs, `{kind}-{bytes}` each; None to train them on the vectors."""
    config: CodecConfig = _DEFAULT_CONFIG
    """Kind and metric, and of codecs that are trained every other setting. `num_partitions` also is that of
    other systems' indexes; None for the square root of the rows, but at least 256 rows each."""
    training: TrainConfig = _TRAINING
    """How our codecs are trained."""
    nprobes: tuple[int, ...] = (1, 5, 20, 80)
    """Partitions searched, wherever there are partitions."""
    shortlists: tuple[int, ...] = (20, 30, 100)
    """Rows that ours decodes and reranks."""
    batch: int = 64
    """Queries asked together when throughput is measured."""
    timed_queries: int = 500
    """Queries asked one by one, for latency."""
    synthetic: tuple[int, ...] = ()
    """Rows of tables of random codes that are opened and searched too, with every codec of `codecs`."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.systems if name not in SYSTEMS]
        if unknown or not self.systems:
            raise InvalidInputError(f"Got systems {list(self.systems)}; choose some of {', '.join(SYSTEMS)}.")
        for size in self.code_bytes:
            dataclasses.replace(self.config, code_bytes=size)  # checks it
        for name, least in (("nprobes", 1), ("shortlists", NEIGHBOURS)):
            numbers = getattr(self, name)
            if not numbers or min(numbers) < least:
                raise InvalidInputError(
                    f"Got {name}={numbers}; expected numbers of at least {least}, and at least one of them."
                )
        if self.batch < 1 or self.timed_queries < 1:
            raise InvalidInputError(
                f"Got batch={self.batch}, timed_queries={self.timed_queries}; expected at least 1 of each."
            )
        if self.synthetic and (self.codecs is None or min(self.synthetic) < 1):
            raise InvalidInputError(
                f"Got synthetic={self.synthetic}, codecs={self.codecs}; expected numbers of rows from 1, and "
                "a folder of codecs to draw codes for."
            )
        select_device(self.training.device)

    def partitions(self, rows: int) -> int:
        """Partitions of every index that is made here: at least 1."""
        chosen = self.config.num_partitions
        return default_partitions(rows) if chosen is None else max(1, chosen)

    def require_fit(self, rows: int, dim: int) -> None:
        """Raise InvalidInputError unless every system can index so many vectors of this dimension."""
        partitions = self.partitions(rows)
        if rows < PARTITION_ROWS * partitions:
            raise InvalidInputError(
                f"Got {rows} vectors for {partitions} partitions; expected at least {PARTITION_ROWS} for "
                "each. Give more vectors or fewer partitions."
            )
        products = [name for name in (LANCEDB_PQ, FAISS_PQ) if name in self.systems]
        uneven = [size for size in self.code_bytes if dim % size]
        if products and uneven:
            raise InvalidInputError(
                f"Product quantization of dimension {dim} takes code sizes that divide it; got {uneven}. "
                f"Choose other sizes, or leave out {', '.join(products)}."
            )
        if LANCEDB_RQ in self.systems and dim % RQ_DIMENSIONS:
            raise InvalidInputError(
                f"LanceDB's IVF_RQ takes dimensions that are a multiple of {RQ_DIMENSIONS}; got {dim}. "
                f"Leave out {LANCEDB_RQ}."
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        fields = dataclasses.asdict(self)
        del fields["config"]["code_bytes"]  # the other `code_bytes` says that
        return {**fields, "codecs": None if self.codecs is None else str(self.codecs)}
