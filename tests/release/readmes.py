"""READMEs as package indexes show them: with links that lead to the repository, or none."""

import posixpath
import re
from pathlib import Path

from release.distributions import DISTRIBUTIONS, core_version

FILE_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
"""A link of Markdown to a file, or a picture: mark of a picture, words, path, place on the page."""


def publish_readmes(sources: Path, repository: str | None) -> None:
    """Have `published` change the READMEs of all distributions in a copy of the repository."""
    for distribution in DISTRIBUTIONS:
        readme = sources / distribution.folder / "README.md"
        readme.write_text(published(readme.read_text(), distribution.folder, repository))


def published(readme: str, folder: str, repository: str | None) -> str:
    """A README with links to the files of the release, or with their words alone where no address is known.

    Args:
        readme: Markdown.
        folder: where it is, from the root of the repository.
        repository: address of the repository on a forge, such as https://github.com/OWNER/NAME; None if it is
            not known.
    """

    def link(found: re.Match[str]) -> str:
        picture, words, path, place = found.groups()
        if repository is None:
            return words
        kind, target = "raw" if picture else "blob", posixpath.normpath(posixpath.join(folder, path))
        address = f"{repository.rstrip('/')}/{kind}/v{core_version()}/{target}"
        return f"{picture}[{words}]({address}{place or ''})"

    return FILE_LINK.sub(link, readme)
