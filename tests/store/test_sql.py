"""Names and values with any characters come back exactly, and mean nothing else in conditions."""

import itertools
import tempfile

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from costly_examples import costly_examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_tables import tiny_codec

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import ArtifactError, TableError
from rqmoe_store.store import registry
from rqmoe_store.store.sql import literal, quoted
from rqmoe_store.tables import compress, create_table, open_table

ROWS, DIM = 6, 8
VECTORS = np.random.default_rng(3).normal(size=(300, DIM)).astype(np.float32)

FRAGMENTS = [
    *("'", '"', "`", "''", "\\", ";", "--", "/*", "*/", "(", ")", "$1", "?", "%", "_", "[0]", "->", ","),
    *(" OR 1=1", "DROP TABLE docs", "null", "\n", "\t", "\r", " ", "a", "B", "7"),
    *("é", "e\u0301", "日本", "\U0001f600", "\u202e"),
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=5).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8
)
NAMES = TEXTS.filter(lambda name: name not in ("", "*") and not set(name) & set("`."))


@pytest.fixture(scope="module")
def codec() -> Codec:
    return tiny_codec(VECTORS, "l2", 2)


@costly_examples(40, part=4)
@given(
    names=st.lists(NAMES, min_size=3, max_size=3, unique=True),
    values=st.lists(TEXTS, min_size=ROWS, max_size=ROWS),
)
@example(names=["it's", 'say "x"', "a;--"], values=["", "'", "x' OR 'a' = 'a", "`", '"', "\\"])
@example(names=["select", "Id", "vector_column"], values=["", " ", "null", "NULL", "é", "e\u0301"])
@example(names=["a)b", "(", "日本"], values=["--", "/*", ";", "$1", "%", "_"])
def test_columns_and_values_come_back_exactly(codec: Codec, names: list[str], values: list[str]) -> None:
    vector_name, *others = names
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS[:ROWS].ravel()), DIM)
    columns = [range(ROWS), values, values[::-1], vectors]
    rows = pa.table(columns, names=["number of a row", *others, vector_name])
    with tempfile.TemporaryDirectory() as folder:
        db = lancedb.connect(folder)
        docs = db.create_table("docs", rows)
        compress(docs, codec, "small", vector_column=vector_name, progress=False)
        store = open_table(db, "small")
        expected = rows.drop_columns([vector_name]).to_pylist()
        for cache in ("memory", "disk"):
            search = store.use_cache(cache).search(VECTORS[0]).select(["number of a row", *others])
            hits = search.limit(ROWS).to_arrow().drop_columns(["_distance"])
            assert hits.sort_by("number of a row").to_pylist() == expected
        for name, value in itertools.product(others, values[:3]):
            condition = f"{quoted(name)} = {literal(value)}"
            matching = {row["number of a row"] for row in expected if row[name] == value}
            hits = store.search(VECTORS[0]).where(condition).limit(ROWS).to_arrow()
            assert set(hits["number of a row"].to_pylist()) == matching
            assert store.count_rows(condition) == len(matching)
        assert store.add(rows) == ROWS
        matching = [row for row in expected if row[others[0]] == values[0]]
        assert store.delete(f"{quoted(others[0])} = {literal(values[0])}") == 2 * len(matching)
        left = sorted(2 * [row for row in expected if row not in matching], key=repr)
        assert sorted(store.table.search().select(list(expected[0])).to_list(), key=repr) == left
        assert store.stats().rows == len(left)


@settings(max_examples=40)
@given(fingerprint=TEXTS)
def test_a_fingerprint_is_never_more_than_text(
    db_with_codecs: lancedb.DBConnection, fingerprint: str
) -> None:
    with pytest.raises(ArtifactError, match="no codec with fingerprint"):
        registry.load(db_with_codecs, fingerprint)
    with pytest.raises(ArtifactError, match="no codec with fingerprint"):
        registry.load(db_with_codecs, f"' OR fingerprint <> {fingerprint!r}")
    assert db_with_codecs.open_table(registry.REGISTRY_TABLE).count_rows() == 1


@pytest.fixture(scope="module")
def db_with_codecs(codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> lancedb.DBConnection:
    db = lancedb.connect(tmp_path_factory.mktemp("db"))
    registry.save(db, codec)
    return db


@pytest.mark.parametrize("name", ["", "`", "a`b", "*", "a.b"])
def test_names_that_lancedb_cannot_read_again_are_refused(db, codec: Codec, name: str) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS[:ROWS].ravel()), DIM)
    rows = pa.table([range(ROWS), vectors], names=[name, "vector"])
    with pytest.raises(TableError, match=r"cannot be read.*Rename"):
        create_table(db, "raw", rows, config=CodecConfig(code_bytes=4))
    if "." in name:
        return  # LanceDB refuses it itself
    docs = db.create_table("docs", rows)
    with pytest.raises(TableError, match=r"cannot be read.*Rename"):
        compress(docs, codec, "small", progress=False)
    with pytest.raises(TableError, match=r"cannot be read.*Rename"):
        compress(docs, codec, in_place=True, progress=False)
