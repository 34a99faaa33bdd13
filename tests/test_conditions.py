"""A condition means one thing: to searches, plain reads, counts and deletes, before and after training, in
memory and on disk, and the same as to a plain LanceDB table of the same rows."""

import asyncio
import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lancedb.expr import Expr, col

from rqmoe_store import AsyncCompressedTable, CodecConfig, InvalidInputError, TrainConfig, create_table
from rqmoe_store.store.sql import literal, quoted
from rqmoe_store.table import CompressedTable

ROWS, DIM = 48, 8
VECTORS = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
HAS_VECTOR = np.arange(ROWS) % 6 != 0
DAY = datetime.date(2024, 1, 1)
TEXTS = ["a%b", "a_b", "it's", "", None, 'say "vector"', "vector IS NULL"]


def rows(vector_column: str = "vector") -> pa.Table:
    n = range(ROWS)
    vectors = [VECTORS[row].tolist() if HAS_VECTOR[row] else None for row in n]
    return pa.table(
        {
            "id": pa.array(n, pa.int64()),
            "camelCase": pa.array([row % 7 for row in n], pa.int32()),
            "Lang": pa.array([("en", "fr", None)[row % 3] for row in n]),
            "select": pa.array([row % 4 for row in n], pa.int32()),
            "with space": pa.array([None if row % 5 == 0 else row % 4 for row in n], pa.int64()),
            'q"uote': pa.array([row % 3 for row in n], pa.int32()),
            "größe": pa.array([row / 4 for row in n], pa.float64()),
            "nested": pa.array([None if row % 9 == 8 else {"a": row, "B c": str(row % 5)} for row in n]),
            "tags": pa.array([["x", "y"][: row % 3] for row in n], pa.list_(pa.string())),
            "day": pa.array([DAY + datetime.timedelta(days=row) for row in n], pa.date32()),
            "flag": pa.array([None if row % 4 == 0 else row % 2 == 0 for row in n]),
            "text": pa.array([TEXTS[row % 7] for row in n]),
            "json": pa.array([json.dumps({"k": row % 3}) for row in n], pa.json_()),
            vector_column: pa.array(vectors, pa.list_(pa.float32(), DIM)),
        }
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class World:
    plain: Any
    """A LanceDB table of the rows."""
    stores: tuple[CompressedTable, ...]
    """Ours, in all states that a table can be in."""


@pytest.fixture
def db(tmp_path: Path) -> lancedb.DBConnection:
    return lancedb.connect(tmp_path)


def train(store: CompressedTable) -> CompressedTable:
    store.train(TrainConfig(epochs=0, progress=False), progress=False)
    return store


def made(db: lancedb.DBConnection, name: str, data: pa.Table, **options: Any) -> CompressedTable:
    config = CodecConfig(kind="rq", code_bytes=2, codebook_size=8, num_partitions=2)
    return create_table(db, name, data, config=config, **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    db, data = lancedb.connect(tmp_path_factory.mktemp("db")), rows()
    plain = db.create_table("plain", data, on_bad_vectors="null")
    mixed = train(made(db, "mixed", data.slice(0, 30)))
    mixed.add(data.slice(30), encode=False)
    stores = (
        made(db, "raw", data),
        train(made(db, "coded", data)),
        train(made(db, "on_disk", data)).use_cache("disk"),
        mixed,
        train(made(db, "kept", data, keep_vectors="float16")),
    )
    return World(plain, stores)


NAMES = ["id", "camelCase", "Lang", "select", "with space", 'q"uote', "größe", "flag", "text", "day"]
NUMBERS = ["id", "camelCase", "select", "with space", 'q"uote']


def spelled(name: str) -> st.SearchStrategy[str]:
    """The ways to write the name of a column."""
    ways = [quoted(name), '"' + name.replace('"', '""') + '"']
    if name.isidentifier():
        ways += [name, name.upper()] if name.isascii() else [name]
    return st.sampled_from(ways)


@st.composite
def comparisons(draw: st.DrawFn) -> str:
    name = draw(spelled(draw(st.sampled_from(NUMBERS))))
    numbers = st.integers(-2, 50).map(str)
    kind = draw(
        st.sampled_from(["=", "==", "!=", "<>", "<", "<=", ">", ">=", "in", "not in", "between", "%", "swap"])
    )
    if kind in ("in", "not in"):
        values = draw(st.lists(numbers | st.just("NULL"), min_size=1, max_size=3))
        return f"{name} {kind.upper()} ({', '.join(values)})"
    if kind == "between":
        return (
            f"{name} {draw(st.sampled_from(['BETWEEN', 'not between']))} {draw(numbers)} AND {draw(numbers)}"
        )
    if kind == "%":
        return f"{name} % {draw(st.integers(1, 5))} = {draw(numbers)}"
    return f"{draw(numbers)} < {name}" if kind == "swap" else f"{name} {kind} {draw(numbers)}"


@st.composite
def questions(draw: st.DrawFn) -> str:
    """Of one column whether it is null, or something that is true or false of it."""
    name = draw(spelled(draw(st.sampled_from([*NAMES, "nested", "tags", "json"]))))
    days = f"{draw(spelled('day'))} > date '2024-01-1{draw(st.integers(0, 9))}'"
    texts = st.sampled_from(["a%b", "it's", 'say "vector"', "vector IS NULL", "", "-- no", "a_b", "/* no"])
    text = draw(spelled("text"))
    number_within = draw(st.sampled_from(["nested.a", "nested.`a`", '"nested"."a"']))
    text_within = draw(st.sampled_from(["nested.`B c`", 'nested."B c"', '`nested`."B c"']))
    tags = draw(st.sampled_from(["tags", "`tags`", '"tags"']))
    return draw(
        st.sampled_from(
            [
                f"{name} IS NULL",
                f"{name} is  NOT /* a ' comment */ null",
                f"{text} = {literal(draw(texts))}",
                f"{text} LIKE 'a\\_b'",
                f"{text} LIKE {literal(draw(texts))}",
                f"lower({quoted('Lang')}) = 'en'",
                f"{draw(spelled('Lang'))} IN ('en', 'it''s', 'vector')",
                days,
                f"{draw(spelled('größe'))} > 3.5",
                draw(spelled("flag")),
                f"{draw(spelled('flag'))} IS NOT TRUE",
                f"{number_within} > {draw(st.integers(0, 40))}",
                f"{text_within} = '3'",
                f"array_has({tags}, 'x')",
                "json_extract(json, '$.k') = '1'",
                "_rowid < 17",
            ]
        )
    )


@st.composite
def vector_questions(draw: st.DrawFn) -> str:
    name = draw(spelled("vector"))
    space = draw(st.sampled_from([" ", "\n", " /* of */ ", " -- of\n"]))
    there = draw(st.sampled_from([["IS", "NULL"], ["is", "not", "null"], ["NOT", "NULL"]]))
    asked = space.join([draw(st.sampled_from([name, f"({name})", f"(({space}{name}))"])), *there])
    exact = draw(st.sampled_from(['"vector"', "`vector`", "vector"]))
    return draw(
        st.sampled_from([asked, f"coalesce({exact} IS NULL, true)", f"is_valid({exact})", f"{asked} = true"])
    )


CONDITIONS = st.recursive(
    comparisons() | questions() | vector_questions(),
    lambda inner: st.one_of(
        st.builds("({}) AND {}".format, inner, inner),
        st.builds("{} OR ({})".format, inner, inner),
        st.builds("NOT ({})".format, inner),
        st.builds("({}\n)".format, inner),
        st.builds("{} -- the rest".format, inner).map(lambda sql: sql + "\n"),
    ),
    max_leaves=4,
)


def ids(found: pa.Table) -> list[int]:
    return sorted(found["id"].to_pylist())


def expected_of(plain: Any, condition: Any) -> list[int] | None:
    """What plain LanceDB finds; None if it refuses. (Its count fails on row ids.)"""
    try:
        return ids(plain.search().where(condition).select(["id"]).limit(None).to_arrow())
    except ValueError:
        return None


def found_by(store: CompressedTable, condition: Any) -> dict[str, list[int]]:
    search = store.search(VECTORS[1]).where(condition).select(["id"]).limit(ROWS)
    after = store.search(VECTORS[1]).where(condition, prefilter=False).select(["id"]).limit(ROWS)
    return {
        "read": ids(store.search().where(condition).select(["id"]).to_arrow()),
        "search": ids(search.to_arrow()),
        "search, filtered last": ids(after.to_arrow()),
    }


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(condition=CONDITIONS)
def test_a_condition_means_one_thing(world: World, condition: str) -> None:
    expected = expected_of(world.plain, condition)
    for store in world.stores:
        if expected is None:
            with pytest.raises(InvalidInputError):
                store.count_rows(condition)
            continue
        with_vector = [row for row in expected if HAS_VECTOR[row]]
        found = {"read": expected, "search": with_vector, "search, filtered last": with_vector}
        assert found_by(store, condition) == found, store.name
        assert store.count_rows(condition) == len(expected), store.name
        version = store.version
        assert store.delete(condition) == len(expected), store.name
        left = sorted(set(range(ROWS)) - set(expected))
        assert ids(store.search().select(["id"]).to_arrow()) == left, store.name
        if expected:
            store.restore(version)


NUMBER = st.integers(-300, 2**40) | st.floats(-50, 50, width=32)
EXPRESSIONS = st.recursive(
    st.one_of(
        st.builds(lambda name, value: col(name) < value, st.sampled_from([*NUMBERS, "größe"]), NUMBER),
        st.builds(lambda name, value: col(name) == value, st.sampled_from([*NUMBERS, "größe"]), NUMBER),
        st.builds(lambda value: col("text") == value, st.sampled_from(["a%b", "it's", 'say "vector"', ""])),
        st.builds(
            lambda values: col("id").isin(values), st.lists(st.integers(0, 50), min_size=1, max_size=3)
        ),
        st.builds(lambda value: col("day") > value, st.dates(DAY, DAY + datetime.timedelta(days=50))),
        st.builds(lambda value: col("day") > value, st.sampled_from(["2024-01-15", "2024-02-01"])),
        st.just(col("text").contains("vector")),
        st.just(col("Lang").lower() == "en"),
        st.just(col("id").cast("float32") > 7.5),
        st.just(col("flag")),
    ),
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a: ~a, inner),
    ),
    max_leaves=3,
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(condition=EXPRESSIONS)
def test_expressions_mean_what_they_mean_to_lancedb(world: World, condition: Expr) -> None:
    expected = expected_of(world.plain, condition)
    assert expected is not None
    with_vector = [row for row in expected if HAS_VECTOR[row]]
    for store in world.stores:
        found = {"read": expected, "search": with_vector, "search, filtered last": with_vector}
        assert found_by(store, condition) == found, store.name
        assert store.count_rows(condition) == len(expected), store.name


VECTOR_NAMES = [
    "vector",
    "my vector",
    'a "b"',
    "select",
    "end",
    "date",
    "left",
    "and",
    "Vektor",
    "größe 2",
    "a)b",
]


@pytest.mark.parametrize("name", VECTOR_NAMES)
def test_the_vector_column_may_have_any_name(db, name: str) -> None:
    store = made(db, "docs", rows(name).select(["id", "text", "day", name]), vector_column=name)
    ways = [quoted(name), '"' + name.replace('"', '""') + '"']
    ways += [name, name.upper()] if name.isidentifier() and name not in ("end", "and", "select") else []
    for trained in (False, True):
        if trained:
            train(store)
        for way in ways:
            assert store.count_rows(f"{way} IS NULL") == ROWS - HAS_VECTOR.sum()
            assert len(store.search(VECTORS[1]).where(f"{way} IS NOT NULL").limit(ROWS).to_list()) == 40
        assert store.count_rows("day > date '2024-01-11'") == ROWS - 11
        assert store.count_rows("left(text, 1) = 'a' and id < 7") == 2
        assert store.count_rows("coalesce(CASE WHEN id < 3 AND id > 0 THEN true ELSE false END, false)") == 2
        with pytest.raises(InvalidInputError, match="whether a row has a vector"):
            store.delete(f"{quoted(name)} = 3")


REFUSED = {
    "vector[1] > 0": "whether a row has a vector",
    "array_length(vector) = 8": "whether a row has a vector",
    'coalesce("VECTOR", `vector`) IS NULL': "whether a row has a vector",
    "id BETWEEN 1 AND vector IS NULL": "whether a row has a vector",
    "id = vector IS NULL": "whether a row has a vector",
    "id + (vector) IS NULL": "whether a row has a vector",
    "vector": "whether a row has a vector",
    "vector_code IS NULL": "'vector_code', which is ours",
    'VECTOR_CODE IS NULL OR "vector_partition" = 1': "'vector_code', which is ours",
    "id = 1 AND Vector_Partition = 1": "'vector_partition', which is ours",
    "_rowaddr = 3": "expected '_rowid'",
    '"_rowoffset" = 3': "expected '_rowid'",
}


def all_calls(store: CompressedTable, sql: str) -> list[Any]:
    """Every call that takes a condition."""
    awaited = AsyncCompressedTable(store)
    new = [{"id": 1, "text": "new"}]
    return [
        lambda: store.count_rows(sql),
        lambda: store.delete(sql),
        lambda: store.search().where(sql).to_list(),
        lambda: store.search(VECTORS[1]).where(sql).to_list(),
        lambda: store.search(VECTORS[1]).where(sql, prefilter=False).explain_plan(),
        lambda: store.search("vector", query_type="fts").where(sql).to_list(),
        lambda: store.search(query_type="hybrid").vector(VECTORS[1]).text("it").where(sql).to_list(),
        lambda: store.update(sql, {"text": "new"}),
        lambda: store.merge_insert("id").when_not_matched_by_source_delete(sql).execute(new),
        lambda: asyncio.run(awaited.count_rows(sql)),
        lambda: asyncio.run(awaited.delete(sql)),
        lambda: asyncio.run(awaited.update({"text": "new"}, where=sql)),
        lambda: asyncio.run(awaited.query().where(sql).to_list()),
        lambda: asyncio.run(awaited.vector_search(VECTORS[1]).where(sql).to_list()),
    ]


@pytest.mark.parametrize("trained", [False, True])
def test_other_questions_of_vectors_are_refused_by_every_call(db, trained: bool) -> None:
    store = made(db, "docs", rows().select(["id", "text", "vector"]))
    store.create_fts_index("text")
    if trained:
        train(store)
    version = store.version
    for sql, reason in REFUSED.items():
        for call in all_calls(store, sql):
            with pytest.raises(InvalidInputError, match=reason):
                call()
    for expression in ("array_length(vector)", "vector_code", "id + `vector_partition`"):
        for call in (
            lambda sql=expression: store.update("id = 1", values_sql={"id": sql}),
            lambda sql=expression: store.add_columns({"more": sql}),
            lambda sql=expression: asyncio.run(AsyncCompressedTable(store).add_columns({"more": sql})),
        ):
            with pytest.raises(InvalidInputError, match=r"whether a row has a vector|which is ours"):
                call()
    merge = store.merge_insert("id").when_matched_update_all(where="target.vector = source.vector")
    with pytest.raises(InvalidInputError, match="whether a row has a vector"):
        merge.execute([{"id": 1, "text": "new"}])
    assert store.version == version


def test_texts_and_fields_called_like_the_vector_column_are_left_alone(db) -> None:
    data = rows().select(["id", "text", "vector"]).append_column(
        "nested", pa.array([{"vector": row, "vector_code": row} for row in range(ROWS)])
    )  # fmt: skip
    store = train(made(db, "docs", data))
    for sql, count in {
        "text = 'vector IS NULL'": 6,
        "text = 'say \"vector\"' -- vector = 3": 7,
        "nested.vector < 5 /* vector[1] */": 5,
        "nested['vector'] < 5 AND `nested`.\"vector_code\" < 4": 4,
        "text LIKE '%vector%' AND vector IS NULL": 2,
    }.items():
        assert store.count_rows(sql) == len(store.search().where(sql).to_list()) == count, sql


@pytest.mark.parametrize("state", ["raw", "coded", "kept"])
def test_every_call_sees_vectors_where_users_do(db, state: str) -> None:
    keep = "float32" if state == "kept" else "none"
    data = rows().select(["id", "camelCase", "text", "vector"])
    store = made(db, "docs", data, keep_vectors=keep)
    store.create_fts_index("text")
    if state != "raw":
        train(store)
    version, none = store.version, ROWS - int(HAS_VECTOR.sum())

    hybrid = store.search(query_type="hybrid").vector(VECTORS[1]).text("it say")
    assert {row["id"] % 6 == 0 for row in hybrid.where("vector IS NULL").to_list()} == {True}
    texts = store.search("it say", query_type="fts").limit(ROWS)
    assert all(HAS_VECTOR[row["id"]] for row in texts.where('"vector" IS NOT NULL').to_list())
    assert asyncio.run(AsyncCompressedTable(store).count_rows(col("camelCase") == 1)) == 7
    assert store.update("vector IS NULL", {"text": "none"}).rows_updated == none
    store.update(values_sql={"camelCase": "cast(vector IS NOT NULL AS INT)"})
    assert store.count_rows('"camelCase" = 1') == ROWS - none
    store.add_columns({"there": "vector IS NOT NULL"})
    assert store.count_rows("there") == ROWS - none

    new = [{"id": 6, "text": "new"}, {"id": 7, "text": "new"}, {"id": 1000, "text": "new"}]
    merge = store.merge_insert("id").when_matched_update_all(
        where='target.vector IS NULL AND "target".id > 1'
    )
    assert merge.execute(new).num_updated_rows == 1
    with_vectors = [row | {"vector": VECTORS[7].tolist()} for row in new[:2]]
    assert store.merge_insert("id").when_matched_update_all(
        where="source.vector IS NOT NULL AND is_valid(target.`vector`)"
    ).execute(with_vectors).num_updated_rows == 1  # fmt: skip
    merge = store.merge_insert("id").when_not_matched_by_source_delete('"vector" IS NULL and "camelCase" = 0')
    assert merge.execute([{"id": 0, "text": "stays"}]).num_deleted_rows == none - 1
    store.restore(version)
    assert store.delete("NOT (vector IS NOT NULL)") == none
    assert len(store) == ROWS - none


def test_no_condition_at_all(db) -> None:
    store = train(made(db, "docs", rows().select(["id", "vector"])))
    assert len(store.search().where(None).to_list()) == ROWS
    assert len(store.search().where("id < 3").where(None).to_list()) == 3
    assert len(store.search(VECTORS[1]).where(None).limit(ROWS).to_list()) == HAS_VECTOR.sum()
    for empty in ("", " \n"):
        with pytest.raises(InvalidInputError, match="empty where"):
            store.search().where(empty).to_list()
        with pytest.raises(InvalidInputError, match="empty where"):
            store.delete(empty)


def test_conditions_on_the_time_are_asked_anew(db) -> None:
    store = train(made(db, "docs", rows().select(["id", "vector"])))
    search = store.search(VECTORS[1]).where("random() < 0.5").limit(ROWS)
    assert len({tuple(row["id"] for row in search.to_list()) for _ in range(5)}) > 1


def test_deleted_rows_that_return_are_searched_again(db) -> None:
    store = made(db, "docs", rows().select(["id", "vector"]))
    version = store.version
    store.delete("vector IS NOT NULL")
    assert store.search(VECTORS[1]).to_list() == []
    store.restore(version)
    assert len(store.search(VECTORS[1]).limit(ROWS).to_list()) == HAS_VECTOR.sum()
