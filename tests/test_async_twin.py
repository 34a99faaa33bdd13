"""The twin for event loops has what the blocking classes have, and does the same in threads."""

import asyncio
import inspect
import re
import shutil
from pathlib import Path
from typing import Any, get_overloads

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from busy_threads import assert_done_by_threads
from generate_async import NAMES, TARGET, TWINS, Twin, module_source
from lancedb.table import AsyncTable, LanceTable
from small_tables import source_table, tiny_codec

import rqmoe_store.async_table
from rqmoe_store.async_table import AsyncBackgroundEncoding, AsyncCompressedTable, AsyncTableQuery
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.store.snapshot import Snapshot
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, create_table, open_table

ROWS, DIM = 300, 8
VECTORS = np.random.default_rng(7).normal(size=(ROWS, DIM)).astype(np.float32)
TRAINING = TrainConfig(epochs=0, progress=False)
CONFIG = CodecConfig(kind="rq", code_bytes=4, codebook_size=16)


def public(cls: type) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(cls) if not name.startswith("_")}


def class_of(name: str) -> type:
    cls: type = getattr(rqmoe_store.async_table, name)
    return cls


def by_hand(twin: Twin) -> set[str]:
    """Members that are written by hand in a twin, or in the twin of a base class."""
    related = [each for each in TWINS.values() if issubclass(twin.blocking, each.blocking)]
    return {name for each in related for name in each.names_by_hand if not name.startswith("_")}


def parameters(call: Any) -> list[inspect.Parameter]:
    """Names, kinds, defaults and annotations."""
    return list(inspect.signature(call).parameters.values())


def test_the_module_is_what_is_generated() -> None:
    assert TARGET.read_text() == module_source(), "run `make async`"


@pytest.mark.parametrize("name", TWINS)
def test_every_public_member_has_a_twin_with_the_same_parameters(name: str) -> None:
    ours, twin = public(class_of(name)), TWINS[name]
    blocking = public(twin.blocking)
    assert set(ours) == {*blocking, *by_hand(twin)} - set(twin.left_out)
    for name in set(blocking) - set(twin.left_out) - by_hand(twin):
        member = blocking[name]
        if not inspect.isroutine(member):
            is_property = isinstance(ours[name], property)
            assert is_property or [each.name for each in parameters(ours[name])] == ["self"], name
            continue
        assert parameters(ours[name]) == parameters(member), name
        overloads = [parameters(each) for each in get_overloads(member)]
        assert [parameters(each) for each in get_overloads(ours[name])] == overloads, name


@pytest.mark.parametrize("name", TWINS)
def test_everything_waits_but_options_and_what_is_declared(name: str) -> None:
    ours, twin = public(class_of(name)), TWINS[name]
    immediate = {each for each in ours if not inspect.iscoroutinefunction(ours[each])} - by_hand(twin)
    options = {each for each in immediate if chains(ours[each])}
    assert immediate == options | twin.immediate
    assert options == {each for each, member in public(twin.blocking).items() if chains(member)}


def chains(member: Any) -> bool:
    return inspect.isfunction(member) and "Self" in str(inspect.signature(member).return_annotation)


@pytest.mark.parametrize("name", TWINS)
def test_declared_differences_are_differences(name: str) -> None:
    twin = TWINS[name]
    blocking = public(twin.blocking)
    assert twin.immediate | set(twin.left_out) <= set(blocking)
    assert not {each for each in twin.immediate if chains(blocking[each])}


def test_names_and_coroutines_are_those_of_lancedb() -> None:
    own = {
        "codec",
        "checked_out",
        "create_fts_index",
        "create_scalar_index",
        "train",
        "retrain",
        "health",
        "save_health_report",
        "tune",
        "tune_codec",
    }
    own |= {
        "build_neighbor_graph",
        "verify",
        "export",
        "key",
        "set_key",
        "encode_in_background",
        "encoding",
        "is_due_for_training",
    }
    own |= {
        "dim",
        "metric",
        "hidden_columns",
        "refresh",
        "use_cache",
        "use_device",
        "use_shards",
        "allow_pickling",
    }
    for name, ours in public(AsyncCompressedTable).items():
        if name not in own:
            theirs = getattr(AsyncTable, name)
            assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs), name
            assert isinstance(ours, property) == isinstance(theirs, property), name


@pytest.mark.parametrize(
    "name",
    ["add", "update", "delete", "count_rows", "head", "merge_insert", "create_scalar_index", "restore"],
)
def test_the_arguments_of_lancedbs_methods_are_taken(name: str) -> None:
    """As far as they are there; LanceDB's table has no `create_scalar_index` for event loops."""
    theirs = getattr(AsyncTable, name, None) or getattr(LanceTable, name)
    mine = inspect.signature(getattr(AsyncCompressedTable, name)).parameters
    left_out = {"data", "progress", "write_parallelism", "allow_external_blob_outside_bases"}
    assert set(inspect.signature(theirs).parameters) - left_out <= set(mine)


def call(*arguments: Any, **settings: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return arguments, settings


CALLS = {
    "add": call([{"id": 1000, "text": "x", "vector": VECTORS[0]}, {"id": 1001}], on_bad_vectors="null"),
    "add_columns": call({"double": "2 * id"}),
    "alter_columns": call({"path": "lang", "rename": "language"}, {"path": "text", "nullable": True}),
    "build_neighbor_graph": call(3, rebuild=True, progress=False),
    "checkout": call(1),
    "checkout_latest": call(),
    "count_rows": call("id < 7"),
    "create_fts_index": call("text", replace=True, stem=False, with_position=True),
    "create_scalar_index": call("lang", index_type="BITMAP", name="languages"),
    "delete": call("id < 5"),
    "drop_columns": call(["lang", "text"]),
    "drop_index": call("id_idx"),
    "encode_in_background": call(),
    "export": call("out.npy", format="npy", overwrite=True, progress=False),
    "head": call(3),
    "health": call(),
    "index_stats": call("id_idx"),
    "is_due_for_training": call(train_from=1),
    "key": call(),
    "list_indices": call(),
    "list_versions": call(),
    "optimize": call(training=TRAINING, train_from=ROWS, progress=False),
    "refresh": call(),
    "restore": call(2),
    "retrain": call(TRAINING, vectors=VECTORS, config=CONFIG, encode=False, progress=False),
    "save_health_report": call("health.html"),
    "schema": call(),
    "search": call(VECTORS[:2], "vector", vector_column_name="vector"),
    "set_key": call("id"),
    "stats": call(),
    "train": call(TRAINING, encode=True, progress=False),
    "tune": call(VECTORS[:9], target_recall=0.1, limit=3, progress=False),
    "tune_codec": call(VECTORS[:120] + 1, [[1]] * 120, on="id", held_out=0.5, seed=1, progress=False),
    "verify": call(progress=False),
    "version": call(),
}
"""A call of every method that waits, with most arguments other than by default."""
RAW = {"train", "optimize", "is_due_for_training"}
"""What is called of a table without a codec."""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with a codec, a raw row and an index, and one without a codec."""
    folder: Path = tmp_path_factory.mktemp("twin") / "database"
    db = lancedb.connect(folder)
    docs = db.create_table("docs", source_table(VECTORS))
    store = compress(docs, tiny_codec(VECTORS, "l2", 4), "small", progress=False)
    store.add([{"id": 900, "vector": VECTORS[9]}], encode=False)
    store.create_scalar_index("id")
    create_table(db, "raw", source_table(VECTORS), config=CONFIG)
    return folder


def test_every_method_is_called() -> None:
    methods = {
        name for name, ours in public(AsyncCompressedTable).items() if inspect.iscoroutinefunction(ours)
    }
    assert set(CALLS) == methods - by_hand(TWINS["AsyncCompressedTable"])


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_awaited_does_the_same_in_a_thread(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)  # for what is exported
    blocking, other = (
        open_table(lancedb.connect(shutil.copytree(database, folder)), "raw" if name in RAW else "small")
        for folder in ("blocking", "awaited")
    )
    twin = AsyncCompressedTable(other)
    (arguments, settings), member = CALLS[name], getattr(blocking, name)
    wanted = member(*arguments, **settings) if callable(member) else member
    found = asyncio.run(assert_done_by_threads(getattr(twin, name)(*arguments, **settings)))
    if type(wanted).__name__ in NAMES:
        assert type(found).__name__ == NAMES[type(wanted).__name__]
    assert seen(found) == seen(wanted)
    assert state(twin.blocking) == state(blocking)


def seen(result: Any) -> Any:
    """What a call gave, to be compared: reports and the like as they are printed, but for numbers in them."""
    if isinstance(result, AsyncBackgroundEncoding):
        return seen(asyncio.run(result.wait()))
    if isinstance(result, AsyncTableQuery):
        return asyncio.run(result.to_arrow())
    for name in ("wait", "to_arrow"):
        if hasattr(result, name):
            return seen(getattr(result, name)())
    if isinstance(result, Snapshot):
        return result.version
    if isinstance(result, int | str | pa.Table | pa.Schema | None):
        return result
    return type(result), re.sub(r"[0-9a-f]*[0-9][0-9a-f.,-]*", "#", str(result))


def state(table: CompressedTable) -> list[Any]:
    """What is in a table, or in the version of it that is checked out."""
    rows, generations = table.search().to_arrow(), table.codecs.metadata.generations
    indexes = sorted((index.name, index.index_type, index.columns) for index in table.list_indices())
    return [rows, table.version, table.checked_out, table.key, table.tags.list(), indexes, len(generations)]
