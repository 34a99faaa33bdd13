"""Timing row operations on a plain and on a compressed table."""

import dataclasses
import json

import numpy as np
import pytest

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.evaluation import row_benchmark
from rqmoe_store.evaluation.row_benchmark import (
    RowResult,
    Side,
    benchmark_rows,
    create_sides,
    operations,
    row_table,
    rows_of,
)
from rqmoe_store.evaluation.tables import print_tables
from rqmoe_store.training.trainer import train

DIM, ROWS = 8, 2_000


@pytest.fixture(scope="module")
def codec():
    vectors = np.random.default_rng(0).normal(size=(600, DIM)).astype(np.float32)
    config = CodecConfig(kind="rq", code_bytes=4, codebook_size=16, num_partitions=3)
    return train(vectors, config=config, training=TrainConfig(epochs=0, progress=False))


def test_every_operation_does_the_same_to_both_tables(codec, tmp_path) -> None:
    sides = plain, stable, compressed = create_sides(str(tmp_path), codec, ROWS, seed=0)
    names = rows_of(np.arange(0)).schema.names
    assert all(side.table.schema.names == names for side in sides)
    assert not plain.table.to_lance().has_stable_row_ids and stable.table.to_lance().has_stable_row_ids
    ids = np.random.default_rng(1).choice(ROWS, size=7, replace=False)
    for operation in operations():
        done = [operation.run(side.table, operation.prepare(side, ids)) for side in sides]
        if operation.name.startswith("count"):
            assert done[0] == done[1] == done[2]
        tables = [side.table.table if side.codec else side.table for side in sides]
        rows = [table.search().select(names).limit(None).to_arrow().sort_by("id") for table in tables]
        assert rows[0].equals(rows[1]) and rows[0].equals(rows[2]), operation.name
    assert rows[0].num_rows == ROWS + 4 * 7 - 7
    assert compressed.codec.seconds > 0


def test_a_report(codec, capsys, monkeypatch) -> None:
    few = [operation for operation in operations() if operation.name in ("add", "update", "head")]
    monkeypatch.setattr(row_benchmark, "operations", lambda: few)
    lines = []
    report = benchmark_rows(codec, rows=ROWS, repeats=1, seed=0, on_done=lambda so_far: lines.append(1))
    assert len(lines) == len(report.results) == 7
    assert [(each.operation, each.rows, each.indexed) for each in report.results] == [
        ("add", 1, False),
        ("add", 1000, False),
        ("update", 1, False),
        ("update", 1000, False),
        ("head", 0, False),
        ("update", 1, True),
        ("update", 1000, True),
    ]
    for each in report.results:
        assert each.plain_ms > 0 and each.compressed_ms > 0
        assert (each.encoding_ms > 0) == (each.operation == "add")
    assert json.loads(json.dumps(report.to_dict()))["results"][0]["operation"] == "add"
    print_tables([row_table(report)])
    output = capsys.readouterr().out
    assert "Row operations: 2,000 rows" in output and "1,000" in output and "all" in output


def test_encoding_is_left_out() -> None:
    result = RowResult(
        operation="add",
        rows=1,
        indexed=False,
        plain_ms=4.0,
        stable_ms=5.0,
        compressed_ms=6.0,
        encoding_ms=100.0,
    )
    assert (result.times_plain, result.times_stable) == (1.5, 1.2)
    assert dataclasses.replace(result, compressed_ms=8.0).times_plain == 2.0


def test_new_rows_are_new(codec) -> None:
    side = Side(None, None, 10)
    assert side.new(3).tolist() == [10, 11, 12] and side.new(1).tolist() == [13]
    assert side.rows(np.arange(2)).column_names == rows_of(np.arange(0)).schema.names
