"""Damage to what a database keeps: the registry, the marks of a table, codes; nothing is read wrongly."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from small_damage import HOSTILE, damaged

from rqmoe_store.codecs.base import Codec
from rqmoe_store.errors import ArtifactError, RQMoEError, TableError
from rqmoe_store.store import databases, health, registry
from rqmoe_store.store.appends import append_rows
from rqmoe_store.store.ingest_log import PieceProgress, claim, folded_notes, folded_state, note_in
from rqmoe_store.store.metadata import KEY, MULTI_VECTOR_FORMAT_VERSION, PREFIX, TableMetadata, TunedSearch
from rqmoe_store.table import CompressedTable

TEXTS = [json.dumps(value) for value in HOSTILE] + [
    "",
    "\0",
    "[" * 10**5,
    "9" * 5000,
    "٣",
    "[[1]]",
    '[{"a":1}]',
]


def of_seeds(count: int) -> Iterator[np.random.Generator]:
    return (np.random.default_rng(seed) for seed in range(count))


@pytest.fixture
def registry_row(db: lancedb.DBConnection, codec: Codec) -> dict[str, object]:
    row: dict[str, object] = registry.save(db, codec).to_arrow().to_pylist()[0]
    return row


def keep_instead(db: lancedb.DBConnection, table: pa.Table) -> None:
    db.create_table(registry.REGISTRY_TABLE, table, mode="overwrite")


def loads_right(db: lancedb.DBConnection, codec: Codec) -> bool:
    """Whether the codec is loaded; if so it must be the one that was saved."""
    try:
        loaded = registry.load(db, codec.fingerprint)
    except ArtifactError:
        return False
    assert loaded.to_artifact() == codec.to_artifact()
    return True


def test_damaged_rows_of_the_registry(db, codec, registry_row) -> None:
    for random in of_seeds(60):
        column = ("config_json", "weights", "fingerprint")[random.integers(3)]
        value = registry_row[column]
        content = damaged(value if isinstance(value, bytes) else value.encode(), random)
        changed = content if column == "weights" else content.decode(errors="replace")
        keep_instead(db, pa.Table.from_pylist([{**registry_row, column: changed}], schema=registry._SCHEMA))
        assert loads_right(db, codec) == (changed == value), column


def test_an_intact_copy_among_damaged_ones_is_found(db, codec, registry_row) -> None:
    copies = [{**registry_row, "weights": damaged(registry_row["weights"], random)} for random in of_seeds(9)]
    keep_instead(db, pa.Table.from_pylist([*copies, registry_row], schema=registry._SCHEMA))
    assert loads_right(db, codec)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.drop_columns(["weights"]),
        lambda rows: rows.drop_columns(["fingerprint"]),
        lambda rows: rows.rename_columns(["fingerprint", "config", "weights", "created_at"]),
        lambda rows: rows.set_column(1, "config_json", pa.array([7])),
        lambda rows: rows.set_column(2, "weights", pa.array(["text"])),
        lambda rows: rows.set_column(0, "fingerprint", pa.array([7])),
        lambda rows: rows.set_column(1, "config_json", pa.nulls(1, pa.string())),
        lambda rows: rows.set_column(2, "weights", pa.nulls(1, pa.large_binary())),
    ],
)
def test_a_registry_of_other_columns(db, codec, registry_row, change: Callable[[pa.Table], pa.Table]) -> None:
    keep_instead(db, change(pa.Table.from_pylist([registry_row], schema=registry._SCHEMA)))
    assert not loads_right(db, codec)


def test_damaged_files_of_the_registry(db, codec, registry_row) -> None:
    files = [path for path in Path(db.uri, f"{registry.REGISTRY_TABLE}.lance").rglob("*") if path.is_file()]
    refused = 0
    for random in of_seeds(120):
        path = files[random.integers(len(files))]
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, random))
        refused += not loads_right(lancedb.connect(db.uri), codec)
        path.write_bytes(whole)
    assert refused > 20
    assert loads_right(lancedb.connect(db.uri), codec)


def test_a_registry_that_cannot_be_read_is_not_written_to(db, codec, plain_codec, registry_row) -> None:
    for path in Path(db.uri, f"{registry.REGISTRY_TABLE}.lance").rglob("*.manifest"):
        path.write_bytes(b"")
    with pytest.raises(ArtifactError, match="cannot be read"):
        registry.save(lancedb.connect(db.uri), plain_codec)


def marks_of(store: CompressedTable) -> dict[str, str]:
    """What the metadata says, by the names that are written."""
    metadata: dict[bytes, bytes] = store.table.schema.metadata
    return {key.decode(): text.decode() for key, text in metadata.items() if key.decode().startswith(PREFIX)}


def test_marks_have_a_value_for_each_of_their_fields(store) -> None:
    fields = {field.name for field in dataclasses.fields(TableMetadata)}
    only_of_many_vectors = {"multi_vector"}
    assert {PREFIX + name for name in fields - only_of_many_vectors} == set(marks_of(store))


def test_any_damaged_mark_is_refused_or_can_be_written_again(store) -> None:
    """Thousands of them, in memory: whatever is accepted is what is written for it."""
    whole = {key.encode(): text.encode() for key, text in marks_of(store).items()}
    for key, content in whole.items():
        changes = [text.encode() for text in TEXTS] + [damaged(content, random) for random in of_seeds(500)]
        for changed in [*changes, b"\xff\xfe", None]:
            metadata = {**whole, key: changed} if changed is not None else {**whole}
            if changed is None:
                del metadata[key]
            try:
                marks = TableMetadata.read(pa.schema([], metadata=metadata), "docs")
            except TableError:
                continue
            again = TableMetadata.read(pa.schema([], metadata=marks.write({})), "docs")
            assert again == marks
            assert 0 < marks.dim < 2**31
    metadata = {**whole, PREFIX.encode() + b"\xff": b"x"}
    assert TableMetadata.read(pa.schema([], metadata=metadata), "docs") == store.codecs.metadata


def test_a_table_with_a_damaged_mark_is_refused_or_reads_as_before(store, db, codec, vectors) -> None:
    expected = codec.decode(codec.encode(vectors[:20]))
    rows = store.table.to_arrow().sort_by("id").slice(0, 20)
    dataset, whole = store.table.to_lance(), marks_of(store)
    opened = 0
    for place, (key, text) in enumerate(whole.items()):
        for random in of_seeds(8):
            choice = TEXTS[(8 * place + int(random.integers(8))) % len(TEXTS)]
            content = damaged(text.encode(), random).decode(errors="replace").replace("\0", "")
            changed = content if random.integers(4) else choice.replace("\0", "")
            dataset.update_schema_metadata({key: changed})
            try:
                reopened = CompressedTable.open(db, "store")
            except RQMoEError:
                continue
            finally:
                dataset.update_schema_metadata({key: text})
            opened += 1
            codes, valid = reopened.columns.from_arrow(rows)
            assert valid.all()
            np.testing.assert_array_equal(reopened.codecs.decode(codes), expected)
    assert marks_of(CompressedTable.open(db, "store")) == whole
    assert opened < 30


def test_a_newer_format_asks_for_an_upgrade(store, db) -> None:
    version = MULTI_VECTOR_FORMAT_VERSION + 1
    newer = {PREFIX + "format_version": str(version), PREFIX + "unknown": "in it"}
    store.table.to_lance().update_schema_metadata({**dict.fromkeys(marks_of(store), ""), **newer})
    with pytest.raises(TableError, match=f"format version {version}.*Upgrade rqmoe-store"):
        CompressedTable.open(db, "store")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TunedSearch)])
def test_damaged_tuning_is_refused_or_of_use(field: str) -> None:
    setting = {"nprobes": 3, "shortlist": 40, "limit": 10, "target_recall": 0.9}
    texts = [json.dumps({**setting, field: value}) for value in HOSTILE]
    whole = json.dumps(setting).encode()
    texts += [*TEXTS, *(damaged(whole, random).decode(errors="replace") for random in of_seeds(300))]
    for text in texts:
        try:
            found = TunedSearch.read({KEY: text}, "docs")
        except TableError:
            continue
        assert found is not None
        assert min(found.nprobes, found.shortlist, found.limit) > 0
        assert 0 < found.target_recall <= 1


def test_damaged_notes_on_drift_and_ingestions_are_refused_or_of_use(store) -> None:
    claimed = claim(store.table, "job")
    properties = claimed.properties(
        {"a.csv": PieceProgress("as it was", 10), "b.csv": PieceProgress("as it was", None)}
    )
    append_rows(store.table, store.table.to_arrow().slice(0, 1).to_reader(), properties)
    claimed.fold_notes()
    dataset = databases.reopen(store.table).to_lance()
    dataset.update_metadata(health.folded_drift(dataset, store.codecs))
    whole = {key: text for key, text in dataset.metadata.items() if key.startswith(PREFIX)}
    assert len(whole) == 2
    for key, text in whole.items():
        changes = [damaged(text.encode(), random).decode(errors="replace") for random in of_seeds(40)]
        for changed in [*TEXTS[::3], *changes]:
            dataset.update_metadata({key: changed.replace("\0", "")})
            assert set(health.folded_drift(dataset, store.codecs)) == {health.KEY}
            folded_notes(dataset, "store")
        dataset.update_metadata({key: text})
    assert set(claim(store.table, "job").state.pieces) == {"a.csv", "b.csv"}


def test_damaged_notes_of_commits_are_refused_or_of_use(store) -> None:
    """In every way, in memory; the table is asked of the notes by what reads them."""
    held = claim(store.table, "job")
    (whole,) = held.properties(
        {"a.csv": PieceProgress("as it was", 10), "b.csv": PieceProgress("as it was", None)}
    ).items()
    transaction = store.table.to_lance().read_transaction(store.version)
    refused = 0
    changes = [damaged(whole[1].encode(), random).decode(errors="replace") for random in of_seeds(500)]
    changes += [json.dumps(json.loads(whole[1]) | {"pieces": value}) for value in HOSTILE]
    for changed in [*TEXTS, *changes]:
        transaction.transaction_properties = {whole[0]: changed}
        try:
            note = note_in(transaction, "store")
        except TableError as error:
            assert "'store' says of the rows it ingested" in str(error)
            refused += 1
            continue
        assert note is not None and {type(note.job), type(note.run)} == {str} and note.round >= 0
        assert all(type(done.state) is str and (done.rows or 0) >= 0 for done in note.pieces.values())
    assert refused > 400


@pytest.mark.parametrize(
    "note", ["{", "[]", '{"job": "job", "run": "x", "round": 0, "pieces": {"a": [1, 2]}}']
)
def test_a_damaged_note_of_a_commit(store, note) -> None:
    rows = store.table.to_arrow().slice(0, 1)
    before = claim(store.table, "job")
    (key,) = before.properties({})
    append_rows(store.table, rows.to_reader(), {key: note})
    folded_at = folded_state(store.table.to_lance(), "job", "store").folded_at
    before.fold_notes()
    assert folded_state(databases.reopen(store.table).to_lance(), "job", "store").folded_at == folded_at
    for read in (before.require_held, lambda: claim(store.table, "job")):
        with pytest.raises(TableError, match=r"which is damaged .* resume=False"):
            read()
    assert claim(store.table, "job", restart=True).state.pieces == {}
    store.restore(store.version - 1)
    assert claim(store.table, "other").state.pieces == {}


@pytest.mark.parametrize(
    ("code", "partition", "message"),
    [
        (b"\x10\0\0\0", 0, "Got code 16 .* expected 0 to 15"),
        (b"\0\0\0\xff", 3, "Got code 255 .* expected 0 to 15"),
        (b"\0\0\0\0", 4, "Got partition id 4 .* expected 0 to 3"),
        (b"\0\0\0\0", -1, "Got partition id -1 .* expected 0 to 3"),
        (b"\0\0\0\0", 2**31 - 1, "Got partition id 2147483647"),
    ],
)
def test_codes_that_no_codec_wrote_are_never_counted_or_decoded(store, code, partition, message) -> None:
    bad = {"id": [1000], "text": ["x"], "vector_code": [code], "vector_partition": [partition]}
    schema = pa.schema([field for field in store.table.schema if field.name in bad])
    store.table.add(pa.table(bad, schema=schema))
    codes, _ = store.columns.from_arrow(store.table.to_arrow())
    with pytest.raises(TableError, match=message):
        store.codecs.decode(codes)
    with pytest.raises(TableError, match=message):
        store.stats()
    store.delete("id = 1000")
    assert store.stats().rows == 300
