"""Exports hold what the table holds, in every format, and can be used without it."""

import dataclasses
import datetime
import decimal
import json
import shutil
import subprocess
import sys

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rqmoe_store import exports
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import ArtifactError, InvalidInputError, TableError
from rqmoe_store.store import registry, vector_arrays
from rqmoe_store.tables import create_table, open_table

DIM = 8
VECTORS = np.random.default_rng(3).normal(size=(140, DIM)).astype(np.float32)
FORMATS = {"parquet": "out.parquet", "npy": "out.npy", "codes": "out"}


def rows_of(first, last):
    return [{"id": row, "text": f"row {row}", "vector": VECTORS[row]} for row in range(first, last)]


def training(seed):
    return TrainConfig(epochs=0, seed=seed, progress=False)


@pytest.fixture
def db(tmp_path):
    return lancedb.connect(tmp_path / "db")


@pytest.fixture(scope="module", params=[("none", 6), ("float16", 0)], ids=["refine codes", "kept vectors"])
def template(request, tmp_path_factory):
    """A database with rows of two codecs, the second of which may have refine codes, raw ones and one without
    a vector."""
    (keep, refine_bytes) = request.param
    folder = tmp_path_factory.mktemp("template")
    config = CodecConfig(kind="rq", code_bytes=4, codebook_size=16, num_partitions=2, beam=1)
    store = create_table(lancedb.connect(folder), "docs", rows_of(0, 100), config=config, keep_vectors=keep)
    store.train(training(0), progress=False)
    config = dataclasses.replace(config, refine_bytes=refine_bytes)
    store.retrain(training(1), vectors=VECTORS, config=config, encode=False, progress=False)
    store.add([*rows_of(100, 120), {"id": 1000, "text": None, "vector": None}])
    store.add(rows_of(120, 140), encode=False)
    store.delete("id in (3, 130)")
    return folder


@pytest.fixture
def store(template, db, tmp_path, monkeypatch):
    """A table of the template's rows, a few of which are read at a time."""
    monkeypatch.setattr(vector_arrays, "BATCH_BYTES", 4 * DIM * 16)
    shutil.copytree(template, tmp_path / "db", dirs_exist_ok=True)
    return open_table(db, "docs")


def expected(store, *, decoded=False):
    """Row by id: its text and the vector that an export of vectors has."""
    rows = store.table.search().select(["id", "text", "vector", *store.columns.names]).to_arrow()
    codes, coded = store.columns.from_arrow(rows)
    made = dict(zip(np.flatnonzero(coded).tolist(), store.codecs.decode(codes), strict=True))
    found = {}
    for place, row in enumerate(rows.to_pylist()):
        raw = None if decoded and place in made else row["vector"]
        found[row["id"]] = (row["text"], made.get(place) if raw is None else np.float32(raw))
    assert len(found) == 139 and len(made) == 119
    return found


def assert_same(ids, texts, vectors, rows):
    assert sorted(ids) == sorted(rows)
    for row, text, vector in zip(ids, texts, vectors, strict=True):
        assert text == rows[row][0]
        if rows[row][1] is None:
            assert vector is None
        else:
            np.testing.assert_allclose(vector, rows[row][1], rtol=1e-6)


def exported(store, tmp_path, format, **options):
    path = tmp_path / FORMATS[format]
    report = store.export(path, format=format, progress=False, **options)
    assert report.path == path and report.bytes > 0 and str(path) in str(report)
    return report


def names(folder):
    return {path.name for path in folder.iterdir()} - {"db"}


@pytest.mark.parametrize("single", [True, False])
def test_parquet(store, tmp_path, monkeypatch, single):
    monkeypatch.setattr(exports, "ROWS_PER_FILE", 40)
    path = tmp_path / ("out.parquet" if single else "out")
    report = store.export(path, progress=False)
    assert (report.rows, report.coded, report.raw, report.empty) == (139, 119, 19, 1)
    assert report.version == store.version and "119 coded, 19 raw, 1 without a vector" in str(report)
    table = pq.read_table(path)
    assert table.schema.names == ["id", "text", "vector"]
    assert table.schema.field("vector").type.value_type == pa.float32()
    assert not any(b"rqmoe" in key for key in table.schema.metadata or {})
    assert_same(
        table["id"].to_pylist(), table["text"].to_pylist(), table["vector"].to_pylist(), expected(store)
    )
    assert names(tmp_path) == {path.name}
    if not single:
        parts = sorted(path.glob("*.parquet"))
        assert [part.name for part in parts] == [f"part-0000{number}.parquet" for number in range(len(parts))]
        assert len(parts) > 1 and names(path) == {*(part.name for part in parts), "_export.json"}


def test_npy(store, tmp_path):
    report = exported(store, tmp_path, "npy")
    assert (report.rows, report.empty) == (138, 1)
    vectors = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert vectors.dtype == np.float32 and vectors.shape == (138, DIM)
    rows = {row: values for row, values in expected(store).items() if values[1] is not None}
    beside = pq.read_table(tmp_path / "out.parquet")
    assert beside.schema.names == ["id", "text"]
    assert_same(beside["id"].to_pylist(), beside["text"].to_pylist(), vectors, rows)
    assert names(tmp_path) == {"out.npy", "out.parquet"}


WITHOUT = 'sys.modules["lancedb"] = sys.modules["lance"] = None'
USED = """
import sys
import numpy, pyarrow.parquet
import rqmoe_store
folder = sys.argv[1]
def as_array(codes):
    return numpy.stack([numpy.frombuffer(code, "uint8") for code in codes])
rows = pyarrow.parquet.read_table(f"{folder}/rows").to_pandas()
made = {}
for name, some in rows.groupby("vector_codec"):
    codec = rqmoe_store.load_codec(f"{folder}/{name}")
    partitions = some["vector_partition"].to_numpy("int32")
    refine = as_array(some["vector_refine"]) if codec.config.refine_bytes else None
    vectors = codec.decode(rqmoe_store.Codes(as_array(some["vector_code"]), partitions, refine))
    made |= {str(row): vector for row, vector in zip(some["id"], vectors)}
numpy.savez(f"{folder}.npz", **made)
"""


def test_codes_are_used_without_lancedb(store, tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "ROWS_PER_FILE", 40)
    assert exported(store, tmp_path, "codes").rows == 139
    if store.kept.kept:  # a process of its own takes seconds, and would do the same
        monkeypatch.setattr(sys, "argv", ["script", str(tmp_path / "out")])
        exec(USED, {})
    else:
        script = f"import sys\n{WITHOUT}\n{USED}"
        run = subprocess.run([sys.executable, "-c", script, tmp_path / "out"], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    decoded, rows = np.load(tmp_path / "out.npz"), expected(store, decoded=True)
    table = pq.read_table(tmp_path / "out" / "rows")
    ours = [*store.columns.names, "vector_codec", "vector"]
    assert table.schema.names == ["id", "text", *ours]
    if store.columns.refine_bytes:
        assert table.schema.field("vector_refine").type == pa.binary(6)
        assert table["vector_refine"].null_count == 139 - 20
    assert table.schema.field("vector_code").type == pa.binary(4)
    vectors = [
        decoded[str(row["id"])] if row["vector_code"] is not None else row["vector"]
        for row in table.to_pylist()
    ]
    assert_same(table["id"].to_pylist(), table["text"].to_pylist(), vectors, rows)
    kept = store.kept.kept
    assert table["vector"].null_count == 139 - (138 if kept else 19)
    assert table["vector_codec"].null_count == table["vector_partition"].null_count == 20
    assert set(table["vector_partition"].to_pylist()) == {0, 1, None}
    folders = {f"codec-{mark.fingerprint[:12]}" for mark in store.codecs.metadata.generations}
    assert names(tmp_path / "out") == {"rows", "_export.json", *folders} and len(folders) == 2
    described = json.loads((tmp_path / "out" / "_export.json").read_text())
    assert described["format"] == "codes" and set(described["codecs"]) == folders
    assert names(tmp_path) == {"out", "out.npz"}


def test_only_codecs_that_rows_need_are_written(store, tmp_path):
    store.optimize(progress=False)
    exported(store, tmp_path, "codes")
    assert names(tmp_path / "out") == {"rows", "_export.json", f"codec-{store.codec.fingerprint[:12]}"}
    assert ("vector" in pq.read_schema(tmp_path / "out/rows/part-00000.parquet").names) == store.kept.kept


@pytest.mark.parametrize("format", FORMATS)
def test_tables_without_rows_or_without_codes(db, tmp_path, format):
    store = create_table(db, "empty", schema=pa.schema([("vector", pa.list_(pa.float32(), 4))]))
    assert exported(store, tmp_path, format).rows == 0
    if format == "npy":
        assert np.load(tmp_path / "out.npy").shape == (0, 4)
        assert names(tmp_path) == {"out.npy"}
    elif format == "parquet":
        assert pq.read_table(tmp_path / "out.parquet").schema.names == ["vector"]
    store.add([{"vector": [1.0, 2.0, 3.0, 4.0]}])
    assert exported(store, tmp_path, format, overwrite=True).raw == 1
    if format == "npy":
        assert np.load(tmp_path / "out.npy").tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_a_version_that_is_checked_out(store, tmp_path):
    before = store.version
    store.delete("id > 50")
    store.checkout(before)
    assert exported(store, tmp_path, "parquet").version == before
    assert len(pq.read_table(tmp_path / "out.parquet")) == 139


def test_columns_of_all_kinds(db, tmp_path):
    schema = pa.schema(
        [
            ("json", pa.json_()),
            ("half", pa.list_(pa.float16(), 2)),
            ("kind", pa.dictionary(pa.int32(), pa.string())),
            ("struct", pa.struct([("a", pa.int32())])),
            ("texts", pa.large_list(pa.string())),
            ("bytes", pa.binary(3)),
            ("decimal", pa.decimal128(10, 2)),
            ("vector", pa.list_(pa.float32(), 4)),
        ]
    )
    values = {
        "json": '{"a":1}',
        "half": [1, 2],
        "kind": "x",
        "struct": {"a": 1},
        "texts": ["a"],
        "bytes": b"abc",
        "decimal": decimal.Decimal("1.50"),
    }
    store = create_table(db, "docs", schema=schema)
    store.add([{**values, "vector": [1.0] * 4}, dict.fromkeys(schema.names)])
    for format in FORMATS:
        (tmp_path / format).mkdir()
        exported(store, tmp_path / format, format)
    (row, nulls) = pq.read_table(tmp_path / "parquet" / "out.parquet").to_pylist()
    assert row == {**values, "vector": [1.0] * 4} and set(nulls.values()) == {None}
    assert pq.read_table(tmp_path / "codes" / "out" / "rows").drop(["vector"]).to_pylist()[0] | {
        "vector": [1.0] * 4
    } == {
        **row,
        "vector_code": None,
        "vector_partition": None,
        "vector_codec": None,
    }


# What is refused, and what goes wrong.


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_there_is_not_replaced_unless_asked(store, tmp_path, format):
    exported(store, tmp_path, format)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("out*")}
    with pytest.raises(InvalidInputError, match=r"exists already.*overwrite=True"):
        exported(store, tmp_path, format)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("out*")} == before
    store.delete("id < 100")
    assert exported(store, tmp_path, format, overwrite=True).rows < 100
    assert names(tmp_path) == ({"out.npy", "out.parquet"} if format == "npy" else {FORMATS[format]})


def test_a_table_beside_an_array_is_not_replaced_either(store, tmp_path):
    (tmp_path / "out.parquet").write_text("mine")
    with pytest.raises(InvalidInputError, match=r"out.parquet' exists already"):
        exported(store, tmp_path, "npy")


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("out.bin", {"format": "npy"}, r"a name ending in \.npy"),
        ("out", {"format": "csv"}, "format='csv'; expected one of 'parquet', 'npy', 'codes'"),
        ("nowhere/out", {}, "no folder"),
        ("db", {"overwrite": True}, "folder that was not exported"),
        ("db", {"overwrite": True, "format": "codes"}, "folder that was not exported"),
    ],
)
def test_what_is_refused(store, tmp_path, path, options, message):
    with pytest.raises(InvalidInputError, match=message):
        store.export(tmp_path / path, progress=False, **options)
    with pytest.raises(InvalidInputError, match="path on this machine"):
        store.export("s3://bucket/out", progress=False)
    assert names(tmp_path) == set() and len(store) == 139


def test_a_column_named_like_ours_is_refused(db, tmp_path):
    store = create_table(db, "docs", [{"vector_codec": 1, "vector": [1.0, 2.0]}])
    with pytest.raises(InvalidInputError, match="column 'vector_codec'"):
        exported(store, tmp_path, "codes")
    assert exported(store, tmp_path, "parquet").rows == 1
    assert names(tmp_path) == {"out.parquet"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_left_of_an_export_that_fails(store, tmp_path, monkeypatch, format, overwrite):
    if overwrite:
        exported(store, tmp_path, format)
    before = {path: path.is_dir() or path.read_bytes() for path in tmp_path.rglob("out*")}
    rows = 0
    write = exports.FORMATS[format].write

    def interrupted(self, batch):
        nonlocal rows
        rows += len(batch.coded_N)
        if rows > 100:
            raise KeyboardInterrupt
        return write(self, batch)

    monkeypatch.setattr(exports.FORMATS[format], "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        exported(store, tmp_path, format, overwrite=overwrite)
    assert {path: path.is_dir() or path.read_bytes() for path in tmp_path.rglob("out*")} == before
    assert names(tmp_path) == {path.name for path in before if path.parent == tmp_path}


@pytest.mark.parametrize("format", FORMATS)
def test_damage_is_told_of(store, db, tmp_path, format):
    schema = store.table.schema.remove(store.table.schema.get_field_index("vector"))
    bad = {"id": 1, "text": "", "vector_code": b"\xff\0\0\0", "vector_partition": 0}
    store.table.add(pa.Table.from_pylist([bad], schema=schema))
    with pytest.raises(TableError, match="Got code 255"):
        exported(store, tmp_path, format)
    store.delete("id = 1 AND text = ''")
    db.open_table(registry.REGISTRY_TABLE).delete(f"fingerprint != '{store.codec.fingerprint}'")
    # Handles that are read as fresh as each other share their codecs; this one has none to share.
    fresh = lancedb.connect(db.uri, read_consistency_interval=datetime.timedelta(hours=1))
    if format == "codes" or not store.kept.kept:
        with pytest.raises(ArtifactError, match="no codec with fingerprint"):
            exported(open_table(fresh, "docs"), tmp_path, format)
        assert names(tmp_path) == set()
