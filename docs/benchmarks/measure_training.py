"""Speed of training on a CPU, alone or beside busy processes, and what a warm start saves.

    python docs/benchmarks/measure_training.py speed base.npy --busy 3
    python docs/benchmarks/measure_training.py warm-start base.npy

`speed` times optimizer steps of the default codec. To compare two versions, run it with each of them on the
PYTHONPATH in turn. `warm-start` trains codecs on vectors of one kind, one of them briefly, and then others of
which a fifth of the vectors is of another kind: anew, and going on from each of the first. The kinds are the
two halves that k-means finds.

Shape suffixes: n vectors, D dimension.
"""

import multiprocessing
import statistics
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
from rqmoe_store.progress import TrainingProgress
from rqmoe_store.training import initialize as initialize_module
from rqmoe_store.training.initialize import Start, initialize, kmeans, nearest, with_experts
from rqmoe_store.training.loop import TrainingLoop
from rqmoe_store.training.trainer import train
from rqmoe_store.training.workers import Workers

CONFIG = CodecConfig(metric="cosine", num_partitions=0)

app = typer.Typer(add_completion=False)

Vectors = Annotated[Path, typer.Argument(help="A .npy file of vectors, one a row.")]


def spin() -> None:
    """Keep a core busy."""
    while True:
        pass


@app.command()
def speed(path: Vectors, busy: int = 0, steps: int = 10, precision: str = "auto") -> None:
    """Time optimizer steps."""
    rows_nD = torch.from_numpy(read(path, 8_192))
    progress, config = (
        TrainingProgress(visible=False),
        CONFIG.resolve(dim=rows_nD.shape[1], rows=len(rows_nD)),
    )
    plain = initialize(rows_nD, config, seed=0, progress=progress, most_rows=4_096)
    quantizer = with_experts(plain, config, seed=0)
    normalized_nD = quantizer.normalize(rows_nD)
    settings = TrainConfig(epochs=100, progress=False, precision=precision)  # type: ignore[arg-type]
    loop = TrainingLoop(
        Start(quantizer, (1.0,), 1.0, mixing=False),
        normalized_nD,
        normalized_nD[:256],
        settings,
        started=time.monotonic(),
        workers=Workers(torch.device("cpu")),
        progress=progress,
    )
    others = [multiprocessing.get_context("spawn").Process(target=spin, daemon=True) for _ in range(busy)]
    for other in others:
        other.start()
    loop._train_step(0.1)
    seconds = []
    for _ in range(steps):
        began = time.monotonic()
        loop._train_step(0.1)
        seconds.append(time.monotonic() - began)
    for other in others:
        other.terminate()
    median = statistics.median(seconds)
    print(f"{settings.batch_size / median:,.0f} vectors per second ({1000 * median:.0f} ms a step)")


@app.command()
def warm_start(path: Vectors, rows: int = 8_000, first: str = "8,30", epochs: str = "2,4,8") -> None:
    """Compare going on from a codec with training anew, whichever of the two `train` would choose."""
    warnings.simplefilter("ignore")
    first_nD, second_nD = kinds(read(path, 60_000))
    held = rows // 5
    old_nD, new_nD = first_nD[: rows * 4 // 5], second_nD[: rows // 5]
    mixed_nD = np.random.default_rng(0).permutation(np.concatenate([old_nD, new_nD]))
    held_out_nD = np.concatenate([first_nD[-held * 4 // 5 :], second_nD[-held // 5 :]])

    def report(name: str, rows_nD: Float32Array, count: int, start: Codec | None = None) -> Codec:
        began, settings = time.process_time(), TrainConfig(epochs=count, progress=False)
        codec = train(rows_nD, config=CONFIG, training=settings, validation=held_out_nD, start=start)
        seconds = time.process_time() - began
        print(f"{name}, {count} epochs: MSE {codec.report.validation_mse:.4f}, {seconds:.0f} s of CPU time")
        return codec

    initialize_module._is_better = go_on_in_any_case
    for count in map(int, epochs.split(",")):
        report("anew", mixed_nD, count)
    for trained in map(int, first.split(",")):
        start = report("start, without the new kind", old_nD, trained)
        for count in map(int, epochs.split(",")):
            report("going on", mixed_nD, count, start)


def go_on_in_any_case(
    start: ResidualQuantizer, codebooks: ResidualQuantizer, validation_nD: torch.Tensor
) -> bool:
    """Print the errors by which `train` decides whether to go on."""
    found, anew = (
        initialize_module.quick_mse(each, each.normalize(validation_nD)) * float(each.scale) ** 2
        for each in (start, codebooks)
    )
    print(f"before training: start {found:.4f}, new codebooks {anew:.4f}")
    return True


def read(path: Path, rows: int) -> Float32Array:
    return np.asarray(np.load(path, mmap_mode="r")[:rows], np.float32)


def kinds(rows_nD: Float32Array) -> tuple[Float32Array, Float32Array]:
    """The vectors of the two halves that k-means finds."""
    vectors_nD = torch.from_numpy(rows_nD)
    centroids_2D = kmeans(vectors_nD, 2, generator=torch.Generator().manual_seed(0))
    halves = [rows_nD[nearest(vectors_nD, centroids_2D).numpy() == half] for half in (0, 1)]
    first_nD, second_nD = sorted(halves, key=len, reverse=True)
    return first_nD, second_nD


if __name__ == "__main__":
    app()
