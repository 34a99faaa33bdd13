"""What commands read from a terminal and print to it."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from rqmoe_store.errors import InvalidInputError, RQMoEError

if TYPE_CHECKING:
    from rqmoe_store.codecs.base import Codec
    from rqmoe_store.evaluation.codec_benchmark import CodecResult


class Commands(TyperGroup):
    """Commands that answer a mistake of the user with one message; other exceptions keep their traceback."""

    def invoke(self, context: Any) -> Any:
        try:
            return super().invoke(context)
        except RQMoEError as error:
            Console(stderr=True).print(
                f"[bold red]Error:[/bold red] [red]{escape(str(error))}[/red]", soft_wrap=True
            )
            raise typer.Exit(1) from error


def read_query(query: str) -> Any:
    """The vector or vectors that `--query` names: JSON, or the path of a .npy or .json file.

    Raises:
        InvalidInputError: neither.
    """
    import numpy as np

    path = Path(query)
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        return json.loads(path.read_text() if path.suffix == ".json" else query)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"Cannot read a vector from --query {query!r} ({error}); expected a JSON list such as "
            "'[0.1, 0.2]', or the path of a .npy or .json file."
        ) from error


def print_rows(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print search results as a table, or as one JSON object per row."""
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row, default=str))
        return
    if not rows:
        Console(stderr=True).print("No rows match.")
        return
    shown = Table(*(escape(name) for name in rows[0]))
    for row in rows:
        shown.add_row(
            *(escape(f"{value:.4f}" if isinstance(value, float) else str(value)) for value in row.values())
        )
    Console().print(shown)


def print_trained(codec: "Codec", out: Path) -> None:
    """Say what a codec that was just saved in `out` can do."""
    report = codec.report
    typer.echo(
        f"Codec saved in {out}: {codec.config.code_bytes} bytes per vector, validation MSE "
        f"{report.validation_mse:.6g} (plain RQ: {report.rq_validation_mse:.6g})."
    )


def names_in(text: str) -> list[str]:
    """The names in a list separated by commas."""
    return [name.strip() for name in text.split(",")]


def numbers_in(option: str, text: str) -> list[int]:
    """The whole numbers in a list separated by commas; raises InvalidInputError for anything else."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise InvalidInputError(f"Got {option} {text!r}; expected whole numbers, such as 8,16.") from error


def print_codec_results(results: "Sequence[CodecResult]") -> None:
    """The comparison as a table."""
    headings = (
        "codec", "bytes", "training", "epochs", "MSE", "x RQ", "1-R@1", "1-R@10", "1-R@100", "10-R@10",
        "10-R@10 unseen",
    )  # fmt: skip
    shown = Table(*headings, title="MSE on vectors never trained on; recall over reconstructions")
    for result in results:
        figures = (
            f"{result.training_seconds:.0f} s",
            f"{result.epochs:.1f}",
            f"{result.validation_mse:.4g}",
            f"{result.relative_to_rq:.3f}",
            *(
                f"{recall:.3f}"
                for recall in (
                    result.one_recall_1,
                    result.one_recall_10,
                    result.one_recall_100,
                    result.ten_recall_10,
                    result.unseen_ten_recall_10,
                )
            ),
        )
        shown.add_row(result.kind, str(result.code_bytes), *figures)
    # A pipe has no width of its own; a comparison with cut figures is of no use.
    Console(width=max(Console().width, 120)).print(shown)


def write_json(path: Path, results: "Sequence[CodecResult]") -> None:
    """The figures as a JSON list, one object per codec."""
    from rqmoe_store.codecs.artefact import write_atomically

    write_atomically(path, json.dumps([dataclasses.asdict(result) for result in results], indent=2).encode())
