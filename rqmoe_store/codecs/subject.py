"""What a codec encodes: whole vectors, or what the means of rows leave over of them."""

import dataclasses
from typing import Any, Literal

from rqmoe_store.config import Metric, MultiVectorConfig
from rqmoe_store.errors import InvalidInputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowResiduals:
    """Residuals of row means: what is left of the vectors of a row that has many, without their mean.

    The mean of a row is estimated from the code of its fixed dimensional encoding.
    """

    metric: Metric
    """Metric of the table; under "cosine" vectors are scaled to unit length before means are subtracted."""
    encoding: MultiVectorConfig
    """How rows become the encodings that means are estimated from."""

    def __str__(self) -> str:
        return "residuals of row means"


Subject = Literal["vectors"] | RowResiduals | None
"""What a codec was trained on. None where that is unknown, as of codecs of earlier releases."""


def of_rows(metric: Metric, encoding: MultiVectorConfig) -> Literal["vectors"] | RowResiduals:
    """What codecs encode in a table of this metric whose rows have many vectors each."""
    return RowResiduals(metric=metric, encoding=encoding) if encoding.subtract_mean else "vectors"


def describe_subject(subject: Subject) -> str:
    """In words for messages."""
    return "whole vectors" if subject == "vectors" else str(subject or "unknown")


def may_be(subject: Subject, wanted: Subject) -> bool:
    """Whether a codec of `subject` can be one of `wanted`, which is known; an unknown one can be of both."""
    return subject is None or isinstance(subject, RowResiduals) == isinstance(wanted, RowResiduals)


def require_vectors(subject: Subject, use: str, instead: str) -> None:
    """Raise InvalidInputError for the subject of a codec that cannot encode whole vectors.

    Args:
        subject: that of the codec.
        use: what the codec is to be used for.
        instead: a sentence that says what to do.
    """
    if not may_be(subject, "vectors"):
        raise InvalidInputError(
            f"Got a codec of {subject} {use}; expected a codec of whole vectors. {instead}"
        )


def subject_to_json(subject: Literal["vectors"] | RowResiduals) -> str | dict[str, Any]:
    """What the description of a codec has of its subject."""
    if isinstance(subject, RowResiduals):
        return {"metric": subject.metric, "encoding": subject.encoding.to_dict()}
    return subject


def subject_from_json(stored: Any) -> Subject:
    """Inverse of `subject_to_json`; None for a description without a subject.

    Raises:
        KeyError, TypeError, ValueError: `stored` is nothing of the kind.
    """
    if stored is None:
        return None
    if stored == "vectors":
        return "vectors"
    metric, encoding = stored["metric"], MultiVectorConfig(**stored["encoding"])
    if metric not in ("cosine", "dot") or not encoding.subtract_mean:
        raise ValueError(f"{stored} are no residuals of row means")
    return RowResiduals(metric=metric, encoding=encoding)
