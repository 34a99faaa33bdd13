"""Data sets for benchmarks, made reproducibly from what PyPI's packages ship: base, queries, relevance.

Shape suffixes: N vectors found, R rows of the base, Q queries, P pairs of a query and a row, D dimension,
B vectors of a block.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rqmoe_store import __version__
from rqmoe_store.codecs.artifact import write_atomically
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.recall import Indices
from rqmoe_store.progress import late_progress

KINDS = {
    "text": ("wordllama", "safetensors", "tokenizers"),
    "images": ("scikit-image",),
}
"""Kinds of data sets -> distributions that they depend on, besides numpy."""

BASE, QUERIES, RELEVANCE, MANIFEST = "base.npy", "queries.npy", "relevance.npy", "manifest.json"

_BLOCK_ROWS = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSetSettings:
    """What to make."""

    kind: str = "text"
    """"text": paragraphs of installed documentation, averages of static vectors of tokens, 256 dimensions.
    "images": descriptors of photographs that scikit-image ships, 128 dimensions."""
    rows: int = 60_000
    """Most rows of the base."""
    queries: int = 1_000
    """Most queries."""
    seed: int = 0
    """Seed of the order, and of the queries drawn."""
    grouped: bool = False
    """Whether rows of one package or image come one after the other, as in a table that grows by new topics,
    instead of in random order."""
    texts: tuple[Path, ...] = ()
    """Folders to take texts from, instead of installed packages."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidInputError(f"Got kind {self.kind!r}; expected one of {', '.join(KINDS)}.")
        if self.rows < 1 or self.queries < 1:
            raise InvalidInputError(
                f"Got {self.rows} rows and {self.queries} queries; expected at least 1 of each."
            )
        if self.texts and self.kind != "text":
            raise InvalidInputError(f"Got folders of texts for {self.kind!r}; only 'text' takes them.")
        missing = [str(folder) for folder in self.texts if not folder.is_dir()]
        if missing:
            raise InvalidInputError(f"Got {', '.join(missing)}; expected existing folders of texts.")


@dataclasses.dataclass(frozen=True)
class _Found:
    """Everything of a kind, in the order in which it was found; the vectors themselves are in a file."""

    groups_N: Indices
    """Package or image of each vector."""
    queries_QD: Float32Array
    pairs_P2: Indices | None
    """Query and vector that answers it; None if nobody knows."""


def make_data_set(folder: Path, settings: DataSetSettings, console: Console) -> dict[str, Any]:
    """Write base.npy, queries.npy, relevance.npy where answers are known, and manifest.json, in a new folder.

    The same settings make the same files, as long as the packages are the same. Arrays are float32; rows of
    `relevance.npy` are int64 pairs of a query's position and that of a row of the base. The folder is there
    whole or not at all. Vectors pass through memory in blocks; texts are kept in memory.

    Returns:
        The manifest: settings, counts, versions and hashes of the files.

    Raises:
        InvalidInputError: the folder exists and is not empty, or too little was found.
        RQMoEError: the extra `bench` is not installed.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InvalidInputError(f"Got {str(folder)!r}, which exists; expected a new or an empty folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        made, scratch = Path(temporary) / "made", Path(temporary) / "found.float32"
        made.mkdir()
        console.print(f"Collecting {settings.kind}", highlight=False)
        find = _find_texts if settings.kind == "text" else _find_descriptors
        found = find(settings, scratch, console)
        counts = _write_arrays(made, scratch, found, settings)
        manifest = _manifest(made, settings, counts)
        write_atomically(made / MANIFEST, json.dumps(manifest, indent=2).encode())
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()
        made.rename(folder)
    return manifest


def relevance_of(folder: Path) -> tuple[tuple[int, ...], ...]:
    """For each query of a data set, the rows that answer it.

    Raises:
        InvalidInputError: the data set says nothing about answers.
    """
    path = folder / RELEVANCE
    if not path.is_file():
        raise InvalidInputError(
            f"There is no {RELEVANCE} in {str(folder)!r}; expected a data set that `rqmoe bench data --kind "
            "text` has made."
        )
    pairs_P2 = np.load(path, allow_pickle=False)
    queries = int(pairs_P2[:, 0].max()) + 1
    relevant: list[list[int]] = [[] for _ in range(queries)]
    for query, row in pairs_P2.tolist():
        relevant[query].append(row)
    return tuple(map(tuple, relevant))


def _find_texts(settings: DataSetSettings, scratch: Path, console: Console) -> _Found:
    from rqmoe_store.evaluation.documentation import StaticEmbedder, collect_documentation, default_roots

    embed = StaticEmbedder()
    found = collect_documentation(settings.texts or default_roots(), settings.rows)
    if not found.passages or not found.headings:
        raise InvalidInputError(
            f"Got {len(found.passages)} passages and {len(found.headings)} headings that have some of them; "
            "name other folders by --texts."
        )
    texts = found.passages
    with scratch.open("wb") as file, late_progress("Embedding", len(texts)) as advance:
        for start in range(0, len(texts), _BLOCK_ROWS):
            embedded_BD = embed(texts[start : start + _BLOCK_ROWS])
            file.write(embedded_BD.tobytes())
            advance(len(embedded_BD))
    chosen = np.random.default_rng(settings.seed).permutation(len(found.headings))[: settings.queries]
    pairs = [(place, row) for place, heading in enumerate(chosen) for row in found.relevant[heading]]
    return _Found(
        groups_N=np.unique(found.packages, return_inverse=True)[1].astype(np.int64),
        queries_QD=embed([found.headings[heading] for heading in chosen]),
        pairs_P2=np.array(pairs, np.int64),
    )


def _find_descriptors(settings: DataSetSettings, scratch: Path, console: Console) -> _Found:
    from rqmoe_store.evaluation.image_descriptors import IMAGES, QUERY_IMAGES, describe_images

    groups: list[Indices] = []
    with scratch.open("wb") as file, late_progress("Describing images", len(IMAGES)) as advance:
        for name, described_BD in describe_images(IMAGES):
            file.write(described_BD.tobytes())
            if not groups or groups[-1][0] != IMAGES.index(name):
                advance(1)
            groups.append(np.full(len(described_BD), IMAGES.index(name), np.int64))
    queries_QD = np.concatenate([described_BD for _, described_BD in describe_images(QUERY_IMAGES)])
    chosen = np.random.default_rng(settings.seed).permutation(len(queries_QD))[: settings.queries]
    return _Found(np.concatenate(groups), queries_QD[chosen], None)


def _write_arrays(made: Path, scratch: Path, found: _Found, settings: DataSetSettings) -> dict[str, int]:
    order_R, dim = _order(found.groups_N, settings), found.queries_QD.shape[1]
    found_ND = np.memmap(scratch, np.float32, "r", shape=(len(found.groups_N), dim))
    base_RD = np.lib.format.open_memmap(made / BASE, mode="w+", dtype=np.float32, shape=(len(order_R), dim))
    for block in _blocks(len(order_R)):
        base_RD[block] = found_ND[order_R[block]]
    base_RD.flush()
    np.save(made / QUERIES, found.queries_QD, allow_pickle=False)
    counts = {
        "found": len(found.groups_N),
        "rows": len(order_R),
        "queries": len(found.queries_QD),
        "dim": dim,
    }
    if found.pairs_P2 is not None:
        places_N = np.empty(len(order_R), np.int64)
        places_N[order_R] = np.arange(len(order_R))
        pairs_P2 = np.stack([found.pairs_P2[:, 0], places_N[found.pairs_P2[:, 1]]], axis=1)
        np.save(made / RELEVANCE, pairs_P2, allow_pickle=False)
        counts["relevant"] = len(pairs_P2)
    return counts


def _order(groups_N: Indices, settings: DataSetSettings) -> Indices:
    """Positions of the rows of the base among what was found (R)."""
    random = np.random.default_rng(settings.seed)
    order_R = random.permutation(len(groups_N))[: settings.rows]
    if settings.grouped:
        ranks = random.permutation(int(groups_N.max()) + 1)
        order_R = order_R[np.argsort(ranks[groups_N[order_R]], kind="stable")]
    return np.asarray(order_R, np.int64)


def _blocks(rows: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK_ROWS) for start in range(0, rows, _BLOCK_ROWS))


def _manifest(made: Path, settings: DataSetSettings, counts: dict[str, int]) -> dict[str, Any]:
    fields = {**dataclasses.asdict(settings), "texts": [str(folder) for folder in settings.texts]}
    names = ("numpy", *KINDS[settings.kind])
    return {
        "settings": fields,
        "counts": counts,
        "versions": {
            "rqmoe-store": __version__,
            **{name: importlib.metadata.version(name) for name in names},
        },
        "sha256": {path.name: _hash(path) for path in sorted(made.iterdir())},
    }


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
