"""Keys: kept in the schema, checked where rows come from."""

import pyarrow as pa
import pytest

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store.keys import column_names, key_of, require_unique, set_key, with_key

ROWS = pa.table(
    {
        "id": pa.array(range(50), pa.int64()),
        "name": [f"name {row}" for row in range(50)],
        "digest": pa.array([row.to_bytes(8) for row in range(50)], pa.binary(8)),
        "group": [row % 7 for row in range(50)],
        "hole": [None, *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVW"],
        "price": [float(row) for row in range(50)],
    }
)


@pytest.fixture
def table(db):
    return db.create_table("docs", ROWS)


@pytest.mark.parametrize("key", ["id", "name", "digest"])
def test_a_key_is_read_as_it_was_set(table, key) -> None:
    assert key_of(table.schema) is None
    set_key(table, key)
    assert key_of(table.schema) == key
    assert [field.name for field in table.schema if not field.nullable] == [key]
    version = table.version
    set_key(table, key)
    assert table.version == version and table.count_rows() == 50
    with pytest.raises(TableError, match=f"has the key '{key}', which cannot be changed to"):
        set_key(table, "id" if key == "name" else "name")


def test_keys_of_older_releases() -> None:
    older = pa.field("a", pa.int64(), metadata={"lance-schema:unenforced-primary-key": "true"})
    assert key_of(pa.schema([pa.field("b", pa.int64()), older])) == "a"


def test_a_new_table_has_its_key_from_the_beginning(db) -> None:
    schema = pa.schema([pa.field("id", pa.int64(), metadata={"a": "b"}), pa.field("name", pa.string())])
    created = db.create_table("keyed", schema=with_key(schema, "id"))
    assert key_of(created.schema) == "id"
    assert not created.schema.field("id").nullable
    assert created.schema.field("id").metadata[b"a"] == b"b"
    version = created.version
    set_key(created, "id")  # nothing to do
    assert created.version == version
    with pytest.raises(TableError, match="has the key 'id', which cannot be changed to 'name'"):
        set_key(created, "name")
    with pytest.raises(InvalidInputError, match=r"Got key='nope'; expected .* here id, name\."):
        with_key(schema, "nope")


@pytest.mark.parametrize("key", ["nope", "price", "", 5, ["id"], None])
def test_keys_that_cannot_be(table, key) -> None:
    version = table.version
    with pytest.raises(InvalidInputError, match=r"Got key=.* here id, name, digest, group, hole\."):
        set_key(table, key)
    assert table.version == version


def test_rows_that_a_column_does_not_tell_apart(table) -> None:
    version = table.version
    with pytest.raises(InvalidInputError, match=r"same key in table 'docs': group=0; .* and 4 more"):
        set_key(table, "group")
    with pytest.raises(TableError, match="Column 'hole' of table 'docs' has nulls"):
        set_key(table, "hole")
    assert table.version == version


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
    with pytest.raises(InvalidInputError, match="key id, whose values cannot be compared"):
        require_unique(keys([[1], [2]]), ["id"], "the rows")
