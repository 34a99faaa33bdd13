"""The progress bar of work on whole tables."""

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rqmoe_store.codecs.forks import progress_console


def progress_bar(visible: bool) -> Progress:
    """A bar for several tasks, one below the other; shows nothing unless `visible`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        disable=not visible,
        console=progress_console(),
    )
