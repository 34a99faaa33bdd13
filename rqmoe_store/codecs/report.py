"""What training measured about a codec."""

import dataclasses
import math
from typing import Any

from rqmoe_store.errors import InvalidInputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """Errors are means of ||x - x_hat||^2 over held-out vectors, encoded with the codec's defaults."""

    rows: int
    """Vectors trained on."""
    epochs: float
    """Passes made over them."""
    validation_rows: int
    """Vectors the errors were measured on."""
    variance: float
    """Mean squared distance of those vectors to their mean."""
    prefix_mse: tuple[float, ...]
    """Error of every prefix of their codes, 1 byte to all bytes."""
    rq_prefix_mse: tuple[float, ...]
    """The same for the plain RQ that training started from, encoded with the same beam."""
    utilisation: float
    """Share of codewords used at least once by the training vectors, averaged over steps."""
    seconds: float
    """Wall-clock time of the call of `train` that made the codec, codebook initialisation included."""

    @property
    def validation_mse(self) -> float:
        """Error of the whole code."""
        return self.prefix_mse[-1]

    @property
    def rq_validation_mse(self) -> float:
        """Error of plain RQ at the same bytes and beam."""
        return self.rq_prefix_mse[-1]

    @property
    def relative_mse(self) -> float:
        """Error as a share of the variance; NaN where all vectors were the same."""
        return self.validation_mse / self.variance if self.variance else math.nan

    def truncated(self, num_steps: int) -> "TrainingReport":
        """The report of the codec's first `num_steps` steps."""
        return dataclasses.replace(
            self,
            prefix_mse=self.prefix_mse[:num_steps],
            rq_prefix_mse=self.rq_prefix_mse[:num_steps],
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "TrainingReport":
        """Inverse of `to_dict`.

        Raises:
            InvalidInputError: a figure is not a number.
            KeyError, TypeError, ValueError: `fields` are others than those of a report.
        """
        values: dict[str, Any] = dict(fields)
        for name in ("prefix_mse", "rq_prefix_mse"):
            values[name] = tuple(values[name])  # JSON has lists only
        report = cls(**values)
        figures = [report.rows, report.epochs, report.validation_rows, report.variance]
        figures += [report.utilisation, report.seconds, *report.prefix_mse, *report.rq_prefix_mse]
        if not all(type(figure) in (int, float) for figure in figures):
            raise InvalidInputError(f"Got {report}; expected numbers.")
        return report
