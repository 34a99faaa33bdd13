"""Try an installed rqmoe-store: compress a table, search it, verify it, and call `rqmoe`."""

import importlib.metadata
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import lancedb
import numpy as np

import rqmoe_store as rqs


def compress_and_search(folder: Path) -> None:
    topics = np.random.default_rng(0).normal(size=(20, 64))
    rows = [{"id": row, "vector": topics[row % 20] + row / 30_000} for row in range(1200)]
    database = lancedb.connect(folder)
    raw = database.create_table("raw", rows)
    codec = rqs.train(
        raw,
        config=rqs.CodecConfig(code_bytes=4, codebook_size=16, metric="cosine"),
        training=rqs.TrainConfig(epochs=1, seed=0, progress=False),
    )
    table = rqs.compress(raw, codec, into="compressed", progress=False)
    table.add([{"id": 1200, "vector": topics[3]}])
    assert table.count_rows() == 1201
    assert table.stats().raw_rows == 0
    found = rqs.open_table(database, "compressed").search(topics[3]).where("id < 1200").limit(5).to_list()
    assert [row["id"] % 20 for row in found] == [3] * 5, found


def call_command(folder: Path) -> None:
    command = Path(sysconfig.get_path("scripts")) / "rqmoe"
    version = importlib.metadata.version("rqmoe-store")
    assert version == rqs.__version__
    assert printed(command, "--version") == f"rqmoe-store {version}\n"
    assert "Usage: rqmoe" in printed(command, "--help")
    assert "verify" in printed(command, "--help")
    print(printed(command, "verify", folder, "compressed"))


def printed(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        compress_and_search(Path(temporary))
        call_command(Path(temporary))
