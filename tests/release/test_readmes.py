"""Links of published READMEs lead to files of the release, or are words where no address is known."""

import re

import pytest
from release.distributions import DISTRIBUTIONS, ROOT, core_version, tracked_files
from release.readmes import FILE_LINK, publish_readmes, published

REPOSITORY = "https://forge.example/owner/name"
LINK_INTO_NOTHING = re.compile(r"\]\((?![a-z]+:|#)")


@pytest.fixture(params=DISTRIBUTIONS, ids=lambda distribution: distribution.name)
def distribution(request):
    return request.param


@pytest.fixture
def readme(distribution) -> str:
    return (ROOT / distribution.folder / "README.md").read_text()


def test_links_lead_to_files_of_the_release(distribution, readme) -> None:
    shown = published(readme, distribution.folder, f"{REPOSITORY}/")
    paths = re.findall(rf"\]\({REPOSITORY}/(?:raw|blob)/v{re.escape(core_version())}/([^)#]+)", shown)
    assert len(paths) == len(FILE_LINK.findall(readme)) > 0
    assert set(paths) <= {str(path) for path in tracked_files()}
    assert not LINK_INTO_NOTHING.search(shown)


def test_words_are_left_without_an_address(distribution, readme) -> None:
    shown = published(readme, distribution.folder, None)
    assert not LINK_INTO_NOTHING.search(shown)
    assert all(words in shown for _, words, _, _ in FILE_LINK.findall(readme))


def test_pictures_and_places_on_a_page() -> None:
    shown = published("![Recall](docs/a.svg) [b](../b.md#c) [d](#e) [f](https://g)", "in/here", REPOSITORY)
    version = core_version()
    assert shown == (
        f"![Recall]({REPOSITORY}/raw/v{version}/in/here/docs/a.svg) "
        f"[b]({REPOSITORY}/blob/v{version}/in/b.md#c) [d](#e) [f](https://g)"
    )


def test_all_are_published(tmp_path) -> None:
    for each in DISTRIBUTIONS:
        (tmp_path / each.folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / each.folder / "README.md").write_text("[guide](docs/guide.md)")
    publish_readmes(tmp_path, REPOSITORY)
    for each in DISTRIBUTIONS:
        assert f"]({REPOSITORY}/blob/" in (tmp_path / each.folder / "README.md").read_text()
