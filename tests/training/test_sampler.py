"""Training vectors: sampled from tables and arrays, augmented, and drawn in batches."""

import re
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rqmoe_store.codecs.kinds import RQ
from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.progress import TrainingProgress
from rqmoe_store.training.initialize import initialize, mixtures_help
from rqmoe_store.training.loss import prefix_mse
from rqmoe_store.training.sampler import Batches, derived_seed, enlarged, mixed, sample_vectors


def table_of(folder: Path, vectors: pa.Array, **columns: object):
    """A table whose column "numbers" holds the vectors: LanceDB itself polices columns it takes for
    vectors by their name, and leaves this one alone."""
    data = pa.table({"numbers": vectors, **columns})
    return lancedb.connect(folder).create_table("docs", data, mode="overwrite")


def numbered(rows: int) -> np.ndarray:
    return np.repeat(np.arange(1, rows + 1, dtype=np.float32)[:, None], 3, axis=1)


def fixed(vectors: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])


def sample(data: object, **changes: object) -> np.ndarray:
    arguments = {"vector_column": "numbers", "metric": "l2", "max_rows": 10**6, "seed": 0, **changes}
    return sample_vectors(data, **arguments)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 300), max_rows=st.integers(2, 300), seed=st.integers(0, 99), from_table=st.booleans()
)
def test_distinct_rows_in_random_order(
    tmp_path: Path, rows: int, max_rows: int, seed: int, from_table: bool
) -> None:
    vectors = numbered(rows)
    data = table_of(tmp_path, fixed(vectors)) if from_table else vectors
    sampled = sample(data, max_rows=max_rows, seed=seed)
    assert len(sampled) == min(rows, max_rows)
    assert len(np.unique(sampled[:, 0])) == len(sampled)
    assert set(sampled[:, 0]) <= set(vectors[:, 0])
    np.testing.assert_array_equal(sampled, sample(data, max_rows=max_rows, seed=seed))


def test_sample_covers_the_whole_table(tmp_path: Path) -> None:
    sampled = sample(table_of(tmp_path, fixed(numbered(4000))), max_rows=1000)
    assert 1700 < sampled[:, 0].mean() < 2300
    assert not np.all(np.diff(sampled[:, 0]) > 0)


def test_nulls_are_left_out(tmp_path: Path) -> None:
    vectors = pa.array([[1.0, 2.0], None, [3.0, 4.0], None], pa.list_(pa.float32(), 2))
    sampled = sample(table_of(tmp_path, vectors))
    assert sorted(sampled.tolist()) == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("value_type", [pa.float16(), pa.float32(), pa.float64()])
def test_column_types(tmp_path: Path, value_type: pa.DataType) -> None:
    values = np.arange(12).astype(value_type.to_pandas_dtype())
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values, value_type), 4)
    assert sorted(sample(table_of(tmp_path, vectors))[:, 0].tolist()) == [0.0, 4.0, 8.0]


def test_lists_of_variable_length(tmp_path: Path) -> None:
    same = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32()))
    assert sample(table_of(tmp_path, same)).shape == (2, 2)
    mixed = pa.array([[1.0, 2.0], [3.0]], pa.list_(pa.float32()))
    with pytest.raises(InvalidInputError, match=r"dimensions \[1, 2\]"):
        sample(table_of(tmp_path, mixed))


def test_unusable_columns(tmp_path: Path) -> None:
    table = table_of(tmp_path, fixed(numbered(3)), text=pa.array(["a", "b", "c"]))
    with pytest.raises(TableError, match=r"no column 'embedding'; it has \['numbers', 'text'\]"):
        sample(table, vector_column="embedding")
    with pytest.raises(TableError, match="has type string"):
        sample(table, vector_column="text")
    words = table_of(tmp_path, pa.array([["1.5", "2"]], pa.list_(pa.string())))
    with pytest.raises(TableError, match="holds lists of string"):
        sample(words)
    nulls = table_of(tmp_path, pa.array([None, None], pa.list_(pa.float32(), 2)))
    with pytest.raises(TableError, match="only nulls"):
        sample(nulls)


@pytest.mark.parametrize("from_table", [True, False])
@pytest.mark.parametrize("max_rows", [20_000, 19_900])
def test_bad_rows_are_named_by_their_position(tmp_path: Path, from_table: bool, max_rows: int) -> None:
    vectors = numbered(20_000)
    bad = [7, 9000, 13_000, 19_998]
    vectors[bad] = np.nan
    data = table_of(tmp_path, fixed(vectors)) if from_table else vectors
    with pytest.raises(InvalidInputError, match="contain NaN") as caught:
        sample(data, max_rows=max_rows)
    named = re.search(r"rows ([\d, ]+) \(counted", str(caught.value))
    assert named is not None
    assert {int(row) for row in named.group(1).split(",")} <= set(bad)


def test_tensors_of_any_float_type() -> None:
    vectors = torch.arange(12, dtype=torch.bfloat16).reshape(4, 3)
    assert sorted(sample(vectors)[:, 0].tolist()) == [0.0, 3.0, 6.0, 9.0]


def test_mixtures_keep_mean_and_covariance() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([[2.0, 0.5], [0.0, 1.0]])
    shift = torch.tensor([3.0, -1.0])
    own, partners = (torch.randn(200_000, 2, generator=generator) @ spread + shift for _ in range(2))
    mixtures = mixed(own, partners, shift, generator=generator)
    torch.testing.assert_close(mixtures.mean(dim=0), shift, atol=0.02, rtol=0)
    torch.testing.assert_close(mixtures.T.cov(), own.T.cov(), atol=0.1, rtol=0)
    assert torch.isclose(mixtures, own).all(dim=1).float().mean() < 0.01


@settings(max_examples=20, deadline=None)
@given(count=st.integers(2, 40), rows=st.integers(1, 120))
def test_enlarged_starts_with_the_vectors_themselves(count: int, rows: int) -> None:
    vectors = torch.randn(count, 3, generator=torch.Generator().manual_seed(count))
    more = enlarged(vectors, rows, generator=torch.Generator().manual_seed(0))
    assert len(more) == max(count, rows)
    assert torch.equal(more[:count], vectors)


def test_mixtures_help_codebooks_fitted_to_few_vectors() -> None:
    random = np.random.default_rng(0)
    scales = np.linspace(2, 0.2, 24)
    data = torch.from_numpy((random.standard_normal((1500, 24)) * scales).astype(np.float32))
    config = CodecConfig(kind="rq", code_bytes=4, codebook_size=64, num_partitions=0).resolve(
        dim=24, rows=500
    )

    def unseen_error(enlarge: bool) -> float:
        quantizer: RQ = initialize(
            data[:500], config, seed=0, progress=TrainingProgress(visible=False), enlarge=enlarge
        )
        return prefix_mse(quantizer, quantizer.normalize(data[500:]), beam=1, preselect=None)[-1]

    assert unseen_error(enlarge=True) < 0.97 * unseen_error(enlarge=False)


@pytest.mark.parametrize(("lies_on_a_surface", "pays"), [(False, True), (True, False)])
def test_a_small_sample_tells_whether_mixtures_lie_among_the_vectors(
    lies_on_a_surface: bool, pays: bool
) -> None:
    random = np.random.default_rng(0)
    if lies_on_a_surface:
        data = np.sin(random.uniform(-1, 1, (900, 3)) @ random.standard_normal((3, 24)) * 3)
    else:
        data = random.standard_normal((900, 24)) * np.linspace(2, 0.2, 24)
    config = CodecConfig(code_bytes=4, codebook_size=32, num_partitions=0).resolve(dim=24, rows=600)
    vectors = torch.from_numpy(data.astype(np.float32))
    assert mixtures_help(vectors[:400], vectors[400:], config, seed=0) == pays


VECTORS = torch.arange(60.0).reshape(30, 2)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 40), epoch=st.integers(0, 3), seed=st.integers(0, 5))
def test_an_epoch_visits_every_vector_once(size: int, epoch: int, seed: int) -> None:
    batches = Batches(VECTORS, size=size, seed=seed, mixing=False)
    steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
    everything = torch.cat([batches.at(step) for step in steps])
    assert torch.equal(everything.sort(dim=0).values, VECTORS)
    assert not torch.equal(everything, VECTORS)


@pytest.mark.parametrize("mixing", [False, True])
def test_seed_and_step_alone_decide(mixing: bool) -> None:
    straight, jumping = (Batches(VECTORS, size=8, seed=3, mixing=mixing) for _ in range(2))
    drawn = [straight.at(step) for step in range(10)]
    for step in (9, 2, 3, 0):
        jumping.prepare(step + step % 2)  # this step or another one
        assert torch.equal(jumping.at(step), drawn[step])
    assert not torch.equal(drawn[0], drawn[4])
    assert not torch.equal(Batches(VECTORS, size=8, seed=4, mixing=mixing).at(0), drawn[0])


def test_mixtures_are_made_where_wanted() -> None:
    plain, mixing = (Batches(VECTORS, size=8, seed=3, mixing=mixing).at(0) for mixing in (False, True))
    assert plain.shape == mixing.shape
    assert not torch.isclose(plain, mixing).all(dim=1).any()


def test_every_purpose_has_its_own_seed() -> None:
    purposes = [f"{what} {number}" for what in ("order of epoch", "mixtures of step") for number in range(50)]
    seeds = {derived_seed(seed, purpose) for seed in range(20) for purpose in purposes}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
