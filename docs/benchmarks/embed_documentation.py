"""Embeddings of documentation by a static model from PyPI: a data set for benchmarks that anybody can make.

    pip install wordllama safetensors tokenizers
    python docs/benchmarks/embed_documentation.py --texts ~/projects

Writes base.npy (passages) and queries.npy (headings), float32, of unit length, in random order. A passage is
a paragraph of 50 to 600 characters in a docstring or in a file in Markdown or reStructuredText. Headings are
those of such files, and the summaries of docstrings that have more paragraphs. Files are parsed, never run.

The model has one vector per token and averages those of a text. That is another family of embeddings than
those of sentence transformers.

Shape suffixes: N texts, V tokens of the vocabulary, D vector dimension.
"""

import ast
import hashlib
import importlib.util
import inspect
import random
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.demo.texts import default_roots

PASSAGE_CHARACTERS = range(50, 601)
HEADING_CHARACTERS = range(12, 121)

_SUFFIXES = {".py", ".md", ".rst"}
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_LEAST_PROSE = 0.8
"""Share of characters that are letters or spaces. Code, tables and formulas have fewer."""

_HEADING = re.compile(r"#{1,6} +(?P<markdown>.+)|(?P<underlined>.+)\n([=\-~^*+#])\3{2,}")
_WEIGHTS, _TOKENIZER = "weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json"


def collect(roots: Sequence[Path], passages: int) -> tuple[list[str], list[str]]:
    """Distinct passages under the roots, at most so many, and the headings of the files that were read.

    Files are read in the order of a hash of their path in the root, so that a limited collection draws from
    all folders. A text that is a passage is not a heading.
    """
    files = {
        (hashlib.sha256(path.relative_to(root).as_posix().encode()).digest(), path)
        for root in roots
        for path in root.rglob("*")
        if path.suffix in _SUFFIXES and path.is_file()
    }
    found: dict[str, None] = {}
    headings: dict[str, None] = {}
    for _, path in sorted(files):
        for text, is_heading in texts_of(path):
            (headings if is_heading else found)[text] = None
        if len(found) >= passages:
            break
    return list(found)[:passages], [heading for heading in headings if heading not in found]


def texts_of(path: Path) -> Iterator[tuple[str, bool]]:
    """Passages and headings of a file, each with whether it is a heading; none if the file has errors."""
    content = path.read_bytes()
    blocks = _docstring_blocks(content) if path.suffix == ".py" else _page_blocks(content)
    for block, is_heading in blocks:
        text = " ".join(block.split())
        prose = sum(character.isalpha() or character == " " for character in text)
        lengths = HEADING_CHARACTERS if is_heading else PASSAGE_CHARACTERS
        if len(text) in lengths and prose >= _LEAST_PROSE * len(text):
            yield text, is_heading


def _docstring_blocks(content: bytes) -> Iterator[tuple[str, bool]]:
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
            for place, block in enumerate(blocks):
                yield block, place == 0 and len(blocks) > 1


def _page_blocks(content: bytes) -> Iterator[tuple[str, bool]]:
    for block in re.split(r"\n\s*\n", content.decode("utf-8", "ignore")):
        heading = _HEADING.fullmatch(block.strip())
        yield (heading["markdown"] or heading["underlined"], True) if heading else (block, False)


def embed(texts: Sequence[str]) -> Float32Array:
    """Mean of the vectors of every text's tokens, of unit length (N, D)."""
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    # The package itself is not imported: its loader would look for the files elsewhere, and then on a hub.
    spec = importlib.util.find_spec("wordllama")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "wordllama is not installed. Install it: pip install wordllama safetensors tokenizers"
        )
    folder = Path(spec.origin).parent
    (vectors_VD,) = load_file(folder / _WEIGHTS).values()
    vectors_VD = vectors_VD.astype(np.float32)
    encoded = Tokenizer.from_file(str(folder / _TOKENIZER)).encode_batch(texts, add_special_tokens=False)
    means_ND = np.stack([vectors_VD[text.ids].mean(axis=0) for text in encoded])
    return np.asarray(means_ND / np.linalg.norm(means_ND, axis=1, keepdims=True))


def main(
    texts: Annotated[
        list[Path] | None, typer.Option(help="Folders to take texts from, instead of installed packages.")
    ] = None,
    passages: Annotated[int, typer.Option(help="Most passages.")] = 60_000,
    queries: Annotated[int, typer.Option(help="Most queries.")] = 1_000,
    seed: Annotated[int, typer.Option(help="Seed of the order, and of the queries drawn.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder to write base.npy and queries.npy in.")] = Path("."),
) -> None:
    """Write base.npy and queries.npy."""
    found, headings = collect(texts or default_roots(), passages)
    if not found or not headings:
        raise SystemExit(
            f"Got {len(found)} passages and {len(headings)} headings; name more folders by --texts."
        )
    shuffled = random.Random(seed)
    shuffled.shuffle(found)
    shuffled.shuffle(headings)
    out.mkdir(parents=True, exist_ok=True)
    for name, chosen in (("base", found), ("queries", headings[:queries])):
        np.save(out / f"{name}.npy", embed(chosen), allow_pickle=False)
        typer.echo(f"{out / name}.npy: {len(chosen):,} texts")


if __name__ == "__main__":
    typer.run(main)
