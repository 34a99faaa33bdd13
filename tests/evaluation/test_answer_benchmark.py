"""Answers found: the measures, the shares kept, what a run measures, and mistakes."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
from failed_commands import message_of
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from rqmoe_store.cli import app
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.answer_benchmark import ranking_measures, shares_kept

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ranx") is None, reason="needs ranx")

rankings = st.permutations(range(20)).map(lambda rows: rows[:10])
answers = st.sets(st.integers(0, 19), min_size=1, max_size=15)


@given(st.lists(st.tuples(rankings, answers), min_size=1, max_size=5))
def test_measures_are_those_of_their_definitions(queries) -> None:
    found_QK, relevant = np.array([found for found, _ in queries]), [sorted(rows) for _, rows in queries]
    measured = ranking_measures(found_QK, relevant)
    for query, (found, rows) in enumerate(queries):
        gains = [(row in rows) / math.log2(rank + 2) for rank, row in enumerate(found)]
        best = sum(1 / math.log2(rank + 2) for rank in range(min(10, len(rows))))
        assert measured["ndcg_10"][query] == pytest.approx(sum(gains) / best)
        assert measured["success_1"][query] == (found[0] in rows)
        assert measured["success_10"][query] == any(row in rows for row in found)


def test_what_finds_nothing_has_no_answers() -> None:
    measured = ranking_measures(np.array([[-1, -1], [3, -1]]), [[0], [3]])
    assert {name: list(values) for name, values in measured.items()} == {
        "ndcg_10": [0, 1],
        "success_1": [0, 1],
        "success_10": [0, 1],
    }


def test_shares_kept_lie_within_their_bounds() -> None:
    raw_Q = np.random.default_rng(0).random(200)
    assert shares_kept(raw_Q, raw_Q) == pytest.approx((1, 1, 1))
    assert shares_kept(raw_Q, raw_Q / 2) == pytest.approx((0.5, 0.5, 0.5))
    low, share, high = shares_kept(raw_Q, np.where(np.arange(200) % 4 == 0, 0, raw_Q))
    assert low < share < high and low < 0.75 < high and high - low < 0.2
    with pytest.raises(InvalidInputError, match="find answers to 0 of 200"):
        shares_kept(0 * raw_Q, raw_Q)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Rows around 60 topics, of which every query asks for one."""
    random = np.random.default_rng(0)
    topics = random.normal(size=(60, 32))
    base = np.repeat(topics, 5, axis=0) + random.normal(scale=1.3, size=(300, 32))
    np.save(tmp_path / "base.npy", base.astype(np.float32))
    np.save(tmp_path / "queries.npy", topics.astype(np.float32))
    np.save(tmp_path / "relevance.npy", np.stack([np.arange(300) // 5, np.arange(300)], axis=1))
    return tmp_path


def answers_of(folder: Path, *options: str):
    return CliRunner().invoke(app, ["bench", "answers", str(folder), *options])


def test_coarser_codes_find_fewer_answers(folder) -> None:
    run = answers_of(folder, "--codecs", "int8,binary,faiss-rabitq-1", "--json", str(folder / "out.json"))
    assert run.exit_code == 0, run.output
    assert "Answers found" in run.stdout and "raw vectors, 128 bytes: nDCG@10" in run.stderr
    record = json.loads((folder / "out.json").read_text())
    raw, binary, rabitq, int8 = record["results"]
    assert [raw["code_bytes"], binary["code_bytes"], int8["code_bytes"]] == [128, 4, 32]
    assert 0.5 < raw["ndcg_10"] < 1 and raw["success_10"] > 0.9 and raw["kept"] is raw["overlap"] is None
    assert int8["kept"] == pytest.approx(1, abs=0.02) and int8["overlap"] > 0.9
    assert binary["kept"] < 0.97 * int8["kept"] and binary["overlap"] < int8["overlap"]
    for result in (binary, rabitq, int8):
        assert result["kept_low"] <= result["kept"] <= result["kept_high"]
    assert len(record["tables"]["answers-found"]["rows"]) == 4


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([[0, 0]], "without a row for query 1"),
        ([[query, 0] for query in range(0, 60, 2)] + [[59, 1]], "without a row for query 1"),
        ([[query, 300] for query in range(60)], "positions of the 60 queries and 300 vectors"),
        ([[query, 0] for query in range(61)], "positions of the 60 queries and 300 vectors"),
    ],
)
def test_answers_that_do_not_fit(folder, pairs, message) -> None:
    np.save(folder / "relevance.npy", np.array(pairs))
    assert message in message_of(answers_of(folder, "--codecs", "int8"), before="Training")


def test_too_few_vectors(folder) -> None:
    np.save(folder / "base.npy", np.load(folder / "base.npy")[:9])
    np.save(folder / "relevance.npy", np.stack([np.arange(60), np.arange(60) % 9], axis=1))
    assert "at least 10" in message_of(answers_of(folder, "--codecs", "int8"), before="Training")


def test_a_folder_without_answers(folder) -> None:
    (folder / "relevance.npy").unlink()
    assert "no relevance.npy" in message_of(answers_of(folder), before="Training")
    assert "is unknown" in message_of(answers_of(folder, "--codecs", "no-such"), before="Training")
    assert "Cannot write --json" in message_of(answers_of(folder, "--json", str(folder)), before="Training")
