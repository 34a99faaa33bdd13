"""The kernel for distances computes what array operations do, and compiles for an H100."""

import json

import numpy as np
import pytest
import torch
import triton_kernels
from small_codecs import exact_distances

from rqmoe_store.codecs.distance_kernel import distances_by_kernel
from rqmoe_store.codecs.distances import Distances
from rqmoe_store.codecs.frame import Frame
from rqmoe_store.config import METRICS


def drawn(pairs: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(dim)
    decoded = random.standard_normal((9, dim)).astype(np.float32)
    decoded[1::3] = decoded[0]
    queries = random.standard_normal((3, dim)).astype(np.float32)
    return decoded, queries, *random.integers(0, [[9], [3]], (2, pairs)).astype(np.int32)


def by_kernel(distances: Distances, arrays: tuple[np.ndarray, ...], framed: bool) -> np.ndarray:
    tensors = [torch.from_numpy(each).to(triton_kernels.DEVICE) for each in arrays]
    frame = distances.unit_and_offset if framed else None
    return distances_by_kernel(*tensors, distances.metric, frame).cpu().numpy()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [1, 12, 128, 300])
def test_computes_distances(metric: str, dim: int) -> None:
    arrays = drawn(21, dim)
    decoded, queries, places, numbers = arrays
    found = by_kernel(Distances(Frame.plain(dim), metric, triton_kernels.DEVICE), arrays, False)
    wanted = exact_distances(queries, decoded, metric)[numbers, places]
    np.testing.assert_allclose(1 - found if metric == "dot" else found, wanted, rtol=1e-13, atol=1e-13)
    for query in range(3):  # equal vectors have equal distances, wherever they are
        assert len(np.unique(found[(places % 3 == 1) & (numbers == query)])) <= 1


@pytest.mark.parametrize("metric", METRICS)
def test_leaves_the_frame_as_array_operations_do(metric: str) -> None:
    arrays = drawn(21, 12)
    arrays[0][2:5] *= np.float32(1e30)  # beyond float32, in the units of the input
    arrays[0][7] = -np.float32(40.0) / 2.0**3  # zero, in the units of the input
    frame = Frame(np.full(12, 40, np.float32), 3)
    distances = Distances(
        Frame(frame.offset_D, 40) if metric == "dot" else frame, metric, triton_kernels.DEVICE
    )
    tensors = [torch.from_numpy(each).to(triton_kernels.DEVICE) for each in arrays]
    wanted = distances.by_operations(*tensors).cpu().numpy()
    np.testing.assert_allclose(by_kernel(distances, arrays, True), wanted, rtol=1e-12, atol=1e-12)
    assert (np.isnan(wanted) == (metric == "cosine") & (arrays[2] == 7)).all() and 7 in arrays[2]


_COMPILE = """
import json, sys
from hopper import compile_kernel
from rqmoe_store.codecs.distance_kernel import CHUNK, ROWS, WARPS, _distance_kernel
dim, has_frame, metric = json.loads(sys.argv[1])
pointers = {"decoded_ptr": "*fp32", "queries_ptr": "*fp32", "places_ptr": "*i32", "numbers_ptr": "*i32",
            "frame_ptr": "*fp64", "values_ptr": "*fp64", "count": "i32"}
constants = {"DIM": dim, "ROWS": ROWS, "CHUNK": CHUNK, "HAS_FRAME": has_frame, "IS_L2": metric == "l2",
             "IS_COSINE": metric == "cosine"}
made = compile_kernel(_distance_kernel, pointers, constants, num_warps=WARPS)
print(json.dumps([made.stack, made.spills]))
"""


@pytest.mark.parametrize(
    "case",
    [
        pytest.param([128, False, "l2"], marks=pytest.mark.slow),
        pytest.param([384, True, "l2"], marks=pytest.mark.slow),
        [1536, True, "cosine"],  # the largest, with all that a kernel can have
    ],
    ids=str,
)
def test_compiles_for_an_h100_without_spills(case) -> None:
    stack, spills = json.loads(triton_kernels.compile_for_hopper(_COMPILE, json.dumps(case)))
    assert stack == 0 and spills == 0
