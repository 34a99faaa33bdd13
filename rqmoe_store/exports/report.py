"""What an export wrote."""

import dataclasses
from pathlib import Path

from rqmoe_store.store.statistics import readable


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportReport:
    """Rows and files of an export; prints as a line."""

    path: Path
    """What was asked for: a file, or a folder."""
    version: int
    """The version of the table."""
    rows: int = 0
    """Rows written."""
    coded: int = 0
    """Rows of the table with a code."""
    raw: int = 0
    """Rows of the table with a vector and no code."""
    empty: int = 0
    """Rows of the table with neither; an .npy file has none of them, other formats have them as nulls."""
    bytes: int = 0
    """Size of all files."""

    def __str__(self) -> str:
        kinds = {"coded": self.coded, "raw": self.raw, "without a vector": self.empty}
        some = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count) or "none"
        return f"{self.path}: {self.rows:,} rows, {readable(self.bytes)}; rows of the table: {some}"
