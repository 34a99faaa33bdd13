"""CPU time of a whole training on one thread, by version of this package.

    PYTHONPATH=<version> python docs/benchmarks/measure_training_cost.py run base.npy NAME --into runs.jsonl
    python docs/benchmarks/measure_training_cost.py record runs.jsonl --json training-cost.json

`run` trains the default codec (16 bytes, cosine, no partitions) on the first rows, measures it on the last
5,000, and adds a line to a file. Run it with each version in turn. It uses names that every version has.
"""

import json
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.training import loop
from rqmoe_store.training.trainer import train

COLUMNS = {
    "version": "version",
    "step_seconds": "steps (s)",
    "vectors_per_second": "vectors/s in steps",
    "other_seconds": "all else (s)",
    "total_seconds": "altogether (s)",
    "mse": "MSE",
    "rq_mse": "MSE of its plain RQ",
}
HELD_OUT = 5_000

app = typer.Typer(add_completion=False)


class Clock:
    """CPU seconds spent in the optimizer's steps."""

    seconds = 0.0

    def time(self, step: Any) -> Any:
        """The step, timed."""

        def timed(*arguments: Any, **settings: Any) -> Any:
            began = time.process_time()
            try:
                return step(*arguments, **settings)
            finally:
                self.seconds += time.process_time() - began

        return timed


@app.command()
def run(
    path: Annotated[Path, typer.Argument(help="A .npy file of vectors, one a row.")],
    version: str,
    into: Annotated[Path, typer.Option(help="File of runs, one a line.")],
    rows: int = 20_000,
    epochs: int = 5,
) -> None:
    """Train once, and add what it took to a file."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    vectors_nD, clock = np.load(path, mmap_mode="r"), Clock()
    loop.TrainingLoop._train_step = clock.time(loop.TrainingLoop._train_step)  # type: ignore[method-assign]
    began = time.process_time()
    codec = train(
        np.asarray(vectors_nD[:rows], np.float32),
        config=CodecConfig(metric="cosine", num_partitions=0),
        training=TrainConfig(epochs=epochs, progress=False),
        validation=np.asarray(vectors_nD[-HELD_OUT:], np.float32),
    )
    total = time.process_time() - began
    found = {
        "version": version,
        "rows": rows,
        "epochs": epochs,
        "step_seconds": round(clock.seconds, 1),
        "vectors_per_second": round(rows * epochs / clock.seconds),
        "other_seconds": round(total - clock.seconds, 1),
        "total_seconds": round(total, 1),
        "mse": codec.report.validation_mse,
        "rq_mse": codec.report.rq_prefix_mse[-1],
    }
    with into.open("a") as file:
        file.write(json.dumps(found) + "\n")
    print(json.dumps(found))


@app.command()
def record(runs: Path, json_path: Annotated[Path, typer.Option("--json")]) -> None:
    """Write the record that `BENCHMARKS.md` shows, in the order of the runs."""
    from rqmoe_store.evaluation.machine import describe_machine  # versions before have none

    lines = [json.loads(line) for line in runs.read_text().splitlines()]
    found = {
        "command": "python docs/benchmarks/measure_training_cost.py run base.npy VERSION --into runs.jsonl"
        f" --rows {lines[0]['rows']} --epochs {lines[0]['epochs']}",
        "machine": describe_machine(torch.device("cpu")),
        "date": datetime.now(UTC).date().isoformat(),
        "columns": list(COLUMNS.values()),
        "rows": [[_cell(name, line[name]) for name in COLUMNS] for line in lines],
    }
    json_path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def _cell(name: str, value: Any) -> Any:
    """Errors with four digits after the point, seconds with one."""
    if not isinstance(value, float):
        return value
    return f"{value:.1f}" if name.endswith("seconds") else f"{value:.4f}"


if __name__ == "__main__":
    app()
