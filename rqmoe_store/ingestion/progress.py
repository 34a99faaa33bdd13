"""How far an ingestion has come."""

from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from rqmoe_store.codecs.forks import progress_console


class _Rate(ProgressColumn):
    """Rows so far, and rows and bytes a second."""

    def render(self, task: Task) -> Text:
        seconds = max(task.elapsed or 0.0, 1e-9)
        rows, size = task.fields["rows"], task.fields["size"]
        return Text(f"{rows:,} rows  {rows / seconds:,.0f} rows/s  {decimal(int(size / seconds))}/s")


class IngestProgress:
    """A bar of the bytes of the source that are done, with rows, speed and the time that is left."""

    def __init__(self, total_bytes: int | None, *, visible: bool) -> None:
        """Begin.

        Args:
            total_bytes: of the source; None where nobody knows.
            visible: whether to show anything.
        """
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=not visible,
            console=progress_console(),
        )
        self._task = self._bar.add_task("Ingesting", total=total_bytes, rows=0, size=0)
        self._rows = self._size = 0

    def __enter__(self) -> "IngestProgress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def advance(self, *, rows: int, arrow_bytes: int, source_bytes: int) -> None:
        """Take note of more rows, what they take in memory, and their share of the source."""
        self._rows, self._size = self._rows + rows, self._size + arrow_bytes
        self._bar.update(self._task, advance=source_bytes, rows=self._rows, size=self._size)
