"""Several processes that write to one table at once: its rows are as if they had come one after the other."""

import multiprocessing
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from small_tables import tiny_codec
from small_writers import COUNTER, NEW, OWN_ROWS, POOL, SHARED, Outcome, row, write

from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, open_table


def run(folder: Path, processes: int, seconds: float) -> list[Outcome]:
    context = multiprocessing.get_context("spawn")
    together, outcomes = context.Barrier(processes), context.Queue()
    running = [
        context.Process(target=write, args=(str(folder), number + 1, seconds, together, outcomes))
        for number in range(processes)
    ]
    for process in running:
        process.start()
    try:
        found = [outcomes.get(timeout=seconds + 120) for _ in running]
    finally:
        for process in running:
            process.join(timeout=10)
            process.kill()
    return found


def check(store: CompressedTable, outcomes: list[Outcome]) -> None:
    names = ["id", "text", "count", "vector", "vector_code"]
    rows = store.table.search().select(names).limit(None).to_arrow().to_pylist()
    found = {each["id"]: each for each in rows}
    assert len(found) == len(rows)
    assert found[COUNTER]["count"] == sum(outcome.counted for outcome in outcomes)
    assert {number for number in found if number < OWN_ROWS} == {COUNTER, *SHARED, *NEW}
    own = {number: values for outcome in outcomes for number, values in outcome.own.items()}
    assert {number: found[number]["text"] for number in found if number >= OWN_ROWS} == {
        number: text for number, (text, _) in own.items()
    }
    codes = store.codec.encode(POOL).codes
    for number, (_, place) in own.items():
        code, vector = found[number]["vector_code"], found[number]["vector"]
        if code is None:
            np.testing.assert_array_equal(np.float32(vector), POOL[place])
        else:
            assert code == codes[place].tobytes() and vector is None
    # Of rows that all have written, text and vector are by the same one.
    for number in SHARED:
        assert found[number]["vector_code"] in {code.tobytes() for code in codes}
    for number in NEW:
        assert found[number]["vector_code"] == codes[int(found[number]["text"])].tobytes()
    hits = store.search(POOL[0]).nprobes(9).shortlist(5000).limit(5000).to_arrow()
    assert sorted(hits["id"].to_pylist()) == sorted(found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(POOL[:6].ravel()), POOL.shape[1])
    first = [row(number, "first", number) for number in (COUNTER, *SHARED)]
    columns = {name: [each[name] for each in first] for name in ("id", "lang", "text", "count")}
    docs = lancedb.connect(tmp_path).create_table("docs", pa.table({**columns, "vector": vectors}))
    compress(docs, tiny_codec(POOL, "l2", 3), "table", key="id", progress=False)
    return tmp_path


def test_a_few_seconds(folder: Path) -> None:
    outcomes = run(folder, processes=3, seconds=4)
    check(open_table(lancedb.connect(folder), "table"), outcomes)


@pytest.mark.slow
def test_a_minute(folder: Path) -> None:
    outcomes = run(folder, processes=4, seconds=60)
    assert sum(outcome.operations for outcome in outcomes) > 100
    check(open_table(lancedb.connect(folder), "table"), outcomes)
