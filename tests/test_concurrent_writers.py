"""Several processes that write to one table at once: its rows are as if they had come one after the other."""

import bisect
from collections.abc import Iterable
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from other_processes import processes
from small_tables import tiny_codec
from small_writers import COUNTER, NEW, OWN_ROWS, POOL, SHARED, Outcome, Tidied, row, tidy, write

from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, open_table


def run(folder: Path, writers: int, seconds: float) -> tuple[list[Outcome], Tidied]:
    """So many processes that write for some seconds, and one that tidies."""
    together, finished = processes.Barrier(writers + 1), processes.Event()
    outcomes, tidied = processes.Queue(), processes.Queue()
    running = [
        processes.Process(target=write, args=(str(folder), number + 1, seconds, together, outcomes))
        for number in range(writers)
    ]
    running.append(processes.Process(target=tidy, args=(str(folder), together, finished, tidied)))
    for process in running:
        process.start()
    try:
        found = [outcomes.get(timeout=seconds + 600) for _ in range(writers)]
        finished.set()
        return found, tidied.get(timeout=600)
    finally:
        for process in running:
            process.join(timeout=10)
            process.kill()


def possible_codes(store: CompressedTable) -> list[list[set[bytes]]]:
    """By generation and place in POOL, what codes its vector may have, which may have had older ones."""
    codes: list[list[set[bytes]]] = []
    known = [[vector] for vector in POOL]
    for generation in store.codecs.generations:
        encoded = [generation.codec.encode(np.stack(vectors)) for vectors in known]
        codes.append([{code.tobytes() for code in each.codes} for each in encoded])
        for vectors, each in zip(known, encoded, strict=True):
            vectors.extend(generation.codec.decode(each))
    return codes


def check(store: CompressedTable, outcomes: list[Outcome]) -> None:
    names = ["id", "text", "count", "vector", *store.columns.names]
    rows = store.table.search().select(names).limit(None).to_arrow().to_pylist()
    found = {each["id"]: each for each in rows}
    assert len(found) == len(rows)
    assert found[COUNTER]["count"] == sum(outcome.counted for outcome in outcomes)
    assert {number for number in found if number < OWN_ROWS} == {COUNTER, *SHARED, *NEW}
    own = {number: values for outcome in outcomes for number, values in outcome.own.items()}
    assert {number: found[number]["text"] for number in found if number >= OWN_ROWS} == {
        number: text for number, (text, _) in own.items()
    }
    possible, firsts = possible_codes(store), store.codecs.metadata.first_partitions

    def assert_is(number: int, places: Iterable[int]) -> None:
        """A row has one of these vectors, raw or encoded by the codec that its partition names."""
        row = found[number]
        if row["vector_code"] is None:
            assert any(np.array_equal(np.float32(row["vector"]), POOL[place]) for place in places)
        else:
            generation = bisect.bisect_right(firsts, row["vector_partition"]) - 1
            assert row["vector"] is None
            assert any(row["vector_code"] in possible[generation][place] for place in places)

    for number, (_, place) in own.items():
        assert_is(number, [place])
    # Of rows that all have written, text and vector are by the same one.
    for number in SHARED:
        assert_is(number, range(len(POOL)))
    for number in NEW:
        assert_is(number, [int(found[number]["text"])])
    hits = store.search(POOL[0]).nprobes(9).shortlist(5000).limit(5000).to_arrow()
    assert sorted(hits["id"].to_pylist()) == sorted(found)


def check_run(folder: Path, writers: int, seconds: float, at_least: int) -> None:
    """After some seconds everything is there, and is so when all rows are brought to the newest codec."""
    outcomes, tidied = run(folder, writers, seconds)
    operations, merges = (sum(getattr(each, name) for each in outcomes) for name in ("operations", "merges"))
    retries = sum(outcome.attempts for outcome in outcomes) - merges
    print(f"{operations} operations, {merges} merges among them tried {retries} times again; {tidied}")
    assert operations >= at_least and tidied.optimized >= 2 and tidied.in_background > 0
    store = open_table(lancedb.connect(folder), "table")
    check(store, outcomes)
    assert store.verify(progress=False).ok
    store.optimize(progress=False)
    check(store, outcomes)
    assert len(store.codecs.generations) == 2
    first = store.codecs.generations[-1].first_partition
    assert store.table.count_rows(f"vector_partition >= {first}") == len(store)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(POOL[:6].ravel()), POOL.shape[1])
    first = [row(number, "first", number) for number in (COUNTER, *SHARED)]
    columns = {name: [each[name] for each in first] for name in ("id", "lang", "text", "count")}
    docs = lancedb.connect(tmp_path).create_table("docs", pa.table({**columns, "vector": vectors}))
    compress(docs, tiny_codec(POOL, "l2", 3), "table", key="id", progress=False)
    return tmp_path


def test_a_few_seconds(folder: Path) -> None:
    check_run(folder, writers=2, seconds=4, at_least=10)


@pytest.mark.slow
def test_a_minute(folder: Path) -> None:
    check_run(folder, writers=4, seconds=60, at_least=100)
