"""Advice: what every candidate codec would give at a table's full size, and which one is recommended.

All times are wall-clock seconds on the machine that measured. All sizes are bytes. Recalls and shares run
from 0 to 1.
"""

import dataclasses
import math
import os
from typing import Any, Literal

from rqmoe_store.config import CodecConfig, Metric
from rqmoe_store.pages.page import require_page, write_page
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.store.health import CommitError, HealthReport
from rqmoe_store.store.statistics import readable

CandidateKind = Literal["rq", "rqmoe", "int8", "binary"]
"""Kinds of codecs that advice compares. Tables can be compressed with "rq" and "rqmoe"; "int8" and
"binary" are the usual scalar codecs of other databases, to compare with."""

SCALARS: tuple[CandidateKind, ...] = ("int8", "binary")
"""Kinds that no table of this library has."""

LEAST_TRAINING_ROWS = 1_000
"""Fewest training vectors that a codec with codebooks is tried with."""

FLOAT_BYTES = 4
"""Bytes of a component of a raw vector."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartitionError:
    """Error of the random sample's rows in one partition."""

    partition: int
    rows: int
    relative_error: float
    """Their mean squared error, as a share of the variance of all vectors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One codec, measured on a sample of the vectors, with figures for the whole table."""

    kind: CandidateKind
    code_bytes: int
    """Bytes of a code."""
    refine_bytes: int
    """Bytes of a refine code; 0 for none."""
    config: CodecConfig | None
    """Configuration to train such a codec with; None for a scalar codec, which tables here cannot have."""
    recall: float
    """Share of the k nearest vectors that an exhaustive search of the codes finds, estimated at the table's
    full number of rows; mean over the queries."""
    recall_low: float
    """Lower end of the 95 % confidence interval of `recall`: bootstrap over the queries."""
    recall_high: float
    """Upper end of the same interval."""
    sample_recall: float
    """The same share among the rows of the sample alone. With fewer rows, neighbors lie farther apart and are
    easier to tell, so this is usually more than `recall`."""
    default_search_recall: float | None
    """`recall` of searches that probe the default number of partitions, before `tune` has chosen how many;
    None for a scalar codec."""
    relative_error: float
    """Mean squared error of held-out vectors, as a share of their variance."""
    bytes_per_vector: float
    """Bytes of code, refine code and partition id."""
    codec_bytes: int
    """Bytes of the trained codec, which a table keeps once."""
    table_bytes: int
    """Bytes of all vectors of the full table, with the codec."""
    break_even_rows: int | None
    """Rows from which on codes and codec together are smaller than raw vectors; None if they never are."""
    query_seconds: float | None
    """Time of one query at the full number of rows with codes in memory, without taking its columns; None for
    a scalar codec."""
    encode_seconds: float
    """Time to encode all rows of the table."""
    training_seconds: float
    """Time that training took, refine codes included."""
    minutes: float | None
    """Training budget of the codec, in minutes; None for a scalar codec."""
    partition_errors: tuple[PartitionError, ...] = ()
    """Errors of the partitions that have rows of the random sample; empty for codecs without partitions."""
    epochs: float | None = None
    """Passes over the training vectors, 0 for plain RQ; None for a scalar codec."""

    @property
    def name(self) -> str:
        """Kind and bytes, such as "rqmoe 16 + 48"."""
        if self.config is None:
            return self.kind
        refine = f" + {self.refine_bytes}" if self.refine_bytes else ""
        return f"{self.kind} {self.code_bytes}{refine}"

    @property
    def total_bytes(self) -> int:
        """Bytes of code and refine code together."""
        return self.code_bytes + self.refine_bytes

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-ready values, with `name` and `total_bytes`."""
        return {"name": self.name, "total_bytes": self.total_bytes, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advice:
    """All candidates with their figures, and the recommendation; prints as a table."""

    source: str
    """What the vectors come from: name of a table, path of a file, or "array"."""
    rows: int
    """Rows with a vector in the source: the full size that all figures are for."""
    dim: int
    """Dimension of the vectors."""
    metric: Metric
    k: int
    """Nearest vectors per query that recall counts."""
    target_recall: float
    """Recall that was asked for."""
    num_queries: int
    """Queries that recall was measured with."""
    own_queries: bool
    """Whether the queries were given; False if held-out rows of the source stood in for them."""
    training_rows: int
    """Rows that the candidates were trained on."""
    encoded_rows: int
    """Rows that each candidate encoded to measure recall; equal to `rows` where that is the whole source."""
    method: str
    """How recall at the full number of rows was estimated, in a sentence."""
    candidates: tuple[Candidate, ...]
    """All candidates measured, by total bytes; scalar codecs last."""
    recommended: int | None
    """Place of the recommended candidate in `candidates`; None if raw vectors are the better choice, or no
    candidate reaches the target."""
    sentence: str
    """The recommendation, in a sentence or two."""
    notes: tuple[str, ...]
    """What else to know: that compressing does not pay, that longer training would, that the source is
    compressed already, that the measurement was interrupted."""
    commands: tuple[str, ...]
    """The next commands to type, quoted for a shell; none if nothing is recommended or the source is no
    table."""
    seconds: float
    """Time that the measurement took."""
    complete: bool
    """Whether all candidates were measured; False after an interruption."""
    health: HealthReport | None = None
    """Whether the codec of the source fits the rows added to it; None if the source is not compressed."""
    commits: tuple[CommitError, ...] = ()
    """The same by commit, of the versions that are still there."""

    @property
    def raw_bytes(self) -> int:
        """Bytes of all vectors of the table as float32."""
        return self.rows * self.dim * FLOAT_BYTES

    @property
    def recommendation(self) -> Candidate | None:
        """The recommended candidate."""
        return None if self.recommended is None else self.candidates[self.recommended]

    @property
    def config(self) -> CodecConfig | None:
        """Configuration of the recommended codec, for `train`."""
        return None if self.recommendation is None else self.recommendation.config

    @property
    def closest(self) -> Candidate | None:
        """The candidate with the highest recall among those that a table can have."""
        usable = [candidate for candidate in self.candidates if candidate.config is not None]
        return max(usable, key=lambda candidate: candidate.recall, default=None)

    @translates_errors
    def save_report(self, path: str | os.PathLike[str]) -> None:
        """Write the advice as an HTML page with plots.

        The page is one file that loads nothing: recall against bytes, size as the table grows, error by
        partition, what each choice costs, and the commands that follow. Needs the extra `report`. A file at
        `path` is replaced once the page is complete.

        Args:
            path: file in a folder that exists.

        Raises:
            InvalidInputError: no file can be written at `path`.
            RQMoEError: the libraries of the extra `report` are not installed.
        """
        from rqmoe_store.advice.report import advice_page

        place = require_page(path)
        write_page(advice_page(self), place)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values."""
        return {
            **dataclasses.asdict(self),
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "raw_bytes": self.raw_bytes,
        }

    def __str__(self) -> str:
        names = [candidate.name for candidate in self.candidates]
        width = max(map(len, ["codec", *names]))
        lines = [
            f"{'':2}{'codec':<{width}}{'bytes':>7}{'recall':>8}{'95 % interval':>15}{'default':>9}"
            f"{'error':>8}{'table':>12}{'query':>10}{'encoding':>10}{'training':>10}"
        ]
        for place, candidate in enumerate(self.candidates):
            mark = "> " if place == self.recommended else "  "
            lines.append(f"{mark}{candidate.name:<{width}}{_figures(candidate)}")
        paragraphs = [self._header(), "\n".join(lines), self.sentence, *self.notes]
        if self.commands:
            paragraphs.append("Next:\n" + "\n".join(f"    {command}" for command in self.commands))
        return "\n\n".join(paragraphs)

    def _header(self) -> str:
        of = "queries" if self.own_queries else "rows of the source as queries"
        return (
            f"{self.source}: {self.rows:,} vectors of dimension {self.dim} ({readable(self.raw_bytes)} as "
            f"float32), {self.metric}. Recall of the {self.k} nearest, with {self.num_queries:,} {of}. "
            f"{self.method}"
        )


def _figures(candidate: Candidate) -> str:
    default, query = candidate.default_search_recall, candidate.query_seconds
    interval = f"{candidate.recall_low:.3f}-{candidate.recall_high:.3f}"
    return (
        f"{candidate.total_bytes:>7,}{candidate.recall:>8.3f}{interval:>15}"
        f"{'' if default is None else format(default, '.3f'):>9}{candidate.relative_error:>8.3f}"
        f"{readable(candidate.table_bytes):>12}{'' if query is None else f'{1e3 * query:,.2f} ms':>10}"
        f"{duration(candidate.encode_seconds):>10}{duration(candidate.training_seconds):>10}"
    )


def duration(seconds: float) -> str:
    """A time in a unit that suits its length."""
    if seconds < 1:
        return f"{1e3 * seconds:,.0f} ms"
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7_200 else f"{seconds / 3_600:,.1f} h"


def break_even(codec_bytes: int, raw_bytes: float, bytes_per_vector: float) -> int | None:
    """Rows from which on codes and codec are smaller than raw vectors; None if they never are."""
    saved = raw_bytes - bytes_per_vector
    return math.ceil(codec_bytes / saved) if saved > 0 else None
