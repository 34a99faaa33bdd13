"""What training shows while it runs."""

from types import TracebackType

import rich.progress

from rqmoe_store.codecs.forks import progress_console


class Progress:
    """A progress bar over the share of a training run that is done, with its key figures."""

    def __init__(self, *, visible: bool) -> None:
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("{task.fields[figures]}"),
            disable=not visible,
            console=progress_console(),
        )
        self._task = self._bar.add_task("training", total=1.0, figures="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def stage(self, description: str) -> None:
        """Name what is being done now."""
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
        """Show the share of the run done (0..1) and the newest figures."""
        parts = [f"loss {loss:.4f}"]
        if validation_mse is not None:
            parts.append(f"validation MSE {validation_mse:.4g}")
        if relative_to_rq is not None:
            parts.append(f"{relative_to_rq:.3f} x RQ")
        if utilisation is not None:
            parts.append(f"codewords used {utilisation:.0%}")
        self._bar.update(self._task, completed=min(share, 1.0), figures=", ".join(parts))
