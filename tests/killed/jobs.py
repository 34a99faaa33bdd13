"""Operations on a whole table, of several commits each."""

import dataclasses
import datetime
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from lancedb.index import FTS, BTree, IvfFlat

from killed.intact import DIM, Contents, assert_untouched, has_vector, rows_of, vectors_of
from killed.operation import (
    FIRST,
    TABLE,
    TRAINING,
    Operation,
    assert_all_coded,
    assert_same_row_ids,
    assert_steady,
    block,
    database,
    plain_table,
    small_config,
    tiny_codec,
)
from rqmoe_store.codecs.base import load_codec
from rqmoe_store.config import MultiVectorConfig
from rqmoe_store.store import registry
from rqmoe_store.store.databases import open_if_exists
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, create_table, open_table

ANOTHER = dataclasses.replace(TRAINING, seed=1)
"""A training that makes another codec."""
_NOW = datetime.timedelta(0)


class CompressInPlace(Operation):
    """A table with vectors, turned into one with codes where it is."""

    def __init__(
        self, name: str, *, keep_vectors: str = "none", stable: bool = True, nulls: bool = True
    ) -> None:
        self.name, self._keep, self._stable = name, keep_vectors, stable
        self._nulls = nulls
        """Whether some rows lack a vector; the column does not allow it otherwise."""

    def prepare(self, folder: Path) -> None:
        rows = rows_of(self.contents(0))
        if not self._nulls:
            vector = pa.field("vector", pa.list_(pa.float32(), DIM), nullable=False)
            rows = rows.cast(rows.schema.set(rows.schema.get_field_index("vector"), vector))
        docs = plain_table(folder, TABLE, rows, stable=self._stable)
        docs.create_index("id", config=BTree())
        docs.create_index("text", config=FTS())
        docs.create_index("vector", config=IvfFlat(num_partitions=2))
        tiny_codec(num_partitions=3).save(folder / "codec")

    def begin(self, folder: Path) -> Any:
        return database(folder).open_table(TABLE), load_codec(folder / "codec")

    def call(self, target: Any, number: int) -> None:
        compress(*target, in_place=True, keep_vectors=self._keep, progress=False)

    def contents(self, calls: int) -> Contents:
        return {row: 0 for row in FIRST if self._nulls or has_vector(row)}

    def check(self, folder: Path, acknowledged: int) -> int:
        docs = database(folder).open_table(TABLE)
        if b"rqmoe_store.generations" in (docs.schema.metadata or {}):
            return super().check(folder, acknowledged)
        assert_untouched(docs.to_arrow(), self.contents(0))
        assert_same_row_ids(folder, docs)
        return 0

    def check_done(self, folder: Path, calls: int) -> None:
        assert_all_coded(folder, generations=1)


class Create(Operation):
    """A table that begins with rows and a key."""

    name = "create_table"

    def prepare(self, folder: Path) -> None:
        registry.open_or_create_registry(database(folder))

    def begin(self, folder: Path) -> Any:
        return database(folder)

    def call(self, target: Any, number: int) -> None:
        if open_if_exists(target, TABLE) is None:
            create_table(target, TABLE, rows_of(FIRST), config=small_config(), key="id")

    def check(self, folder: Path, acknowledged: int) -> int:
        if not acknowledged and open_if_exists(database(folder), TABLE) is None:
            return 0
        assert open_table(database(folder), TABLE).key == "id"
        return super().check(folder, acknowledged)


class CompressInto(Operation):
    """A table with vectors, compressed into a new one."""

    name = "compress into a new table"

    def prepare(self, folder: Path) -> None:
        plain_table(folder, "source", rows_of(FIRST), stable=False)
        tiny_codec(num_partitions=3).save(folder / "codec")

    def begin(self, folder: Path) -> Any:
        return database(folder), load_codec(folder / "codec")

    def call(self, target: Any, number: int) -> None:
        db, codec = target
        if open_if_exists(db, TABLE) is None:
            compress(db.open_table("source"), codec, TABLE, keep_vectors="float16", progress=False)

    def check(self, folder: Path, acknowledged: int) -> int:
        db = database(folder)
        assert_untouched(db.open_table("source").to_arrow(), FIRST)
        if acknowledged or open_if_exists(db, TABLE) is not None:
            return super().check(folder, acknowledged)
        return 0

    def check_done(self, folder: Path, calls: int) -> None:
        assert_all_coded(folder, generations=1)


class CompressLists(Operation):
    """A table whose rows have many vectors each, compressed into a new one."""

    name = "compress many vectors a row"
    CONFIG: ClassVar = MultiVectorConfig(code_bytes=4, num_repetitions=2, num_hyperplanes=2, final_dim=None)

    def prepare(self, folder: Path) -> None:
        rows = rows_of(FIRST)
        lists = [
            None if vector is None else [vector, vector[::-1]][: 1 + row % 2]
            for row, vector in enumerate(rows["vector"].to_pylist())
        ]
        place = rows.schema.get_field_index("vector")
        rows = rows.set_column(place, "vector", pa.array(lists, pa.list_(pa.list_(pa.float32(), DIM))))
        plain_table(folder, "source", rows, stable=False)
        tiny_codec(num_partitions=0, metric="dot").save(folder / "codec")

    def begin(self, folder: Path) -> Any:
        return database(folder), load_codec(folder / "codec")

    def call(self, target: Any, number: int) -> None:
        db, codec = target
        if open_if_exists(db, TABLE) is None:
            compress(db.open_table("source"), codec, TABLE, multi_vector=self.CONFIG, progress=False)

    def check(self, folder: Path, acknowledged: int) -> int:
        db = database(folder)
        source = db.open_table("source").to_arrow()
        assert source.num_rows == len(FIRST)
        if not acknowledged and open_if_exists(db, TABLE) is None:
            return 0
        store = open_table(db, TABLE)
        assert store.verify(progress=False).ok
        assert_steady(folder, 0)
        rows = store.search().select(["id", "vector"]).to_list()
        given = dict(zip(source["id"].to_pylist(), source["vector"].to_pylist(), strict=True))
        assert {row["id"]: len(row["vector"] or []) for row in rows} == {
            row: len(vectors or []) for row, vectors in given.items()
        }
        for vectors in list(given.values())[:3]:
            assert store.search(vectors).limit(len(FIRST)).select(["id"]).to_list()
        return acknowledged


class TuneCodec(Operation):
    """A codec tuned for queries, all of which should find the same few rows."""

    name = "tune codec"

    def prepare(self, folder: Path) -> None:
        docs = plain_table(folder, "source", rows_of(FIRST), stable=False)
        store = compress(docs, tiny_codec(num_partitions=3), TABLE, progress=False)
        pq.write_table(store.table.to_arrow(), folder / "before.parquet")

    def call(self, target: CompressedTable, number: int) -> None:
        queries, answers = vectors_of(block(0, 120)) + 0.01, [[0, 1, 2]] * 120
        target.tune_codec(queries, answers, on="id", progress=False)

    def check(self, folder: Path, acknowledged: int) -> int:
        store = open_table(database(folder), TABLE)
        if store.codec.correction is None:
            assert not acknowledged
            return super().check(folder, acknowledged)
        # Distances are corrected: they are not those of the vectors, as `Operation.check` would have them.
        assert store.table.to_arrow().equals(pq.read_table(folder / "before.parquet"))
        assert store.verify(progress=False).ok
        assert_steady(folder, 0)
        found = store.search(vectors_of(FIRST)[0]).nprobes(3).limit(len(FIRST)).select(["id"]).to_list()
        assert sorted(row["id"] for row in found) == [row for row in FIRST if has_vector(row)]
        return 1


class Train(Operation):
    """The first codec of a table, and all rows encoded by it."""

    def __init__(self, name: str, *, keep_vectors: str = "none", refine_bytes: int = 0) -> None:
        self.name, self._keep = name, keep_vectors
        self._refine_bytes = refine_bytes
        """Of the refine codes of the first codec."""

    generations: ClassVar[int] = 1

    def prepare(self, folder: Path) -> None:
        db, config = database(folder), small_config(num_partitions=2, refine_bytes=self._refine_bytes)
        schema = rows_of({}).schema
        store = create_table(db, TABLE, schema=schema, config=config, keep_vectors=self._keep)
        for number in range(3):
            store.add(rows_of(block(number, 100)))
        store.table.create_index("id", config=BTree())
        store.create_fts_index("text")

    def call(self, target: CompressedTable, number: int) -> None:
        target.refresh()
        if len(target.codecs.generations) < self.generations:
            self._train(target)
        else:
            target.optimize(progress=False)

    def _train(self, target: CompressedTable) -> None:
        target.train(TRAINING, progress=False)

    def check_done(self, folder: Path, calls: int) -> None:
        assert_all_coded(folder, generations=self.generations)


class Retrain(Train):
    """A second codec of a table."""

    generations = 2

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        super()._train(open_table(database(folder), TABLE))

    def _train(self, target: CompressedTable) -> None:
        vectors = None if self._keep != "none" else "decoded"
        target.retrain(ANOTHER, vectors=vectors, progress=False)


class RetrainWithAndWithout(Retrain):
    """A second codec with refine codes where the first has none, or without any where it has some; then their
    column is dropped."""

    REFINE_BYTES: ClassVar[int] = 8

    def _train(self, target: CompressedTable) -> None:
        refine_bytes = self.REFINE_BYTES - self._refine_bytes
        config = dataclasses.replace(target.codecs.metadata.config, refine_bytes=refine_bytes)
        target.retrain(ANOTHER, vectors="decoded", config=config, progress=False)

    def call(self, target: CompressedTable, number: int) -> None:
        super().call(target, number)
        target.optimize(progress=False)

    def check_done(self, folder: Path, calls: int) -> None:
        super().check_done(folder, calls)
        store = open_table(database(folder), TABLE)
        assert store.columns.refine_bytes == self.REFINE_BYTES - self._refine_bytes
        assert ("vector_refine" in store.table.schema.names) == bool(store.columns.refine_bytes)


class RetrainInBackground(Retrain):
    """A second codec, to which a thread brings the rows."""

    def call(self, target: CompressedTable, number: int) -> None:
        target.refresh()
        if len(target.codecs.generations) < self.generations:
            target.retrain(ANOTHER, vectors="decoded", encode="background", progress=False)
        target.encode_in_background().wait()


class BuildGraph(Operation):
    """A neighbor graph built; rows deleted and added, and the graph brought up to date by `optimize`."""

    name, calls = "build neighbor graph", 3

    def prepare(self, folder: Path) -> None:
        store = create_table(database(folder), TABLE, rows_of(FIRST), config=small_config())
        store.train(TRAINING, progress=False)

    def call(self, target: CompressedTable, number: int) -> None:
        if number == 0:
            target.build_neighbor_graph(5, progress=False)
        elif number == 1:
            target.delete("id % 13 = 5")
        else:
            target.optimize(cleanup_older_than=_NOW, codecs_older_than=_NOW, progress=False)

    def contents(self, calls: int) -> Contents:
        return {row: 0 for row in FIRST if row % 13 != 5} if calls > 1 else FIRST

    def check_done(self, folder: Path, calls: int) -> None:
        store = open_table(database(folder), TABLE)
        found = store.search(vectors_of(FIRST)[0]).expand(hops=2).select(["id"]).to_list()
        assert len(found) == 10
        if calls != 2:
            coded = store.count_rows("vector IS NOT NULL")
            assert (store.stats().graph_rows, store.stats().graph_neighbors) == (coded, 5)


class Optimize(Operation):
    """Raw rows encoded, rows of an older codec as well, small files merged, indexes brought up to date, old
    versions and the older codec removed; rows added, and all of it again."""

    name, calls = "optimize", 3

    def prepare(self, folder: Path) -> None:
        store = create_table(database(folder), TABLE, rows_of(block(0, 160)), config=small_config())
        store.train(TRAINING, progress=False)
        for number in range(8, 12):
            store.add(rows_of(block(number)), encode=number % 2 == 0)
        store.table.create_index("id", config=BTree())
        store.create_fts_index("text")
        store.retrain(ANOTHER, vectors="decoded", encode=False, progress=False)
        for number in range(12, 15):
            store.add(rows_of(block(number)), encode=number % 2 == 0)
        store.delete("id % 13 = 5")

    def call(self, target: CompressedTable, number: int) -> None:
        if number == 1:
            target.add(rows_of(block(15)), encode=False)
        else:
            target.optimize(cleanup_older_than=_NOW, codecs_older_than=_NOW, progress=False)

    def contents(self, calls: int) -> Contents:
        kept = {row: 0 for row in FIRST if row % 13 != 5}
        return kept | (block(15) if calls > 1 else {})

    def encoded_rows(self, calls: int) -> int:
        return sum(has_vector(row) for row in (block(12) | block(14)))

    def check_done(self, folder: Path, calls: int) -> None:
        if calls == 2:
            return  # rows were added last
        assert_all_coded(folder, generations=2)
        kept = registry.open_registry(database(folder))
        newest = open_table(database(folder), TABLE).codec
        assert kept is not None and list(registry.saved_at(kept)) == [newest.fingerprint]
