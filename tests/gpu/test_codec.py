"""Codecs on a GPU: the codes and vectors that a CPU gives, within bounded memory, from several threads."""

import concurrent.futures
import contextlib
import itertools
import os
import signal
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from small_codecs import DIM, SHAPES, as_codec, small_config, stirred, trained_small, vectors

from rqmoe_store.codecs import decoding, encoding, graphs
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.device import full_precision, select_device
from rqmoe_store.codecs.encoding import encode_with_torch, padded_rows
from rqmoe_store.errors import InvalidInputError

ROWS = vectors(300, seed=4)
ON_CPU = {name: as_codec(stirred(small_config(**shape))) for name, shape in SHAPES.items()}
CODES = {name: codec.encode(ROWS) for name, codec in ON_CPU.items()}
NARROW = "rqmoe, narrow, 2 layers"
"""A codec with all that there is but partitions."""


def on_gpu(name: str, device: str = "cuda") -> Codec:
    return Codec.from_artifact(ON_CPU[name].to_artifact(), device=device)


def require_near(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=tolerance)


def require_as_good(found: Codes, name: str, rows: np.ndarray = ROWS) -> None:
    """Require the codes of a CPU, except where a vector lies halfway between two codewords."""
    codec, wanted = ON_CPU[name], ON_CPU[name].encode(rows)
    same = (found.codes == wanted.codes).all(axis=1) & (found.partitions == wanted.partitions)
    assert same.mean() > 0.95
    errors = [((rows - codec.decode(codes)) ** 2).sum(axis=1) for codes in (found, wanted)]
    np.testing.assert_allclose(*errors, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_a_gpu_encodes_and_decodes_like_a_cpu(gpu, name: str) -> None:
    codec, codes = on_gpu(name), CODES[name]
    assert codec.device == torch.device("cuda:0")
    require_as_good(codec.encode(ROWS), name)
    require_as_good(codec.encode(ROWS[:1]), name, ROWS[:1])
    for part in (codes, codes[::-1], codes[:, :2], codes[:0], codes):
        require_near(codec.decode(part), ON_CPU[name].decode(part))
    require_near(codec.decode(codes, sequential=True), ON_CPU[name].decode(codes))
    half = codec.decode(codes, precision="bfloat16")
    require_near(half, ON_CPU[name].decode(codes, precision="bfloat16"), 5e-2)
    require_near(codec.truncate(2).decode(codes[:, :2]), ON_CPU[name].decode(codes[:, :2]))
    assert codec.fingerprint == ON_CPU[name].fingerprint


@pytest.mark.parametrize("batch", [1, 2, 3, 64, 1000, graphs.LARGEST_BATCH, graphs.LARGEST_BATCH + 1])
def test_batches_of_all_sizes_decode_like_on_a_cpu(gpu, batch: int) -> None:
    codec = on_gpu(NARROW)
    codes = CODES[NARROW][np.resize(np.arange(len(ROWS)), batch)]
    for part in (codes, codes[::-1], codes[: batch // 2], codes):  # a replay must not remember the last one
        require_near(codec.decode(part), ON_CPU[NARROW].decode(part))


def test_batch_sizes_and_codecs_do_not_share_results(gpu) -> None:
    first, second = on_gpu("rqmoe"), on_gpu("qinco")
    kept = [first.decode(CODES["rqmoe"][:3]), second.decode(CODES["qinco"][:3])]
    first.decode(CODES["rqmoe"][3:40])
    second.decode(CODES["qinco"][3:40])
    require_near(kept[0], ON_CPU["rqmoe"].decode(CODES["rqmoe"][:3]))
    require_near(kept[1], ON_CPU["qinco"].decode(CODES["qinco"][:3]))


def test_the_least_recently_used_recording_makes_room(gpu, monkeypatch) -> None:
    monkeypatch.setattr(graphs, "_MOST_RECORDINGS", 2)
    codec, codes = on_gpu("rqmoe"), CODES["rqmoe"]
    for rows in (3, 10, 3, 40, 3, 10):
        require_near(codec.decode(codes[:rows]), ON_CPU["rqmoe"].decode(codes[:rows]))
    (decoder,) = codec.coder._ready()._graphed.values()
    assert list(decoder._recordings) == [(4, 4), (16, 4)]
    if gpu is not None:
        assert gpu.recorded == 1 + 4  # the first one holds the memory; 10 rows were recorded twice
        on_gpu("qinco").decode(CODES["qinco"][:3])
        assert set(gpu.pools) == {(0, 1)}  # codecs and shapes share that memory


def test_large_batches_are_not_recorded(gpu, monkeypatch) -> None:
    monkeypatch.setattr(decoding, "_GRAPH_BYTES", 2**15)
    codec = on_gpu("rqmoe")
    require_near(codec.decode(CODES["rqmoe"]), ON_CPU["rqmoe"].decode(CODES["rqmoe"]))
    assert not any(decoder._recordings for decoder in codec.coder._ready()._graphed.values())


def test_recordings_that_fail_are_tried_again(cuda) -> None:
    codec, codes = on_gpu("rqmoe"), CODES["rqmoe"][:9]
    expected = ON_CPU["rqmoe"].decode(codes)
    codec.decode(codes[:2])
    cuda.refuse_recordings = 3
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(200):
            require_near(codec.decode(codes), expected)
    assert [str(each.message)[:60] for each in caught] == [
        "No CUDA graph could be recorded 3 times in a row (CUDA error"
    ]
    (decoder,) = codec.coder._ready()._graphed.values()
    assert (16, 4) in decoder._recordings
    assert decoder._attempts._failures == 0


def test_other_threads_use_the_gpu_while_a_graph_is_recorded(gpu, in_thread) -> None:
    codec, shared = on_gpu("rqmoe"), on_gpu(NARROW)
    expected = {rows: ON_CPU["rqmoe"].decode(CODES["rqmoe"][:rows]) for rows in range(1, 13)}

    def decode(rows: int) -> None:
        for _ in range(3):
            require_near(codec.decode(CODES["rqmoe"][:rows]), expected[rows])
            require_as_good(shared.encode(ROWS[:rows]), NARROW, ROWS[:rows])

    if gpu is not None:  # another thread reads numbers just when it hurts
        numbers = torch.zeros(3, device="cuda:0")
        read, other = in_thread(lambda: numbers.cpu().tolist()), concurrent.futures.ThreadPoolExecutor(1)
        gpu.while_recording = lambda: other.submit(read).result()
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        done = [threads.submit(in_thread(lambda rows=rows: decode(rows))) for rows in expected]
    for each in done:
        each.result()


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="there is one GPU")
def test_each_of_two_gpus_decodes_its_own_codec(gpu) -> None:
    for device in ("cuda:1", "cuda:0"):
        codec = on_gpu("rqmoe", device)
        assert codec.device == torch.device(device)
        require_near(codec.decode(CODES["rqmoe"]), ON_CPU["rqmoe"].decode(CODES["rqmoe"]))
        require_as_good(codec.encode(ROWS), "rqmoe")


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    assert torch.get_float32_matmul_precision() == "high"  # the caller's setting is as it was
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", ["rqmoe, partitions", NARROW, "qinco"])
@pytest.mark.parametrize("context", [lambda: torch.autocast("cuda", torch.bfloat16), tf32])
def test_settings_of_the_caller_change_neither_codes_nor_vectors(gpu, context, name: str) -> None:
    outside = on_gpu(name)
    codes, decoded = outside.encode(ROWS), outside.decode(CODES[name])
    with context():
        inside = on_gpu(name)  # prepares and records within the context
        again, decoded_again = inside.encode(ROWS), inside.decode(CODES[name])
        inside.truncate(2)
    np.testing.assert_array_equal(again.codes, codes.codes)
    require_near(decoded_again, decoded, 1e-6)
    if gpu is not None:
        assert gpu.unsafe_products == set()


def test_full_precision_lasts_until_the_last_thread_is_done() -> None:
    matmul, cuda = torch.backends.cuda.matmul, torch.device("cuda:0")
    name = "fp32_precision" if hasattr(matmul, "fp32_precision") else "allow_tf32"
    with tf32(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch finds no CUDA to disable autocast on
        before = getattr(matmul, name)
        with full_precision(cuda):
            within = getattr(matmul, name)
            with full_precision(cuda):
                assert getattr(matmul, name) == within != before
            assert getattr(matmul, name) == within
        assert getattr(matmul, name) == before


def test_chunks_are_padded_to_few_sizes_and_not_by_much() -> None:
    sizes = {padded_rows(rows, 8192) for rows in range(1, 8193)}
    assert sizes == {32, 128, 512, 2048, 8192}
    assert all(rows <= padded_rows(rows, 8192) <= max(32, 4 * rows) for rows in range(1, 8193))
    assert [padded_rows(rows, 1) for rows in (0, 1)] == [1, 1]
    assert padded_rows(5, 6) == 6


def test_the_host_waits_once_for_every_chunk(cuda, monkeypatch) -> None:
    codec = on_gpu(NARROW)
    codec.decode(codec.encode(ROWS))
    monkeypatch.setattr(encoding, "_MOST_ROWS", 128)
    monkeypatch.setattr(decoding, "_MOST_ROWS", 64)
    cuda.waits.clear()
    codes = codec.encode(ROWS)
    assert dict(cuda.waits) == {"cpu in codecs/encoding.py, encode_chunk": 3}
    cuda.waits.clear()
    codec.decode(codes)
    assert dict(cuda.waits) == {"synchronize in codecs/decoding.py, wait": 5}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["rq", "rqmoe, partitions", NARROW])
def test_decoded_tensors_stay_on_the_gpu(gpu, monkeypatch, name: str, precision: str) -> None:
    monkeypatch.setattr(decoding, "_MOST_ROWS", 128)
    codec = on_gpu(name)
    codec.decode_tensor(CODES[name], precision=precision)
    if gpu is not None:
        gpu.waits.clear()
    for codes in (CODES[name], CODES[name][::-1], CODES[name][:0], CODES[name][:, :2]):
        decoded = codec.decode_tensor(codes, precision=precision)
        assert decoded.device == torch.device("cuda:0") and decoded.dtype == torch.float32
        if gpu is not None:
            assert not gpu.waits
        require_near(decoded.cpu().numpy(), codec.decode(codes, precision=precision))
        if gpu is not None:
            gpu.waits.clear()
    assert not decoded.is_inference()  # gradients can use it


def test_decoded_tensors_are_in_the_units_of_the_input(gpu, monkeypatch) -> None:
    monkeypatch.setattr(decoding, "_MOST_ROWS", 64)
    far = trained_small(ROWS * 1e12 + 1e16, code_bytes=3).to("cuda")
    assert not far.frame.is_plain
    codes = far.encode(ROWS * 1e12 + 1e16)
    np.testing.assert_array_equal(far.decode_tensor(codes).cpu().numpy(), far.decode(codes))


def unrecorded(codec: Codec, vectors_nD: np.ndarray, **settings: int | None) -> Codes:
    """The codes of vectors, encoded with one launch for every kernel."""
    ready, clamped_nD = codec.coder._ready(), codec.coder.clamp(codec.frame, vectors_nD)
    return encode_with_torch(ready.quantizer, ready._tables, clamped_nD, **settings)


@pytest.mark.parametrize("name", ["rq, partitions", NARROW, "qinco"])
def test_recorded_encoding_gives_the_same_codes(gpu, name: str) -> None:
    codec = on_gpu(name)
    settings = [{"beam": 3, "preselect": 3}, {"beam": 1, "preselect": None}]
    for count, beams in itertools.product((1, 33, 5), settings):
        rows = ROWS[-count:]
        found, wanted = codec.encode(rows, **beams), unrecorded(codec, rows, **beams)
        np.testing.assert_array_equal(found.codes, wanted.codes)
        np.testing.assert_array_equal(found.partitions, wanted.partitions)
    with torch.autocast("cuda", torch.bfloat16):
        np.testing.assert_array_equal(codec.encode(rows, **beams).codes, wanted.codes)


def test_few_vectors_are_encoded_by_one_launch(cuda, monkeypatch) -> None:
    codec = on_gpu("rqmoe, partitions")
    for count, recordings in ((1, 2), (20, 2), (32, 2), (33, 3), (128, 3), (1, 3)):  # one holds the memory
        codec.encode(ROWS[:count])
        cuda.calls.clear()
        cuda.waits.clear()
        codec.encode(ROWS[:count])
        assert +cuda.calls == {"replay in codecs/graphs.py, replay": 1}
        assert dict(cuda.waits) == {"synchronize in codecs/graphs.py, wait": 1}
        assert cuda.recorded == recordings
    monkeypatch.setattr(encoding, "_MOST_ROWS", 128)  # a recording would take as much memory as a chunk
    codec.encode(ROWS[:40])
    assert cuda.recorded == 3


def test_encoding_that_cannot_be_recorded(cuda) -> None:
    codec = on_gpu("rqmoe")
    wanted = unrecorded(codec, ROWS[:20], beam=2, preselect=2)
    cuda.refuse_recordings = 2  # of the memory for recordings, and of a recording
    for _ in range(24):
        np.testing.assert_array_equal(codec.encode(ROWS[:20], beam=2, preselect=2).codes, wanted.codes)
    assert cuda.refuse_recordings == 0 and cuda.recorded == 2


def test_many_threads_encode_at_a_time(gpu, in_thread) -> None:
    codec = on_gpu("rqmoe")
    wanted = {start: codec.encode(ROWS[start : start + 40]) for start in (0, 60, 120, 180)}

    def encode(start: int) -> None:
        for _ in range(5):
            codes = codec.encode(ROWS[start : start + 40])
            np.testing.assert_array_equal(codes.codes, wanted[start].codes)

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        done = [threads.submit(in_thread(lambda start=start: encode(start))) for start in wanted]
    for each in done:
        each.result()


@pytest.mark.parametrize("shape", [{"kind": "pq"}, {"kind": "saq", "refine_bytes": 8}])
def test_codes_that_a_cpu_decodes_become_tensors_on_the_gpu(gpu, shape: dict[str, object]) -> None:
    codec = trained_small(ROWS, **shape).to("cuda")
    codes = codec.encode(ROWS[:20])
    decoded = codec.decode_tensor(codes)
    assert decoded.device == torch.device("cuda:0")
    np.testing.assert_array_equal(decoded.cpu().numpy(), codec.decode(codes))


def test_decoded_tensors_without_memory(cuda) -> None:
    codec = on_gpu("rqmoe")
    codec.decode(CODES["rqmoe"][:1])
    cuda.largest_bytes = 2**10
    with pytest.raises(InvalidInputError, match=r"no memory for 300 vectors of 12 components.*decode\(\)"):
        codec.decode_tensor(CODES["rqmoe"])


def test_a_codec_on_a_cpu_decodes_to_tensors_there() -> None:
    decoded = ON_CPU["rqmoe"].decode_tensor(CODES["rqmoe"])
    np.testing.assert_array_equal(decoded.numpy(), ON_CPU["rqmoe"].decode(CODES["rqmoe"]))
    with pytest.raises(InvalidInputError, match="unknown"):
        ON_CPU["rqmoe"].decode_tensor(CODES["rqmoe"], precision="float8")


def test_decoded_vectors_are_never_on_the_gpu_as_a_whole(cuda, monkeypatch) -> None:
    monkeypatch.setattr(decoding, "_MOST_ROWS", 16)
    many = CODES["rq"][np.resize(np.arange(len(ROWS)), 5_000)]
    codec = on_gpu("rq")
    codec.decode(many[:16])
    cuda.largest_bytes = many.codes.nbytes  # which is less than the vectors take
    assert cuda.largest_bytes < 4 * DIM * len(many)
    require_near(codec.decode(many), ON_CPU["rq"].decode(many))


@pytest.mark.parametrize("name", ["rqmoe, partitions", NARROW, "qinco"])
def test_less_memory_gives_the_same_in_smaller_chunks(cuda, name: str) -> None:
    codec = on_gpu(name)
    codec.decode(codec.encode(ROWS[:1]))  # prepared
    cuda.largest_bytes = 2**15
    require_as_good(codec.encode(ROWS), name)
    require_near(codec.decode(CODES[name]), ON_CPU[name].decode(CODES[name]))
    cuda.largest_bytes = 2**4
    for work in (lambda: codec.encode(ROWS), lambda: codec.decode(CODES[name])):
        with pytest.raises(InvalidInputError, match=r"ran out of memory with a single vector .*codec\.to"):
            work()
    cuda.largest_bytes = None
    require_near(codec.decode(CODES[name]), ON_CPU[name].decode(CODES[name]))
    require_as_good(codec.encode(ROWS), name)


def test_a_codec_moves_between_devices_while_it_decodes(gpu, in_thread) -> None:
    codec, expected = on_gpu("rqmoe"), ON_CPU["rqmoe"].decode(CODES["rqmoe"])

    def decode() -> None:
        for _ in range(5):
            require_near(codec.decode(CODES["rqmoe"]), expected)
            require_as_good(codec.encode(ROWS[:20]), "rqmoe", ROWS[:20])

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        done = [threads.submit(in_thread(decode)) for _ in range(2)]
        while not all(each.done() for each in done):
            codec.to("cpu")
            codec.to("cuda")
    for each in done:
        each.result()


def test_a_gpu_by_name_and_number(gpu) -> None:
    assert select_device("auto") == select_device("cuda") == torch.device("cuda")
    assert select_device("cuda:0") == torch.device("cuda", 0)
    assert on_gpu("rq", "auto").device == torch.device("cuda:0")


def test_devices_that_are_not_there(cuda) -> None:
    for name in ("cuda:2", "cuda:99", "cuda:256"):
        for choose in (lambda name: on_gpu("rq", name), on_gpu("rq").to):
            with pytest.raises(
                InvalidInputError, match=f"device='{name}' is not there: 2 CUDA devices found"
            ):
                choose(name)


def test_bfloat16_without_units_is_computed_where_it_is_asked_for(cuda, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    codec, codes = on_gpu("rqmoe"), CODES["rqmoe"]
    exact, rounded = codec.decode(codes), codec.decode(codes, precision="bfloat16")
    require_near(rounded, exact, 5e-2)
    assert not np.array_equal(rounded, exact)
    assert codec.rerank_precision == "float32"
    np.testing.assert_array_equal(codec.decode(codes, precision="auto"), exact)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forked processes here")
@pytest.mark.filterwarnings("ignore")  # Python warns of forking a process with threads
def test_a_forked_process_is_told_to_start_in_another_way(gpu) -> None:
    codec, codes = on_gpu("rqmoe"), CODES["rqmoe"]
    expected = codec.decode(codes)
    child = os.fork()
    if child == 0:
        status = 1
        signal.alarm(60)  # CUDA's own reaction might be to wait for ever
        try:
            for use in (codec.decode, lambda codes: codec.encode(ROWS), lambda codes: on_gpu("rq")):
                with pytest.raises(InvalidInputError, match="forked from one that had used a GPU"):
                    use(codes)
            require_near(codec.to("cpu").decode(codes), expected)
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    require_near(codec.decode(codes), expected)
