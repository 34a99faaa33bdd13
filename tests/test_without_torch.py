"""Tables are opened and searched without torch, which takes longer to load than a query takes."""

import subprocess
import sys
from pathlib import Path

import lancedb
import numpy as np
import pytest
from small_tables import source_table

import rqmoe_store as rqs

ROWS, DIM = 400, 16
VECTORS = np.random.default_rng(5).normal(size=(ROWS, DIM)).astype(np.float32)
TRAINING = rqs.TrainConfig(epochs=1, batch_size=64, progress=False, device="cpu")
SMALL = {"code_bytes": 2, "codebook_size": 8, "num_experts": 2, "hidden_dim": 8}
CODECS = {
    "refined": {"kind": "rqmoe", "refine_bytes": 6, "num_partitions": 3, **SMALL},
    "refined_dot": {"kind": "rqmoe", "refine_bytes": 6, "metric": "dot", **SMALL},
    "plain": {"kind": "rqmoe", "num_partitions": 3, "metric": "l2", **SMALL},
    "pq": {"kind": "pq", "code_bytes": 4},
}

SEARCH = """
import sys, time

begun, begun_process = time.perf_counter(), time.process_time()

import lancedb
import numpy as np

imported, imported_process = time.perf_counter(), time.process_time()

import rqmoe_store as rqs

database = lancedb.connect(sys.argv[1])


def searched(name, rerank):
    store = rqs.open_table(database, name)
    query = np.arange(store.dim, dtype=np.float32) - 3
    assert len(store.search(query).rerank(rerank).limit(5).to_list()) == 5
    return store, query


searched("refined", "refined")
done, done_process = time.perf_counter(), time.process_time()
print(f"import lancedb: {imported - begun:.2f} s, {imported_process - begun_process:.2f} s of CPU time")
print(f"first query: {done - imported:.2f} s, {done_process - imported_process:.2f} s of CPU time")

kinds = {"refined": "refined", "pq": "decoded", "refined_dot": "refined", "plain": "none"}
for name, rerank in kinds.items():
    store, query = searched(name, rerank)
    assert store.search(np.stack([query, -query])).rerank(rerank).limit(3).to_arrow().num_rows == 6
    assert store.search(query).rerank(rerank).where("lang = 'en'").limit(3).to_arrow().num_rows == 3
    assert store.search(query).rerank(rerank).nprobes(1).select(["id"]).limit(1).to_arrow().num_rows == 1
    assert "torch" not in sys.modules, sorted(each for each in sys.modules if each.startswith("rqmoe"))

store = rqs.open_table(database, "pq")
vector = np.arange(store.dim, dtype=np.float32)
store.add([{"id": 1000, "lang": "fr", "text": "new", "vector": vector}])
(found,) = store.search(vector).where("lang = 'fr'").select(["id", "vector"]).to_list()
assert found["id"] == 1000 and len(found["vector"]) == store.dim
assert "torch" not in sys.modules

for name in set(rqs.__all__) - {"train", "add_refine_codes", "advise"}:
    getattr(rqs, name)
assert "torch" not in sys.modules
"""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of one table for every kind of codec."""
    path: Path = tmp_path_factory.mktemp("database")
    for name, settings in CODECS.items():
        config = rqs.CodecConfig(**settings)
        store = rqs.create_table(lancedb.connect(path), name, source_table(VECTORS), config=config)
        store.train(TRAINING, progress=False)
    return path


def run_fresh(script: str, *arguments: object) -> str:
    """What Python source prints in a process that has loaded nothing."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tables_are_searched_and_written_without_torch(database: Path) -> None:
    """Public names but those of training are there, too. One process does it all: imports take longest."""
    print(run_fresh(SEARCH, database))


DECODE = """
import concurrent.futures, os, sys
import numpy as np
import rqmoe_store

codec = rqmoe_store.load_codec(sys.argv[1])
codec.lookup_tables(np.ones((1, codec.dim), np.float32))
codec.probe(np.ones((1, codec.dim), np.float32), 2)
assert "torch" not in sys.modules

child = os.fork() if hasattr(os, "fork") else None
with concurrent.futures.ThreadPoolExecutor(4) as threads:
    first, *others = threads.map(lambda _: codec.decode(codec.calibration), range(8))
for other in others:
    np.testing.assert_array_equal(first, other)
assert "torch" in sys.modules and str(codec.device) == codec.device_name
assert "torch._dynamo" not in sys.modules  # torch's compiler takes as long to load as torch itself
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_torch_is_loaded_when_a_code_is_decoded(database: Path, tmp_path: Path) -> None:
    """Also by several threads at once, and in a process that was forked before."""
    rqs.open_table(lancedb.connect(database), "plain").codec.save(tmp_path)
    run_fresh(DECODE, tmp_path)
