"""Names of other libraries' codecs and indexes to compare with, and the packages that they need."""

import importlib.util
from collections.abc import Iterable, Mapping, Sequence

from rqmoe_store.errors import RQMoEError

FAISS_RQ = "faiss-rq"
PEERS = ("faiss-pq", "opq", FAISS_RQ, "lsq")
"""Codecs of FAISS that take any size."""

LANCEDB_PQ, LANCEDB_RQ = "lancedb-ivf-pq", "lancedb-ivf-rq"

SCALARS = ("int8", "binary")
"""Codecs of a byte or a bit per component, whatever sizes the others have."""

FAISS_SYSTEMS = ("faiss-ivf-pq", "faiss-ivf-opq", "faiss-ivf-rq")
"""Indexes of FAISS whose codes have any size."""

QDRANT = "qdrant"

ENGINES: dict[str, tuple[str, ...]] = {
    "turbovec": ("2", "4"),  # it stores 3 bits in as many bytes as 4
    "usearch": ("i8", "b1"),
    f"{QDRANT}-turbo": ("1", "1.5", "2", "4", "8"),
    f"{QDRANT}-binary": ("1", "1.5", "2"),
    f"{QDRANT}-scalar": ("8",),
    f"{QDRANT}-pq": ("x4", "x8", "x16", "x32", "x64"),
    f"{QDRANT}-stored": ("4", "8"),
}
"""Families of indexes of vector engines that run in this process -> their forms: bits per component, or how
many times smaller than raw vectors."""

FORMS: dict[str, tuple[str, ...]] = {
    "faiss-rabitq": tuple("123456789"),
    "faiss-eden": tuple("12345678"),
    "faiss-turboquant": ("1", "2", "3", "4", "8"),
    "faiss-sq": ("4", "6", "8"),
    LANCEDB_RQ: tuple("123456789"),
    **ENGINES,
}
"""Families of codecs whose size follows from the dimension -> their forms, mostly bits per component.
"faiss-rabitq-2" has two."""

SYSTEM_FORMS: dict[str, tuple[str, ...]] = {
    **{family.replace("faiss-", "faiss-ivf-"): FORMS[family] for family in FORMS if "faiss" in family},
    LANCEDB_RQ: FORMS[LANCEDB_RQ],
    **ENGINES,
}
"""Families of search systems whose size follows from the dimension -> their forms."""

OURS = "ours"
SYSTEMS = (OURS, LANCEDB_PQ, LANCEDB_RQ, *FAISS_SYSTEMS)
"""Search systems that can be compared, besides those whose size follows from the dimension."""

_PACKAGES = {
    "faiss": "faiss-cpu",
    "turbovec": "turbovec",
    "usearch": "usearch",
    "qdrant_edge": "qdrant-edge-py",
}
"""Modules that not every installation has -> the packages that have them."""


def has_form(name: str) -> bool:
    """Whether the name is that of a family and one of its forms."""
    family, _, form = name.rpartition("-")
    return form in {**SYSTEM_FORMS, **FORMS}.get(family, ())


def family_of(name: str) -> str:
    """The name without its form, if it is that of a codec whose size follows from the dimension."""
    return name.rpartition("-")[0] if has_form(name) else name


def form_names(families: Mapping[str, Sequence[str]]) -> str:
    """Families with their forms, as in "turbovec-2|4"."""
    return ", ".join(f"{family}-{'|'.join(forms)}" for family, forms in families.items())


def form_of(name: str) -> str:
    """The form of a name that has one."""
    return name.rpartition("-")[2]


def is_peer(name: str) -> bool:
    """Whether the codec of this name is another library's or a scalar one."""
    return name in (*PEERS, *SCALARS, LANCEDB_PQ) or (has_form(name) and family_of(name) in FORMS)


def is_system(name: str) -> bool:
    """Whether the name is that of a search system."""
    return name in SYSTEMS or (has_form(name) and family_of(name) in SYSTEM_FORMS)


def is_engine(name: str) -> bool:
    """Whether the name is that of an index of a vector engine."""
    return has_form(name) and family_of(name) in ENGINES


def missing_peers(names: Iterable[str]) -> dict[str, str]:
    """Names of codecs and search systems whose library is not installed -> the command that installs it."""
    modules = {name: _module(name) for name in names}
    return {
        name: f"pip install {_PACKAGES[module]}"
        for name, module in modules.items()
        if module is not None and importlib.util.find_spec(module) is None
    }


def installed_peers(names: Iterable[str]) -> list[str]:
    """Those of the names whose library is installed, if it is another one at all.

    Raises:
        RQMoEError: it is not for any of them.
    """
    names = list(names)
    missing = missing_peers(names)
    if names and len(missing) == len(set(names)):
        require_peers(names)
    return [name for name in names if name not in missing]


def require_peers(names: Iterable[str]) -> None:
    """Raise RQMoEError, with the command that installs it, unless all that the names need is installed."""
    missing = missing_peers(names)
    if missing:
        packages = " ".join(dict.fromkeys(command.split()[-1] for command in missing.values()))
        raise RQMoEError(
            f"Not installed: {packages}, without which {', '.join(missing)} cannot be measured. Install "
            f"with: pip install {packages}, or all libraries of the benchmarks with: "
            'pip install "rqmoe-store[bench]"'
        )


def describe_missing(missing: Mapping[str, str]) -> list[str]:
    """A line for every name that is left out."""
    return [
        f"{name} is not installed, and was left out. To compare with it: {command}"
        for name, command in missing.items()
    ]


def _module(name: str) -> str | None:
    """The module that a codec or search system needs, if not every installation has it."""
    if name in PEERS or name in FAISS_SYSTEMS or (has_form(name) and name.startswith("faiss-")):
        return "faiss"
    if not is_engine(name):
        return None
    return {"turbovec": "turbovec", "usearch": "usearch", QDRANT: "qdrant_edge"}[name.partition("-")[0]]
