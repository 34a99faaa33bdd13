"""What a warm start saves: going on from a codec, compared with training anew.

    python docs/benchmarks/measure_warm_start.py base.npy --json warm-start.json

Codecs are trained on vectors of one kind, one of them briefly, and then others of which a fifth of the
vectors is of another kind: anew, and going on from each of the first, whichever of the two `train` would
choose. The kinds are the two halves that k-means finds.

Shape suffixes: n vectors, D dimension.
"""

import time
import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.evaluation.machine import describe_machine
from rqmoe_store.evaluation.records import run_facts
from rqmoe_store.terminal import write_json
from rqmoe_store.training import initialize as initialize_module
from rqmoe_store.training.initialize import kmeans, nearest
from rqmoe_store.training.trainer import train

CONFIG = CodecConfig(metric="cosine", num_partitions=0)

MOST_ROWS = 60_000


def main(
    path: Annotated[Path, typer.Argument(help="A .npy file of vectors, one a row.")],
    rows: int = 8_000,
    first: str = "8,30",
    epochs: str = "2,4,8",
    json_path: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Train all codecs, print their errors and CPU times, and write the record."""
    warnings.simplefilter("ignore")
    machine, passes = describe_machine(torch.device("cpu")), [int(count) for count in epochs.split(",")]
    first_nD, second_nD = kinds(np.asarray(np.load(path, mmap_mode="r")[:MOST_ROWS], np.float32))
    held = rows // 5
    old_nD, new_nD = first_nD[: rows * 4 // 5], second_nD[: rows // 5]
    mixed_nD = np.random.default_rng(0).permutation(np.concatenate([old_nD, new_nD]))
    held_out_nD = np.concatenate([first_nD[-held * 4 // 5 :], second_nD[-held // 5 :]])

    def series(name: str, start: Codec | None, errors: dict[str, float]) -> list[str]:
        row = [measured(mixed_nD, held_out_nD, count, start) for count in passes]
        verdict = "" if start is None else f": `train` {chosen(errors)}"
        before = errors["anew"] if start is None else errors["start"]
        found = [
            f"{name}{verdict}",
            f"{before:.4f}",
            *(f"{mse:.4f} ({seconds:.0f} s)" for mse, seconds in row),
        ]
        print(" | ".join(found), flush=True)
        return found

    errors = observe_starts()
    lines = []
    for trained in map(int, first.split(",")):
        settings = TrainConfig(epochs=trained, progress=False)
        start = train(old_nD, config=CONFIG, training=settings, validation=held_out_nD)
        lines.append(series(f"going on from a start of {trained} epochs", start, errors))
    lines.insert(0, series("anew", None, errors))
    if json_path is not None:
        columns = ["MSE of vectors held out", "before training", *(f"{count} epochs" for count in passes)]
        write_json(json_path, {**run_facts(), "machine": machine, "columns": columns, "rows": lines})


def observe_starts() -> dict[str, float]:
    """Have `train` go on in any case. What is returned gets the errors by which it decides otherwise."""
    errors: dict[str, float] = {}

    def go_on(start: ResidualQuantizer, codebooks: ResidualQuantizer, validation_nD: torch.Tensor) -> bool:
        for name, each in (("start", start), ("anew", codebooks)):
            scale = float(each.scale)
            errors[name] = initialize_module.quick_mse(each, each.normalize(validation_nD)) * scale**2
        return True

    initialize_module._is_better = go_on
    return errors


def chosen(errors: dict[str, float]) -> str:
    """What `train` does with these errors."""
    return "goes on" if errors["start"] < errors["anew"] else "begins anew"


def measured(
    rows_nD: Float32Array, held_out_nD: Float32Array, epochs: int, start: Codec | None
) -> tuple[float, float]:
    """The error after so many epochs, and the CPU seconds that they took, codebooks included."""
    began, settings = time.process_time(), TrainConfig(epochs=epochs, progress=False)
    codec = train(rows_nD, config=CONFIG, training=settings, validation=held_out_nD, start=start)
    return codec.report.validation_mse, time.process_time() - began


def kinds(rows_nD: Float32Array) -> tuple[Float32Array, Float32Array]:
    """The vectors of the two halves that k-means finds."""
    vectors_nD = torch.from_numpy(rows_nD)
    centroids_2D = kmeans(vectors_nD, 2, generator=torch.Generator().manual_seed(0))
    halves = [rows_nD[nearest(vectors_nD, centroids_2D).numpy() == half] for half in (0, 1)]
    first_nD, second_nD = sorted(halves, key=len, reverse=True)
    return first_nD, second_nD


if __name__ == "__main__":
    typer.run(main)
