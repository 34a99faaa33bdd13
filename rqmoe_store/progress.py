"""Progress bars of training, ingestion and other long work."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from rqmoe_store.codecs.parallel import progress_console


def progress_bar(visible: bool) -> Progress:
    """A bar for each of several tasks, one below the other. It shows nothing unless `visible`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        disable=not visible,
        console=progress_console(),
    )


_LATE_SECONDS = 2.0


@contextlib.contextmanager
def late_progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Provide a function that advances a progress bar, for work that is usually done in a moment.

    The bar appears on the error output, if that is a terminal, when the work is not done after 2 seconds. It
    disappears at the end.
    """
    console = Console(stderr=True)  # a console of its own may show a bar beside another one
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task, started = bar.add_task(description, total=total), time.monotonic()

    def advance(amount: int) -> None:
        bar.advance(task, amount)
        if not bar.live.is_started and time.monotonic() - started > _LATE_SECONDS:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()


class TrainingProgress:
    """A progress bar over the share of a training run that is done, with its key figures."""

    def __init__(self, *, visible: bool) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
            disable=not visible,
            console=progress_console(),
        )
        self._task = self._bar.add_task("training", total=1.0, figures="")

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def stage(self, description: str) -> None:
        """Show the name of the current stage."""
        self._bar.update(self._task, description=description)

    def update(
        self,
        share: float,
        *,
        loss: float,
        validation_mse: float | None,
        relative_to_rq: float | None,
        utilisation: float | None,
    ) -> None:
        """Show the share of the run that is done (0 to 1) and the newest figures."""
        parts = [f"loss {loss:.4f}"]
        if validation_mse is not None:
            parts.append(f"validation MSE {validation_mse:.4g}")
        if relative_to_rq is not None:
            parts.append(f"{relative_to_rq:.3f} x RQ")
        if utilisation is not None:
            parts.append(f"codewords used {utilisation:.0%}")
        self._bar.update(self._task, completed=min(share, 1.0), figures=", ".join(parts))


class _Rate(ProgressColumn):
    """Rows so far, and rows and bytes a second."""

    def render(self, task: Task) -> Text:
        seconds = max(task.elapsed or 0.0, 1e-9)
        rows, size = task.fields["rows"], task.fields["size"]
        return Text(f"{rows:,} rows  {rows / seconds:,.0f} rows/s  {decimal(int(size / seconds))}/s")


class IngestProgress:
    """A progress bar over the bytes of the source, with rows, speed and the time left."""

    def __init__(self, total_bytes: int | None, *, visible: bool) -> None:
        """Create the bar.

        Args:
            total_bytes: size of the source; None if unknown.
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
        """Advance by more rows, their size in memory, and their bytes of the source."""
        self._rows, self._size = self._rows + rows, self._size + arrow_bytes
        self._bar.update(self._task, advance=source_bytes, rows=self._rows, size=self._size)
