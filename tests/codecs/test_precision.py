"""The precision of reranking: chosen by a trial, the same for the rest of the process, or set by the user."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from small_codecs import SHAPES, as_codec, exact_distances, small_config, stirred, vectors

from rqmoe_store.codecs import precision as precision_module
from rqmoe_store.codecs import prepared
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.precision import PrecisionTrial, set_rerank_precision, try_precisions
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.reranker import DecodedReranker
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress

ROWS = vectors(300, seed=8)
GOOD = PrecisionTrial(noise=1e-6, is_repeatable=True, float32_seconds=1.0, bfloat16_seconds=0.3)


@pytest.fixture(autouse=True)
def new_choices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has chosen nothing yet."""
    monkeypatch.setattr(precision_module._Choices, "measured", {})
    yield
    set_rerank_precision("auto")


class Decoder:
    """Decodes one-byte codes to vectors, in given seconds, with a given change in bfloat16."""

    def __init__(self, seconds: float, change: Callable[[np.ndarray], np.ndarray]) -> None:
        self.seconds, self.change, self.now = seconds, change, 0.0

    def __call__(self, codes: Codes, precision: str) -> np.ndarray:
        decoded = np.repeat(codes.codes.astype(np.float32), 4, axis=1)
        self.now += 0.002 if precision == "float32" else self.seconds
        return decoded if precision == "float32" else self.change(decoded)

    def clock(self) -> float:
        return self.now


def tried(seconds: float, change: Callable[[np.ndarray], np.ndarray], error: float = 100.0) -> PrecisionTrial:
    codes = Codes(np.arange(30, dtype=np.uint8)[:, None], np.zeros(30, np.int32))
    decoder = Decoder(seconds, change)
    return try_precisions(decoder, codes, change(decoder(codes, "float32")), error, decoder.clock)


def test_bfloat16_is_chosen_where_it_is_faster_and_as_good() -> None:
    """Processors with AMX, simulated."""
    trial = tried(0.0006, lambda decoded: decoded + np.float32(0.01))
    assert trial.precision == "bfloat16"
    assert trial.noise == pytest.approx(4e-6, rel=1e-3)  # four components, 0.01 each, of an error of 100
    assert (trial.float32_seconds, trial.bfloat16_seconds) == pytest.approx((0.002, 0.0006))


@pytest.mark.parametrize(
    ("seconds", "change", "error"),
    [
        (0.0019, lambda decoded: decoded, 100.0),
        (0.005, lambda decoded: decoded, 100.0),
        (0.0006, lambda decoded: decoded + 1, 100.0),
        (0.0006, lambda decoded: decoded * np.float32(np.nan), 100.0),
        (0.0006, lambda decoded: decoded + np.arange(30, dtype=np.float32)[:, None] * 1e-4, 100.0),
        (0.0006, lambda decoded: decoded, 0.0),
        (0.0006, lambda decoded: decoded, np.nan),
    ],
    ids=["hardly faster", "slower", "noisy", "nan", "by place", "no error", "no known error"],
)
def test_float32_stays(seconds: float, change: Callable[[np.ndarray], np.ndarray], error: float) -> None:
    assert tried(seconds, change, error).precision == "float32"


def test_float32_stays_where_large_batches_differ() -> None:
    codes = Codes(np.arange(30, dtype=np.uint8)[:, None], np.zeros(30, np.int32))
    decoder = Decoder(0.0006, lambda decoded: decoded)
    batched = np.nextafter(decoder(codes, "float32"), np.float32(np.inf))
    trial = try_precisions(decoder, codes, batched, 100.0, decoder.clock)
    assert not trial.is_repeatable
    assert trial.precision == "float32"


def test_a_long_trial_ends_after_a_round() -> None:
    codes = Codes(np.arange(30, dtype=np.uint8)[:, None], np.zeros(30, np.int32))
    decoder = Decoder(4.0, lambda decoded: decoded)
    trial = try_precisions(decoder, codes, decoder(codes, "float32"), 100.0, decoder.clock)
    assert trial.bfloat16_seconds == pytest.approx(4.0)
    assert decoder.now < 3 * 4.0 + 1


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A processor with units, on which bfloat16 wins every trial; the list counts these."""
    trials: list[int] = []

    def win(*arguments: object) -> PrecisionTrial:
        trials.append(len(arguments))
        return GOOD

    monkeypatch.setattr(prepared, "has_bfloat16_units", lambda device: True)
    monkeypatch.setattr(prepared, "try_precisions", win)
    return trials


def test_a_codec_is_tried_once_in_a_process(simulated: list[int]) -> None:
    codec = as_codec(stirred(small_config()))
    assert codec.rerank_precision == codec.rerank_precision == "bfloat16"
    again = Codec.from_artifact(codec.to_artifact(), device="cpu")
    assert again.rerank_precision == "bfloat16"
    assert len(simulated) == 1
    assert codec.truncate(2).rerank_precision == "bfloat16"  # another codec
    assert len(simulated) == 2


def test_the_user_decides(simulated: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    codec = as_codec(stirred(small_config()))
    codes = codec.encode(ROWS)
    set_rerank_precision("float32")
    assert codec.rerank_precision == "float32"
    np.testing.assert_array_equal(codec.decode(codes, precision="auto"), codec.decode(codes))
    assert not simulated  # nothing to find out
    set_rerank_precision("auto")
    assert codec.rerank_precision == "bfloat16"
    monkeypatch.setattr(prepared, "has_bfloat16_units", lambda device: False)
    other = as_codec(stirred(small_config(hidden_dim=4)))
    assert other.rerank_precision == "float32"
    set_rerank_precision("bfloat16")
    assert other.rerank_precision == "bfloat16"
    for unusable in ("float16", None, 16):
        with pytest.raises(InvalidInputError, match="'auto', 'float32' or 'bfloat16'"):
            set_rerank_precision(unusable)  # type: ignore[arg-type]
    assert other.rerank_precision == "bfloat16"


def test_nothing_is_tried_without_units_or_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "has_bfloat16_units", lambda device: False)
    codec = as_codec(stirred(small_config()))
    assert codec.coder.try_precisions(codec.calibration, 1.0) is None
    assert codec.rerank_precision == "float32"
    monkeypatch.setattr(prepared, "has_bfloat16_units", lambda device: True)
    assert codec.coder.try_precisions(codec.calibration[:0], 1.0) is None
    plain = as_codec(stirred(small_config(kind="rq")))
    assert plain.coder.try_precisions(plain.calibration, 1.0) is None
    assert plain.rerank_precision == "float32"


@pytest.mark.parametrize("shape", [name for name in SHAPES if not name.startswith("rq,") and name != "rq"])
def test_the_trial_itself(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this processor, with units or not: bfloat16 is near float32; batches agree if the trial says so."""
    monkeypatch.setattr(prepared, "has_bfloat16_units", lambda device: True)
    codec = as_codec(stirred(small_config(**SHAPES[shape])))
    codes = codec.encode(np.tile(ROWS, (4, 1)))
    error = float(np.square(codec.decode(codes[:300]) - ROWS).sum(axis=1).mean())
    trial = codec.coder.try_precisions(codec.calibration, error)
    assert trial is not None
    assert 0 < trial.noise < 1e-2
    assert 0 < trial.float32_seconds < np.inf
    assert 0 < trial.bfloat16_seconds < np.inf
    whole, exact = codec.decode(codes, precision="bfloat16"), codec.decode(codes)
    assert np.square(whole - exact).sum(axis=1).mean() < 1e-2 * error
    assert not np.array_equal(whole, exact)
    if trial.is_repeatable:
        for start, rows in itertools.product((0, 7), (1, 31, 32, 33, 300)):
            part = codec.decode(codes[start : start + rows], precision="bfloat16")
            np.testing.assert_array_equal(part, whole[start : start + rows])


def table(folder: Path, codec: Codec) -> CompressedTable:
    rows = [{"id": number, "vector": values, "word": "common"} for number, values in enumerate(ROWS)]
    schema = pa.schema(
        [("id", pa.int64()), ("vector", pa.list_(pa.float32(), ROWS.shape[1])), ("word", pa.string())]
    )
    docs = lancedb.connect(folder).create_table("docs", rows, schema=schema)
    return compress(docs, codec, "small", progress=False)


def test_only_reranking_uses_the_choice(simulated: list[int], tmp_path: Path) -> None:
    codec = as_codec(stirred(small_config()))
    store = table(tmp_path, codec)
    codes = codec.encode(ROWS)
    query = vectors(1, seed=9)[0]
    expected = {
        precision: exact_distances(query[None], codec.decode(codes, precision=precision), "l2")[0]  # type: ignore[arg-type]
        for precision in ("float32", "bfloat16")
    }
    assert not np.allclose(expected["float32"], expected["bfloat16"], rtol=1e-5)
    found: dict[str, dict[int, float]] = {}
    for precision in ("float32", "auto"):
        set_rerank_precision(precision)  # type: ignore[arg-type]
        search = store.search(query).rerank("decoded").shortlist(300).limit(20)
        pages = [search.to_arrow(), search.to_arrow()]
        assert pages[0].equals(pages[1])
        found[precision] = dict(
            zip(pages[0]["id"].to_pylist(), pages[0]["_distance"].to_pylist(), strict=True)
        )
        reranked = store.table.search().with_row_id(True).limit(300).to_arrow()
        distances = (
            -DecodedReranker(store, query=query).rerank_vector("", reranked)["_relevance_score"].to_numpy()
        )
        nearest = np.sort(expected["bfloat16" if precision == "auto" else precision])
        np.testing.assert_allclose(np.sort(distances)[:20], nearest[:20], rtol=1e-5)
        returned = store.search(query).select(["id", "vector"]).limit(3).to_list()
        for row in returned:  # vectors in results are float32 in any case
            np.testing.assert_allclose(row["vector"], codec.decode(codes[row["id"]])[0], rtol=1e-6)
    for precision, name in (("float32", "float32"), ("auto", "bfloat16")):
        for number, distance in found[precision].items():
            assert distance == pytest.approx(expected[name][number], rel=1e-5)
    assert found["float32"] != found["auto"]
