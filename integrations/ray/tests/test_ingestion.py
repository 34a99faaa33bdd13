"""Sources of every kind through a cluster: each row once, whoever is killed."""

import signal
import subprocess
import sys
from pathlib import Path

import lance
import numpy as np
import psutil
import pytest
import ray
import rqmoe_ray
from commits import before_commits
from small_rows import (
    bad_rows,
    count_of,
    database_of,
    good_rows,
    require_all_once,
    rows_of,
    vectors_of,
)

import rqmoe_store as rqs

ROWS = 3000
SMALL = {"num_workers": 1, "part_bytes": 2**14, "commit_rows": 300}


def workers() -> list[psutil.Process]:
    """Actors of Ray Data in the cluster of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith("ray::MapWorker"):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_worker_killed_midway(cluster, files, table, codec, codec_folder):
    killed, missing = [], len(good_rows(ROWS))

    def kill() -> None:
        nonlocal missing
        if not killed and count_of(table) > 0:
            killed.append(workers()[0])
            killed[0].kill()
            missing -= count_of(table)

    with before_commits(kill):
        report = rqmoe_ray.ingest(files, table, codec=codec_folder, **{**SMALL, "num_workers": 2})
    assert killed and missing > 0, "the ingestion was over too soon"
    assert (report.rows, report.quarantined) == (len(good_rows(ROWS)), len(bad_rows(ROWS)))
    assert (report.table, report.pieces, report.skipped) == ("docs", 6, 0)
    require_all_once(table, codec, ROWS)
    # Called again, nothing is left; the single process agrees.
    again = rqmoe_ray.ingest(files, table, codec=codec)
    assert (again.rows, again.quarantined, again.skipped) == (0, 0, 6)
    assert rqs.ingest(files, (database_of(table), "docs"), progress=False).rows == 0


@pytest.mark.slow
def test_the_driver_killed_midway(cluster, files, table, codec, codec_folder):
    script = Path(__file__).with_name("killed_driver.py")
    command = [sys.executable, script, cluster, files, table, codec_folder]
    # In a session of its own, so that what it started is not killed by chance, but by Ray.
    driver = subprocess.run(command, start_new_session=True, stdout=subprocess.DEVNULL, check=False)
    assert driver.returncode == -signal.SIGKILL
    committed = count_of(table)
    assert 0 < committed < len(good_rows(ROWS))
    report = rqmoe_ray.ingest(files, table, codec=codec, **SMALL)
    assert report.rows == len(good_rows(ROWS)) - committed
    require_all_once(table, codec, ROWS)


def test_a_dataset(cluster, table, codec):
    dataset = ray.data.from_arrow([rows_of(200), rows_of(200, 200)])
    report = rqmoe_ray.ingest(dataset, table, codec=codec, job="mine")
    assert (report.rows, report.quarantined, report.pieces) == (len(good_rows(400)), len(bad_rows(400)), 1)
    require_all_once(table, codec, 400)
    again = rqmoe_ray.ingest(dataset, table, job="mine")
    assert (again.rows, again.quarantined, again.skipped) == (0, 0, 1)
    assert set(counts(table)) == {0, len(good_rows(400))}, "all rows are committed together"


def counts(table: str) -> list[int]:
    """Rows of every version."""
    dataset = lance.dataset(table)
    return [lance.dataset(table, version=each["version"]).count_rows() for each in dataset.versions()]


def test_tensors_of_a_dataset_into_raw_rows(cluster, table):
    store = rqs.create_table(database_of(table), "docs", schema=rows_of(0).schema)
    vectors = vectors_of(50)

    def with_vectors(batch):
        return {
            "id": batch["id"],
            "lang": np.array(["en"] * len(batch["id"])),
            "text": np.array([f"row {row}" for row in batch["id"]]),
            "vector": vectors[batch["id"]],
        }

    dataset = ray.data.range(50, override_num_blocks=2).map_batches(with_vectors)
    assert rqmoe_ray.ingest(dataset, table).rows == 50
    hits = store.search(vectors[7]).limit(1).to_list()
    assert (hits[0]["id"], hits[0]["text"]) == (7, "row 7")
    assert hits[0]["_distance"] == pytest.approx(0, abs=1e-6)


def test_bad_rows_as_errors(cluster, files, table, codec):
    with pytest.raises(rqs.InvalidInputError, match=r"Row 0 of .*000.parquet cannot be ingested"):
        rqmoe_ray.ingest(files / "000.parquet", table, codec=codec, on_bad_rows="error")
    assert count_of(table) == 0


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        (rows_of(3), {}, "expected what other processes can open"),
        ("nowhere.parquet", {}, "There is nothing at"),
        (None, {"commit_rows": 0}, "commit_rows=0"),
        (None, {"num_workers": 0}, "num_workers=0"),
        (None, {"codec": None}, "without a codec none can be made"),
        (None, {"columns": ["id", "name"]}, "no columns"),
    ],
)
def test_refused_before_anything_is_written(cluster, files, table, codec, source, settings, message):
    with pytest.raises(rqs.RQMoEError, match=message):
        rqmoe_ray.ingest(files if source is None else source, table, **{"codec": codec, **settings})
    assert count_of(table) == 0


def test_python_objects_are_refused(cluster, table, codec):
    dataset = ray.data.from_items([{"id": 1, "thing": complex(1, 2), "vector": [1.0] * 16}])
    with pytest.raises(rqs.InvalidInputError, match="expected a column of Arrow's own types"):
        rqmoe_ray.ingest(dataset, table, codec=codec)
