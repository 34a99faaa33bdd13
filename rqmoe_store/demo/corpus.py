"""Demo corpus: docstrings of Python's library and of installed packages, text that every machine has.

Files are parsed, never imported, so none of their code runs.
"""

import ast
import dataclasses
import hashlib
import inspect
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

MIN_CHARACTERS = 40
MAX_CHARACTERS = 300
DEFAULT_LIMIT = 10_500

_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


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


def default_roots() -> list[Path]:
    """The standard library and the folders of installed packages."""
    names = ("stdlib", "purelib", "platlib")
    return list(dict.fromkeys(Path(sysconfig.get_path(name)) for name in names))


def read_documents(root: Path, path: Path) -> Iterator[Document]:
    """The usable docstrings of one file, in their order."""
    relative = path.relative_to(root).with_suffix("")
    parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
    tree = _parse(path)
    if tree is None or not parts:
        return
    for name, node in _definitions(tree, ".".join(parts)):
        text = _summary(ast.get_docstring(node, clean=False))
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


def _summary(docstring: str | None) -> str:
    """The first paragraph on one line, cut at a word if it is long."""
    paragraph = inspect.cleandoc(docstring or "").partition("\n\n")[0]
    text = " ".join(paragraph.encode("utf-8", "ignore").decode().split())
    if len(text) <= MAX_CHARACTERS:
        return text
    return text[: MAX_CHARACTERS - 3].rpartition(" ")[0] + "..."
