"""What row operations cost on a compressed table, beside plain ones of the same columns.

Shape suffixes: B rows.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from lancedb.index import BTree
from lancedb.table import LanceTable

from rqmoe_store.codecs.base import Codec
from rqmoe_store.evaluation.codec_scaling import require_disk
from rqmoe_store.evaluation.machine import describe_machine
from rqmoe_store.evaluation.row_results import RowReport, RowResult
from rqmoe_store.evaluation.row_tables import Ids, Side, make_sides
from rqmoe_store.evaluation.search_index import ID

FEW, MANY = 1, 1_000
"""Rows of an operation."""

_ROW_BYTES = 220
"""Of a row in all tables together, with room for what operations leave behind, but for its code."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """Something that is done to each table."""

    name: str
    rows: int
    """Ids of so many rows that are there, chosen at random, are given to `prepare`; 0 for none."""
    run: Callable[[Any, Any], object]
    """Does it to a table, with what was prepared; this is timed."""
    prepare: Callable[[Side, Ids], Any] = lambda side, ids_B: ids_B
    by_id: bool = True
    """Whether an index of the ids can make a difference."""


def benchmark_rows(
    codec: Codec,
    *,
    rows: int,
    repeats: int,
    seed: int,
    on_done: Callable[[RowReport], None] = lambda report: None,
) -> RowReport:
    """Time row operations on tables of `rows` rows, in a temporary database that is removed in the end.

    Every operation is done `repeats` times to each table in turn, after once to warm up.

    Args:
        codec: the compressed table's; its codes are random, and so are vectors that are added.
        rows: at least 10,000.
        repeats: at least 1.
        seed: of everything random.
        on_done: told whenever there is another result.

    Raises:
        InvalidInputError: not enough room in the temporary folder.
    """
    require_disk(rows, codec.config.code_bytes + _ROW_BYTES)
    report = RowReport(
        settings={
            "rows": rows,
            "repeats": repeats,
            "seed": seed,
            "dim": codec.dim,
            "codec": codec.config.to_dict(),
        },
        machine=describe_machine(torch.device("cpu")),
        results=[],
    )
    with tempfile.TemporaryDirectory(prefix="rqmoe-bench-") as folder:
        sides = make_sides(folder, codec, rows, seed)
        for indexed in (False, True):
            if indexed:
                for side in sides:
                    _index(side.table)
            for operation in operations():
                if operation.by_id or not indexed:
                    report.results.append(_measured(operation, sides, rows, repeats, seed, indexed))
                    on_done(report)
    return report


def operations() -> list[Operation]:
    """What is measured."""

    def both(name: str, run: Callable[[Any, Any], object], **settings: Any) -> Iterator[Operation]:
        yield from (Operation(name, count, run, **settings) for count in (FEW, MANY))

    return [
        *both("add", lambda table, rows: table.add(rows), prepare=_new, by_id=False),
        *both("merge_insert of new rows", _upsert, prepare=_new),
        *both("merge_insert of rows that are there", _upsert, prepare=Side.rows),
        *both("merge_insert of one column", _update, prepare=_texts),
        *both("update", lambda table, where: table.update(where, {"text": "changed"}), prepare=_among),
        *both("delete", lambda table, where: table.delete(where), prepare=_among),
        *both("count_rows of some", lambda table, where: table.count_rows(where), prepare=_among),
        Operation("count_rows", 0, lambda table, _: table.count_rows(), by_id=False),
        Operation("head", 0, lambda table, _: table.head(10), by_id=False),
        Operation("add_columns, drop_columns", 0, _another_column, by_id=False),
        Operation("checkout, checkout_latest", 0, _look_back, by_id=False),
        Operation("create_scalar_index", 0, lambda table, _: _index(table), by_id=False),
    ]


def _new(side: Side, ids_B: Ids) -> pa.Table:
    return side.rows(side.new(len(ids_B)))


def _texts(side: Side, ids_B: Ids) -> pa.Table:
    return side.rows(ids_B).select([ID, "text"])


def _among(side: Side, ids_B: Ids) -> str:
    return f"{ID} IN ({', '.join(map(str, ids_B.tolist()))})"


def _upsert(table: Any, rows: pa.Table) -> None:
    table.merge_insert(ID).when_matched_update_all().when_not_matched_insert_all().execute(rows)


def _update(table: Any, rows: pa.Table) -> None:
    table.merge_insert(ID).when_matched_update_all().execute(rows)


def _another_column(table: Any, _: Ids) -> None:
    table.add_columns({"double": "price * 2"})
    table.drop_columns(["double"])


def _look_back(table: Any, _: Ids) -> None:
    table.checkout(table.version - 1)
    table.checkout_latest()


def _index(table: Any) -> None:
    if isinstance(table, LanceTable):  # which has the method that ours is like, but deprecated
        table.create_index(ID, config=BTree())
    else:
        table.create_scalar_index(ID)


def _measured(
    operation: Operation, sides: list[Side], rows: int, repeats: int, seed: int, indexed: bool
) -> RowResult:
    seconds: list[list[tuple[float, float]]] = [[] for _ in sides]
    for repeat in range(repeats + 1):
        ids_B = np.random.default_rng((seed, repeat)).choice(rows, size=operation.rows, replace=False)
        for number, side in enumerate(sides):
            prepared = operation.prepare(side, ids_B)
            before = side.codec.seconds if side.codec else 0.0
            started = time.perf_counter()
            operation.run(side.table, prepared)
            taken = time.perf_counter() - started
            encoding = side.codec.seconds - before if side.codec else 0.0
            if repeat > 0:
                seconds[number].append((taken - encoding, encoding))
    plain_ms, stable_ms, compressed_ms = (
        1e3 * statistics.median(taken for taken, _ in of_side) for of_side in seconds
    )
    return RowResult(
        operation=operation.name,
        rows=operation.rows,
        indexed=indexed,
        plain_ms=plain_ms,
        stable_ms=stable_ms,
        compressed_ms=compressed_ms,
        encoding_ms=1e3 * statistics.median(encoding for _, encoding in seconds[-1]),
    )
