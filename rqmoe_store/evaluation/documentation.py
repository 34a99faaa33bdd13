"""Passages, headings and which belong together, in the documentation that packages ship; static embeddings.

A passage is a paragraph of 50 to 600 characters in a docstring or in a file in Markdown or reStructuredText.
Headings are those of such files, and the summaries of docstrings that have more paragraphs. Files are parsed,
never run.

Shape suffixes: N texts, V tokens of the vocabulary, D vector dimension.
"""

import ast
import dataclasses
import hashlib
import importlib.util
import inspect
import itertools
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.evaluation.machine import require_bench

PASSAGE_CHARACTERS = range(50, 601)
HEADING_CHARACTERS = range(12, 121)
LEAST_SECTIONS = 3

_SUFFIXES = {".py", ".md", ".rst"}
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_LEAST_PROSE = 0.8
"""Share of characters that are letters or spaces. Code, tables and formulas have fewer."""

_HEADING = re.compile(r"#{1,6} +(?P<markdown>.+)|(?P<underlined>.+)\n([=\-~^*+#])\3{2,}")
_WEIGHTS, _TOKENIZER = "weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json"


@dataclasses.dataclass(frozen=True)
class Section:
    """Passages under one heading, up to the next one."""

    heading: str | None
    """None where there is none, or none that is a short text."""
    passages: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Page:
    """A file with at least `LEAST_SECTIONS` sections that have passages of their own."""

    title: str
    """Its first heading."""
    sections: tuple[int, ...]
    """Numbers of these sections, ascending."""


@dataclasses.dataclass(frozen=True)
class Documentation:
    """Distinct passages, and headings with the passages that they are about."""

    passages: list[str]
    packages: list[str]
    """Of each passage: the folder or module in a root that it was first found in."""
    headings: list[str]
    relevant: list[tuple[int, ...]]
    """Of each heading: positions of its passages, at least one."""
    sections: list[int]
    """Of each passage: number of the section that it was first found in."""
    pages: list[Page]
    """Files with several sections, whose title no other one has."""


def default_roots() -> list[Path]:
    """The standard library and the folders of installed packages."""
    names = ("stdlib", "purelib", "platlib")
    return list(dict.fromkeys(Path(sysconfig.get_path(name)) for name in names))


def collect_documentation(roots: Sequence[Path], most_passages: int) -> Documentation:
    """Collect distinct passages under the roots, at most so many, and the headings that ask for some of them.

    Files are read in the order of a hash of their path in the root, so that a limited collection draws from
    all folders. A heading that stands above different passages in different places is left out, as nobody
    could tell which of them it means; so is one that is also a passage, and a page whose title is no single
    page's.
    """
    positions: dict[str, int] = {}
    packages: list[str] = []
    sections: list[int] = []
    under: dict[str, tuple[int, ...] | None] = {}
    pages: list[Page] = []
    numbers = itertools.count()
    for package, path in _files(roots):
        title, first = None, len(sections)
        for number, section in zip(numbers, sections_of(path), strict=False):
            for passage in section.passages:
                if passage not in positions and len(positions) < most_passages:
                    positions[passage] = len(positions)
                    packages.append(package)
                    sections.append(number)
            if section.heading is not None:
                title = title or section.heading
                found = tuple(sorted({positions[text] for text in section.passages if text in positions}))
                under[section.heading] = found if under.get(section.heading, found) == found else None
        own = tuple(sorted(set(sections[first:])))
        if title is not None and len(own) >= LEAST_SECTIONS:
            pages.append(Page(title, own))
        if len(positions) >= most_passages:
            break
    asked = {heading: found for heading, found in under.items() if found and heading not in positions}
    titles = Counter(page.title for page in pages)
    pages = [page for page in pages if titles[page.title] == 1 and page.title not in positions]
    return Documentation(list(positions), packages, list(asked), list(asked.values()), sections, pages)


def _files(roots: Sequence[Path]) -> list[tuple[str, Path]]:
    """All files to read, each with the package that it belongs to."""
    found = {
        (hashlib.sha256(relative.as_posix().encode()).digest(), Path(relative.parts[0]).stem, path)
        for root in roots
        for path in root.rglob("*")
        if path.suffix in _SUFFIXES and path.is_file()
        for relative in (path.relative_to(root),)
    }
    return [(package, path) for _, package, path in sorted(found)]


def sections_of(path: Path) -> Iterator[Section]:
    """The sections of a file; none if it has errors."""
    content = path.read_bytes()
    return _docstring_sections(content) if path.suffix == ".py" else _page_sections(content)


def _docstring_sections(content: bytes) -> Iterator[Section]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in other people's files
            tree = ast.parse(content)
    except (SyntaxError, ValueError):  # a template, or for another Python
        return
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED):
            docstring = ast.get_docstring(node, clean=False) or ""
            # Lone surrogates, which escapes can write, are no text.
            blocks = inspect.cleandoc(docstring.encode("utf-8", "ignore").decode()).split("\n\n")
            if len(blocks) > 1:
                yield Section(_heading(blocks[0]), _passages(blocks[1:]))
            else:
                yield Section(None, _passages(blocks))


def _page_sections(content: bytes) -> Iterator[Section]:
    heading, blocks = None, []
    for block in re.split(r"\n\s*\n", content.decode("utf-8", "ignore")):
        title = _HEADING.fullmatch(block.strip())
        if title is None:
            blocks.append(block)
            continue
        yield Section(heading, _passages(blocks))
        heading, blocks = _heading(title["markdown"] or title["underlined"]), []
    yield Section(heading, _passages(blocks))


def _heading(block: str) -> str | None:
    text = " ".join(block.split())
    return text if len(text) in HEADING_CHARACTERS and _is_prose(text) else None


def _passages(blocks: Iterable[str]) -> tuple[str, ...]:
    texts = (" ".join(block.split()) for block in blocks)
    return tuple(text for text in texts if len(text) in PASSAGE_CHARACTERS and _is_prose(text))


def _is_prose(text: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in text)
    return letters >= _LEAST_PROSE * len(text)


class StaticEmbedder:
    """wordllama's model, which has one vector per token and averages those of a text.

    That is another family of embeddings than those of sentence transformers.
    """

    def __init__(self) -> None:
        """Load the model's files from the installed package.

        Raises:
            RQMoEError: the extra `bench` is not installed.
        """
        require_bench("wordllama", "safetensors", "tokenizers")
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        # The package itself is not imported: its loader would look for files elsewhere, and then on a hub.
        spec = importlib.util.find_spec("wordllama")
        assert spec is not None and spec.origin is not None, "require_bench has found it"
        folder = Path(spec.origin).parent
        (vectors_VD,) = load_file(folder / _WEIGHTS).values()
        self._vectors_VD = vectors_VD.astype(np.float32)
        self._tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))

    def __call__(self, texts: Sequence[str]) -> Float32Array:
        """Mean of the vectors of every text's tokens, of unit length (N, D)."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        means_ND = np.stack([self._vectors_VD[text.ids].mean(axis=0) for text in encoded])
        return np.asarray(means_ND / np.linalg.norm(means_ND, axis=1, keepdims=True))
