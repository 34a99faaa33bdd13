"""MkDocs hooks: pages made from the repository's own documents, from the commands and from the docstrings.

MkDocs calls `on_files` to learn which pages there are, and `on_page_markdown` before it renders one.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from rqmoe_store.cli import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = {
    "index.md": "README.md",
    "benchmarks.md": "BENCHMARKS.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    **{
        f"frameworks/{path.parent.name}.md": path.relative_to(ROOT).as_posix()
        for path in sorted(ROOT.glob("integrations/*/README.md"))
    },
}
"""Page -> file of the repository that it shows."""

LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    pages = {page: (ROOT / document).read_text() for page, document in DOCUMENTS.items()}
    pages["reference/commands.md"] = command_reference()
    pages["reference/results.md"] = result_reference()
    for page, markdown in pages.items():
        files.append(File.generated(config, page, content=markdown))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Have links to files of the repository lead to their pages: on a forge, they lead to the files."""
    source = page.file.src_uri
    folder = posixpath.dirname(DOCUMENTS.get(source, f"docs/{source}"))
    pages = {document: name for name, document in DOCUMENTS.items()}

    def page_link(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        if target not in pages and not target.startswith("docs/"):
            return link[0]
        found = pages.get(target, target.removeprefix("docs/"))
        return posixpath.relpath(found, posixpath.dirname(source) or ".") + (link[2] or "")

    return LINK.sub(page_link, markdown)


def command_reference() -> str:
    """Every command with its arguments and options, as the command line itself describes them."""
    lines = [
        "# Commands",
        "",
        "Made from the commands themselves; `rqmoe COMMAND --help` prints the same.",
        "",
    ]
    for path, command in commands():
        context = command.make_context(path, [], resilient_parsing=True)
        usage = " ".join(
            piece.replace("{", "").replace("}", "") for piece in command.collect_usage_pieces(context)
        )
        lines += [f"## {path}", "", f"    {path} {usage}", "", plain_markdown(command.help or ""), ""]
        lines += ["| argument or option | meaning |", "|---|---|"]
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None:
                name, meaning = (cell.replace("|", "\\|") for cell in record)
                lines.append(f"| `{name}` | {meaning.replace('<', '&lt;')} |")
        lines.append("")
    return "\n".join(lines)


def commands() -> Iterator[tuple[str, Any]]:
    """All commands that do something, by what one types."""

    def walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "commands"):
            yield path, command
            return
        for name, inner in command.commands.items():
            yield from walk(f"{path} {name}", inner)

    return walk("rqmoe", typer.main.get_command(app))


def plain_markdown(text: str) -> str:
    """Help as Markdown: what a terminal prints bold is a command."""
    return re.sub(r"\[bold\](.*?)\[/bold\]", r"`\1`", text, flags=re.DOTALL).replace("\\[", "[")


def result_reference() -> str:
    """What public functions and methods return and is not public by name: queries, reports, handles."""
    lines = ["# Queries and reports", ""]
    lines += ["What the public functions and methods return. You never make these yourself.", ""]
    package = griffe.load("rqmoe_store", search_paths=[str(ROOT)])
    for path in result_classes(package):
        lines += [f"::: {path}", "    options:", "      heading_level: 2", ""]
    return "\n".join(lines)


def result_classes(package: griffe.Module) -> list[str]:
    """Where the classes are defined that public functions, methods and attributes yield."""
    public = [resolved(package[name]) for name in package.exports or [] if name != "__version__"]
    found: dict[str, None] = {}
    waiting = list(public)
    while waiting:
        for path in yielded_paths(waiting.pop(0)):
            if path in found or not path.startswith("rqmoe_store."):
                continue
            target = resolved(package[path.removeprefix("rqmoe_store.")])
            if target.is_class and target not in public:
                found[path] = None
                waiting.append(target)
    return list(found)


def yielded_paths(item: Any) -> Iterator[str]:
    """Names in the annotations of what a public function returns, or of the public members of a class."""
    if item.is_class:
        for name, member in item.all_members.items():
            if not name.startswith("_") and member.has_docstring:
                yield from yielded_paths(resolved(member))
        return
    annotation = item.returns if item.is_function else getattr(item, "annotation", None)
    if isinstance(annotation, griffe.Expr):
        for part in annotation.iterate():
            if isinstance(part, griffe.ExprName):
                yield part.canonical_path


def resolved(item: Any) -> Any:
    """The object itself, where a name was only imported."""
    return item.final_target if item.is_alias else item
