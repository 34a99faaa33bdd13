"""The neighbor graph against exact neighbors of decoded rows: built, updated, interrupted and dropped."""

import datetime
import itertools
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from costly_examples import costly_examples
from hypothesis import given
from hypothesis import strategies as st
from small_tables import source_table, tiny_codec

from rqmoe_store.config import CodecConfig, MultiVectorConfig
from rqmoe_store.errors import InvalidInputError, RQMoEError, TableError
from rqmoe_store.search import graph_building
from rqmoe_store.store.neighbor_graph import GRAPH_FOLDER, GraphWriter
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, create_table

DIM = 6
NOW = datetime.timedelta(0)
numbers = itertools.count()


def vectors(seed: int, rows: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return lancedb.connect(tmp_path_factory.mktemp("graphs"))


def made(database, rows: int = 40, metric="l2", seed: int = 1) -> CompressedTable:
    name = f"docs{next(numbers)}"
    docs = database.create_table(name, source_table(vectors(seed, rows)))
    return compress(docs, tiny_codec(vectors(0, 60), metric, 0), f"{name}_small", progress=False)


def decoded(store: CompressedTable) -> dict[int, np.ndarray]:
    """Row id -> what its code stands for."""
    rows = store.search().where("vector IS NOT NULL").select(["vector"]).with_row_id().to_list()
    return {row["_rowid"]: np.float64(row["vector"]) for row in rows}


def distance(one: np.ndarray, other: np.ndarray, metric: str) -> float:
    if metric == "l2":
        return float(((one - other) ** 2).sum())
    product = float(one @ other)
    return 1 - (product if metric == "dot" else product / np.linalg.norm(one) / np.linalg.norm(other))


def lists_of(store: CompressedTable) -> dict[int, list[int]]:
    graph = store.handle.snapshots.current().neighbor_graph
    found = graph.neighbors_of(np.arange(200, dtype=np.uint64))
    assert len(found) == len(graph)
    return {row: near.tolist() for row, near in found.items()}


def require_nearest(store: CompressedTable, row: int, near: list[int], neighbors: int) -> None:
    """A list is that of the nearest rows, in order; rows at the same distance may change places."""
    vector_of, metric = decoded(store), store.metric
    exact = sorted(
        distance(vector_of[row], other, metric) for each, other in vector_of.items() if each != row
    )
    found = [distance(vector_of[row], vector_of[each], metric) for each in near]
    assert row not in near and len(set(near)) == len(near)
    np.testing.assert_allclose(found, exact[:neighbors], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@costly_examples(12, part=3)
@given(rows=st.integers(1, 28), neighbors=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_it_has_the_exact_neighbors(database, metric, rows, neighbors, seed) -> None:
    store = made(database, rows, metric, seed)
    report = store.build_neighbor_graph(neighbors, progress=False)
    assert (report.rows, report.searched, report.removed) == (rows, rows, 0)
    lists = lists_of(store)
    assert lists.keys() == decoded(store).keys()
    for row, near in lists.items():
        require_nearest(store, row, near, neighbors)


CHANGES = {
    "add": lambda store, random: store.add(
        [{"id": int(random.integers(100, 10**6)), "vector": vectors(int(random.integers(99)), 1)[0]}]
    ),
    "delete": lambda store, random: store.delete(f"id % 7 = {random.integers(7)}"),
    "update": lambda store, random: store.update(
        f"id = {random.integers(20)}", {"vector": vectors(int(random.integers(99)), 1)[0].tolist()}
    ),
    "merge": lambda store, random: (
        store.merge_insert("id")
        .when_matched_update_all()
        .when_not_matched_insert_all()
        .execute(
            [{"id": int(each), "vector": vectors(int(each), 1)[0]} for each in random.permutation(40)[:3]]
        )
    ),
    "optimize": lambda store, random: store.optimize(cleanup_older_than=NOW, progress=False),
    "update graph": lambda store, random: store.build_neighbor_graph(4, progress=False),
}


@costly_examples(20, part=4)
@given(changes=st.lists(st.sampled_from(list(CHANGES)), min_size=1, max_size=5), seed=st.integers(0, 10**6))
def test_updates(database, changes, seed) -> None:
    store, random = made(database, 20, seed=seed), np.random.default_rng(seed)
    store.build_neighbor_graph(4, progress=False)
    before, known = decoded(store), set(lists_of(store))
    for change in changes:
        CHANGES[change](store, random)
    store.build_neighbor_graph(4, progress=False)
    now, lists = decoded(store), lists_of(store)
    assert lists.keys() == now.keys()
    for row, near in lists.items():
        assert set(near) <= now.keys() - {row}
        assert len(near) == min(4, len(now) - 1)
        is_new = row not in known or not np.array_equal(before[row], now[row])
        if is_new and "update graph" not in changes and "optimize" not in changes:
            require_nearest(store, row, near, 4)
    assert store.build_neighbor_graph(4, progress=False).searched == 0
    store.build_neighbor_graph(4, rebuild=True, progress=False)
    for row, near in lists_of(store).items():
        require_nearest(store, row, near, 4)


def test_only_what_changed_is_searched_for_again(database) -> None:
    store = made(database, 60)
    store.build_neighbor_graph(3, progress=False)
    lists = lists_of(store)
    store.add([{"id": 100, "vector": vectors(1, 60)[5]}])
    store.delete("id = 7")
    report = store.optimize(progress=False).graph
    pointing = {row for row, near in lists.items() if 7 in near}
    new = lists_of(store)[60]
    assert report.removed == 1 and report.searched == len({60, *pointing, *new})
    for row in {60, *pointing, *new}:
        require_nearest(store, row, lists_of(store)[row], 3)
    again = store.optimize(progress=False).graph
    assert again.searched == 0
    store.update("id = 3", {"text": "other"})
    assert 0 < store.build_neighbor_graph(3, progress=False).searched < 30


def test_rows_without_a_code_come_once_they_have_one(database) -> None:
    store = made(database, 30)
    store.add([{"id": 50, "vector": vectors(9, 1)[0]}], encode=False)
    store.add([{"id": 51, "vector": None}])
    store.build_neighbor_graph(4, progress=False)
    assert len(lists_of(store)) == 30 and all(30 not in near for near in lists_of(store).values())
    store.optimize(progress=False)
    assert len(lists_of(store)) == 31 and len(lists_of(store)[30]) == 4
    store.delete("true")
    assert store.build_neighbor_graph(4, progress=False).rows == 0 == len(lists_of(store))


class StoppedError(Exception):
    """Stands for a process that is killed."""


def stop_after(monkeypatch, writes: int) -> None:
    """Have a session write eight rows at a time, and stop before it writes for the last time."""
    monkeypatch.setattr(graph_building, "_WRITTEN_ROWS", 8)
    write, left = GraphWriter.write, itertools.count(writes, -1)

    def write_or_stop(self, rows) -> None:
        if next(left) == 0:
            raise StoppedError
        write(self, rows)

    monkeypatch.setattr(GraphWriter, "write", write_or_stop)


def test_an_interrupted_building_goes_on(database, monkeypatch) -> None:
    store = made(database, 40)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stop_after(patch, 3)
        store.build_neighbor_graph(4, progress=False)
    with pytest.raises(TableError, match="not complete"):
        store.search(vectors(0, 1)[0]).expand(neighbors=4).to_list()
    assert store.stats().graph_version is None
    assert store.build_neighbor_graph(4, progress=False).searched == 40 - 24
    for row, near in lists_of(store).items():
        require_nearest(store, row, near, 4)


def test_an_interrupted_update_leaves_the_published_graph(database, monkeypatch) -> None:
    store = made(database, 40)
    store.build_neighbor_graph(4, progress=False)
    lists = lists_of(store)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        stop_after(patch, 2)
        store.build_neighbor_graph(4, rebuild=True, progress=False)
    assert lists_of(store) == lists
    before_restore = store.version
    assert store.build_neighbor_graph(4, progress=False).searched == 40 - 16
    assert lists_of(store) == lists

    # What was not published before a restore does not count after it.
    store.restore(before_restore - 1)
    assert lists_of(store) == lists
    assert store.build_neighbor_graph(4, progress=False).searched == 0
    assert lists_of(store) == lists


def test_of_two_sessions_the_later_one_goes_on(database, monkeypatch) -> None:
    store = made(database, 40)
    run = graph_building._Session.run

    def run_beside_another(self, begin, advance):
        monkeypatch.setattr(graph_building._Session, "run", run)
        other = CompressedTable.open(database, store.name)
        assert other.build_neighbor_graph(4, progress=False).rows == 40
        return run(self, begin, advance)

    monkeypatch.setattr(graph_building._Session, "run", run_beside_another)
    with pytest.raises(TableError, match="Another process"):
        store.build_neighbor_graph(4, progress=False)
    assert len(lists_of(store)) == 40


def test_health_says_what_the_graph_lacks(database, tmp_path) -> None:
    store = made(database)
    assert store.health().graph is None
    store.build_neighbor_graph(3, progress=False)
    graph = store.health().graph
    assert graph.complete and (graph.neighbors, graph.rows, graph.unsearched) == (3, 40, 0)
    assert graph.disk_bytes == store.stats().graph_disk_bytes > 0
    assert graph.version == store.stats().graph_version < graph.table_version == store.version
    store.add(source_table(vectors(9, 5)))
    store.update(where="id = 7", values={"text": "other"})
    report = store.health()
    assert report.graph.unsearched == 6 and "6 rows lack theirs" in str(report)
    store.save_health_report(tmp_path / "health.html")
    page = (tmp_path / "health.html").read_text()
    assert "<dt>rows that lack their neighbors</dt> <dd>6</dd>" in page and "<span>graph</span>" in page
    store.optimize(progress=False)
    report = store.health()
    assert report.graph.unsearched == 0 and "lack theirs" not in str(report)
    GraphWriter.begin(store.table, 4, rebuild=True)
    store.refresh()
    assert store.health().graph.rows == 45  # searches go on with it
    never = made(database)
    GraphWriter.begin(never.table, 4, rebuild=False)
    never.refresh()
    assert not never.health().graph.complete and "not complete" in str(never.health())


def test_what_is_up_to_date_is_not_written_again(database) -> None:
    store, without = made(database), made(database)
    report = store.build_neighbor_graph(3, progress=False)
    versions, side = [store.version, without.version], side_versions(store)
    again = store.optimize(progress=False).graph
    assert (again.rows, again.searched, again.removed) == (40, 0, 0) and again.version == report.version
    without.optimize(progress=False)
    assert store.version - versions[0] == without.version - versions[1] and side_versions(store) == side
    version = store.version
    assert store.build_neighbor_graph(3, progress=False) == again and store.version == version
    assert store.build_neighbor_graph(3, rebuild=True, progress=False).searched == 40
    assert store.build_neighbor_graph(2, progress=False).searched == 40
    store.delete("id = 5")
    assert store.optimize(progress=False).graph.removed == 1
    assert store.version > version


def side_versions(store: CompressedTable) -> int:
    """Versions of the graph's side table."""
    folder = Path(store.handle.snapshots.current().database.uri) / f"{store.name}.lance" / GRAPH_FOLDER
    return len(list((folder / "_versions").iterdir()))


def test_it_is_shown_verified_and_dropped(database) -> None:
    store = made(database, 40)
    assert "neighbor graph         none" in str(store.stats())
    store.build_neighbor_graph(4, progress=False)
    stats = store.stats()
    assert (stats.graph_neighbors, stats.graph_rows, stats.graph_disk_bytes > 0) == (4, 40, True)
    assert f"4 neighbors of each of 40 rows, as of version {stats.graph_version}" in str(stats)
    report = store.verify(progress=False)
    assert report.ok and not report.orphans
    folder = store.table.uri
    assert pa.fs.LocalFileSystem().get_file_info(f"{folder}/{GRAPH_FOLDER}").type == pa.fs.FileType.Directory
    assert all(GRAPH_FOLDER not in name for name in database.list_tables().tables)
    database.drop_table(store.name)
    assert pa.fs.LocalFileSystem().get_file_info(folder).type == pa.fs.FileType.NotFound


def test_tables_that_cannot_have_one(database) -> None:
    config = CodecConfig(kind="rq", code_bytes=4, codebook_size=16)
    raw = create_table(database, "raw", source_table(vectors(0, 20)), config=config)
    with pytest.raises(TableError, match=r"no codec yet.*train\(\)"):
        raw.build_neighbor_graph(progress=False)
    store = made(database, 20)
    store.checkout(store.version)
    with pytest.raises(TableError, match="checked out"):
        store.build_neighbor_graph(progress=False)
    unstable = database.create_table("unstable", source_table(vectors(0, 20)))
    unstable = compress(unstable, tiny_codec(vectors(0, 60), "l2", 0), in_place=True, progress=False)
    assert not unstable.table.to_lance().has_stable_row_ids
    with pytest.raises(TableError, match="no stable row ids"):
        unstable.build_neighbor_graph(progress=False)


def test_rows_of_many_vectors(database) -> None:
    schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.list_(pa.float32(), 4)))])
    many = create_table(
        database,
        "many",
        [{"id": 1, "vector": np.ones((2, 4), np.float32)}],
        schema=schema,
        config=CodecConfig(kind="rq", metric="cosine", code_bytes=4, codebook_size=16),
        multi_vector=MultiVectorConfig(code_bytes=4),
    )
    for call in (many.build_neighbor_graph, many.search(np.ones((1, 4))).expand):
        with pytest.raises(InvalidInputError, match="many vectors each"):
            call()


@pytest.mark.parametrize("wrong", [0, -1, 1001, 2.5, None, "ten", True])
def test_wrong_numbers_of_neighbors(database, wrong) -> None:
    with pytest.raises(RQMoEError, match="neighbors"):
        made(database, 5).build_neighbor_graph(wrong, progress=False)
