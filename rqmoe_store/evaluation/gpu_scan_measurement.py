"""Measurement of scans on a GPU, and of their shortlists ordered by refine codes.

Shape suffixes: N rows, D dimension, M code bytes, R bytes of a refine code, Q queries, H hits.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.frame import ScoreUnits
from rqmoe_store.codecs.kernels import has_kernels
from rqmoe_store.codecs.refine import LENGTH_BYTES
from rqmoe_store.codecs.selection import order_rows
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import METRICS, Metric
from rqmoe_store.evaluation.gpu_workbench import (
    BATCH,
    PAGE,
    REFINED,
    SHORTLIST,
    Bench,
    made_codec,
    random_vectors,
)
from rqmoe_store.search import tensor_scan
from rqmoe_store.search.row_ids import RowIdMap
from rqmoe_store.search.scan import Refinement, scan
from rqmoe_store.search.segments import Segment, Selection
from rqmoe_store.search.shortlists import candidates_of, refined_distances

_CODE_BYTES, _REFINE_BYTES = 16, 48


def measure_scan(bench: Bench) -> None:
    """Queries a second over codes on the GPU; and that it finds what the CPU does."""
    for metric in METRICS:
        bench.attempt(f"scan.{metric}.equals_cpu", functools.partial(_scan_is_right, bench, metric))
        right = functools.partial(_refining_is_right, bench, metric)
        bench.attempt(f"scan.{metric}.refined.equals_cpu", right)
    for rows in bench.sizes.rows:
        codes = torch.randint(0, 256, (rows, _CODE_BYTES), dtype=torch.uint8, device=bench.device)
        segment = Segment(codes.cpu().numpy(), RowIdMap.of(np.arange(rows, dtype=np.uint64)), _runs(rows, 1))
        del codes
        for queries, size in ((BATCH, 30), (BATCH, REFINED), (1, 30), (BATCH, SHORTLIST)):
            name = f"scan.{rows}.{queries}.{size}"
            tables = _random_tables(queries, "l2", 1)
            work = functools.partial(_scan_once, bench, segment, tables, size)
            bench.attempt(f"{name}.queries_per_s", functools.partial(_rate, bench, work, queries))
        bench.attempt(f"scan.{rows}.refined", functools.partial(_measure_refined, bench, segment))
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


def _refining_codec(bench: Bench, metric: Metric) -> Codec:
    from rqmoe_store.training.transform import fit_refiner

    dim = bench.sizes.codecs[0][0]
    plain = made_codec("rq", dim, _CODE_BYTES, 16, bench.device, metric=metric)
    refine_bytes = min(_REFINE_BYTES, dim // 2 + LENGTH_BYTES)
    coder = plain.coder.with_config(dataclasses.replace(plain.config, refine_bytes=refine_bytes))
    refiner = fit_refiner(coder, _normalized(random_vectors(dim, 1_000), metric), 0)
    return Codec(coder, plain.calibration, plain.report, None, refiner)


def _normalized(vectors_ND: Float32Array, metric: Metric) -> Float32Array:
    if metric != "cosine":
        return vectors_ND
    return np.asarray(vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True), dtype=np.float32)


def _with_refine_codes(bench: Bench, segment: Segment, refine_bytes: int) -> Segment:
    """The segment with random refine codes, made where that takes least time."""
    shape = len(segment), refine_bytes
    refine_NR = torch.randint(0, 256, shape, dtype=torch.uint8, device=bench.device).cpu().numpy()
    return dataclasses.replace(segment, refine_NR=refine_NR)


def _refined_page(
    codec: Codec, segment: Segment, queries_QD: Float32Array, size: int, device: str
) -> tuple[Any, Any]:
    """Row ids and distances of the page of every query, as a search with refine codes finds them."""
    lookup = codec.lookup_tables(queries_QD)
    everything, queries = np.ones((len(queries_QD), 1), dtype=bool), len(queries_QD)
    refinements = {0: Refinement(codec, queries_QD)}
    found = scan([Selection(segment)], {0: lookup}, everything, size, None, device, refinements)
    stages, exhausted = [range(1)] * queries, [False] * queries
    candidates = candidates_of(found, [size], stages, lookup.units, exhausted)
    scores_H = candidates.refined_H
    if scores_H is None:
        refine = codec.refine_tables(queries_QD)
        scores_H = codec.refined_scores(lookup, refine, candidates.queries_H, candidates.rows.codes)
    distances_H = refined_distances(candidates.queries_H, scores_H, lookup.units, codec.config.metric)
    row_ids_H = candidates.rows.row_ids_N
    order_H, _ = order_rows(candidates.starts_Q, distances_H, row_ids_H, most=PAGE)
    return row_ids_H[order_H], distances_H[order_H]


def _refining_is_right(bench: Bench, metric: Metric) -> dict[str, Any]:
    """Whether pages by refine codes are the CPU's, and how far their distances are off."""
    codec, rows = _refining_codec(bench, metric), bench.sizes.checked_rows
    codes_NM = np.random.default_rng(9).integers(0, 256, (rows, _CODE_BYTES)).astype(np.uint8)
    plain = Segment(codes_NM, RowIdMap.of(np.arange(rows, dtype=np.uint64)), _runs(rows, 1))
    segment = _with_refine_codes(bench, plain, codec.config.refine_bytes)
    queries_QD = _normalized(random_vectors(codec.dim, BATCH), metric)
    made, wanted = (
        _refined_page(codec, segment, queries_QD, REFINED, device) for device in (str(bench.device), "cpu")
    )
    equal = np.array_equal(made[0], wanted[0])
    off = float(np.abs(made[1] - wanted[1]).max()) if len(made[1]) == len(wanted[1]) else None
    return {"rows": equal, "largest_deviation": off}


def _measure_refined(bench: Bench, segment: Segment) -> dict[str, int]:
    """Note queries a second of scans whose shortlists are then ordered by refine codes."""
    codec = _refining_codec(bench, "l2")
    segment = _with_refine_codes(bench, segment, codec.config.refine_bytes)
    queries_QD, device = random_vectors(codec.dim, BATCH), str(bench.device)
    for size, name in ((REFINED, "refined"), (SHORTLIST, f"refined.{SHORTLIST}")):
        work = functools.partial(_refined_page, codec, segment, queries_QD, size, device)
        rate = functools.partial(_rate, bench, work, BATCH)
        bench.attempt(f"scan.{len(segment)}.{name}.queries_per_s", rate)
    return {"refine_bytes": codec.config.refine_bytes}
