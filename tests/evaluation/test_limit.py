"""The benchmark after LIMIT: its data set, what searches find of it, and free embeddings."""

import itertools
import re

import numpy as np
import pytest

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.limit_benchmark import (
    LimitReport,
    LimitSettings,
    benchmark_limit,
    limit_tables,
    recalls,
)
from rqmoe_store.evaluation.limit_data import FIRST_NAMES, LAST_NAMES, LEAST_LIKED, LIKED, make_limit_data
from rqmoe_store.evaluation.limit_free import FreeSettings, benchmark_free, pairs_of, solve, told_apart

TINY_FREE = FreeSettings(
    dims=(2,),
    code_bytes=(1, 2),
    most_documents=4,
    steps=500,
    attempts=1,
    rotations=2,
    training_vectors=1_200,
    codebook_size=16,
)


def things_of(document: str) -> list[str]:
    return re.split(", | and ", re.sub(r"^.* likes |\.$", "", document))


def test_lists_have_no_word_twice() -> None:
    assert len(set(LIKED)) == len(LIKED) == 1_848
    assert len(set(FIRST_NAMES)) * len(set(LAST_NAMES)) == 50_000


def test_a_query_has_the_two_answers_that_name_its_word() -> None:
    data = make_limit_data(queries=30, documents=60)
    assert (data.num_answering, len(data.documents), len(set(data.documents))) == (9, 60, 60)
    named = [things_of(document) for document in data.documents]
    assert all(len(set(things)) == len(things) >= LEAST_LIKED for things in named)
    for query, answers in zip(data.queries, data.answers_Q2, strict=True):
        thing = query.removeprefix("Who likes ").removesuffix("?")
        assert [place for place, things in enumerate(named) if thing in things] == list(answers)
    assert len(set(map(tuple, data.answers_Q2))) == 30


def test_the_published_size_has_46_documents() -> None:
    data = make_limit_data(documents=46)
    assert data.num_answering == 46 and len(data.queries) == 1_000
    assert max(len(things_of(document)) for document in data.documents) >= LEAST_LIKED
    assert make_limit_data(documents=46).documents == data.documents
    assert make_limit_data(documents=46, seed=1).queries != data.queries


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"queries": 0}, "1 to 1,803"),
        ({"queries": 1_804}, "1 to 1,803"),
        ({"queries": 10, "documents": 4}, "expected 5, which have as many pairs"),
        ({"documents": 50_001}, "to 50,000"),
    ],
)
def test_wrong_sizes_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make_limit_data(**sizes)


def test_recall_counts_both_answers() -> None:
    found_QK = np.array([[0, 3, 1], [3, 2, -1]])
    answers_Q2 = np.array([[0, 1], [0, 2]])
    assert recalls(found_QK, answers_Q2, 11) == {2: 0.5, 10: 0.75}


def words_as_vectors(texts: list[str], dim: int) -> np.ndarray:
    """Embeddings that know words: the sum of a random direction per word."""
    random = np.random.default_rng(0)
    directions = {word: random.normal(size=dim) for word in LIKED}
    sums = [sum(directions[word] for word in things_of(text.rstrip("?"))) for text in texts]
    return np.array(sums, np.float32)


@pytest.mark.slow  # six ways to search two sets of documents
def test_searches_find_answers_by_vectors_codes_words_and_both() -> None:
    data = make_limit_data(queries=15, documents=120)
    # Directions of so many dimensions are nearly orthogonal: a text is nearest to those that have its word.
    vectors_ND = words_as_vectors([*data.documents, *data.queries], 512)
    settings = LimitSettings(
        code_bytes=(2, 20),
        hybrid_bytes=(20,),
        config=CodecConfig(kind="rq", metric="cosine", num_partitions=0, codebook_size=16),
        training=TrainConfig(progress=False),
    )
    report = LimitReport(settings={}, machine={})
    with pytest.warns(UserWarning, match="Training on"):
        benchmark_limit(data, vectors_ND[:120], vectors_ND[120:], settings, report.results.append)
    small, large = ([each for each in report.results if each.documents == count] for count in (6, 120))
    assert [(each.search, each.vector_bytes) for each in large] == [
        ("vectors", 2_048), ("codes", 2), ("codes", 20), ("full text", None), ("hybrid, vectors", 2_048),
        ("hybrid, codes", 20),
    ]  # fmt: skip
    assert all(list(each.recall) == [2] for each in small)
    by_name = {(each.search, each.vector_bytes): each.recall for each in large}
    assert by_name["full text", None][2] == 1
    assert by_name["vectors", 2_048][10] > 0.9
    assert by_name["hybrid, codes", 20][10] >= by_name["codes", 20][10]
    assert by_name["codes", 20][10] > by_name["codes", 2][10]
    assert [f"{table.title}".partition(":")[0] for table in limit_tables(report)] == ["Small", "Large"]
    assert report.to_dict()["results"][0]["recall"][2] == small[0].recall[2]


def test_settings_name_sizes_that_are_measured() -> None:
    with pytest.raises(InvalidInputError, match="hybrid search of some of them"):
        LimitSettings(code_bytes=(8,), hybrid_bytes=(16,))
    with pytest.raises(InvalidInputError, match="some from 2, ascending"):
        FreeSettings(dims=(4, 3))


def test_pairs_are_told_apart_by_their_two_highest_scores() -> None:
    corners_ND = np.eye(3, dtype=np.float32)
    queries_QD = np.array(
        [corners_ND[list(pair)].sum(axis=0) for pair in itertools.combinations(range(3), 2)]
    )
    assert told_apart(corners_ND, queries_QD) == 1
    assert told_apart(corners_ND, np.roll(queries_QD, 1, axis=0)) == 0


@pytest.mark.slow  # optimizes and fits codecs
def test_three_documents_are_what_a_circle_can_tell_apart() -> None:
    """Of four points on a circle, two that are opposite are never the two nearest of a direction."""
    seen = []
    (circle,) = benchmark_free(TINY_FREE, seen.append)
    assert circle.documents == 3 and seen == [circle]
    assert all(2 <= count <= 3 for count in circle.encoded_documents.values())
    assert all(0 <= share <= 1 for share in circle.encoded_share.values())
    titles = [
        f"{table.title}".partition(":")[0]
        for table in limit_tables(LimitReport(settings={}, machine={}, free=[circle]))
    ]
    assert titles == ["Free", "Kept"]


def test_a_solution_tells_all_pairs_apart() -> None:
    found = solve(4, 4, TINY_FREE)
    assert found is not None
    assert told_apart(*found) == 1
    assert [len(vectors) for vectors in found] == [4, len(pairs_of(4))]
    assert solve(4, 2, TINY_FREE) is None
