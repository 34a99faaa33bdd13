"""From raw rows to codes, and from one codec to the next, with every row found at any time."""

import datetime

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from brute_force import plain_distances

from rqmoe_store import lifecycle
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.config import CodecConfig, MultiVectorConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store import reencoding
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, create_table, open_table
from rqmoe_store.training import trainer

DIM, ROWS = 16, 600
random = np.random.default_rng(3)
VECTORS = (random.normal(size=(ROWS, 6)) @ random.normal(size=(6, DIM))).astype(np.float32)
TRAINING = TrainConfig(epochs=0, progress=False)
NOW = datetime.timedelta(0)


def config_of(metric: str = "l2", **changes: object) -> CodecConfig:
    return CodecConfig(kind="rq", metric=metric, code_bytes=4, codebook_size=16, beam=1, **changes)


def rows_of(first: int, last: int) -> list[dict]:
    return [
        {"id": row, "text": f"row {row} of {row % 7}", "vector": VECTORS[row]} for row in range(first, last)
    ]


def exact(query: np.ndarray, rows: dict[int, np.ndarray], metric: str) -> list[tuple[float, int]]:
    near = plain_distances(metric, query, np.stack(list(rows.values())))
    return sorted(zip(near.tolist(), rows, strict=True))


def found(store: CompressedTable, query: np.ndarray, limit: int = 10, **options) -> list[tuple[float, int]]:
    search = store.search(query).limit(limit).shortlist(max(limit, ROWS)).nprobes(1000)
    return [(row["_distance"], row["id"]) for row in search.select(["id"]).to_list()]


def assert_nearest(store: CompressedTable, vectors: dict[int, np.ndarray], metric: str = "l2") -> None:
    """Searches return the nearest of these vectors, at their distances, and nothing else."""
    for query in VECTORS[:3] + 0.01:
        wanted = exact(query, vectors, metric)[:10]
        for cache in ("memory", "disk"):
            got = found(store.use_cache(cache), query)
            np.testing.assert_allclose([d for d, _ in got], [d for d, _ in wanted], rtol=2e-4, atol=2e-4)
            assert {row for _, row in got[:5]} <= {row for _, row in wanted}
    store.use_cache("memory")
    assert len(found(store, VECTORS[0], limit=ROWS + 50)) == len(vectors)


def decoded(store: CompressedTable) -> dict[int, np.ndarray]:
    """What every coded row decodes to."""
    rows = store.table.search().select(["id", *store.columns.names]).to_arrow()
    codes, valid = store.columns.from_arrow(rows)
    ids = np.array(rows["id"])[valid]
    return dict(zip(ids.tolist(), store.codecs.decode(codes), strict=True))


def squared_error(store: CompressedTable) -> float:
    """Mean squared error of what coded rows decode to, in the length that codecs give vectors."""
    made, vectors = decoded(store), VECTORS
    if store.metric == "cosine":
        vectors = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    return float(np.mean([np.square(made[row] - vectors[row]).sum() for row in made]))


@pytest.fixture
def db(tmp_path):
    return lancedb.connect(tmp_path / "db")


@pytest.fixture(params=["l2", "cosine", "dot"])
def metric(request):
    return request.param


def test_a_handful_of_rows_is_searched_exactly(db, metric):
    store = create_table(db, "docs", rows_of(0, 5), config=config_of(metric))
    assert len(store) == 5
    assert_nearest(store, dict(enumerate(VECTORS[:5])), metric)
    assert store.search(VECTORS[1]).where("id > 2").limit(10).to_arrow()["id"].to_pylist().__len__() == 2
    assert "vector" not in store.search(VECTORS[1]).to_arrow().column_names
    with pytest.raises(TableError, match="has no codec yet: its 5 rows are kept raw"):
        _ = store.codec
    with pytest.raises(TableError, match="no codec yet"):
        store.add(rows_of(5, 6), encode=True)
    assert "no codec yet" in str(store.stats())


def test_raw_and_coded_rows_are_found_together(db, metric):
    store = create_table(db, "docs", rows_of(0, 500), config=config_of(metric))
    store.train(TRAINING, progress=False)
    coded = decoded(store)
    assert sorted(coded) == list(range(500))
    assert_nearest(store, coded, metric)
    store.add(rows_of(500, 550), encode=False)
    store.add(rows_of(550, 600))
    everything = decoded(store) | dict(zip(range(500, 550), VECTORS[500:550], strict=True))
    assert len(everything) == ROWS
    assert_nearest(store, everything, metric)
    assert store.stats().raw_rows == 50
    report = store.optimize(progress=False)
    assert (report.encoded.rows, report.raw_rows) == (50, 0)
    assert_nearest(store, decoded(store), metric)
    assert "Raw" not in store.search(VECTORS[0]).explain_plan()


@pytest.mark.parametrize("keep", ["none", "float16", "float32"])
def test_rows_keep_their_ids_and_columns_when_they_are_encoded(db, keep):
    store = create_table(db, "docs", rows_of(0, 300), config=config_of(), keep_vectors=keep)
    store.add([{"id": 1000, "text": "without", "vector": None}])
    store.table.create_scalar_index("id")
    store.create_fts_index("text")
    store.delete("id in (3, 4)")

    def stored():
        rows = store.table.search().select(["id", "text"]).with_row_id(True).to_arrow()
        return sorted(zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True))

    before = stored()
    store.train(TRAINING, progress=False)
    assert stored() == before
    assert store.table.count_rows("id = 7") == 1
    assert [row["id"] for row in store.search("7", "fts").where("id = 7").to_list()] == [7]
    store.optimize(progress=False)
    assert stored() == before
    assert store.table.count_rows("id = 7") == 1
    kept = store.table.count_rows("vector IS NOT NULL")
    assert kept == (0 if keep == "none" else 298)
    assert store.table.count_rows("vector_code IS NULL") == 1


def test_optimize_trains_once_there_are_enough_rows(db):
    store = create_table(db, "docs", rows_of(0, 300), config=config_of())
    report = store.optimize(training=TRAINING, train_from=301, progress=False)
    assert (report.trained, report.encoded.rows, report.raw_rows) == (False, 0, 300)
    report = store.optimize(training=TRAINING, train_from=300, cleanup_older_than=NOW, progress=False)
    assert (report.trained, report.encoded.rows, report.raw_rows) == (True, 300, 0)
    assert report.encoded.mse is not None and report.encoded.mse < (VECTORS[:300] ** 2).sum(axis=1).mean()
    assert report.bytes_after < report.bytes_before - 300 * DIM * 4 / 2
    assert "encoded 300 rows" in str(report)


def test_training_is_due_once_there_are_enough_raw_rows(db):
    store = create_table(db, "docs", rows_of(0, 20), config=config_of(num_partitions=40))
    assert not store.is_due_for_training(20) and not store.is_due_for_training(None)
    assert not store.optimize(training=TRAINING, train_from=1, progress=False).trained
    store.add([{"id": row, "text": "", "vector": None} for row in range(100, 130)])
    assert not store.is_due_for_training(1)  # rows without a vector teach nothing
    store.add(rows_of(20, 40))
    assert store.is_due_for_training(1) and store.is_due_for_training(40)
    assert not store.is_due_for_training(41) and not store.is_due_for_training()
    other = open_table(db, "docs")
    assert store.optimize(training=TRAINING, train_from=1, progress=False).trained
    assert not store.is_due_for_training(1)
    other.refresh()
    assert not other.is_due_for_training(1)


@pytest.mark.parametrize("call", ["train", "optimize"])
def test_whoever_trains_the_first_codec_is_first(db, monkeypatch, call):
    """A codec trained at the same time must not replace it: rows would be encoded twice, and lose twice."""
    store = create_table(db, "docs", rows_of(0, 300), config=config_of())
    learn, firsts = trainer.train, []

    def beaten(*arguments, **settings):
        monkeypatch.setattr(trainer, "train", learn)
        others = TrainConfig(epochs=0, seed=5, progress=False)
        firsts.append(open_table(db, "docs").train(others, progress=False))
        store.refresh()  # as another thread would that uses the same handle
        return learn(*arguments, **settings)

    monkeypatch.setattr(trainer, "train", beaten)
    if call == "train":
        with pytest.raises(
            TableError, match="was given a codec by another process while this one was trained"
        ):
            store.train(TRAINING, progress=False)
    else:
        report = store.optimize(training=TRAINING, train_from=300, progress=False)
        assert (report.trained, report.raw_rows) == (False, 0)
    for handle in (store, open_table(db, "docs")):
        assert [each.fingerprint for each in handle.codecs.metadata.generations] == [firsts[0].fingerprint]
        assert_nearest(handle, decoded(handle))
    assert store.table.count_rows("vector_code IS NULL") == 0


def test_a_second_codec_takes_over_part_by_part(db, metric):
    store = create_table(db, "docs", rows_of(0, 300), config=config_of(metric, num_partitions=3))
    first = store.train(TRAINING, progress=False)
    other = open_table(db, "docs")
    assert_nearest(other, decoded(other), metric)
    with pytest.raises(TableError, match=r"has a codec already.*retrain"):
        store.train(TRAINING)
    second = store.retrain(
        TRAINING, vectors=VECTORS, config=config_of(metric, num_partitions=2), encode=False, progress=False
    )
    assert second.fingerprint != first.fingerprint
    store.add(rows_of(300, 400))
    assert [each.num_partitions for each in store.codecs.metadata.generations] == [3, 2]
    partitions = np.array(store.table.to_arrow()["vector_partition"])
    assert set(partitions[:300]) <= {0, 1, 2} and set(partitions[300:]) <= {3, 4}
    for handle in (store, other, open_table(db, "docs")):
        handle.refresh()
        assert_nearest(handle, decoded(handle), metric)
    report = store.optimize(progress=False)
    assert report.encoded.rows == 300
    assert set(store.table.to_arrow()["vector_partition"].to_pylist()) <= {3, 4}
    assert_nearest(other, decoded(store), metric)


def test_retraining_on_what_codes_decode_to(db):
    store = create_table(db, "docs", rows_of(0, 300), config=config_of())
    store.train(TRAINING, progress=False)
    with (
        pytest.warns(UserWarning, match="have codes only"),
        pytest.raises(TableError, match="no raw vectors to train on"),
    ):
        store.retrain(TRAINING, progress=False)
    before = decoded(store)
    with pytest.warns(UserWarning, match="300 rows of table 'docs' have codes only"):
        store.retrain(TRAINING, vectors="decoded", progress=False)
    after = decoded(store)
    errors = [np.square(after[row] - before[row]).sum() for row in before]
    assert np.mean(errors) < 0.5 * np.mean([np.square(vector).sum() for vector in before.values()])
    assert len(store.codecs.generations) == 2


def test_kept_vectors_are_what_a_second_codec_learns_from(db):
    store = create_table(db, "docs", rows_of(0, 300), config=config_of(), keep_vectors="float32")
    store.train(TRAINING, progress=False)
    store.retrain(TrainConfig(epochs=0, seed=5, progress=False), progress=False)
    made = decoded(store)
    expected = store.codec.decode(store.codec.encode(VECTORS[:300]))
    np.testing.assert_allclose(np.stack([made[row] for row in range(300)]), expected, rtol=1e-5, atol=1e-5)


def test_a_table_gets_refine_codes_and_loses_them(db, metric):
    plain, refined = config_of(metric), config_of(metric, refine_bytes=8)
    store = create_table(db, "docs", rows_of(0, 300), config=plain, keep_vectors="float32")
    store.train(TRAINING, progress=False)
    coarse = squared_error(store)
    store.retrain(TRAINING, config=refined, progress=False)
    assert squared_error(store) < 0.5 * coarse
    assert store.stats().refine_disk_bytes >= 300 * 8
    store.add(rows_of(300, 310), encode=False)
    # Until `optimize`, the column of refine codes is there, and rows that are encoded have nothing in it.
    store.retrain(TRAINING, config=plain, progress=False)
    assert store.columns.refine in store.table.schema.names
    assert store.table.count_rows(f"{store.columns.refine} IS NOT NULL") == 0
    store.add(rows_of(310, 320), encode=False)
    store.optimize(progress=False)
    assert store.columns.names == ("vector_code", "vector_partition")
    assert "vector_refine" not in store.table.schema.names
    assert_nearest(store, decoded(store), metric)
    assert store.verify(progress=False).ok


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (config_of("dot"), "codec of metric 'dot'"),
        (CodecConfig(kind="rq", code_bytes=5, codebook_size=16), "codec of code_bytes 5"),
    ],
)
def test_a_codec_of_another_shape_is_refused(db, config, message):
    store = create_table(db, "docs", rows_of(0, 100), config=config_of())
    store.train(TRAINING, progress=False)
    with pytest.raises(InvalidInputError, match=message):
        store.retrain(TRAINING, vectors=VECTORS, config=config, progress=False)
    assert len(open_table(db, "docs").codecs.generations) == 1


# Compressing a table where it is.


@pytest.fixture
def docs(db):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.ravel()), DIM)
    rows = pa.table({"id": np.arange(ROWS), "vector": vectors})
    return db.create_table("docs", rows, storage_options={"new_table_enable_stable_row_ids": "true"})


@pytest.fixture
def codec():
    from rqmoe_store.training.trainer import train

    return train(VECTORS, config=config_of(), training=TRAINING)


def test_in_place_gives_the_vectors_bytes_back(db, docs, codec):
    before = docs.search().select(["id"]).with_row_id(True).to_arrow().sort_by("id")
    disk = sum(int(batch["size_bytes"].to_numpy().sum()) for batch in docs.to_lance().all_files())
    store = compress(docs, codec, in_place=True, progress=False)
    after = store.table.search().select(["id"]).with_row_id(True).to_arrow().sort_by("id")
    assert after.equals(before)
    expected = codec.decode(codec.encode(VECTORS))
    made = decoded(store)
    np.testing.assert_allclose(np.stack([made[row] for row in range(ROWS)]), expected, rtol=1e-5, atol=1e-5)
    assert store.stats().disk_bytes < disk - 0.8 * VECTORS.nbytes
    assert_nearest(open_table(db, "docs"), made)
    assert len(compress(db.open_table("docs"), codec, in_place=True, progress=False)) == ROWS  # nothing to do


def test_in_place_can_keep_vectors(docs, codec):
    store = compress(docs, codec, in_place=True, keep_vectors="float32", progress=False)
    best = store.search(VECTORS[9]).refine_factor(10).limit(1).to_arrow()
    assert best["id"].to_pylist() == [9] and best["_distance"].to_pylist() == [0.0]


def test_in_place_refuses_before_it_changes_anything(db, docs, codec):
    version = docs.version
    with pytest.raises(TableError, match="expects fixed_size_list<item: halffloat>"):
        compress(docs, codec, in_place=True, keep_vectors="float16", progress=False)
    with pytest.raises(InvalidInputError, match="expected the name of a new table, or in_place"):
        compress(docs, codec)
    with pytest.raises(InvalidInputError, match="expected the name of a new table, or in_place"):
        compress(docs, codec, "more", in_place=True)
    with pytest.raises(InvalidInputError, match="stays where it is"):
        compress(docs, codec, in_place=True, db=db)
    docs.to_lance().insert(
        pa.table({"id": [9], "vector": pa.array([[np.nan] * DIM], pa.list_(pa.float32(), DIM))})
    )
    with pytest.raises(InvalidInputError, match="rows 600"):
        compress(docs, codec, in_place=True, progress=False)
    docs.checkout_latest()
    assert docs.version == version + 1
    assert docs.schema.names == ["id", "vector"]


def test_in_place_takes_up_what_was_begun(db, docs, codec, monkeypatch):
    from rqmoe_store.store import compress as in_place
    from rqmoe_store.store import reencoding

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(in_place, "metadata_of", interrupt)  # the columns are there, the metadata is not
        with pytest.raises(KeyboardInterrupt):
            compress(docs, codec, in_place=True, progress=False)
    assert db.open_table("docs").schema.names == ["id", "vector", "vector_code", "vector_partition"]
    with monkeypatch.context() as patch:
        patch.setattr(reencoding, "replace_fragment", interrupt)  # a fragment is written and not committed
        with pytest.raises(KeyboardInterrupt):
            compress(docs, codec, in_place=True, progress=False)
    assert_nearest(open_table(db, "docs"), dict(enumerate(VECTORS)))
    store = compress(db.open_table("docs"), codec, in_place=True, progress=False)
    assert (len(store), store.stats().raw_rows) == (ROWS, 0)


def test_codes_that_read_back_otherwise_are_not_committed(db, monkeypatch):
    store = create_table(db, "docs", rows_of(0, 300), config=config_of())
    real = reencoding.read_written

    def read_with_another_byte(dataset, fragment, names, positions):
        written = real(dataset, fragment, names, positions)
        codes = [bytes([code[0] ^ 1, *code[1:]]) for code in written["vector_code"].to_pylist()]
        column = written.schema.get_field_index("vector_code")
        return written.set_column(column, "vector_code", pa.array(codes, written.schema.field(column).type))

    with monkeypatch.context() as patch:
        patch.setattr(reencoding, "read_written", read_with_another_byte)
        with pytest.raises(TableError, match="reads back other codes than were written"):
            store.train(TRAINING, progress=False)
    assert decoded(store) == {}
    assert store.optimize(train_from=None) and len(decoded(store)) == 300


def test_a_code_may_depend_on_the_rows_beside_it(db, monkeypatch):
    """On some processors, and where a GPU ran out of memory: what was written is right all the same."""
    store = create_table(db, "docs", rows_of(0, 300), config=config_of())
    real = TableCodec.encode

    def encode_otherwise_among_few(codec, vectors_nD):
        codes = real(codec, vectors_nD)
        return Codes(codes.codes ^ 1, codes.partitions) if len(codes) < 300 else codes

    monkeypatch.setattr(TableCodec, "encode", encode_otherwise_among_few)
    store.train(TRAINING, progress=False)
    assert len(decoded(store)) == 300


def test_a_codec_that_does_not_fit_leaves_the_vectors(db, docs):
    from rqmoe_store.training.trainer import train

    far = train(1000 + VECTORS, config=config_of(), training=TRAINING)
    with pytest.raises(TableError, match=r"does not fit the vectors.*train another codec"):
        compress(docs, far, in_place=True, progress=False)
    store = open_table(db, "docs")
    assert store.stats().raw_rows == ROWS
    assert_nearest(store, dict(enumerate(VECTORS)))


# Bad input.


def test_tables_that_cannot_be_made(db):
    for arguments, error, message in [
        ({}, InvalidInputError, "neither data nor schema"),
        ({"data": 3}, InvalidInputError, "rows of type int"),
        ({"data": [{"id": 1}]}, InvalidInputError, "no vectors in column 'vector'"),
        ({"data": rows_of(0, 2), "vector_column": "text"}, InvalidInputError, "cannot be read as float32"),
        ({"schema": pa.schema([("id", pa.int64())])}, TableError, "'vector' is not there"),
        ({"schema": pa.schema([("vector", pa.list_(pa.float32()))])}, InvalidInputError, "of fixed length"),
        ({"data": [{"vector": [1.0, np.nan]}]}, InvalidInputError, "NaN"),
        ({"data": [{"vector": [1.0, 2.0]}, {"vector": [1.0]}]}, InvalidInputError, "another dimension"),
    ]:
        with pytest.raises(error, match=message):
            create_table(db, "docs", **arguments)
        assert "docs" not in db.list_tables().tables
    create_table(db, "docs", rows_of(0, 2))
    with pytest.raises(TableError, match="'docs' exists already"):
        create_table(db, "docs", rows_of(0, 2))


def test_training_on_rows_of_many_vectors_encodes_each_row_once(db, monkeypatch):
    rows = [{"vector": VECTORS[first : first + 2]} for first in range(ROWS - 1)]
    many = MultiVectorConfig(code_bytes=8, num_repetitions=2, num_hyperplanes=1, final_dim=None)
    encoded, encodings_of = [], lifecycle.encodings_of

    def watched(lists, many):
        encoded.append(len(lists))
        return encodings_of(lists, many)

    monkeypatch.setattr(lifecycle, "encodings_of", watched)
    monkeypatch.setattr(lifecycle, "ENCODINGS_FITTED", ROWS // 2)
    store = create_table(db, "many", rows, config=config_of("dot"), multi_vector=many)
    store.train(TRAINING, encode=False)
    assert encoded == [ROWS // 2, ROWS - 1 - ROWS // 2]


def test_an_empty_table_answers_with_nothing(db):
    store = create_table(
        db, "docs", schema=pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), 4))])
    )
    assert store.search([1.0, 2.0, 3.0, 4.0]).to_arrow().schema.names == ["id", "_distance"]
    assert store.search([1.0, 2.0, 3.0, 4.0]).to_list() == []
    with pytest.raises(TableError, match="no raw vectors to train on"):
        store.train(TRAINING)
    assert store.optimize(progress=False).raw_rows == 0
