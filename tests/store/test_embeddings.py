"""Embedding functions of LanceDB's that outlive their vector column."""

import json

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.embeddings import get_registry
from other_processes import run_script
from word_embedding import DIM, NAME, config, embed, sentences, text_table

from rqmoe_store.errors import InvalidInputError, RQMoEError, TableError
from rqmoe_store.store.embeddings import metadata_with_moved_embedding
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress

TEXTS = sentences(60)
ENTRY = {"name": NAME, "model": {}, "source_column": "text", "vector_column": "vector"}
OURS = b"rqmoe_store.embedding_function"


@pytest.fixture
def texts(db):
    return text_table(db, "texts", TEXTS)


@pytest.fixture
def store(texts, codec) -> CompressedTable:
    return compress(texts, codec, "store", progress=False)


def codes_of(store: CompressedTable, where: str) -> dict[int, tuple[bytes, int] | None]:
    """Code and partition by id."""
    rows = store.table.search().where(where).to_list()
    return {row["id"]: row["vector_code"] and (row["vector_code"], row["vector_partition"]) for row in rows}


def codes_for(codec, vectors: dict[int, np.ndarray]) -> dict[int, tuple[bytes, int]]:
    codes = codec.encode(np.stack(list(vectors.values())))
    rows = zip(vectors, codes.codes, codes.partitions, strict=True)
    return {row: (code.tobytes(), int(partition)) for row, code, partition in rows}


# What compress keeps.


def test_the_description_moves(texts, store) -> None:
    assert b"embedding_functions" in texts.schema.metadata
    metadata = store.table.schema.metadata
    assert b"embedding_functions" not in metadata
    assert json.loads(metadata[OURS]) == ENTRY
    assert metadata[b"owner"] == b"ann"
    assert store.schema.metadata == {b"owner": b"ann"}
    assert (store.embedding.name, store.embedding.source_column) == (NAME, "text")
    store.table.optimize()
    opened = CompressedTable.open(lancedb.connect(texts.uri.rpartition("/")[0]), "store")
    assert opened.embedding.name == NAME


def test_settings_of_the_function_are_kept(db, codec) -> None:
    store = compress(text_table(db, "texts", TEXTS, scale=3.0), codec, "store", progress=False)
    np.testing.assert_allclose(store.embedding.embed_query("copper"), 3 * embed("copper"), rtol=1e-6)


def test_functions_of_other_columns_stay(db, codec) -> None:
    fields = [("id", pa.int64()), ("text", pa.string()), ("title", pa.string())]
    fields += [(name, pa.list_(pa.float32(), DIM)) for name in ("vector", "title_vector")]
    configs = [config(), config("title_vector", "title", scale=2.0)]
    docs = db.create_table("docs", schema=pa.schema(fields), embedding_functions=configs)
    docs.add([{"id": row, "text": text, "title": f"title {row}"} for row, text in enumerate(TEXTS)])
    store = compress(docs, codec, "store", progress=False)
    kept = json.loads(store.table.schema.metadata[b"embedding_functions"])
    assert [entry["vector_column"] for entry in kept] == ["title_vector"]
    wanted = docs.search("title 7", vector_column_name="title_vector").limit(5).to_arrow()["id"]
    found = store.table.search("title 7", vector_column_name="title_vector").limit(5).to_arrow()["id"]
    assert found.equals(wanted)
    assert store.add([{"id": 900, "text": "copper", "title": "mountain"}]) == 1
    (row,) = store.table.search().where("id = 900").to_list()
    np.testing.assert_allclose(row["title_vector"], 2 * embed("mountain"), rtol=1e-6)
    assert codes_of(store, "id = 900") == codes_for(codec, {900: embed("copper")})


def test_tables_without_a_function(docs, codec) -> None:
    store = compress(docs, codec, "store", progress=False)
    assert store.embedding is None
    assert OURS not in store.table.schema.metadata


@pytest.mark.parametrize(
    "text",
    [
        b"not json",
        b"{}",
        b"[1]",
        b"null",
        b'[{"name": "words"}]',
        b'[{"name": "a", "model": 3}]',
    ],
)
def test_unreadable_descriptions(db, docs_table, vectors, codec, table_names, text) -> None:
    rows = docs_table(vectors).replace_schema_metadata({"owner": "ann", "embedding_functions": text})
    docs = db.create_table("bad", schema=rows.schema.remove_metadata())
    docs.add(rows.replace_schema_metadata(None))
    docs.to_lance().update_schema_metadata({"embedding_functions": text.decode()})
    docs.checkout_latest()
    with pytest.raises(TableError, match="Table 'bad' describes its embedding functions as"):
        compress(docs, codec, "store", progress=False)
    assert table_names() == {"bad"}


def test_an_unreadable_description_of_ours(store, db) -> None:
    store.table.to_lance().update_schema_metadata({OURS.decode(): "[]"})
    with pytest.raises(TableError, match="Table 'store' describes its embedding functions as b'"):
        CompressedTable.open(db, "store")


def test_moving_is_done_once() -> None:
    stale = {OURS: b"stale", b"owner": b"ann"}
    assert metadata_with_moved_embedding(None, "vector", "t") == {}
    assert metadata_with_moved_embedding(stale, "vector", "t") == {b"owner": b"ann"}
    two = [ENTRY, {**ENTRY, "name": "newer"}]
    moved = metadata_with_moved_embedding({b"embedding_functions": json.dumps(two).encode()}, "vector", "t")
    assert json.loads(moved[OURS])["name"] == "newer"  # LanceDB, too, takes the last
    assert list(moved) == [OURS]


# Adding rows without vectors.


def test_missing_vectors_are_computed_as_lancedb_computes_them(texts, store, codec) -> None:
    rows = [{"id": 900 + row, "text": text} for row, text in enumerate(sentences(8, seed=5))]
    assert store.add(rows) == 8
    texts.add(rows)
    theirs = texts.search().where("id >= 900").to_list()
    vectors = {row["id"]: np.asarray(row["vector"], np.float32) for row in theirs}
    assert codes_of(store, "id >= 900") == codes_for(codec, vectors)


def test_only_missing_vectors_are_computed(store, codec) -> None:
    own = np.arange(DIM, dtype=np.float32)
    rows = [
        {"id": 900, "text": "copper", "vector": own},
        {"id": 901, "text": "silver"},
        {"id": 902, "text": None},
        {"id": 903, "text": ""},
        {"id": 904, "text": "NONE", "vector": None},
        {"id": 905, "text": None, "vector": own},
    ]
    assert store.add(rows) == 6
    wanted = codes_for(codec, {900: own, 901: embed("silver"), 905: own})
    assert codes_of(store, "id >= 900") == {**wanted, 902: None, 903: None, 904: None}


@pytest.mark.parametrize(
    "form",
    [
        lambda table: table,
        lambda table: table.to_pandas(),
        lambda table: iter(table.to_batches(max_chunksize=3)),
        lambda table: table.append_column("vector", pa.nulls(table.num_rows)),
        lambda table: table.append_column("vector", pa.nulls(table.num_rows, pa.list_(pa.float32(), DIM))),
    ],
)
def test_rows_of_every_form(store, codec, form) -> None:
    new = sentences(7, seed=9)
    rows = pa.table({"text": new, "id": range(900, 907)})
    assert store.add(form(rows)) == 7
    assert codes_of(store, "id >= 900") == codes_for(
        codec, {900 + row: embed(text) for row, text in enumerate(new)}
    )


AWKWARD = ['quo\'te "s"', "new\nline", "日本 語 🎈", "a; DROP TABLE t --", "{json: [1]}", "\\ % _ `", " x "]


def test_awkward_texts(store, codec) -> None:
    store.add([{"id": 900 + row, "text": text} for row, text in enumerate(AWKWARD)])
    wanted = {900 + row: embed(text) for row, text in enumerate(AWKWARD)}
    assert codes_of(store, "id >= 900") == codes_for(codec, wanted)
    for row, text in wanted.items():
        np.testing.assert_array_equal(store.embedding.embed_query(AWKWARD[row - 900]), text)


def refused(store, rows, error, message) -> None:
    version = store.version
    with pytest.raises(error, match=message):
        store.add(rows)
    assert store.version == version
    assert len(store) == 60


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("RAISE", RQMoEError, "failed.*the model is out"),
        ("SHORT", InvalidInputError, r"row 2 has shape \(3,\); expected \(16,\)"),
        ("NESTED", InvalidInputError, r"row 2 has shape \(1, 16\)"),
        ("NAN", InvalidInputError, "NaN or infinite.*rows 2"),
        ("WORDS", InvalidInputError, "could not convert"),
        ("MISCOUNT", InvalidInputError, "gives 2 vectors for 3 rows"),
    ],
)
def test_a_function_that_fails_changes_nothing(store, text, error, message) -> None:
    rows = [{"id": 900, "text": "copper"}, {"id": 901, "text": "silver"}, {"id": 902, "text": text}]
    refused(store, rows, error, f"embedding function '{NAME}' of column 'text'.*{message}")
    refused(store, iter([rows[:1], rows[1:]]), error, f"function '{NAME}'")


def test_rows_are_named_where_they_stand(store) -> None:
    own = [1.0] * DIM
    rows = [{"id": 1, "text": "a", "vector": own}, {"id": 2, "text": None}, {"id": 3, "text": "NAN"}]
    refused(store, iter([rows[:2], rows[2:]]), InvalidInputError, "rows 2")


def test_zero_vectors_under_cosine(texts, cosine_codec) -> None:
    store = compress(texts, cosine_codec, "store", progress=False)
    refused(store, [{"id": 900, "text": "ZERO"}], InvalidInputError, f"'{NAME}'.*zero.*rows 0")
    with pytest.raises(InvalidInputError, match=f"'{NAME}'.*zero"):
        store.embedding.embed_query("ZERO")
    store.add([{"id": 900, "text": "copper"}])
    assert codes_of(store, "id = 900") == codes_for(cosine_codec, {900: embed("copper")})


def test_rows_need_a_vector_or_its_source(store, docs, codec) -> None:
    refused(store, [{"id": 900}], InvalidInputError, "missing: vector")
    store.table.drop_columns(["text"])
    refused(store, [{"id": 900, "title": "t"}], InvalidInputError, "missing: vector")
    assert store.add([{"id": 900, "vector": [1.0] * DIM}]) == 1
    plain = compress(docs, codec, "plain", progress=False)
    with pytest.raises(InvalidInputError, match="missing: vector"):
        plain.add([{"id": 900, "text": "copper"}])


def test_bad_vectors_of_the_function(store, codec) -> None:
    texts = ["copper", "NAN", "SHORT", "", None, "silver"]
    rows = [{"id": 900 + row, "text": text} for row, text in enumerate(texts)]
    rows.append({"id": 906, "text": "copper", "vector": [float("nan")] * DIM})
    assert store.add(rows, on_bad_vectors="null") == 7
    wanted = codes_for(codec, {900: embed("copper"), 905: embed("silver")})
    assert codes_of(store, "id >= 900") == {**dict.fromkeys(range(900, 907)), **wanted}
    store.delete("id >= 900")
    assert store.add(rows, on_bad_vectors="drop") == 2
    assert codes_of(store, "id >= 900") == wanted
    for text in ("NESTED", "WORDS"):
        with pytest.raises(InvalidInputError, match=f"function '{NAME}'.* gives unusable vectors"):
            store.add([{"id": 910, "text": text}], on_bad_vectors="drop")


# Functions that cannot be had.


def change(store, **changes) -> CompressedTable:
    entry = json.dumps({**ENTRY, **changes})
    store.table.to_lance().update_schema_metadata({OURS.decode(): entry})
    return CompressedTable.open(lancedb.connect(store.table.uri.rpartition("/")[0]), store.name)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"name": "unheard of"}, RQMoEError, "is not registered in this process. Import"),
        ({"model": {"dim": 0}}, RQMoEError, "needs a package that is not installed: Please install no-such"),
        ({"model": {"dim": 8}}, InvalidInputError, "makes vectors of dimension 8; expected 16"),
        ({"model": {"dim": "wide"}}, RQMoEError, "cannot be made.*ValidationError"),
        ({"model": {"scale": "$var:unset"}}, RQMoEError, "cannot be made.*'unset' not found"),
    ],
)
def test_functions_that_cannot_be_made(store, changes, error, message) -> None:
    opened = change(store, **changes)  # opening asks nothing of the function
    name = changes.get("name", NAME)
    with pytest.raises(error, match=f"embedding function '{name}' of column 'text'.*{message}"):
        opened.embedding.embed_query("copper")
    refused(opened, [{"id": 900, "text": "copper"}], error, message)
    assert opened.add([{"id": 900, "text": "copper", "vector": [1.0] * DIM}]) == 1


def test_variables_of_the_registry(store) -> None:
    get_registry().set_var("scale", 2.0)
    opened = change(store, model={"scale": "$var:scale"})
    np.testing.assert_allclose(opened.embedding.embed_query("copper"), 2 * embed("copper"), rtol=1e-6)


SCRIPT = """
import lancedb, sys
import rqmoe_store as rqs
store = rqs.open_table(lancedb.connect(sys.argv[1]), "store")
try:
    store.search("copper")
except rqs.RQMoEError as error:
    assert "is not registered in this process" in str(error), error
else:
    raise AssertionError("searched without the function")
import word_embedding
store.add([{"id": 900, "text": "unheard words"}])
print(store.search("unheard words").limit(1).to_list()[0]["id"])
"""


def test_in_another_process(store) -> None:
    folder = store.table.uri.rpartition("/")[0]
    assert run_script(SCRIPT, folder) == "900\n"
