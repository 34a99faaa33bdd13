"""Measurements on a GPU, part by part: each notes figures under names that `gpu_benchmark` makes a table of.

No part needs LanceDB or a network. Codecs have random weights whose experts deform, which take as long as
trained ones. Results are checked before they are timed.

Shape suffixes: N rows, D dimension, M code bytes, Q queries, B codes of a batch, H hits, S rows of a
shortlist, X other rows.
"""

import functools
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rqmoe_store import __version__
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.device import Precision
from rqmoe_store.codecs.distances import nearest_of_all
from rqmoe_store.codecs.encoding import encode_with_torch, exact_tables
from rqmoe_store.codecs.frame import to_float32
from rqmoe_store.codecs.kernels import has_kernels
from rqmoe_store.codecs.selection import order_rows
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.evaluation.gpu_scan_measurement import measure_scan
from rqmoe_store.evaluation.gpu_workbench import (
    BATCH,
    PAGE,
    SHORTLIST,
    Bench,
    made_codec,
    random_codes,
    random_vectors,
)
from rqmoe_store.progress import TrainingProgress
from rqmoe_store.training.initialize import Start, initialize, with_experts
from rqmoe_store.training.loop import TrainingLoop
from rqmoe_store.training.workers import Workers

_MOST_OFF = 0.02
"""Most that distances in bfloat16 may deviate, as a share of their mean."""

_TRAINED = CodecConfig(code_bytes=8, num_partitions=0)
_START_ROWS = 8_192
"""Vectors for codebooks from which steps are timed."""
_COMPARED_STEPS = 12
"""Steps after which weights are compared, of which most are recorded ones."""


def measure_machine(bench: Bench) -> None:
    """Names and versions, and what the GPU reaches at most."""
    bench.note("machine.torch", torch.__version__)
    bench.note("machine.rqmoe-store", __version__)
    bench.note("machine.cores", os.cpu_count())
    bench.attempt("machine.triton", _triton_version)
    if bench.device.type != "cuda":
        bench.note("machine.device", "cpu")
        return
    bench.note("machine.device", torch.cuda.get_device_name(bench.device))
    bench.note("machine.cuda", torch.version.cuda)
    bench.note("machine.memory_GB", round(torch.cuda.mem_get_info(bench.device)[1] / 1e9, 1))
    bench.note("machine.kernels", has_kernels(bench.device))
    block = torch.zeros(2**30, dtype=torch.uint8, device=bench.device)
    other = torch.empty_like(block)
    seconds = bench.seconds(lambda: other.copy_(block))
    bench.note("machine.copy_TB_per_s", round(2 * len(block) / seconds / 1e12, 2))
    matrix = torch.zeros(8192, 8192, device=bench.device, dtype=torch.bfloat16)
    seconds = bench.seconds(lambda: matrix @ matrix, repeats=5)
    bench.note("machine.bfloat16_TFLOP_per_s", round(2 * 8192**3 / seconds / 1e12))


def _triton_version() -> str:
    import triton

    return str(triton.__version__)


@torch.inference_mode()
def measure_decode(bench: Bench) -> None:
    """Microseconds a vector: by the kernel, by array operations, and step by step as QINCo must."""
    for dim, steps, hidden in bench.sizes.codecs:
        quantizer = made_codec("rqmoe", dim, steps, hidden, bench.device).coder.quantizer  # type: ignore[attr-defined]
        exact, name = quantizer.fold().detached(), f"decode.{dim}"
        if has_kernels(bench.device):
            bench.attempt(f"{name}.kernel", functools.partial(_fused_decoding, bench, quantizer, exact))
        for precision, folded in (("bfloat16", exact.to(torch.bfloat16)), ("float32", exact)):
            codes_BM, partitions_B = random_codes(bench, bench.sizes.torch_batch, steps)
            work = functools.partial(quantizer.decode, codes_BM.long(), partitions_B, folded)
            rate = functools.partial(_microseconds, bench, work, len(codes_BM))
            bench.attempt(f"{name}.{precision}.us", rate)
    dim, steps, hidden = bench.sizes.codecs[0]
    qinco = made_codec("qinco", dim, steps, hidden, bench.device, layers=4).coder.quantizer  # type: ignore[attr-defined]
    folded = qinco.fold().detached().to(torch.bfloat16)
    for rows in (SHORTLIST, bench.sizes.torch_batch):
        codes_BM, partitions_B = random_codes(bench, rows, steps)
        steps_in_turn = bench.recorded(functools.partial(qinco.decode, codes_BM.long(), partitions_B, folded))
        rate = functools.partial(_microseconds, bench, steps_in_turn, rows)
        bench.attempt(f"decode.qinco.{rows}.us", rate)
    quantizer = made_codec("rqmoe", dim, steps, hidden, bench.device).coder.quantizer  # type: ignore[attr-defined]
    if has_kernels(bench.device):
        tiles = functools.partial(_decoding_tiles, bench, quantizer, quantizer.fold().detached())
        bench.attempt(f"decode.{dim}.tiles", tiles)


def _microseconds(bench: Bench, work: Callable[[], object], rows: int) -> float:
    return round(1e6 * bench.seconds(work, most=1.0) / rows, 4)


def _fused_decoding(bench: Bench, quantizer: Any, folded: Any) -> dict[str, Any]:
    """The kernel's error, and microseconds a vector in large batches and of a shortlist."""
    from rqmoe_store.codecs.decoding_kernel import FusedDecoder

    decoder = FusedDecoder(quantizer, folded)
    steps, found = quantizer.num_steps, {}
    for rows in (3_000, 5_000):  # with steps shared out, and without
        codes_BM, partitions_B = random_codes(bench, rows, steps)
        exact_BD = quantizer.decode(codes_BM.long(), partitions_B, folded)
        found[f"error_{rows}"] = float(
            (decoder.decode(codes_BM, partitions_B) - exact_BD).norm() / exact_BD.norm()
        )
    many = bench.sizes.batch if quantizer.dim <= 128 else bench.sizes.batch // 4
    for name, rows in (("us", many), ("shortlist_us", SHORTLIST)):
        codes_BM, partitions_B = random_codes(bench, rows, steps)
        work = functools.partial(decoder.decode, codes_BM, partitions_B)
        found[name] = _microseconds(bench, bench.recorded(work) if rows == SHORTLIST else work, rows)
        bench.note(f"decode.{quantizer.dim}.kernel.{name}", found[name])
    return found


def _decoding_tiles(bench: Bench, quantizer: Any, folded: Any) -> dict[str, float]:
    """Microseconds a vector by shape of tiles, of large batches and of a shortlist."""
    from rqmoe_store.codecs.decoding_kernel import NARROW_TILE, SPLIT_TILE, FusedDecoder, TileShape

    found = {}
    for shape in (TileShape(64, 64, 4, 3), TileShape(128, 64, 8, 2), TileShape(128, 32, 8, 3)):
        other = FusedDecoder(quantizer, folded, shapes=(shape, SPLIT_TILE._replace(block=shape.block)))
        codes_BM, partitions_B = random_codes(bench, bench.sizes.batch, quantizer.num_steps)
        work = functools.partial(other.decode, codes_BM, partitions_B)
        found[str(tuple(shape))] = _microseconds(bench, work, len(codes_BM))
    for shape in (TileShape(32, 64, 4, 3), TileShape(16, 64, 4, 3)):
        other = FusedDecoder(quantizer, folded, shapes=(NARROW_TILE, shape))
        codes_BM, partitions_B = random_codes(bench, SHORTLIST, quantizer.num_steps)
        launch = bench.recorded(functools.partial(other.decode, codes_BM, partitions_B))
        found[f"shortlist, {tuple(shape)}"] = _microseconds(bench, launch, SHORTLIST)
    return found


def measure_shortlist(bench: Bench) -> None:
    """Microseconds for a shortlist of 1,000: decoded, its distances to a query, and the 10 nearest."""
    for dim, steps, hidden in bench.sizes.codecs:
        codec, name = made_codec("rqmoe", dim, steps, hidden, bench.device), f"shortlist.{dim}"
        codes_SM = np.random.default_rng(2).integers(0, 256, (SHORTLIST, steps)).astype(np.uint8)
        codes = Codes(codes_SM, np.zeros(SHORTLIST, np.int32))
        for precision in ("float32", "bfloat16"):
            work = functools.partial(codec.decode, codes, precision=precision)
            rate = functools.partial(_microseconds, bench, work, 1)
            bench.attempt(f"{name}.decode.{precision}.us", rate)
        if bench.device.type == "cuda":
            bench.attempt(
                f"{name}.float32.us", functools.partial(_nearest_time, bench, codec, codes, "float32")
            )
            bench.attempt(f"{name}.us", functools.partial(_nearest_time, bench, codec, codes, "bfloat16"))


def _nearest_time(bench: Bench, codec: Codec, codes: Codes, precision: Precision) -> float:
    """Microseconds to find the nearest of a shortlist as a search does: codes and query to the GPU, decoding
    and distances there, these back, and their order."""
    query_QD, count = random_vectors(codec.dim, 1), len(codes)
    row_ids_S, queries_S = np.arange(count, dtype=np.uint64), np.zeros(count, np.int64)
    distances_S = np.empty(count)
    computed = codec.gpu_distances(precision)
    assert computed is not None, "the codec is on a GPU"

    def answer() -> None:
        nonlocal distances_S
        distances_S = computed.start(codes, query_QD, queries_S).wait()
        order_rows(np.array([0, count]), to_float32(distances_S), row_ids_S, most=PAGE)

    answer()
    exact_S = np.square(codec.decode(codes).astype(np.float64) - query_QD).sum(axis=1)
    off = float(np.abs(distances_S - exact_S).max() / exact_S.mean())
    if not off <= _MOST_OFF:
        raise RuntimeError(f"distances are wrong by {off:.2g} of their mean")
    return round(1e6 * bench.seconds(answer, repeats=100), 1)


def measure_exhaustive(bench: Bench) -> None:
    """Codes a second that are decoded and compared with all of some queries, and how far the nearest
    ten are off those of the CPU."""
    for dim, steps, hidden in bench.sizes.codecs:
        codec, name = made_codec("rqmoe", dim, steps, hidden, bench.device), f"exhaustive.{dim}"
        codes_NM = np.random.default_rng(4).integers(0, 256, (bench.sizes.torch_batch, steps))
        codes = Codes(codes_NM.astype(np.uint8), np.zeros(len(codes_NM), np.int32))
        queries_QD = random_vectors(dim, BATCH).astype(np.float64)

        def answer(codec: Codec = codec, codes: Codes = codes, queries_QD: Any = queries_QD) -> Any:
            return nearest_of_all(queries_QD, codec.decode_checked(codes), "l2", PAGE, None)

        def rate(answer: Callable[[], Any] = answer, rows: int = len(codes)) -> float:
            return round(rows / bench.seconds(answer))

        bench.attempt(f"{name}.codes_per_s", rate)
        decoded_ND = codec.decode(codes).astype(np.float64)
        squares_QN = np.square(decoded_ND).sum(axis=1) - 2 * queries_QD @ decoded_ND.T
        wanted_QK = np.sort(squares_QN, axis=1)[:, :PAGE] + np.square(queries_QD).sum(axis=1)[:, None]
        off = float(np.abs(np.sort(answer()[0], axis=1) / wanted_QK - 1).max())
        bench.note(f"{name}.largest_deviation", off)


def measure_encode(bench: Bench) -> None:
    """Microseconds a vector of `Codec.encode`, by rows of a call; of one, also without a recorded launch."""
    for dim, steps, hidden in bench.sizes.codecs:
        codec = made_codec("rqmoe", dim, steps, hidden, bench.device)
        for rows in (1, 1_024, bench.sizes.encoded):
            vectors_ND = random_vectors(dim, rows)
            work = functools.partial(codec.encode, vectors_ND, beam=3, preselect=3)
            rate = functools.partial(_microseconds, bench, work, rows)
            bench.attempt(f"encode.{dim}.{rows}.us", rate)
        quantizer, one_1D = codec.coder.quantizer, random_vectors(dim, 1)  # type: ignore[attr-defined]
        launch = functools.partial(
            encode_with_torch, quantizer, exact_tables(quantizer), one_1D, beam=3, preselect=3
        )
        bench.attempt(f"encode.{dim}.1.launched.us", functools.partial(_microseconds, bench, launch, 1))
        recorded_1M, launched_1M = codec.encode(one_1D, beam=3, preselect=3).codes, launch().codes
        bench.note(f"encode.{dim}.1.same_codes", bool((recorded_1M == launched_1M).all()))


def measure_train(bench: Bench) -> None:
    """Steps a second, and the error after some minutes of training, beside plain RQ's."""
    from rqmoe_store.training.trainer import train

    if bench.vectors is None:
        vectors_ND = random_vectors(bench.sizes.codecs[0][0], bench.sizes.trained)
    else:
        vectors_ND = np.load(bench.vectors, allow_pickle=False).astype(np.float32)
    held = min(5_000, len(vectors_ND) // 10)
    bench.note("train.vectors", f"{bench.vectors or 'made up'} {vectors_ND.shape}")
    bench.attempt("train.steps", functools.partial(_measure_steps, bench, vectors_ND[:-held]))
    settings = TrainConfig(
        max_minutes=bench.train_seconds / 60, device=str(bench.device), seed=0, progress=False
    )

    def timed() -> dict[str, float]:
        seen_ND, unseen_ND = vectors_ND[:-held], vectors_ND[-held:]
        codec = train(seen_ND, config=_TRAINED, training=settings, validation=unseen_ND)
        report, some_ND = codec.report, seen_ND[:held]
        errors_ND = some_ND - codec.decode(codec.encode(some_ND))
        steps = report.epochs * math.ceil(report.rows / settings.batch_size)
        return {
            "times_rq": round(report.validation_mse / report.rq_validation_mse, 4),
            "seen_beside_unseen": round(float((errors_ND**2).sum(axis=1).mean()) / report.validation_mse, 4),
            "epochs": round(report.epochs, 1),
            "seconds": round(report.seconds, 1),
            "steps_per_s": round(steps / report.seconds, 1),
        }

    bench.attempt("train", timed)


def _measure_steps(bench: Bench, vectors_ND: Float32Array) -> dict[str, float]:
    """Note training steps a second, recorded as a CUDA graph and launched kernel by kernel, and kernels of a
    step; returns the largest difference between weights that both ways moved."""
    vectors_nD = torch.from_numpy(vectors_ND).to(bench.device)
    config = _TRAINED.resolve(dim=vectors_nD.shape[1], rows=len(vectors_nD))
    progress, weights = TrainingProgress(visible=False), list[Tensor]()
    found: dict[str, float] = {}
    plain = initialize(vectors_nD, config, seed=0, progress=progress, most_rows=_START_ROWS)
    for way in ("recorded", "launched"):
        normalized_nD, quantizer = plain.normalize(vectors_nD), with_experts(plain, config, seed=0)
        loop = TrainingLoop(
            Start(quantizer, rq_prefix_mse=(1.0,), rq_mse=1.0, mixing=True),
            normalized_nD,
            normalized_nD[:_START_ROWS],
            TrainConfig(device=str(bench.device), cuda_graphs=way == "recorded", progress=False),
            started=time.monotonic(),
            workers=Workers(bench.device),
            progress=progress,
        )
        step = functools.partial(_step_once, loop, itertools.count())
        for _ in range(_COMPARED_STEPS):
            step()
        weights.append(torch.cat([each.detach().flatten() for each in quantizer.parameters()]))
        bench.note(f"train.{way}.steps_per_s", round(1 / bench.seconds(step, repeats=200), 1))
        bench.attempt(f"train.{way}.kernels", functools.partial(_kernels_of, bench, step))
        found[f"{way}.recordings"] = loop.training_step.num_recordings
    return {**found, "largest_difference": float((weights[0] - weights[1]).abs().max())}


def _step_once(loop: TrainingLoop, numbers: Iterator[int]) -> None:
    number = next(numbers)
    outcome_2 = loop.training_step.launch(loop.batches.at(number), 1e-3)
    loop.batches.prepare(number + 1)
    outcome_2.tolist()


def _kernels_of(bench: Bench, work: Callable[[], object]) -> dict[str, float]:
    """Kernels and copies that `work` runs on the GPU, and milliseconds that they take together."""
    if bench.device.type != "cuda":
        return {}
    with torch.profiler.profile() as profile:
        work()
        bench.wait()
    on_gpu = [event for event in profile.events() if event.device_type.name == "CUDA"]
    busy = sum(event.time_range.elapsed_us() for event in on_gpu)
    return {"kernels": len(on_gpu), "busy_ms": round(busy / 1e3, 2)}


PARTS: dict[str, Callable[[Bench], None]] = {
    "machine": measure_machine,
    "scan": measure_scan,
    "decode": measure_decode,
    "shortlist": measure_shortlist,
    "exhaustive": measure_exhaustive,
    "encode": measure_encode,
    "train": measure_train,
}
"""In the order of what one would want first."""
