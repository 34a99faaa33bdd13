"""Properties of the encoder."""

import contextlib
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import SHAPES, as_codec, small_config, stirred, vectors
from torch.utils._python_dispatch import TorchDispatchMode

from rqmoe_store.codecs import codes as codes_module
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.encoding import chunk_rows, encode_with_torch, encoding_tables, exact_tables
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.progress import TrainingProgress
from rqmoe_store.training.initialize import initialize, with_experts

BATCHED = as_codec(stirred(small_config(num_partitions=3)))
ROWS = vectors(90, seed=5)
ALL_CODES = BATCHED.encode(ROWS)


def mean_squared_error(codec: Codec, rows: np.ndarray, **settings: object) -> float:
    return float(np.square(rows - codec.decode(codec.encode(rows, **settings))).sum(axis=1).mean())


def deformed_codebook(quantizer: ResidualQuantizer, step: int, condition_1E: torch.Tensor) -> torch.Tensor:
    """All codewords of a step under one conditioning vector, from the plain definition."""
    codebook_KD = quantizer.codebooks_MKD[step]
    if quantizer.mixture is None or step < quantizer.first_expert_step:
        return codebook_KD
    condition_KE = condition_1E.expand(len(codebook_KD), -1)
    index = step - quantizer.first_expert_step
    return codebook_KD + quantizer.mixture.deform_plainly(index, codebook_KD, condition_KE)


def test_exhaustive_beam_one_picks_the_argmin_at_every_step(codec: Codec) -> None:
    rows = vectors(25, seed=6)
    codes = codec.encode(rows, beam=1, preselect=None)
    quantizer = codec._coder.quantizer
    normalized = quantizer.normalize(torch.from_numpy(rows))
    for vector_D, code_M, partition in zip(normalized, codes.codes, codes.partitions, strict=True):
        partitions_1 = torch.tensor([int(partition)])
        residual_D = vector_D - quantizer.partition_offset(partitions_1)[0]
        condition_1E = quantizer.initial_condition(partitions_1)
        for step, index in enumerate(code_M):
            candidates_KD = deformed_codebook(quantizer, step, condition_1E)
            distances_K = (residual_D - candidates_KD).square().sum(dim=1)
            assert distances_K[int(index)] <= distances_K.min() * (1 + 1e-5)
            chosen_1D = candidates_KD[int(index)][None]
            residual_D = residual_D - chosen_1D[0]
            index_1 = torch.tensor([int(index)])
            condition_1E = condition_1E + quantizer.condition_increment(step, index_1, chosen_1D)


def test_vectors_go_to_the_nearest_partition() -> None:
    quantizer = BATCHED._coder.quantizer
    normalized = quantizer.normalize(torch.from_numpy(ROWS))
    nearest = torch.cdist(normalized, quantizer.centroids_PD).argmin(dim=1)
    np.testing.assert_array_equal(ALL_CODES.partitions, nearest.numpy())


def test_larger_beam_does_not_raise_the_error(codec: Codec) -> None:
    rows = vectors(400, seed=8)
    errors = [mean_squared_error(codec, rows, beam=beam, preselect=None) for beam in (1, 2, 4, 8)]
    assert all(wider <= narrower * (1 + 1e-6) for narrower, wider in itertools.pairwise(errors))


def test_default_encoder_reaches_the_exhaustive_one(codec: Codec) -> None:
    rows = vectors(400, seed=9)
    exhaustive = mean_squared_error(codec, rows, beam=1, preselect=None)
    assert mean_squared_error(codec, rows) <= exhaustive * (1 + 1e-6)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 89), max_size=8, unique=True).map(sorted))
def test_codes_do_not_depend_on_batch_size(cuts: list[int]) -> None:
    for start, stop in zip([0, *cuts], [*cuts, 90], strict=True):
        part = BATCHED.encode(ROWS[start:stop])
        np.testing.assert_array_equal(part.codes, ALL_CODES.codes[start:stop])
        np.testing.assert_array_equal(part.partitions, ALL_CODES.partitions[start:stop])


def test_encoding_twice_gives_the_same_codes(codec: Codec) -> None:
    np.testing.assert_array_equal(codec.encode(ROWS).codes, codec.encode(ROWS).codes)


@contextlib.contextmanager
def lowered_precision(setting: str) -> Iterator[None]:
    """A setting of torch that the user may have made for other work."""
    if setting == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            yield
        return
    try:
        if setting == "medium":
            torch.set_float32_matmul_precision(setting)
        else:
            torch.set_default_dtype(getattr(torch, setting))
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("setting", ["autocast", "medium", "float64", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_are_chosen_in_float32_whatever_torch_is_set_to(shape: str, setting: str) -> None:
    quantizer = stirred(small_config(**SHAPES[shape]))
    codec = as_codec(quantizer)
    expected = codec.encode(ROWS)
    decoded = codec.decode(expected)
    stored = codec.to_artifact()
    assert codec.report.encoding_precision == "float32"
    with lowered_precision(setting):
        loaded = Codec.from_artifact(stored, device="cpu")  # prepared within the setting
        codes = loaded.encode(ROWS)
        again = loaded.decode(codes)
    np.testing.assert_array_equal(codes.codes, expected.codes)
    np.testing.assert_array_equal(codes.partitions, expected.partitions)
    np.testing.assert_array_equal(again, decoded)


class Products(TorchDispatchMode):
    """Notes the number formats in which matrices are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.formats: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "bmm", "addmm", "baddbmm", "linear"):
            self.formats |= {each.dtype for each in args if isinstance(each, torch.Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", SHAPES)
def test_torch_multiplies_no_float32_matrices_for_encoding(shape: str) -> None:
    """So processors that would round these to bfloat16 choose the same codes."""
    quantizer = stirred(small_config(**SHAPES[shape]))
    expected = as_codec(quantizer).encode(ROWS)
    with Products() as products:
        codes = exact_tables(quantizer).compiled.encode(ROWS, beam=4, preselect=12)
    np.testing.assert_array_equal(codes.codes, expected.codes)
    assert products.formats == ({torch.float64} if quantizer.mixture is not None else set())
    with Products() as products:
        encoding_tables(quantizer, quantizer.fold())
    assert (torch.float32 in products.formats) == (quantizer.mixture is not None)  # it would have been noted


def test_encoding_with_torch_ignores_autocast() -> None:
    tables = exact_tables(BATCHED._coder.quantizer)
    expected = encode_with_torch(tables.quantizer, tables, ROWS, beam=4, preselect=12)
    with torch.autocast("cpu", torch.bfloat16):
        again = encode_with_torch(tables.quantizer, tables, ROWS, beam=4, preselect=12)
    np.testing.assert_array_equal(again.codes, expected.codes)


def test_encoding_nothing() -> None:
    codes = BATCHED.encode(np.empty((0, 12), dtype=np.float32))
    assert codes.codes.shape == (0, 4)
    assert BATCHED.decode(codes).shape == (0, 12)


def test_scoring_as_many_as_are_kept_is_the_default_of_a_codec() -> None:
    codec = as_codec(stirred(small_config(preselect="beam", beam=3)))
    np.testing.assert_array_equal(codec.encode(ROWS).codes, codec.encode(ROWS, preselect=3).codes)
    np.testing.assert_array_equal(
        codec.encode(ROWS, beam=6).codes, codec.encode(ROWS, beam=6, preselect=6).codes
    )


def test_a_larger_beam_raises_the_codecs_own_preselection() -> None:
    codes = BATCHED.encode(ROWS, beam=16)  # the codec's own preselect is 12
    np.testing.assert_array_equal(codes.codes, BATCHED.encode(ROWS, beam=16, preselect=16).codes)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("preselect", ["beam", None])
def test_nothing_of_batch_times_codebook_times_dimension_exists(preselect: str | None) -> None:
    wide = np.tile(vectors(400), (1, 16))
    config = CodecConfig(
        code_bytes=3, codebook_size=128, num_partitions=0, num_experts=2, hidden_dim=16, network_dim=96
    ).resolve(dim=wide.shape[1], rows=400)
    plain = initialize(torch.from_numpy(wide), config, seed=0, progress=TrainingProgress(visible=False))
    quantizer = with_experts(plain, config, seed=0).requires_grad_(False)
    tables, scored = encoding_tables(quantizer, quantizer.fold()), None if preselect is None else 2
    rows = chunk_rows(quantizer, beam=2, preselect=scored)
    with LargestTensor() as largest:
        encode_with_torch(quantizer, tables, wide[:rows], beam=2, preselect=scored)
    assert largest.elements < rows * config.codebook_size * wide.shape[1]


def test_long_input_is_encoded_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes_module, "_BLOCK_ROWS", 7)
    np.testing.assert_array_equal(BATCHED.encode(ROWS).codes, ALL_CODES.codes)
    np.testing.assert_array_equal(BATCHED.encode(torch.from_numpy(ROWS)).codes, ALL_CODES.codes)
    broken = ROWS.copy()
    broken[60, 3] = np.nan
    with pytest.raises(InvalidInputError, match="rows 60 "):
        BATCHED.encode(broken)


def test_exhaustive_chunks_shrink_with_the_work() -> None:
    quantizer = BATCHED._coder.quantizer
    assert chunk_rows(quantizer, beam=1, preselect=4) > chunk_rows(quantizer, beam=256, preselect=None) >= 1


@pytest.mark.parametrize(
    "choice", [{"beam": 0}, {"beam": 8, "preselect": 4}, {"preselect": 0}, {"beam": 1.5}]
)
def test_impossible_encoder_settings(choice: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError):
        BATCHED.encode(ROWS, **choice)


@pytest.mark.parametrize("shape", ["rqmoe, narrow, 2 layers", "qinco, narrow, partitions"])
def test_codes_are_the_same_without_the_subspace_of_deformations(shape: str) -> None:
    quantizer = stirred(small_config(**SHAPES[shape]))
    folded = quantizer.fold()
    with_it, without = (
        encode_with_torch(
            quantizer,
            encoding_tables(quantizer, folded, with_subspace=with_subspace),
            ROWS,
            beam=2,
            preselect=2,
        )
        for with_subspace in (True, False)
    )
    assert (with_it.codes == without.codes).all(axis=1).mean() > 0.95
