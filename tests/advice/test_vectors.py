"""What advice can be given on: tables, arrays, paths, compressed tables."""

import warnings

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from small_clusters import clustered
from small_tables import source_table, tiny_codec

import rqmoe_store as rqs
from rqmoe_store.advice.sample import metric_of
from rqmoe_store.advice.vectors import Vectors, open_vectors
from rqmoe_store.errors import InvalidInputError, TableError

VECTORS = clustered(300, 8, seed=0)


@pytest.fixture
def db(tmp_path):
    return lancedb.connect(tmp_path / "my db")


def read(vectors: Vectors) -> np.ndarray:
    """All vectors, in order; the same whether they are read in order or by position."""
    parts = list(vectors.chunks("l2"))
    read = np.concatenate([part for _, part in parts])
    offsets, taken = vectors.take(np.arange(vectors.offsets), "l2")
    np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), offsets)
    np.testing.assert_array_equal(read, taken)
    return read


def test_arrays_tables_and_paths_are_the_same(db, tmp_path):
    table = db.create_table("docs", source_table(VECTORS))
    np.save(tmp_path / "vectors.npy", VECTORS)
    paths = [tmp_path / "vectors.npy", str(tmp_path / "my db" / "docs.lance")]
    for source in (VECTORS, VECTORS.tolist(), table, *paths):
        np.testing.assert_array_equal(read(open_vectors(source, "vector")), VECTORS)


def test_rows_without_a_vector_are_left_out(db):
    lists = [None if row % 3 == 0 else vector for row, vector in enumerate(VECTORS.tolist())]
    table = db.create_table("docs", pa.table({"v": pa.array(lists, pa.list_(pa.float32(), 8))}))
    vectors = open_vectors(table, "v")
    np.testing.assert_array_equal(read(vectors), VECTORS[np.arange(300) % 3 > 0])
    offsets, _ = vectors.take(np.arange(5), "l2")
    assert offsets.tolist() == [1, 2, 4]


def test_a_compressed_table_is_decoded_with_a_warning(db):
    codec = tiny_codec(VECTORS, "cosine", 4)
    store = rqs.compress(db.create_table("docs", source_table(VECTORS)), codec, "codes", progress=False)
    expected = codec.decode(codec.encode(VECTORS))
    for source in (store, store.table, db.open_table("codes"), f"{db.uri}/codes.lance"):
        with pytest.warns(UserWarning, match="decoded vectors stand in"):
            vectors = open_vectors(source, "vector")
        decoded = read(vectors)
        np.testing.assert_allclose(np.sort(decoded, axis=0), np.sort(expected, axis=0), atol=1e-5)
        assert metric_of(vectors, None, 0) == "cosine"


def test_kept_and_raw_vectors_of_a_compressed_table_are_read_as_they_are(db):
    docs = db.create_table("docs", source_table(VECTORS))
    codec = tiny_codec(VECTORS, "l2", 0)
    kept = rqs.compress(docs, codec, "kept", keep_vectors="float32", progress=False)
    raw = rqs.create_table(db, "raw", source_table(VECTORS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for store in (kept, raw):
            np.testing.assert_array_equal(read(open_vectors(store, "vector")), VECTORS)


def test_the_metric_of_a_compressed_table_is_the_only_one(db):
    raw = rqs.create_table(db, "raw", source_table(VECTORS), config=rqs.CodecConfig(metric="dot"))
    vectors = open_vectors(raw, "vector")
    assert metric_of(vectors, None, 0) == metric_of(vectors, "dot", 0) == "dot"
    with pytest.raises(InvalidInputError, match=r"metric='l2'.*'dot'"):
        metric_of(vectors, "l2", 0)


def test_unit_vectors_are_compared_by_cosine():
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    assert metric_of(open_vectors(unit.astype(np.float16), "vector"), None, 0) == "cosine"
    assert metric_of(open_vectors(VECTORS, "vector"), None, 0) == "l2"
    assert metric_of(open_vectors(unit, "vector"), "l2", 0) == "l2"


def test_what_has_no_vectors_is_refused(db, tmp_path):
    table = db.create_table("docs", source_table(VECTORS))
    with pytest.raises(TableError, match="no column 'embedding'"):
        open_vectors(table, "embedding")
    with pytest.raises(TableError, match="'text'"):
        open_vectors(table, "text")
    with pytest.raises(InvalidInputError, match="expected a"):
        open_vectors(tmp_path / "vectors.csv", "vector")
    with pytest.raises(TableError, match="no table"):
        open_vectors(tmp_path / "none.lance", "vector")
    for wrong in (7, None, iter([[1.0]]), object()):
        with pytest.raises(InvalidInputError, match="source"):
            open_vectors(wrong, "vector")


def test_bad_vectors_are_named_by_row(db):
    bad = VECTORS.copy()
    bad[123, 2] = np.nan
    lists = pa.FixedSizeListArray.from_arrays(pa.array(bad.ravel()), 8)
    table = db.create_table("docs", pa.table({"v": lists}))
    vectors = open_vectors(table, "v")
    with pytest.raises(InvalidInputError, match="rows 123"):
        list(vectors.chunks("l2"))
    with pytest.raises(InvalidInputError, match="rows 123"):
        vectors.take(np.array([5, 123]), "l2")


def test_vectors_of_several_dimensions_are_refused(db):
    lists = [[1.0, 2.0]] * 50 + [[1.0, 2.0, 3.0]]
    table = db.create_table("docs", pa.table({"v": pa.array(lists, pa.list_(pa.float64()))}))
    with pytest.raises(InvalidInputError, match=r"dimensions \[2, 3\]"):
        list(open_vectors(table, "v").chunks("l2"))
