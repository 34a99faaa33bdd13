"""Invalid settings are refused with a message that names valid ones."""

import json
from pathlib import Path

import pytest

from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.search_benchmark import SearchSettings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": ("ours", "faiss")}, r"\['ours', 'faiss'\]; choose some of ours, lancedb-ivf-pq"),
        ({"systems": ()}, "choose some of"),
        ({"code_bytes": (8, 0)}, "code_bytes=0"),
        ({"nprobes": (1, 0)}, r"nprobes=\(1, 0\)"),
        ({"nprobes": ()}, "at least one of them"),
        ({"shortlists": (9,)}, "at least 10"),
        ({"batch": 0}, "batch=0"),
        ({"timed_queries": 0}, "timed_queries=0"),
        ({"synthetic": (1000,)}, "a folder of codecs"),
        ({"synthetic": (0,), "codecs": Path(".")}, "numbers of rows from 1"),
    ],
)
def test_refused(changes, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        SearchSettings(**changes)


def test_vectors_that_do_not_fit() -> None:
    settings = SearchSettings(code_bytes=(8, 16), config=CodecConfig(num_partitions=4))
    settings.require_fit(1024, 64)
    with pytest.raises(InvalidInputError, match="Got 1023 vectors for 4 partitions"):
        settings.require_fit(1023, 64)
    with pytest.raises(InvalidInputError, match=r"divide it; got \[16\].*lancedb-ivf-pq, faiss-ivf-pq"):
        settings.require_fit(1024, 40)
    with pytest.raises(InvalidInputError, match="Got 255 vectors for 1 partitions"):
        SearchSettings().require_fit(255, 384)
    with pytest.raises(InvalidInputError, match="multiple of 8; got 12"):
        SearchSettings(code_bytes=(4,)).require_fit(1024, 12)
    SearchSettings(systems=("ours", "faiss-ivf-rq"), code_bytes=(5,)).require_fit(1024, 12)


@pytest.mark.parametrize(("chosen", "expected"), [(None, 10), (0, 1), (1, 1), (7, 7)])
def test_partitions(chosen, expected) -> None:
    assert SearchSettings(config=CodecConfig(num_partitions=chosen)).partitions(2600) == expected


def test_settings_are_json() -> None:
    written = json.loads(json.dumps(SearchSettings(codecs=Path("codecs")).to_dict()))
    assert written["codecs"] == "codecs"
    assert written["code_bytes"] == [8, 16, 32]
    assert "code_bytes" not in written["config"]
