"""What a query does, stage by stage: planned, or with what came out of it."""

import contextlib
import dataclasses
import textwrap
import time
from collections.abc import Iterator


@dataclasses.dataclass
class Stage:
    """One stage of a query."""

    name: str
    detail: str
    rows: int | None = None
    """Rows that came out of it, of all queries together; None until it has run."""
    seconds: float = 0.0


class Trace:
    """The stages of one query in the order they run."""

    def __init__(self) -> None:
        self.stages: list[Stage] = []

    def plan(self, name: str, detail: str) -> None:
        """Name a stage without running it."""
        self.stages.append(Stage(name, detail))

    @contextlib.contextmanager
    def stage(self, name: str, detail: str) -> Iterator[Stage]:
        """Time what is done inside; the caller sets the rows."""
        stage = Stage(name, detail)
        self.stages.append(stage)
        started = time.perf_counter()
        try:
            yield stage
        finally:
            stage.seconds = time.perf_counter() - started

    def __str__(self) -> str:
        """One line per stage, the last one first, as LanceDB prints plans; its input is indented below."""
        lines = []
        for depth, stage in enumerate(reversed(self.stages)):
            counts = "" if stage.rows is None else f"  rows={stage.rows:,} time={stage.seconds * 1e3:.3f}ms"
            lines.append(f"{'  ' * depth}{stage.name}: {stage.detail}{counts}")
        return "\n".join(lines)


def indented(plan: str) -> str:
    """A plan as the input of a stage that is written above it."""
    return textwrap.indent(plan.rstrip(), "  ")
