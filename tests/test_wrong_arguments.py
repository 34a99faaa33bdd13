"""Every public call is given a list of wrong values for each of its arguments, one by one: what it raises is
an error of this package, and names the argument."""

import asyncio
import datetime
import inspect
import itertools
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from small_tables import source_table, tiny_codec

import rqmoe_store
from rqmoe_store.async_table import AsyncCompressedTable
from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import CodecConfig, MultiVectorConfig, TrainConfig
from rqmoe_store.errors import RQMoEError
from rqmoe_store.multivector.fixed_dimensional import FixedDimensionalEncoder
from rqmoe_store.store.versions import TableTags
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import create_table, open_table

VECTORS = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
TRAINING = TrainConfig(epochs=0, progress=False)
CONFIG = CodecConfig(kind="rq", code_bytes=4, codebook_size=16, beam=1)
ROW = {"id": 1000, "lang": "en", "text": "x", "vector": VECTORS[0]}

WORDS = {
    "rows": "rows?|columns?",
    "data": "rows?|data|columns?|vectors?",
    "new_data": "rows?|columns?|new_data",
    "query": "query|quer(y|ies)|vectors?|text",
    "queries": "quer(y|ies)|vectors?",
    "vectors": "vectors?",
    "vector": "vectors?|query",
    "validation": "vectors?|validation",
    "updates": "updates|values?",
    "updates_sql": "updates_sql|values_sql|columns?",
    "transforms": "transforms|columns?|expected an SQL",
    "conditions": "conditions?",
    "alterations": "alterations|path|columns?",
    "source": "source|files?|path|iterator|surrogates|column",
    "into": "into|name|table",
    "codes": "codes?",
    "on": "on=|columns?|keys?",
    "db": "database|table",
    "values": "values?",
    "value": "value|compare",
    "part": "has_text|part|text",
    "phrase_query": "phrase",
    "docs": "docs|table",
    "path": "path|file|folder|directory",
    "directory": "path|file|folder|directory|codec",
    "timeout": "timeout|seconds",
    "name": "name|index|preset",
    "codec": "codec|load_codec",
    "index_name": "index",
    "ordering": "ordering|order_by",
    "version": "version",
    "column": "column",
    "columns": "columns?",
    "key": "key|column",
    "where": "where|condition",
    "text": "text|query",
}
"""What an argument is called in messages, where that is not its name alone."""


class Nothing:
    """Of a class that nobody expects."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> lancedb.DBConnection:
    return lancedb.connect(tmp_path_factory.mktemp("wrong") / "db")


@pytest.fixture(scope="module")
def docs(place: lancedb.DBConnection) -> Any:
    return place.create_table("docs", source_table(VECTORS))


@pytest.fixture(scope="module")
def codec() -> Codec:
    return tiny_codec(VECTORS, "l2", 0)


@pytest.fixture(scope="module")
def wrong(place: lancedb.DBConnection, docs: Any) -> list[object]:
    return [
        *(None, True, 7, -1, 0, 2**70, 1.5, float("nan"), "no such thing", "", "\ud800", b"bytes"),
        *([], [1], [None], ["a", "b"], {}, {"a": 1}, (), {1, 2}, object(), Nothing(), Nothing, print),
        *(Path("no/such/path"), docs, place, pd.DataFrame({"a": [1]}), pa.table({"a": [1]}), pa.int8()),
        *(
            np.float32(1),
            np.array(["x"]),
            np.zeros((2, 2, 2)),
            datetime.timedelta(-1),
            datetime.timedelta.max,
        ),
        *(TRAINING, CONFIG, iter(())),
    ]


names_of_tables = (f"table{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a table that has everything that methods need."""
    folder = tmp_path_factory.mktemp("template")
    store = create_table(lancedb.connect(folder), "docs", source_table(VECTORS), config=CONFIG)
    store.train(TRAINING, progress=False)
    store.create_fts_index("text")
    store.tags.create("first", 1)
    store.build_neighbor_graph(5, progress=False)
    return folder


@pytest.fixture
def make(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], CompressedTable]:
    """Gives a table, and another one when it is asked for the next."""

    def made() -> CompressedTable:
        copied = tmp_path_factory.mktemp("made") / "db"
        shutil.copytree(template, copied)
        return open_table(lancedb.connect(copied), "docs")

    return made


def public_methods(cls: type) -> list[str]:
    return [name for name, _ in inspect.getmembers(cls, inspect.isroutine) if not name.startswith("_")]


_FEW = 10
"""Values that go through before an argument counts as one that takes any."""


def check(call: Callable[..., Any], good: dict[str, Any], wrong: list[object], name: str) -> list[str]:
    """What is wrong with the errors of a call, each of whose arguments is replaced in turn."""
    problems = []
    for parameter in inspect.signature(call).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        went_through = 0
        for place, value in enumerate(wrong):
            # Everything is true or false, so that calls with flags go through, which takes time. Where
            # nothing was refused so far, some of the others do.
            if went_through == place and place >= (4 if parameter.name == "progress" else _FEW) and place % 5:
                went_through += 1
                continue
            arguments = [value] if parameter.kind is parameter.VAR_POSITIONAL else []
            settings = good if arguments else good | {parameter.name: value}
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    done = call(*arguments, **settings)
                    if inspect.iscoroutine(done):
                        asyncio.run(done)
                    went_through += 1
            except RQMoEError as error:
                words = WORDS.get(parameter.name, parameter.name)
                if not re.search(rf"\b({words})", str(error), re.IGNORECASE):
                    problems.append(
                        f"{name}({parameter.name}={value!r:.60}) does not name it: {error!s:.150}"
                    )
            except Exception as error:
                problems.append(f"{name}({parameter.name}={value!r:.60}): {error!r:.150}")
    return problems


METHODS: dict[str, dict[str, Any]] = {
    "add": {"rows": [ROW]},
    "add_columns": {"transforms": {"more": "1"}},
    "alter_columns": {},
    "build_neighbor_graph": {"neighbors": 2, "progress": False},
    "checkout": {"version": 1},
    "create_fts_index": {"columns": "text", "exist_ok": True},
    "create_scalar_index": {"column": "id"},
    "delete": {"where": "id = 1"},
    "drop_columns": {"columns": "lang"},
    "export": {"path": "out.parquet", "overwrite": True, "progress": False},
    "optimize": {"progress": False, "training": TRAINING},
    "retrain": {"training": TRAINING, "vectors": VECTORS, "progress": False},
    "save_health_report": {"path": "health.html"},
    "set_key": {"key": "id"},
    "train": {"training": TRAINING, "vectors": VECTORS, "progress": False},
    "tune": {"queries": VECTORS[:3] + 1, "progress": False},
    "tune_codec": {"queries": VECTORS[:120] + 1, "positives": [1] * 120, "on": "id", "progress": False},
    "update": {"where": "id = 1", "values": {"text": "y"}},
    "use_shards": {"shards": 2, "call": print},
    "verify": {"progress": False},
    "open": {"db": None, "name": "docs"},
}
"""Good values for what has none by default, or takes long."""
LONG = {"build_neighbor_graph", "train", "retrain", "optimize", "tune", "tune_codec", "verify", "export"}
"""Methods that take long where they do anything."""


@pytest.mark.parametrize("name", public_methods(CompressedTable))
def test_methods_of_tables(
    make: Callable[[], CompressedTable], wrong: list[object], name: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    store, good = make(), METHODS.get(name, {})
    if name in LONG:
        wrong = [value for value in wrong if value is not None and not isinstance(value, int)]
    if name == "open":
        good = good | {"db": lancedb.connect(tmp_path)}
        create_table(good["db"], "docs", source_table(VECTORS), config=CONFIG)
    call = getattr(store, name)
    if name == "train":  # once only

        def call(**settings: Any) -> Codec:
            rows = source_table(VECTORS)
            return create_table(lancedb.connect(tmp_path), next(names_of_tables), rows, config=CONFIG).train(
                **settings
            )

        call.__signature__ = inspect.signature(store.train)  # type: ignore[attr-defined]
    require_clear(check(call, good, wrong, name))


def require_clear(problems: list[str]) -> None:
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.mark.parametrize("name", public_methods(TableTags))
def test_tags(make: Callable[[], CompressedTable], wrong: list[object], name: str) -> None:
    good = {"tag": "first"} | ({"version": 2} if name in ("create", "update") else {})
    require_clear(check(getattr(make().tags, name), good, wrong, f"tags.{name}"))


@pytest.mark.parametrize("kind", ["vector", "plain", "text", "hybrid"])
def test_queries(make: Callable[[], CompressedTable], wrong: list[object], kind: str) -> None:
    store, problems = make(), []

    def query() -> Any:
        if kind == "plain":
            return store.search()
        if kind == "text":
            return store.search("text", query_type="fts")
        return (
            store.search(VECTORS[0]) if kind == "vector" else store.search(query_type="hybrid").text("text")
        )

    good = {"text": {"text": "text"}, "vector": {"vector": VECTORS[0]}, "where": {"condition": "id = 1"}}
    for name in public_methods(type(query())):
        for parameter in inspect.signature(getattr(query(), name)).parameters:

            def call(_name: str = name, **settings: Any) -> None:
                made = query().vector(VECTORS[0]) if kind == "hybrid" and _name != "vector" else query()
                done = getattr(made, _name)(**settings)
                if isinstance(done, type(made)):
                    done.to_list()

            call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
                [inspect.Parameter(parameter, inspect.Parameter.KEYWORD_ONLY)]
            )
            problems += check(call, good.get(name, {}), wrong, f"{kind} {name}")
    require_clear(problems)


@pytest.mark.parametrize("name", ["encode", "decode", "truncate", "to", "copy_on", "save"])
def test_codecs(codec: Codec, wrong: list[object], name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    good = {"encode": {"vectors": VECTORS}, "decode": {"codes": codec.encode(VECTORS)}}
    require_clear(check(getattr(codec, name), good.get(name, {}), wrong, f"Codec.{name}"))


@pytest.mark.parametrize("cls", [CodecConfig, TrainConfig, MultiVectorConfig, FixedDimensionalEncoder])
def test_settings(cls: type, wrong: list[object]) -> None:
    good = {"dim": 8} if cls is FixedDimensionalEncoder else {}
    require_clear(check(cls, good, wrong, cls.__name__))


@pytest.mark.parametrize("name", ["encode_documents", "encode_queries", "from_dict"])
def test_encoders(wrong: list[object], name: str) -> None:
    encoder = FixedDimensionalEncoder(8, num_repetitions=1)
    good = {"settings": encoder.to_dict()} if name == "from_dict" else {"vectors": VECTORS, "lengths": [300]}
    # Without lengths, the vectors are a list of matrices, of which there may be none.
    require_clear(check(getattr(encoder, name), good, wrong, f"FixedDimensionalEncoder.{name}"))


def test_functions(
    place: lancedb.DBConnection,
    docs: Any,
    codec: Codec,
    wrong: list[object],
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    codec.save(tmp_path / "codec")
    make_name = lambda: next(names_of_tables)  # noqa: E731
    goods: dict[str, Callable[[], dict[str, Any]]] = {
        "all_of": lambda: {"conditions": ["a = 1"]},
        "any_of": lambda: {"conditions": ["a = 1"]},
        "none_of": lambda: {"conditions": ["a = 1"]},
        "as_json_value": lambda: {"value": 1},
        "column_condition": lambda: {"column": "id", "values": [1]},
        "compress": lambda: {"docs": docs, "codec": codec, "into": make_name(), "progress": False},
        "create_table": lambda: {"db": place, "name": make_name(), "data": source_table(VECTORS[:9])},
        "ingest": lambda: {"source": source_table(VECTORS), "into": (place, make_name()), "codec": codec},
        "json_field": lambda: {"column": "meta", "path": "a"},
        "load_codec": lambda: {"path": tmp_path / "codec"},
        "num_threads": lambda: {},
        "open_table": lambda: {"db": place, "name": "opened"},
        "open_table_async": lambda: {"db": place, "name": "opened"},
        "preset": lambda: {"name": "fast"},
        "set_num_threads": lambda: {"count": rqmoe_store.num_threads()},
        "set_rerank_precision": lambda: {"precision": "auto"},
        "words_query": lambda: {"text": "words", "column": "text"},
        "train": lambda: {"data": VECTORS, "config": CONFIG, "training": TRAINING},
        "advise": lambda: {"source": VECTORS, "minutes": 0, "progress": False},
        "add_refine_codes": lambda: {"codec": codec, "data": VECTORS, "refine_bytes": 4},
        "tune_codec": lambda: {"codec": codec, "vectors": VECTORS, "queries": VECTORS[:120] + 1},
    }
    create_table(place, "opened", source_table(VECTORS))
    public = {name: getattr(rqmoe_store, name) for name in rqmoe_store.__all__}
    functions = {name: each for name, each in public.items() if inspect.isfunction(each)}
    assert functions.keys() == goods.keys()
    problems = []
    for name, function in functions.items():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue

            def call(_function: Any = function, _name: str = name, **settings: Any) -> Any:
                good = goods[_name]()
                if _name == "json_field":
                    return _function(settings["column"], "a")
                return _function(**good | settings)

            call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
                [inspect.Parameter(parameter.name, inspect.Parameter.KEYWORD_ONLY)]
            )
            # The default is no wrong configuration, and takes long to train.
            values = wrong if parameter.name != "config" else [value for value in wrong if value is not None]
            problems += check(call, {}, values, name)
    require_clear(problems)


@pytest.mark.parametrize("name", public_methods(rqmoe_store.JsonField))
def test_fields_of_json(wrong: list[object], name: str) -> None:
    good = {"part": "x"} if name == "has_text" else {}
    require_clear(check(getattr(rqmoe_store.json_field("meta", "a"), name), good, wrong, f"JsonField.{name}"))


@pytest.mark.parametrize(
    "name", ["when_matched_update_all", "when_not_matched_by_source_delete", "use_index", "execute"]
)
def test_merges(make: Callable[[], CompressedTable], wrong: list[object], name: str) -> None:
    store = make()

    def call(**settings: Any) -> Any:
        merge = store.merge_insert("id").when_not_matched_insert_all()
        if name == "execute":
            return merge.execute(**{"new_data": [ROW]} | settings)
        return getattr(merge, name)(**settings).execute([ROW])

    call.__signature__ = inspect.signature(getattr(store.merge_insert("id"), name))  # type: ignore[attr-defined]
    require_clear(check(call, {}, wrong, f"merge_insert().{name}"))


def test_rerankers(make: Callable[[], CompressedTable], wrong: list[object]) -> None:
    good = {"store": make(), "query": VECTORS[0]}
    require_clear(check(rqmoe_store.DecodedReranker, good, wrong, "DecodedReranker"))


@pytest.mark.parametrize("name", ["update", "vector_search", "to_batches", "wait"])
def test_calls_for_event_loops(make: Callable[[], CompressedTable], wrong: list[object], name: str) -> None:
    """Those that are written by hand; all others pass their arguments on."""
    table = AsyncCompressedTable(make())
    calls: dict[str, Callable[..., Any]] = {
        "update": table.update,
        "vector_search": table.vector_search,
        "to_batches": table.vector_search(VECTORS[0]).to_batches,
        "wait": asyncio.run(table.encode_in_background()).wait,
    }
    good = {"update": {"where": "id = 1", "updates": {"text": "y"}}, "vector_search": {"query": VECTORS[0]}}
    require_clear(check(calls[name], good.get(name, {}), wrong, name))
