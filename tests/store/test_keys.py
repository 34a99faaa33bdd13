"""Keys: kept in the schema, checked where rows come from."""

import pyarrow as pa
import pytest

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store.keys import column_names, key_of, require_key, require_unique, with_key

SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64()),
        pa.field("name", pa.string(), metadata={"language": "en"}),
        pa.field("price", pa.float64()),
        pa.field("digest", pa.binary(8)),
    ],
    metadata={"owner": "ann"},
)


@pytest.mark.parametrize("key", ["id", "name", "digest"])
def test_a_key_is_read_as_it_was_set(key) -> None:
    schema = with_key(SCHEMA, key)
    assert key_of(schema) == key
    assert [field.name for field in schema if not field.nullable] == [key]
    assert schema.metadata == {b"owner": b"ann"}
    assert schema.field("name").metadata[b"language"] == b"en"
    assert key_of(with_key(schema, "name")) == "name"  # the last one counts


def test_no_key() -> None:
    assert key_of(SCHEMA) is None
    assert with_key(SCHEMA, None) is SCHEMA
    assert key_of(with_key(with_key(SCHEMA, "id"), None)) == "id"


def test_keys_of_lancedb(db) -> None:
    schema = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in "abc"])
    table = db.create_table("docs", schema=schema)
    table.set_unenforced_primary_key("c")
    assert key_of(table.schema) == "c"
    older = pa.field("a", pa.int64(), metadata={"lance-schema:unenforced-primary-key": "true"})
    assert key_of(pa.schema([older])) == "a"


@pytest.mark.parametrize("key", ["nope", "price", "", 5, ["id"]])
def test_keys_that_cannot_be(key) -> None:
    with pytest.raises(InvalidInputError, match=r"Got key=.*expected a column of .* id, name, digest\."):
        with_key(SCHEMA, key)


@pytest.mark.parametrize("columns", [[], ["id", "id"], 5, [5], None])
def test_names_that_are_none(columns) -> None:
    with pytest.raises(InvalidInputError, match=r"Got on=.*several different ones"):
        column_names(columns, called="on")


def test_column_names() -> None:
    assert column_names("id", called="on") == ["id"]
    assert column_names(iter(["id", "name"]), called="on") == ["id", "name"]


def keys(*values, name="id"):
    return [pa.table({name: part}) for part in values]


def test_every_key_once() -> None:
    require_unique([], ["id"], "the rows")
    require_unique(keys([1, 2], [3]), ["id"], "the rows")
    require_unique(keys([1, None], [None, 2]), ["id"], "the rows")
    both = [pa.table({"id": [1, 1, 2, None], "name": ["a", "b", "a", "a"]})]
    require_unique(both, ["id", "name"], "the rows")
    with pytest.raises(InvalidInputError, match=r"several rows of the same key in the rows: id=2\. Nothing"):
        require_unique(keys([1, 2], [3, 2]), ["id"], "the rows")
    with pytest.raises(InvalidInputError, match=r"id=1, name='a'\."):
        require_unique([*both, pa.table({"id": [1], "name": ["a"]})], ["id", "name"], "the rows")
    with pytest.raises(InvalidInputError, match="and 2 more"):
        require_unique(keys(list("abcde") * 2, name="name"), ["name"], "the rows")


def test_values_that_cannot_be_compared() -> None:
    with pytest.raises(InvalidInputError, match="told apart by id, which cannot be compared"):
        require_unique(keys([[1], [2]]), ["id"], "the rows")


def test_a_table_whose_rows_a_column_tells_apart(db) -> None:
    rows = pa.table({"id": range(50), "group": [row % 7 for row in range(50)], "name": [None, *"a" * 49]})
    table = db.create_table("docs", rows)
    require_key(table, "id")
    with pytest.raises(InvalidInputError, match=r"same key in table 'docs': group=0; .* and 4 more"):
        require_key(table, "group")
    with pytest.raises(TableError, match="Column 'name' of table 'docs' has nulls"):
        require_key(table, "name")
