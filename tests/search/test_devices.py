"""Where an open table computes: the device that its user chooses, whatever other handles have chosen."""

import asyncio
import concurrent.futures
import copy
import functools
import inspect
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import lancedb
import numpy as np
import pytest
import small_codecs
from given_means import GivenMeans
from simulated_cuda import CudaDevices, simulated_cuda
from small_tables import source_table, tiny_codec

import rqmoe_store as rqs
from rqmoe_store.codecs import device as devices
from rqmoe_store.codecs.base import Codec
from rqmoe_store.search import coded_max_sim, device_copies
from rqmoe_store.search.coded_max_sim import CodedRows
from rqmoe_store.search.rerank import exact_distances
from rqmoe_store.search.shards import Shard
from rqmoe_store.store.ragged import Ragged

VECTORS = np.random.default_rng(8).normal(size=(300, 16)).astype(np.float32)
QUERIES = VECTORS[:3] + np.float32(0.1)
ANYWHERE = ["auto", "cpu", "cuda", "cuda:1"]


@pytest.fixture
def gpus() -> Iterator[CudaDevices]:
    with simulated_cuda(count=2) as simulated:
        yield simulated


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with table `small`, of two codecs."""
    folder = tmp_path_factory.mktemp("template")
    docs = lancedb.connect(folder).create_table("docs", source_table(VECTORS))
    store = rqs.compress(docs, tiny_codec(VECTORS, "l2", 4), "small", progress=False)
    store.retrain(vectors=VECTORS[::-1], training=rqs.TrainConfig(epochs=0, progress=False))
    again = source_table(VECTORS[:50] + np.float32(0.5))
    store.add(again.set_column(0, "id", [np.arange(300, 350)]))
    return folder


@pytest.fixture
def db(template: Path, tmp_path: Path) -> lancedb.DBConnection:
    """A copy of the template."""
    shutil.copytree(template, tmp_path / "db")
    return lancedb.connect(tmp_path / "db")


def found(store: rqs.CompressedTable) -> tuple[list[int], np.ndarray]:
    rows = store.search(QUERIES).nprobes(4).rerank("decoded").limit(20).to_arrow()
    return rows["id"].to_pylist(), rows["_distance"].to_numpy()


@pytest.mark.parametrize("device", ANYWHERE)
def test_results_are_the_same_on_every_device(
    db: lancedb.DBConnection, gpus: CudaDevices, device: str
) -> None:
    wanted, distances = found(rqs.open_table(db, "small", device="cpu"))
    assert not device_copies._copies
    store = rqs.open_table(db, "small", device=device)
    ids, close = found(store)
    assert ids == wanted
    np.testing.assert_allclose(close, distances, rtol=1e-5, atol=1e-5)
    name = {"auto": "cuda:0", "cuda": "cuda:0"}.get(device, device)
    assert {each.codec.device_name for each in store.codecs.generations} == {name}
    assert (name in store.search(QUERIES).explain_plan()) == (name != "cpu")
    assert {str(place) for _, place in device_copies._copies} <= {name}
    assert (name == "cpu") == (not device_copies._copies)


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_lancedbs_results_are_reranked_on_the_device(
    db: lancedb.DBConnection, gpus: CudaDevices, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = rqs.open_table(db, "small", device=device)
    decoded = store.search().select(["id", "vector"]).limit(400).to_arrow()
    vectors = np.stack(decoded["vector"].to_numpy(zero_copy_only=False))
    wanted = exact_distances(QUERIES[0], vectors, "l2")
    near = np.argsort(wanted)[:30]
    rows = store.table.search().where(f"id IN ({','.join(map(str, near))})").with_row_id(True).to_arrow()
    gpus.waits.clear()
    ranked = rqs.DecodedReranker(store, query=QUERIES[0]).rerank_vector(
        "", rows.append_column("_distance", rows["id"])
    )
    assert bool(gpus.waits) == (device != "cpu")
    by_id = dict(zip(decoded["id"].to_pylist(), wanted.tolist(), strict=True))
    expected = [-by_id[each] for each in ranked["id"].to_pylist()]
    np.testing.assert_allclose(ranked["_relevance_score"].to_numpy(), expected, rtol=1e-5, atol=1e-5)
    assert expected == sorted(expected, reverse=True)


def test_handles_do_not_affect_each_other(db: lancedb.DBConnection, gpus: CudaDevices) -> None:
    on_gpu, on_cpu = rqs.open_table(db, "small"), rqs.open_table(db, "small", device="cpu")
    twin = rqs.open_table(db, "small").use_device("cuda:1")
    on_gpu.codec.to("cuda:1")
    twin.use_device("cuda")
    assert [each.codec.device_name for each in (on_gpu, on_cpu, twin)] == ["cuda:1", "cpu", "cuda:0"]
    assert on_cpu.use_device().codec is on_gpu.codec
    twin.add(source_table(VECTORS[:2] - np.float32(1)).set_column(0, "id", [[400, 401]]))
    nearest = [each.search(VECTORS[0] - 1).limit(1).to_list()[0]["id"] for each in (on_gpu, on_cpu, twin)]
    assert nearest == [400] * 3


def test_a_table_moves_between_devices_while_it_is_searched(
    db: lancedb.DBConnection, gpus: CudaDevices
) -> None:
    store = rqs.open_table(db, "small", device="cpu")
    wanted, _ = found(store)

    def search() -> None:
        with gpus.in_thread():
            for _ in range(3):
                assert found(store)[0] == wanted

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        done = [threads.submit(search) for _ in range(2)]
        while not all(each.done() for each in done):
            for device in ("cuda:1", "cpu", "cuda:0"):
                store.use_device(device)
                for generation in store.codecs.generations:  # as `codec.to` of a user's does
                    generation.codec.to("cuda:0" if device == "cpu" else "cpu")
    for each in done:
        each.result()


def test_two_tables_on_two_devices_are_searched_at_a_time(
    db: lancedb.DBConnection, tmp_path: Path, gpus: CudaDevices
) -> None:
    docs = lancedb.connect(tmp_path / "other").create_table("docs", source_table(-VECTORS))
    rqs.compress(docs, tiny_codec(VECTORS, "l2", 4), "other", progress=False)
    tables = [(db, "small", "cuda:0"), (lancedb.connect(tmp_path / "other"), "other", "cuda:1")]
    wanted = [found(rqs.open_table(database, name, device="cpu")) for database, name, _ in tables]
    stores = [rqs.open_table(database, name, device=device) for database, name, device in tables]

    def search(number: int) -> None:
        with gpus.in_thread():
            for _ in range(3):
                ids, distances = found(stores[number])
                assert ids == wanted[number][0]
                np.testing.assert_allclose(distances, wanted[number][1], rtol=1e-5, atol=1e-5)

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for each in [threads.submit(search, number) for number in (0, 1, 0, 1)]:
            each.result()
    assert {str(place) for _, place in device_copies._copies} == {"cuda:0", "cuda:1"}


def test_a_device_outlasts_what_changes(db: lancedb.DBConnection, gpus: CudaDevices) -> None:
    store = rqs.open_table(db, "small", device="cuda:1", cache_columns=["id"]).use_cache("disk")
    first = store.version
    other = rqs.open_table(db, "small", device="cpu")
    other.retrain(vectors=VECTORS, training=rqs.TrainConfig(epochs=0, progress=False, device="cpu"))
    assert (store.codec.device_name, len(store.codecs.generations)) == ("cuda:1", 3)
    sent = pickle.loads(pickle.dumps(store))  # noqa: S301  # made here
    for again in (copy.copy(store), sent, store):
        assert again.codec.device_name == "cuda:1"
        again.checkout(first)
        assert (again.codec.device_name, len(again.codecs.generations)) == ("cuda:1", 2)
        assert again.use_device("cpu").codec.device_name == "cpu" and again.version == first
        again.checkout_latest()
        assert again.codec.device_name == "cpu"


def test_event_loops_and_shards(db: lancedb.DBConnection, gpus: CudaDevices) -> None:
    table = asyncio.run(rqs.open_table_async(db, "small", device="cuda:1"))
    assert table.blocking.codec.device_name == "cuda:1"
    assert table.use_device("cpu").blocking.codec.device_name == "cpu"
    place = table.blocking.snapshots._place
    assert Shard(place, device="cuda:1")._codecs.device == "cuda:1"
    assert rqs.open_table(db, "small", device="cpu").codec.device_name == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda:9", "cuda:-1", "", None, 3])
def test_unknown_devices(db: lancedb.DBConnection, gpus: CudaDevices, device: str) -> None:
    store = rqs.open_table(db, "small")
    for choose in (store.use_device, lambda name: rqs.open_table(db, "small", device=name)):
        with pytest.raises(rqs.InvalidInputError, match=f"device={device!r} is (unknown|not there)"):
            choose(device)
    with pytest.raises(rqs.InvalidInputError, match=f"device={device!r}"):
        asyncio.run(rqs.open_table_async(db, "small", device=device))
    assert store.handle.device == "auto"


def test_a_machine_without_a_gpu(db: lancedb.DBConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(rqs.InvalidInputError, match="device='cuda' is not there: 0 CUDA devices found"):
        rqs.open_table(db, "small", device="cuda")


def test_opening_a_table_uses_no_gpu(
    db: lancedb.DBConnection, gpus: CudaDevices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that processes that are forked afterwards can use one."""

    def used() -> int:
        raise AssertionError("the GPU was used")

    monkeypatch.setattr("torch.cuda.is_initialized", lambda: False)
    monkeypatch.setattr("torch.cuda.current_device", used)
    for device in ANYWHERE:
        assert len(rqs.open_table(db, "small", device=device)) == 350


def test_a_forked_process_searches_on_the_cpu(
    db: lancedb.DBConnection, gpus: CudaDevices, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = rqs.open_table(db, "small")
    wanted, _ = found(store)
    monkeypatch.setattr(devices._ForkedGpu, "lost", True)
    with pytest.raises(rqs.InvalidInputError, match=r"forked .*open_table\(\.\.\., device='cpu'\)"):
        found(store)
    with pytest.raises(rqs.InvalidInputError, match="forked"):  # by the scan, which needs no codec there
        store.search(QUERIES).rerank("none").to_arrow()
    assert found(store.use_device("cpu"))[0] == wanted


def test_all_openings_take_a_device() -> None:
    for call in (rqs.open_table, rqs.open_table_async, rqs.CompressedTable.use_device):
        assert inspect.signature(call).parameters["device"].default == "auto"


@pytest.mark.parametrize("refine_bytes", [0, 6])
def test_many_vectors_of_a_row_are_compared_on_the_device(
    tmp_path: Path, refine_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = np.array_split(VECTORS, 100)
    rows = [{"id": number, "vector": vectors} for number, vectors in enumerate(lists)]
    config = rqs.CodecConfig(
        kind="rq" if refine_bytes else "rqmoe",
        metric="cosine",
        code_bytes=4,
        codebook_size=16,
        hidden_dim=8,
        refine_bytes=refine_bytes,
    )
    db = lancedb.connect(tmp_path)
    store = rqs.create_table(db, "many", rows, config=config)
    store.train(rqs.TrainConfig(epochs=0 if refine_bytes else 1, device="cpu", progress=False))
    store.optimize(progress=False)

    def found(device: str) -> tuple[list[int], np.ndarray]:
        hits = rqs.open_table(db, "many", device=device).search(QUERIES).limit(20).to_arrow()
        return hits["id"].to_pylist(), hits["_distance"].to_numpy()

    wanted, distances = found("cpu")
    compared = []
    on_gpu = coded_max_sim.max_sim_tensor
    monkeypatch.setattr(
        coded_max_sim, "max_sim_tensor", lambda *given: compared.append(given[2].device) or on_gpu(*given)
    )
    with simulated_cuda(count=2):
        ids, close = found("cuda:1")
    assert [str(place) for place in compared] == ["cuda:1"]
    assert ids == wanted
    np.testing.assert_allclose(close, distances, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("has_means", [False, True])
def test_many_vectors_are_compared_in_smaller_chunks_without_memory(has_means: bool) -> None:
    vectors, query_KD = small_codecs.vectors(300, seed=4), small_codecs.vectors(4, seed=5)
    on_cpu = small_codecs.as_codec(small_codecs.stirred(small_codecs.small_config(num_partitions=0)))
    codes, lengths = on_cpu.encode(vectors).codes, np.array([3, 1, 6] * 30)
    tokens = Ragged(codes.reshape(-1), lengths * codes.shape[1])
    means = GivenMeans(small_codecs.vectors(len(lengths), seed=6)) if has_means else None
    wanted = CodedRows(tokens, on_cpu, "cosine", means).decoded_distances(query_KD, refined=False)
    with simulated_cuda() as devices:
        codec = Codec.from_artifact(on_cpu.to_artifact(), device="cuda")
        rows = CodedRows(tokens, codec, "cosine", means)
        for largest in (None, 4 * small_codecs.DIM * 100):
            devices.largest_bytes = largest
            found = rows.decoded_distances(query_KD, refined=False)
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
        devices.largest_bytes = 4 * small_codecs.DIM * 3
        with pytest.raises(rqs.InvalidInputError, match=r"out of memory with a single .*codec\.to\('cpu'\)"):
            rows.decoded_distances(query_KD, refined=False)
        assert len(rows[np.arange(0)].decoded_distances(query_KD, refined=False)) == 0


def reranking(plan: str) -> str:
    """The line of a plan that says what orders the shortlist."""
    (line,) = (each.strip() for each in plan.splitlines() if each.strip().startswith("Rerank: "))
    return line


def require_plans(store: rqs.CompressedTable, place: str) -> None:
    """Require of plans to say where refine codes are scored, and that other ways to rank do not use it."""
    search = functools.partial(store.search, QUERIES)
    for plan in (search().explain_plan(), search().analyze_plan(), search().where("id > 3").analyze_plan()):
        assert reranking(plan).startswith(f"Rerank: cosine distance to rows with refine codes, {place}, keep")
    for plan in (search().rerank("decoded").analyze_plan(), search().diversify(0.5).explain_plan()):
        assert "cuda" not in reranking(plan)


def test_refine_codes_are_scored_on_the_device(tmp_path: Path) -> None:
    config = rqs.CodecConfig(kind="rq", metric="cosine", code_bytes=4, codebook_size=16, refine_bytes=6)
    db, training = lancedb.connect(tmp_path), rqs.TrainConfig(epochs=0, progress=False)
    store = rqs.create_table(db, "refined", source_table(VECTORS), config=config)
    store.train(training)
    store.optimize(progress=False)

    def answers(device: str, requests: int = 6) -> list[tuple[list[int], np.ndarray]]:
        store = rqs.open_table(db, "refined", device=device, cache="memory")
        search = functools.partial(store.search, QUERIES)
        chosen = [
            search().limit(20),
            search().limit(20).where("id % 3 = 0"),
            search().limit(500),  # more than there are rows
            search().limit(7).offset(30).shortlist(60),
            search().limit(20).distance_range(upper_bound=bounds[10]),
            search().limit(5).diversify(0.5),
        ]
        tables = [each.select(["id"]).to_arrow() for each in chosen[:requests]]
        return [(rows["id"].to_pylist(), rows["_distance"].to_numpy()) for rows in tables]

    def require_same(devices: CudaDevices) -> None:
        for (ids, distances), (wanted, expected) in zip(answers("cuda:1"), on_cpu, strict=True):
            assert ids == wanted
            np.testing.assert_allclose(distances, expected, rtol=1e-5, atol=1e-5)

    bounds = [0.0] * 60
    bounds = answers("cpu", 1)[0][1].tolist()
    on_cpu = answers("cpu")
    with simulated_cuda(count=2) as devices:
        require_same(devices)
        on_gpu = rqs.open_table(db, "refined", device="cuda:1", cache="memory")
        for _ in range(2):  # codes and refine codes are uploaded first
            devices.waits.clear()
            on_gpu.search(QUERIES).limit(20).select(["id"]).to_arrow()
        assert sum(devices.waits.values()) == 2
        (copied,) = {str(place) for _, place in device_copies._copies}
        assert copied == "cuda:1"
        require_plans(on_gpu, "memory, cuda:1")
        require_plans(rqs.open_table(db, "refined", device="cuda:1", cache="disk"), "disk")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("torch.cuda.mem_get_info", lambda device: (0, 2**37))
            elsewhere = rqs.open_table(db, "refined", device="cuda:0").search(QUERIES)
            assert "memory, keep" in reranking(elsewhere.analyze_plan())  # known once it has run
    require_plans(rqs.open_table(db, "refined", device="cpu"), "memory")
    store.retrain(vectors=VECTORS[::-1], training=training)
    store.add(source_table(VECTORS[:50] + np.float32(0.5)).set_column(0, "id", [np.arange(300, 350)]))
    on_cpu = answers("cpu")
    with simulated_cuda(count=2) as devices:
        require_same(devices)
