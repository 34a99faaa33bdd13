"""Coverage of results: the measures, what a run compares, and mistakes."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from failed_commands import message_of
from typer.testing import CliRunner

from rqmoe_store.cli import app
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.coverage_benchmark import Asked, CoverageSettings, measures, queries_of
from rqmoe_store.evaluation.documentation import Documentation, Page

needs_wordllama = pytest.mark.skipif(
    importlib.util.find_spec("wordllama") is None, reason="needs wordllama of the extra bench"
)

WORDS = ["storms", "bread", "violins", "taxes", "rivers", "glass", "clocks", "orchards", "harbors", "mirrors"]


def test_measures_are_those_of_their_definitions() -> None:
    # 12 passages, two in a section and four in a package; the vectors of a section are equal.
    vectors = np.repeat(np.eye(6, dtype=np.float32), 2, axis=0)
    sections, packages = [row // 2 for row in range(12)], [f"{row // 4}" for row in range(12)]
    texts = Documentation([f"{row}" for row in range(12)], packages, ["a", "b"], [(0, 3), (8,)], sections, [])
    asked = Asked("headings", ["a", "b"], [(0, 3), (8,)], np.arange(12))
    found = np.array([[0, 1, 2, 4], [0, 2, 4, 6]])
    nearest = np.array([[0, 1, 2, 3], [8, 0, 9, 2]])
    measured = measures(found, nearest, vectors, texts, asked)
    assert measured == {
        "success_10": pytest.approx((1 + 0) / 2),
        "found": pytest.approx((1 / 2 + 0) / 2),
        "sections": pytest.approx((3 + 4) / 2),
        "packages": pytest.approx((2 + 2) / 2),
        "redundancy": pytest.approx((2 / 4 + 0) / 2),
        "represented": pytest.approx((4 / 4 + 2 / 4) / 2),
    }
    titles = Asked("titles", ["a", "b"], [(0, 1, 5), (3,)], np.array(sections))
    assert measures(found, nearest, vectors, texts, titles)["found"] == pytest.approx((2 / 3 + 1) / 2)


def test_queries_are_headings_and_titles() -> None:
    pages = [Page(f"title {number}", (3 * number, 3 * number + 1, 3 * number + 2)) for number in range(4)]
    texts = Documentation(["p", "q"], ["x", "x"], ["a", "b", "c"], [(0,), (1,), (0, 1)], [4, 7], pages)
    headings, titles = queries_of(texts, CoverageSettings(queries=2))
    assert len(headings.texts) == 2
    assert dict(zip(headings.texts, headings.wanted, strict=True)).items() <= {
        ("a", (0,)), ("b", (1,)), ("c", (0, 1)),
    }  # fmt: skip
    assert {(page.title, page.sections) for page in pages} >= set(
        zip(titles.texts, titles.wanted, strict=True)
    )
    assert headings.number_N.tolist() == [0, 1] and titles.number_N.tolist() == [4, 7]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for word in WORDS:
        sections = [
            f"## How {word} are made in {place}\n\n"
            f"This paragraph about {word} tells how they were made in {place} a long time ago by hand.\n\n"
            f"This one about {word} says who paid for them in {place}, and what they were used for then.\n"
            for place in ("towns", "villages", "castles", "monasteries", "deserts")
        ]
        (tmp_path / f"{word}.md").write_text(f"# All about {word} and their makers\n\n" + "\n".join(sections))
    return tmp_path


def run_on(folder: Path, *options: str):
    return CliRunner().invoke(app, ["bench", "coverage", "--texts", str(folder), *options])


@needs_wordllama
def test_a_run_compares_all_ways_to_choose(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    codec = ["--kind", "turboquant", "--bytes", "128"]
    run = run_on(folder, *codec, "--lambdas", "0.2,1", "--queries", "6", "--json", str(out))
    assert run.exit_code == 0, run.output
    record = json.loads(out.read_text())
    names = ["nearest", "mmr 0.2", "mmr 1", "coverage 0.2", "coverage 1"]
    more = ["expand, 1 hop", "expand, 2 hops", "all partitions", "all partitions, expand, 2 hops"]
    by_name = {(each["asked"], each["choice"]): each for each in record["results"]}
    assert list(by_name) == [(kind, name) for kind in ("headings", "titles") for name in [*names, *more]]
    for kind in ("headings", "titles"):
        plain, mmr, nearest, covering, also_nearest = (dict(by_name[kind, name]) for name in names)
        for other in (nearest, also_nearest):  # lambda 1
            assert {**other, "choice": "nearest"} == pytest.approx(plain)
        assert mmr["redundancy"] < plain["redundancy"] != covering["redundancy"]
    assert by_name["titles", "nearest"]["success_10"] == 1
    assert {name: len(table["rows"]) for name, table in record["tables"].items()} == {
        "headings": 9,
        "titles": 9,
        "neighbor-graph": 1,
    }
    assert record["graph"]["neighbors"] == 10 and record["graph"]["bytes_per_row"] > 0


@needs_wordllama
def test_mistakes(folder: Path, tmp_path: Path) -> None:
    assert "at least 100, 1 and 1" in message_of(run_on(folder, "--rows", "50"), before="Training")
    assert "expected numbers" in message_of(run_on(folder, "--lambdas", "x"), before="Training")
    assert "lambdas from 0 to 1" in message_of(run_on(folder, "--lambdas", "2"), before="Training")
    assert "Cannot write --json" in message_of(run_on(folder, "--json", str(folder)), before="Training")
    with pytest.raises(InvalidInputError, match="0 queries"):
        CoverageSettings(queries=0)
