"""Full disks and folders that cannot be written to: an error that says so, and nothing lost or half made."""

import datetime
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import lancedb
import numpy as np
import pytest
from small_disks import SmallDisk, read_only, small_disk
from small_tables import source_table, tiny_codec

from rqmoe_store.codecs.base import Codec, load_codec
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError, StorageError
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.store import registry
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, create_table, open_table

ROWS, DIM = 2000, 8
VECTORS = np.random.default_rng(3).normal(size=(ROWS, DIM)).astype(np.float32)
CONFIG = CodecConfig(kind="rq", code_bytes=4, codebook_size=16, beam=1)
TRAINING = TrainConfig(epochs=0, progress=False)
NEARLY_NOTHING = [0, 4096, 12_288, 24_576, 40_960]
"""Room that is used up at different places of a write."""


@pytest.fixture(scope="module")
def codec() -> Codec:
    return tiny_codec(VECTORS, "l2", 4)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", megabytes=4) as made:
        yield made


def contents(store: CompressedTable) -> list[dict]:
    """All rows of a table, and what a search finds, as another process would."""
    opened = open_table(lancedb.connect(store.table.uri.rpartition("/")[0]), store.name)
    rows = opened.table.search().select(["id", "text", *opened.columns.names]).to_list()
    return [sorted(rows, key=lambda row: row["id"]), opened.search(VECTORS[0]).limit(5).to_list()]


@pytest.mark.parametrize("leave", NEARLY_NOTHING)
def test_a_codec_that_does_not_fit_leaves_the_one_there_was(
    disk: SmallDisk, codec: Codec, leave: int
) -> None:
    other = tiny_codec(np.tile(VECTORS, 16), "l2", 64)
    codec.save(disk.path / "codec")
    with (
        disk.filled(min(leave, 24_576)),
        pytest.raises(StorageError, match=r"cannot be saved in .*No space left"),
    ):
        other.save(disk.path / "codec")
    assert load_codec(disk.path / "codec").fingerprint == codec.fingerprint
    assert len(list((disk.path / "codec").iterdir())) == 2
    other.save(disk.path / "codec")
    assert load_codec(disk.path / "codec").fingerprint == other.fingerprint


@pytest.mark.parametrize("leave", NEARLY_NOTHING)
def test_a_table_that_does_not_fit_is_not_begun(
    disk: SmallDisk, codec: Codec, tmp_path: Path, leave: int
) -> None:
    docs = lancedb.connect(tmp_path / "elsewhere").create_table("docs", source_table(VECTORS))
    db = lancedb.connect(disk.path / "db")
    with disk.filled(leave):
        with pytest.raises(StorageError, match=r"refused a write: No space left.*make room"):
            compress(docs, codec, "small", db=db, progress=False)
        with pytest.raises(StorageError, match="No space left"):
            create_table(db, "raw", source_table(VECTORS), config=CONFIG)
    assert {path.name for path in (disk.path / "db").iterdir()} <= {f"{registry.REGISTRY_TABLE}.lance"}
    assert len(compress(docs, codec, "small", db=db, progress=False)) == ROWS
    assert len(create_table(db, "raw", source_table(VECTORS), config=CONFIG)) == ROWS


@pytest.mark.parametrize("leave", NEARLY_NOTHING)
def test_a_table_on_a_full_disk_keeps_what_it_has(disk: SmallDisk, codec: Codec, leave: int) -> None:
    db = lancedb.connect(disk.path / "db")
    docs = db.create_table("docs", source_table(VECTORS))
    store = compress(docs, codec, "small", progress=False)
    db.drop_table("docs")
    before = contents(store)
    with disk.filled(leave):
        with pytest.raises(StorageError, match="No space left"):
            store.add(source_table(np.tile(VECTORS, (4, 1))))
        assert contents(store) == before
    with disk.filled(0):
        for write in writes(store):
            with pytest.raises(StorageError, match="No space left"):
                write()
        assert contents(store) == before
    assert store.add(source_table(VECTORS)) == ROWS
    assert store.delete("id < 10") == 20
    assert len(store) == len(open_table(db, "small")) == 2 * ROWS - 20


def writes(store: CompressedTable) -> list[Callable[[], object]]:
    return [
        lambda: store.delete("id = 3"),
        lambda: store.tune(VECTORS[:5] + 1, progress=False),
        lambda: store.create_fts_index("text"),
        lambda: store.retrain(TRAINING, vectors=VECTORS, progress=False),
    ]


@pytest.mark.parametrize("leave", NEARLY_NOTHING)
def test_encoding_in_place_goes_on_once_there_is_room(disk: SmallDisk, leave: int) -> None:
    db = lancedb.connect(disk.path / "db")
    store = create_table(db, "raw", source_table(VECTORS), config=CONFIG)
    with disk.filled(leave), pytest.raises(StorageError, match="No space left"):
        store.train(TRAINING, progress=False)
    assert len(open_table(db, "raw")) == ROWS
    assert (
        open_table(db, "raw").search(VECTORS[7]).limit(1).to_list()[0]["id"] == 7
    )  # found by its raw vector
    store = open_table(db, "raw")
    report = store.optimize(
        training=TRAINING, train_from=1, cleanup_older_than=datetime.timedelta(0), progress=False
    )
    assert (report.raw_rows, report.encoded.rows, len(store)) == (0, ROWS, ROWS)


def test_temporary_files_that_do_not_fit(disk: SmallDisk, codec: Codec, tmp_path: Path, monkeypatch) -> None:
    """Writing to them on a full disk would be the end of the process."""
    db = lancedb.connect(tmp_path / "db")
    docs = db.create_table("docs", source_table(VECTORS))
    monkeypatch.setattr(tempfile, "tempdir", str(disk.path))
    for leave in (4096, 12_288, 24_576, 40_960):  # each of four files in turn is too much
        with disk.filled(leave), pytest.raises(StorageError, match=r"more bytes \(.*No space left.*TMPDIR"):
            compress(docs, codec, "small", progress=False)
    assert list(disk.path.iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "db").iterdir()) == ["docs.lance"]
    assert len(compress(docs, codec, "small", progress=False)) == ROWS


def test_a_database_that_can_only_be_read_is_read(codec: Codec, tmp_path: Path) -> None:
    db = lancedb.connect(tmp_path / "db")
    docs = db.create_table("docs", source_table(VECTORS))
    store = compress(docs, codec, "small", progress=False)
    raw = create_table(db, "raw", source_table(VECTORS), config=CONFIG)
    codec.save(tmp_path / "db" / "codec")
    before, disk_bytes = contents(store), store.stats().disk_bytes
    with read_only(tmp_path / "db"):
        again = open_table(lancedb.connect(tmp_path / "db"), "small", cache="disk")
        assert contents(again) == before
        assert again.search(VECTORS[0]).limit(5).to_list() == before[1]
        assert (again.stats().disk_bytes, again.count_rows("id < 3")) == (disk_bytes, 3)
        assert load_codec(tmp_path / "db" / "codec").fingerprint == codec.fingerprint
        refused = [
            *writes(again),
            lambda: again.add(source_table(VECTORS)),
            lambda: compress(docs, codec, "other", progress=False),
            lambda: compress(docs, codec, in_place=True, progress=False),
            lambda: create_table(db, "other", source_table(VECTORS), config=CONFIG),
            lambda: raw.train(TRAINING, progress=False),
            lambda: registry.save(db, codec.truncate(2)),
        ]
        for write in refused:
            with pytest.raises(StorageError, match=r"Read-only file system|Permission denied"):
                write()
        with pytest.raises(StorageError, match="cannot be saved"):
            codec.save(tmp_path / "db" / "other codec")
        with pytest.raises(StorageError, match="cannot be saved"):
            codec.truncate(2).save(tmp_path / "db" / "codec")
    assert contents(store) == before
    assert store.add(source_table(VECTORS)) == ROWS


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError("LanceError(IO): No space left on device (os error 28), x.rs:1"), StorageError),
        (RuntimeError("lance error: Disk quota exceeded"), StorageError),
        (PermissionError(13, "Permission denied", "/data"), StorageError),
        (OSError("Client error with status 403 Forbidden: <Code>AccessDenied</Code>"), StorageError),
        (OSError("Commit conflict for version 7"), OSError),
        (RuntimeError("something else"), RuntimeError),
        (ValueError("No space left on device"), ValueError),
        (InvalidInputError("Permission denied"), InvalidInputError),
    ],
)
def test_only_refusals_are_named(error: Exception, named: type[Exception]) -> None:
    def write() -> None:
        raise error

    with pytest.raises(named) as caught:
        translates_errors(write)()
    assert type(caught.value) is (type(error) if named is not StorageError else StorageError)
    assert str(error) in str(caught.value)
    assert isinstance(caught.value, OSError) or named is not StorageError


def test_an_error_of_a_gpu_is_not_one_of_storage() -> None:
    @translates_errors
    def compute() -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="stream is capturing") as caught:
        compute()
    assert not isinstance(caught.value, StorageError)
