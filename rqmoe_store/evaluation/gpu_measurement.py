"""Measurements on a GPU, part by part: each notes figures under names that `gpu_benchmark` makes a table of.

No part needs LanceDB or a network. Codecs have random weights whose experts deform, which take as long as
trained ones. Results are checked before they are timed.

Shape suffixes: N rows, D dimension, M code bytes, Q queries, B codes of a batch, H hits, S rows of a
shortlist, X other rows.
"""

import dataclasses
import functools
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rqmoe_store import __version__
from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.artifact import TrainingReport
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.device import Precision
from rqmoe_store.codecs.distances import nearest_of_all
from rqmoe_store.codecs.encoding import encode_with_torch, exact_tables
from rqmoe_store.codecs.frame import ScoreUnits, to_float32
from rqmoe_store.codecs.kernels import has_kernels
from rqmoe_store.codecs.kinds import make_quantizer
from rqmoe_store.codecs.prepared import fit_coder
from rqmoe_store.codecs.selection import order_rows
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.codecs.weights import QuantizerWeights
from rqmoe_store.config import METRICS, CodecConfig, CodecKind, TrainConfig
from rqmoe_store.progress import TrainingProgress
from rqmoe_store.search import tensor_scan
from rqmoe_store.search.row_ids import RowIdMap
from rqmoe_store.search.scan import scan
from rqmoe_store.search.segments import Segment, Selection
from rqmoe_store.training.initialize import Start, initialize, with_experts
from rqmoe_store.training.loop import TrainingLoop
from rqmoe_store.training.workers import Workers

BATCH = 64
"""Queries that are scanned together."""

SHORTLIST = 1_000
REFINED = 100
"""Rows of a shortlist that refine codes order."""

_PAGE = 10
_MOST_OFF = 0.02
"""Most that distances in bfloat16 may deviate, as a share of their mean."""

_CODE_BYTES, _REFINE_BYTES = 16, 48
_TRAINED = CodecConfig(code_bytes=8, num_partitions=0)
_START_ROWS = 8_192
"""Vectors for codebooks from which steps are timed."""
_COMPARED_STEPS = 12
"""Steps after which weights are compared, of which most are recorded ones."""
_POOL_ROWS = 2**20
"""Rows with a refine code of their own; others share them."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured: on a GPU, or just enough to try the parts."""

    codecs: tuple[tuple[int, int, int], ...] = ((128, 8, 256), (384, 16, 256))
    """Dimension, steps and hidden units of an expert."""
    batch: int = 2**20
    """Codes decoded together, a quarter as many where vectors are wider than 128 components."""
    torch_batch: int = 2**16
    """Codes decoded together by array operations, whose hidden units are in memory."""
    rows: tuple[int, ...] = (10**6, 10**8)
    checked_rows: int = 400_000
    encoded: int = 2**16
    trained: int = 200_000


TINY = Sizes(((16, 3, 16),), 300, 200, (5_000, 20_000), 3_000, 300, 2_000)


@dataclasses.dataclass(frozen=True)
class Bench:
    """What a part measures on, and where it notes what it finds."""

    device: torch.device
    sizes: Sizes
    note: Callable[[str, Any], None]
    vectors: str | None
    """A .npy file to train on; made-up vectors without it."""
    train_seconds: float

    def attempt(self, name: str, work: Callable[[], Any]) -> Any:
        """Note what `work` returns, or how it fails, and go on; returns it, or None."""
        try:
            value = work()
        except Exception as error:
            if "illegal memory access" in str(error) or "device-side assert" in str(error):
                raise  # nothing else can be measured in this process
            self.note(name, {"error": f"{type(error).__name__}: {error}"[:400]})
            return None
        self.note(name, value)
        return value

    def seconds(self, work: Callable[[], object], *, repeats: int = 20, most: float = 2.0) -> float:
        """Median time of `work`, with what it starts on the GPU, after warming up."""
        for _ in range(3):
            work()
        self.wait()
        taken: list[float] = []
        while len(taken) < repeats and sum(taken) < most:
            started = time.perf_counter()
            work()
            self.wait()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)

    def wait(self) -> None:
        """Wait for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def recorded(self, work: Callable[[], object]) -> Callable[[], object]:
        """`work` as one launch: a CUDA graph of all that it starts."""
        if self.device.type != "cuda":
            return work
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                work()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay


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


# ------------------------------------------------------------------------------------------------- scan


def measure_scan(bench: Bench) -> None:
    """Queries a second over codes on the GPU; and that it finds what the CPU does."""
    for metric in METRICS:
        bench.attempt(f"scan.{metric}.equals_cpu", functools.partial(_scan_is_right, bench, metric))
    for rows in bench.sizes.rows:
        codes = torch.randint(0, 256, (rows, _CODE_BYTES), dtype=torch.uint8, device=bench.device)
        segment = Segment(codes.cpu().numpy(), RowIdMap.of(np.arange(rows, dtype=np.uint64)), _runs(rows, 1))
        del codes
        for queries, size in ((BATCH, 30), (BATCH, REFINED), (1, 30), (BATCH, SHORTLIST)):
            name = f"scan.{rows}.{queries}.{size}"
            tables = _random_tables(queries, "l2", 1)
            work = functools.partial(_scan_once, bench, segment, tables, size)
            bench.attempt(f"{name}.queries_per_s", functools.partial(_rate, bench, work, queries))
        bench.attempt(f"scan.{rows}.refined.queries_per_s", functools.partial(_refined_rate, bench, segment))
        bench.attempt(f"scan.{rows}.tiles", functools.partial(_tile_shapes, bench, segment))
        operations = functools.partial(_scan_by_operations, bench, segment)
        bench.attempt(f"scan.{rows}.fallback.queries_per_s", operations)


def _runs(rows: int, partitions: int) -> Any:
    return np.linspace(0, rows, partitions + 1).astype(np.int64)


def _random_tables(queries: int, metric: Any, partitions: int) -> LookupTables:
    random = np.random.default_rng(6)
    height = partitions + _CODE_BYTES * 256
    norms_T = random.random(height if metric == "cosine" else 0, dtype=np.float32) + np.float32(0.1)
    scores_QT = random.standard_normal((queries, height), dtype=np.float32)
    constants_Q = np.zeros(queries, np.float32)
    return LookupTables(metric, scores_QT, norms_T, constants_Q, partitions, 256, ScoreUnits.plain(queries))


def _scan_once(bench: Bench, segment: Segment, tables: LookupTables, size: int) -> Any:
    everything = np.ones((len(tables.scores_QT), 1), dtype=bool)
    return scan([Selection(segment)], {0: tables}, everything, size, device=str(bench.device))


def _rate(bench: Bench, work: Callable[[], object], queries: int) -> float:
    return round(queries / bench.seconds(work), 1)


def _scan_is_right(bench: Bench, metric: str) -> dict[str, Any]:
    """Whether the GPU's shortlists are the CPU's: all rows, half of the partitions, some rows."""
    found, rows = {}, bench.sizes.checked_rows
    random = np.random.default_rng(5)
    codes_NM = random.integers(0, 256, (rows, _CODE_BYTES)).astype(np.uint8)
    row_ids = RowIdMap.of(random.permutation(rows).astype(np.uint64))
    for partitions, share in ((1, None), (20, None), (20, 0.5)):
        allowed_N = None if share is None else random.random(rows) < share
        selection = Selection(Segment(codes_NM, row_ids, _runs(rows, partitions)), allowed_N)
        tables = _random_tables(40, metric, partitions)
        probed_QP = random.random((40, partitions)) < (0.5 if partitions > 1 else 2)
        made, wanted = (
            scan([selection], {0: tables}, probed_QP, REFINED, device=device)[0]
            for device in (str(bench.device), "cpu")
        )
        equal = np.array_equal(made.rows.row_ids_N, wanted.rows.row_ids_N)
        found[f"{partitions} partitions, {'all rows' if share is None else 'a filter'}"] = equal
    return found


def _scan_by_operations(bench: Bench, segment: Segment) -> float:
    """Queries a second by array operations alone."""
    tables = _random_tables(BATCH, "l2", 1)
    rows, tensor_scan.KERNEL_ROWS = tensor_scan.KERNEL_ROWS, 2**62
    try:
        started = time.perf_counter()
        _scan_once(bench, segment, tables, 30)
        return round(BATCH / (time.perf_counter() - started), 1)
    finally:
        tensor_scan.KERNEL_ROWS = rows


def _tile_shapes(bench: Bench, segment: Segment) -> dict[str, Any]:
    """Milliseconds of the kernel by shape of its tiles, beside the time to read all codes once."""
    if not has_kernels(bench.device):
        return {}
    from rqmoe_store.search.scan_kernel import TileShape, scan_tiles

    tables, everything = _random_tables(BATCH, "l2", 1), np.ones((BATCH, 1), dtype=bool)
    selection, found = Selection(segment), {}
    runs = tensor_scan.Runs.of(segment, everything)
    with torch.inference_mode():
        scorer = tensor_scan.Scorer(selection, tables, everything, runs, bench.device)
        total = scorer.codes_NW.sum
        found["read once"] = round(1e3 * bench.seconds(lambda: total(dtype=torch.int64), repeats=3), 2)
        for rows, warps in ((256, 4), (128, 4), (256, 8), (512, 8), (64, 2)):
            work = functools.partial(scan_tiles, scorer, 30, TileShape(rows, warps))
            found[f"{rows} rows, {warps} warps"] = round(1e3 * bench.seconds(work, repeats=3, most=0.5), 2)
    return found


def _refined_rate(bench: Bench, segment: Segment) -> float:
    """Queries a second of a scan whose shortlists are then ordered by refine codes, on the CPU."""
    from rqmoe_store.training.transform import fit_refiner

    dim = bench.sizes.codecs[0][0]
    plain = made_codec("rq", dim, _CODE_BYTES, 16, bench.device)
    refine_bytes = min(_REFINE_BYTES, dim // 2 + 2)
    coder = plain.coder.with_config(dataclasses.replace(plain.config, refine_bytes=refine_bytes))
    refiner = fit_refiner(coder, _random_vectors(dim, 4_000), 0)
    codec = Codec(coder, plain.calibration, plain.report, None, refiner)
    random, queries_QD = np.random.default_rng(8), _random_vectors(dim, BATCH)
    pool_XR = random.integers(0, 256, (_POOL_ROWS, refine_bytes)).astype(np.uint8)

    def answer() -> None:
        lookup = codec.lookup_tables(queries_QD)
        refine = codec.refine_tables(queries_QD)
        (found,) = _scan_once(bench, segment, lookup, REFINED)
        refine_HR = pool_XR[(found.rows.row_ids_N % _POOL_ROWS).astype(np.int64)]
        codes = dataclasses.replace(found.rows.codes, refine=refine_HR)
        scores_H = codec.refined_scores(lookup, refine, found.queries_H, codes)
        starts_Q = np.searchsorted(found.queries_H, np.arange(BATCH + 1))
        order_rows(starts_Q, scores_H, found.rows.row_ids_N, most=_PAGE)

    return round(BATCH / bench.seconds(answer), 1)


# ----------------------------------------------------------------------------------------------- codecs


def made_codec(
    kind: CodecKind, dim: int, steps: int, hidden: int, device: torch.device, layers: int = 1
) -> Codec:
    """A codec of this shape, made without training."""
    config = CodecConfig(
        kind=kind,
        code_bytes=steps,
        num_partitions=0,
        hidden_dim=hidden,
        expert_dim=min(dim, 384),
        num_layers=layers,
    ).resolve(dim=dim, rows=10**6)
    torch.manual_seed(0)
    quantizer = make_quantizer(config, dim).requires_grad_(False)
    falling_M11 = torch.linspace(1, 0.3, steps)[:, None, None]
    quantizer.codebooks_MKD.copy_(torch.randn_like(quantizer.codebooks_MKD) * falling_M11)
    quantizer.start_experts()
    if quantizer.mixture is not None:
        quantizer.mixture.contract_SLNHW.normal_(std=0.02)
    random = np.random.default_rng(1)
    codes_NM = random.integers(0, 256, (2048, steps)).astype(np.uint8)
    calibration = Codes(codes_NM, np.zeros(2048, np.int32))
    errors = tuple(1.0 / (step + 1) for step in range(steps))
    report = TrainingReport(
        rows=1,
        epochs=0.0,
        validation_rows=1,
        variance=1.0,
        prefix_mse=errors,
        rq_prefix_mse=errors,
        utilisation=1.0,
        seconds=0.0,
    )
    return Codec(fit_coder(QuantizerWeights.of(quantizer), calibration, str(device)), calibration, report)


def _random_vectors(dim: int, rows: int) -> Float32Array:
    mixing_DD = np.random.default_rng(4).standard_normal((dim, dim)).astype(np.float32) / dim**0.5
    drawn_ND = np.random.default_rng(3).standard_normal((rows, dim), dtype=np.float32)
    return np.asarray(np.tanh(drawn_ND @ mixing_DD) * 2, dtype=np.float32)


def _random_codes(bench: Bench, rows: int, steps: int) -> tuple[Tensor, Tensor]:
    """Codes (B, M), uint8, and partition ids (B,) on the device."""
    codes_BM = torch.randint(0, 256, (rows, steps), dtype=torch.uint8, device=bench.device)
    return codes_BM, torch.zeros(rows, dtype=torch.long, device=bench.device)


@torch.inference_mode()
def measure_decode(bench: Bench) -> None:
    """Microseconds a vector: by the kernel, by array operations, and step by step as QINCo must."""
    for dim, steps, hidden in bench.sizes.codecs:
        quantizer = made_codec("rqmoe", dim, steps, hidden, bench.device).coder.quantizer  # type: ignore[attr-defined]
        exact, name = quantizer.fold().detached(), f"decode.{dim}"
        if has_kernels(bench.device):
            bench.attempt(f"{name}.kernel", functools.partial(_fused_decoding, bench, quantizer, exact))
        for precision, folded in (("bfloat16", exact.to(torch.bfloat16)), ("float32", exact)):
            codes_BM, partitions_B = _random_codes(bench, bench.sizes.torch_batch, steps)
            work = functools.partial(quantizer.decode, codes_BM.long(), partitions_B, folded)
            rate = functools.partial(_microseconds, bench, work, len(codes_BM))
            bench.attempt(f"{name}.{precision}.us", rate)
    dim, steps, hidden = bench.sizes.codecs[0]
    qinco = made_codec("qinco", dim, steps, hidden, bench.device, layers=4).coder.quantizer  # type: ignore[attr-defined]
    folded = qinco.fold().detached().to(torch.bfloat16)
    for rows in (SHORTLIST, bench.sizes.torch_batch):
        codes_BM, partitions_B = _random_codes(bench, rows, steps)
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
        codes_BM, partitions_B = _random_codes(bench, rows, steps)
        exact_BD = quantizer.decode(codes_BM.long(), partitions_B, folded)
        found[f"error_{rows}"] = float(
            (decoder.decode(codes_BM, partitions_B) - exact_BD).norm() / exact_BD.norm()
        )
    many = bench.sizes.batch if quantizer.dim <= 128 else bench.sizes.batch // 4
    for name, rows in (("us", many), ("shortlist_us", SHORTLIST)):
        codes_BM, partitions_B = _random_codes(bench, rows, steps)
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
        codes_BM, partitions_B = _random_codes(bench, bench.sizes.batch, quantizer.num_steps)
        work = functools.partial(other.decode, codes_BM, partitions_B)
        found[str(tuple(shape))] = _microseconds(bench, work, len(codes_BM))
    for shape in (TileShape(32, 64, 4, 3), TileShape(16, 64, 4, 3)):
        other = FusedDecoder(quantizer, folded, shapes=(NARROW_TILE, shape))
        codes_BM, partitions_B = _random_codes(bench, SHORTLIST, quantizer.num_steps)
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
    query_QD, count = _random_vectors(codec.dim, 1), len(codes)
    row_ids_S, queries_S = np.arange(count, dtype=np.uint64), np.zeros(count, np.int64)
    distances_S = np.empty(count)
    computed = codec.gpu_distances(precision)
    assert computed is not None, "the codec is on a GPU"

    def answer() -> None:
        nonlocal distances_S
        distances_S = computed.start(codes, query_QD, queries_S).wait()
        order_rows(np.array([0, count]), to_float32(distances_S), row_ids_S, most=_PAGE)

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
        queries_QD = _random_vectors(dim, BATCH).astype(np.float64)

        def answer(codec: Codec = codec, codes: Codes = codes, queries_QD: Any = queries_QD) -> Any:
            return nearest_of_all(queries_QD, codec.decode_checked(codes), "l2", _PAGE, None)

        def rate(answer: Callable[[], Any] = answer, rows: int = len(codes)) -> float:
            return round(rows / bench.seconds(answer))

        bench.attempt(f"{name}.codes_per_s", rate)
        decoded_ND = codec.decode(codes).astype(np.float64)
        squares_QN = np.square(decoded_ND).sum(axis=1) - 2 * queries_QD @ decoded_ND.T
        wanted_QK = np.sort(squares_QN, axis=1)[:, :_PAGE] + np.square(queries_QD).sum(axis=1)[:, None]
        off = float(np.abs(np.sort(answer()[0], axis=1) / wanted_QK - 1).max())
        bench.note(f"{name}.largest_deviation", off)


def measure_encode(bench: Bench) -> None:
    """Microseconds a vector of `Codec.encode`, by rows of a call; of one, also without a recorded launch."""
    for dim, steps, hidden in bench.sizes.codecs:
        codec = made_codec("rqmoe", dim, steps, hidden, bench.device)
        for rows in (1, 1_024, bench.sizes.encoded):
            vectors_ND = _random_vectors(dim, rows)
            work = functools.partial(codec.encode, vectors_ND, beam=3, preselect=3)
            rate = functools.partial(_microseconds, bench, work, rows)
            bench.attempt(f"encode.{dim}.{rows}.us", rate)
        quantizer, one_1D = codec.coder.quantizer, _random_vectors(dim, 1)  # type: ignore[attr-defined]
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
        vectors_ND = _random_vectors(bench.sizes.codecs[0][0], bench.sizes.trained)
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
