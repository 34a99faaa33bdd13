"""Names of peers, what they need, and what happens where that is not installed."""

import sys

import pytest

from rqmoe_store.errors import RQMoEError
from rqmoe_store.evaluation.peer_names import (
    ENGINES,
    FORMS,
    PEERS,
    SCALARS,
    SYSTEM_FORMS,
    describe_missing,
    family_of,
    form_names,
    form_of,
    installed_peers,
    is_engine,
    is_peer,
    missing_peers,
)

NEEDED = {
    "faiss": ("faiss-cpu", ["opq", "faiss-pq", "faiss-sq-4", "faiss-ivf-rq", "faiss-ivf-eden-2"]),
    "turbovec": ("turbovec", ["turbovec-4"]),
    "usearch": ("usearch", ["usearch-b1"]),
    "qdrant_edge": ("qdrant-edge-py", ["qdrant-turbo-1.5", "qdrant-stored-4"]),
}
NOBODYS = [
    "rq",
    "rqmoe",
    "ours",
    "int8",
    "lancedb-ivf-rq-1",
    "lancedb-ivf-pq",
    "faiss-sq-5",
    "codecs/opq",
    "usearch",
]


def test_families_are_names_without_forms() -> None:
    assert (family_of("faiss-rabitq-2"), form_of("faiss-rabitq-2")) == ("faiss-rabitq", "2")
    assert (family_of("qdrant-turbo-1.5"), form_of("qdrant-turbo-1.5")) == ("qdrant-turbo", "1.5")
    assert family_of("faiss-ivf-eden-8") == "faiss-ivf-eden"
    for name in (
        "faiss-rq",
        "rq",
        "codecs/rqmoe-16",
        "faiss-rabitq-10",
        "rqmoe-2",
        "usearch-f16",
        "turbovec",
    ):
        assert family_of(name) == name
    assert form_names({"a": ("1", "2"), "b": ("x",)}) == "a-1|2, b-x"


def test_who_is_a_peer() -> None:
    names = [f"{family}-{forms[0]}" for family, forms in FORMS.items()]
    assert all(is_peer(name) for name in (*names, *PEERS, *SCALARS, "lancedb-ivf-pq"))
    assert not any(
        is_peer(name) for name in ("rq", "rqmoe-16+pq", "codecs/opq", "faiss-ivf-sq-4", "turbovec")
    )
    assert all(is_engine(f"{family}-{forms[-1]}") for family, forms in ENGINES.items())
    assert not any(is_engine(name) for name in ("faiss-sq-4", "lancedb-ivf-rq-1", "usearch"))
    assert set(ENGINES) < set(SYSTEM_FORMS)


@pytest.mark.parametrize("module", NEEDED)
def test_what_is_not_installed_is_left_out_by_name(monkeypatch, module) -> None:
    package, needing = NEEDED[module]
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not there
    assert missing_peers([*needing, *NOBODYS]) == dict.fromkeys(needing, f"pip install {package}")
    assert installed_peers([*NOBODYS, *needing]) == NOBODYS
    line = f"{needing[0]} is not installed, and was left out. To compare with it: pip install {package}"
    assert describe_missing(missing_peers(needing[:1])) == [line]


def test_where_nothing_is_left(monkeypatch) -> None:
    for module in ("faiss", "turbovec"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        RQMoEError,
        match=r"faiss-cpu turbovec, without which opq, turbovec-2 .*pip install faiss-cpu turbovec, or",
    ):
        installed_peers(["opq", "turbovec-2", "opq"])
    assert installed_peers([]) == []
