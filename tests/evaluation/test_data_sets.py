"""Data sets of `rqmoe bench data`: what is in the files, that they are made again the same, and mistakes."""

import importlib.util
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from failed_commands import message_of
from rich.console import Console
from typer.testing import CliRunner

from rqmoe_store.cli import app
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation import image_descriptors
from rqmoe_store.evaluation.data_sets import DataSetSettings, make_data_set, read_relevance, relevance_of
from rqmoe_store.evaluation.documentation import StaticEmbedder, collect_documentation

QUIET = Console(quiet=True)

needs_wordllama = pytest.mark.skipif(importlib.util.find_spec("wordllama") is None, reason="needs wordllama")
needs_images = pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="needs scikit-image")


@pytest.fixture
def texts(tmp_path) -> Path:
    folder = tmp_path / "texts"
    for package in ("alpha", "beta", "gamma"):
        (folder / package).mkdir(parents=True)
        sections = [
            f"## The {package} of section number {letter}\n\n"
            f"This paragraph of {package} speaks of {word} and of nothing else that anybody could name.\n\n"
            f"This second paragraph of {package} goes on about {word}, and says a little more of it.\n"
            for letter, word in zip("abcd", ("storms", "bread", "violins", "tax law"), strict=True)
        ]
        (folder / package / "page.md").write_text("\n".join(sections))
    return folder


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.load(path, allow_pickle=False) for path in folder.glob("*.npy")}


@needs_wordllama
def test_texts_with_their_answers(texts, tmp_path) -> None:
    made = tmp_path / "new" / "made"
    run = CliRunner().invoke(app, ["bench", "data", str(made), "--texts", str(texts), "--queries", "5"])
    assert run.exit_code == 0, run.output
    assert "24 rows of 256 dimensions, 5 queries, 10 pairs" in run.stdout
    arrays, found, embed = arrays_of(made), collect_documentation([texts], 100), StaticEmbedder()
    # Texts in random order; each as the model embeds it.
    similarities = arrays["base.npy"] @ embed(found.passages).T
    assert sorted(similarities.argmax(axis=0)) == list(range(24)) and similarities.max(axis=0).min() > 0.9999
    # The rows that answer a query are those of the passages below its heading.
    passage_of = similarities.argmax(axis=1)
    heading_of = (arrays["queries.npy"] @ embed(found.headings).T).argmax(axis=1)
    for query, rows in enumerate(relevance_of(made, 5, 24)):
        assert {passage_of[row] for row in rows} == set(found.relevant[heading_of[query]])
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["counts"] == {"found": 24, "rows": 24, "queries": 5, "dim": 256, "relevant": 10}
    assert set(manifest["sha256"]) == set(arrays) and "wordllama" in manifest["versions"]
    assert list(made.parent.iterdir()) == [made]


@needs_wordllama
def test_a_seed_makes_the_same_files_and_another_one_another_order(texts, tmp_path) -> None:
    manifests = [
        make_data_set(tmp_path / f"made{number}", DataSetSettings(texts=(texts,), seed=seed), QUIET)
        for number, seed in enumerate((0, 0, 1))
    ]
    assert manifests[0] == manifests[1]
    assert manifests[0]["sha256"]["base.npy"] != manifests[2]["sha256"]["base.npy"]


@needs_wordllama
def test_grouped_rows_come_package_by_package(texts, tmp_path) -> None:
    make_data_set(tmp_path / "made", DataSetSettings(texts=(texts,), grouped=True), QUIET)
    found = collect_documentation([texts], 100)
    base_RD = np.load(tmp_path / "made" / "base.npy")
    packages = [found.packages[row] for row in (base_RD @ StaticEmbedder()(found.passages).T).argmax(axis=1)]
    changes = sum(one != other for one, other in itertools.pairwise(packages))
    assert set(packages) == {"alpha", "beta", "gamma"} and changes == 2
    counts = len(np.load(tmp_path / "made" / "queries.npy")), len(base_RD)
    assert sum(map(len, relevance_of(tmp_path / "made", *counts))) == 24


@needs_images
def test_descriptors_of_images(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(image_descriptors, "IMAGES", ("page.png", "coins.png"))
    monkeypatch.setattr(image_descriptors, "QUERY_IMAGES", ("chelsea.png",))
    monkeypatch.setattr(image_descriptors, "SCALES", (0.5,))
    settings = DataSetSettings(kind="images", rows=1_500, queries=20)
    manifest = make_data_set(tmp_path / "made", settings, QUIET)
    arrays = arrays_of(tmp_path / "made")
    assert arrays["base.npy"].shape == (1_500, 128) and arrays["queries.npy"].shape == (20, 128)
    for rows_ND in arrays.values():
        assert rows_ND.dtype == np.float32 and rows_ND.min() >= 0
        np.testing.assert_allclose(np.linalg.norm(rows_ND, axis=1), 1, rtol=1e-5)
    assert manifest["counts"]["found"] > 1_500 and "scikit-image" in manifest["versions"]
    with pytest.raises(InvalidInputError, match=r"no relevance\.npy"):
        relevance_of(tmp_path / "made", 20, 1_500)


@needs_images
def test_an_image_of_many_strips_is_described_whole(monkeypatch) -> None:
    monkeypatch.setattr(image_descriptors, "SCALES", (1.0,))
    counts = []
    for strip_rows in (30, 10_000):
        monkeypatch.setattr(image_descriptors, "_STRIP_ROWS", strip_rows)
        blocks = [block_ND for _, block_ND in image_descriptors.describe_images(("coins.png",))]
        counts.append(sum(map(len, blocks)))
    few, whole = counts
    assert abs(few - whole) <= 0.01 * whole  # those at the margin of what is left out differ


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "sounds"], "expected one of text, images"),
        (["--rows", "0"], "expected at least 1 of each"),
        (["--kind", "images", "--texts", "."], "only 'text' and 'tokens' take them"),
        (["--texts", "missing"], "expected existing folders"),
    ],
)
def test_mistakes(tmp_path, options, message) -> None:
    run = CliRunner().invoke(app, ["bench", "data", str(tmp_path / "made"), *options])
    assert message in message_of(run, before="Collecting")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_left_alone(tmp_path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    run = CliRunner().invoke(app, ["bench", "data", str(tmp_path)])
    assert "expected a new or an empty folder" in message_of(run, before="Collecting")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@needs_wordllama
def test_nothing_found_leaves_nothing_behind(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    run = CliRunner().invoke(
        app, ["bench", "data", str(tmp_path / "made"), "--texts", str(tmp_path / "empty")]
    )
    assert run.exit_code == 1 and "Got 0 passages and 0 headings" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def letters(texts) -> list[np.ndarray]:
    """A vector for each letter of a text, in place of a model's for each token."""
    codes = [np.array([[ord(letter) % 7 + 1, 2, 3]], np.float32) for text in texts for letter in text]
    ends = np.cumsum([len(text) for text in texts])[:-1]
    return [np.concatenate(part) for part in np.split(np.array(codes), ends)]


def test_token_vectors_with_their_answers(texts, tmp_path) -> None:
    settings = DataSetSettings(kind="tokens", queries=5, texts=(texts,))
    manifest = make_data_set(tmp_path / "made", settings, QUIET, lambda: letters)
    arrays, found = arrays_of(tmp_path / "made"), collect_documentation([texts], 100)
    lengths, query_lengths = arrays["lengths.npy"], arrays["query_lengths.npy"]
    assert arrays["base.npy"].dtype == arrays["queries.npy"].dtype == np.float16
    assert arrays["base.npy"].shape == (lengths.sum(), 3) and len(query_lengths) == 5
    rows = np.split(arrays["base.npy"], np.cumsum(lengths)[:-1])
    passages = {letters([text])[0].astype(np.float16).tobytes(): text for text in found.passages}
    assert sorted(passages[row.tobytes()] for row in rows) == sorted(found.passages)
    # The rows that answer a query are those of the passages below its heading.
    headings = {letters([text])[0].astype(np.float16).tobytes(): text for text in found.headings}
    asked = np.split(arrays["queries.npy"], np.cumsum(query_lengths)[:-1])
    for query, answers in zip(asked, relevance_of(tmp_path / "made", 5, 24), strict=True):
        expected = found.relevant[found.headings.index(headings[query.tobytes()])]
        assert {passages[rows[row].tobytes()] for row in answers} == {
            found.passages[each] for each in expected
        }
    counts = {"found": 24, "rows": 24, "queries": 5, "dim": 3, "vectors": lengths.sum(), "relevant": 10}
    assert manifest["counts"] == counts and "sentence-transformers" in manifest["versions"]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (np.ones((3, 2)), "whole numbers"),
        (np.ones((3, 3), int), "whole numbers"),
        (np.array([[0, 5], [1, 9]]), "not there"),
        (np.array([[0, 5], [2, 1]]), "not there"),
        (np.array([[0, -1], [1, 1]]), "not there"),
        (np.array([[0, 5]]), "without a row for query 1"),
        (np.empty((0, 2), int), "without a row for query 0"),
    ],
)
def test_answers_that_do_not_fit_are_refused(tmp_path, pairs, message):
    np.save(tmp_path / "pairs.npy", pairs)
    with pytest.raises(InvalidInputError, match=message):
        read_relevance("--relevance", str(tmp_path / "pairs.npy"), 2, 9)
