"""What an ingestion has done."""

import dataclasses

from rich.filesize import decimal


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestReport:
    """Rows of a source that are in a table now; prints as words."""

    table: str
    """Name of the table."""
    quarantine: str | None
    """Name of the table of bad rows; None where they are an error."""
    rows: int
    """Rows added by this call."""
    quarantined: int
    """Rows that this call put into quarantine."""
    pieces: int
    """Pieces of the source: files, fragments of a Lance table, or one stream."""
    skipped: int
    """Those of them that had been ingested to their end before."""
    bytes_read: int
    """What the rows read take in memory."""
    seconds: float
    """From the start of this call."""

    @property
    def rows_per_second(self) -> float:
        """Rows added a second."""
        return self.rows / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.rows:,} rows added to {self.table!r} in {self.seconds:,.1f} s: "
            f"{self.rows_per_second:,.0f} rows/s, {decimal(self.bytes_read)} read"
        ]
        if self.quarantined:
            lines.append(f"{self.quarantined:,} rows cannot be encoded; {self.quarantine!r} has them")
        if self.skipped:
            lines.append(f"{self.skipped:,} of {self.pieces:,} pieces had been ingested before")
        return "\n".join(lines)
