"""Advice on tables: what it recommends holds in a compressed table, and what it refuses."""

import dataclasses
import json
import shlex

import lancedb
import numpy as np
import pytest
from small_clusters import clustered
from small_tables import source_table, tiny_codec
from typer.testing import CliRunner

import rqmoe_store as rqs
from rqmoe_store.advice.advise import advise
from rqmoe_store.advice.candidates import between, code_sizes, refine_sizes
from rqmoe_store.cli import app
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.evaluation.recall import exact_neighbors, k_recall_at_k

ROWS, DIM = 5_000, 32


@pytest.fixture(scope="module")
def vectors():
    return clustered(ROWS, DIM, seed=1)


@pytest.fixture(scope="module")
def queries():
    return clustered(100, DIM, seed=2)


@pytest.fixture(scope="module")
def docs(tmp_path_factory, vectors):
    db = lancedb.connect(tmp_path_factory.mktemp("advice") / "my db")
    return db.create_table("my-docs", source_table(vectors))


@pytest.fixture(scope="module")
def advice(docs, queries, tmp_path_factory):
    path = tmp_path_factory.mktemp("queries") / "my queries.npy"
    np.save(path, queries)
    return advise(
        docs, path, target_recall=0.8, minutes=0, encoded_rows=1_200, vector_column="vector", progress=False
    )


@pytest.mark.slow
def test_what_is_recommended_holds_in_a_compressed_table(advice, docs, vectors, queries):
    """Through the commands, as somebody would type them."""
    chosen = advice.recommendation
    assert chosen is not None
    assert advice.encoded_rows < ROWS
    assert chosen.recall >= 0.8
    assert chosen.table_bytes < advice.raw_bytes
    db = lancedb.connect(docs.uri.rpartition("/")[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(docs.uri.rpartition("/")[0])
        for command in advice.commands:
            program, *arguments = shlex.split(command)
            assert program == "rqmoe"
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, done.output
    store = rqs.open_table(db, "my-docs_compressed")
    config = store.codec.config
    assert (config.code_bytes, config.refine_bytes) == (chosen.code_bytes, chosen.refine_bytes)
    truth, _ = exact_neighbors(queries, vectors, 10, metric=advice.metric)
    hits = [store.search(query).nprobes(store.codec.num_partitions).limit(10).to_list() for query in queries]
    found = np.array([[hit["id"] for hit in each] for each in hits])
    assert chosen.recall == pytest.approx(k_recall_at_k(found, truth, 10), abs=0.03)
    stats = store.stats()
    assert chosen.table_bytes == pytest.approx(stats.code_disk_bytes + stats.codec_bytes, rel=0.2)


@pytest.mark.slow
def test_all_figures_are_there(advice):
    names = [candidate.name for candidate in advice.candidates]
    assert {"int8", "binary", "rq 8", "rq 16"} <= set(names)
    for candidate in advice.candidates:
        assert 0 <= candidate.recall_low <= candidate.recall <= candidate.recall_high <= 1
        assert candidate.relative_error >= 0
        assert candidate.encode_seconds > 0
        assert candidate.training_seconds >= 0
        assert (candidate.config is None) == (candidate.query_seconds is None)
    by_name = dict(zip(names, advice.candidates, strict=True))
    assert by_name["rq 8"].recall < by_name["rq 16"].recall < by_name["rq 16 + 8"].recall
    assert by_name["rq 8"].relative_error > by_name["rq 16"].relative_error
    assert by_name["int8"].recall > by_name["binary"].recall


@pytest.mark.slow
def test_advice_prints_and_becomes_json(advice):
    document = json.loads(json.dumps(advice.to_dict()))
    assert document["candidates"][0]["name"] == advice.candidates[0].name
    assert document["rows"] == ROWS
    text = str(advice)
    assert advice.sentence in text
    assert f"> {advice.recommendation.name} " in text
    assert all(command in text for command in advice.commands)
    assert any("RQ-MoE" in note for note in advice.notes)  # which was not trained


def test_few_rows_are_better_kept_raw(vectors):
    few = advise(vectors[:50], minutes=0, progress=False)
    assert few.recommendation is None
    assert not few.own_queries
    assert "50 rows" in few.sentence
    assert "raw" in few.sentence
    # Enough to train a codec, which takes more than it saves.
    some = advise(clustered(1_120, 16, seed=5), target_recall=0.97, minutes=0, progress=False)
    assert some.recommendation is None
    assert "does not pay" in some.sentence
    assert any(f"from {each.break_even_rows:,} rows" in some.sentence for each in some.candidates)


@pytest.mark.slow
def test_the_closest_is_named_where_nothing_reaches_the_target():
    vectors = clustered(6_000, 8, seed=6)
    advice = advise(vectors, target_recall=1.0, k=50, minutes=0, encoded_rows=1_000, progress=False)
    assert advice.recommendation is None
    assert advice.commands == ()
    assert advice.closest is not None
    assert advice.closest.recall < 1
    assert advice.closest.name in advice.sentence
    assert "keep_vectors" in advice.sentence


def test_a_compressed_table_is_advised_on_with_a_warning(tmp_path, vectors):
    db = lancedb.connect(tmp_path)
    codec = tiny_codec(vectors[:600], "l2", 0)
    store = rqs.compress(db.create_table("docs", source_table(vectors[:600])), codec, "codes", progress=False)
    with pytest.warns(UserWarning, match="decoded vectors stand in"):
        advice = advise(store, minutes=0, progress=False)
    assert any("compressed already" in note for note in advice.notes)
    assert advice.health is not None
    assert advice.metric == "l2"
    with pytest.warns(UserWarning), pytest.raises(InvalidInputError, match="metric='cosine'"):
        advise(store, metric="cosine", minutes=0, progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queries": np.ones((3, 7))}, "dimension 7; expected 32"),
        ({"queries": np.zeros((3, DIM)), "metric": "cosine"}, "zero vectors"),
        ({"queries": np.ones((0, DIM))}, "empty batch of queries"),
        ({"queries": "no-such.npy"}, "Cannot read queries"),
        ({"target_recall": 0}, "target_recall"),
        ({"target_recall": 1.1}, "target_recall"),
        ({"minutes": -1}, "minutes"),
        ({"k": 300}, "k=300"),
        ({"metric": "manhattan"}, "metric='manhattan'"),
    ],
)
def test_wrong_settings_are_refused(vectors, settings, message):
    with pytest.raises(InvalidInputError, match=message):
        advise(vectors[:300], **{"minutes": 0, "progress": False, **settings})


def test_tables_without_vectors_are_refused(tmp_path):
    db = lancedb.connect(tmp_path)
    docs = db.create_table("docs", source_table(clustered(5, 4, seed=0)))
    with pytest.raises(TableError, match="no column 'embedding'"):
        advise(docs, vector_column="embedding", progress=False)
    docs.delete("true")
    with pytest.raises(TableError, match="no vectors"):
        advise(docs, progress=False)


def test_ctrl_c_reports_what_has_been_measured(monkeypatch, vectors):
    """Ctrl-C in the first training, after scalar codecs were measured."""
    import rqmoe_store.advice.candidates as candidates

    def interrupted(*_args, **_settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(candidates, "train", interrupted)
    advice = advise(vectors[:2_000], minutes=0, progress=False)
    assert not advice.complete
    assert [candidate.name for candidate in advice.candidates] == ["binary", "int8"]
    assert any("Interrupted" in note for note in advice.notes)


def test_sizes_grow_to_what_there_can_be():
    assert code_sizes(384) == (8, 16)
    assert code_sizes(1) == (1,)
    assert code_sizes(1_536) == (16, 32)
    for dim in (1, 2, 8, 100, 384, 1_536):
        for metric in ("l2", "dot"):
            sizes = refine_sizes(dim, metric)
            assert list(sizes) == sorted(set(sizes))
            for size in sizes:
                config = rqs.CodecConfig(metric=metric, refine_bytes=size)
                dataclasses.replace(config).require_bytes_for(dim)
    assert between(48, 80) == 64
    assert between(8, 16) is None
