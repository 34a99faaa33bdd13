"""All distributions have one version, and the integrations require that of the core."""

import re
import tomllib
from pathlib import Path

import pytest
from release.distributions import CORE, DISTRIBUTIONS, INTEGRATIONS, ROOT, core_version
from release.versions import core_requirement, with_version

import rqmoe_store as rqs

ids = {"ids": lambda distribution: distribution.name}


def test_all_projects_are_known():
    found = {str(path.parent.relative_to(ROOT)) for path in ROOT.glob("integrations/*/pyproject.toml")}
    assert found | {"."} == {each.folder for each in DISTRIBUTIONS}


def test_version_is_read_as_it_is():
    assert core_version() == rqs.__version__


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, **ids)
def test_names_are_those_of_the_projects(distribution):
    assert distribution.settings["project"]["name"] == distribution.name


@pytest.mark.parametrize("integration", INTEGRATIONS, **ids)
def test_integration_has_version_of_core(integration):
    project = integration.settings["project"]
    needs = [need for need in project["dependencies"] if need.startswith(CORE.name)]
    assert project["version"] == core_version(), "run `make versions`"
    assert [re.sub(r"\[.*\]", "", need) for need in needs] == [
        f"{CORE.name}{core_requirement(core_version())}"
    ], "run `make versions`"


@pytest.mark.parametrize("integration", INTEGRATIONS, **ids)
def test_another_version_is_copied_and_nothing_else_changes(integration):
    before = (ROOT / integration.folder / "pyproject.toml").read_text()
    after = with_version(before, "12.3.4")
    project = tomllib.loads(after)["project"]
    assert project["version"] == "12.3.4"
    assert [need.partition("~=")[2] for need in project["dependencies"] if need.startswith(CORE.name)] == [
        "12.3.4"
    ]
    assert with_version(after, core_version()) == before


def test_changelog_begins_with_the_version():
    assert (ROOT / "CHANGELOG.md").read_text().startswith(f"## {core_version()} (")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, **ids)
def test_license_is_the_same_everywhere(distribution):
    assert (ROOT / distribution.folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("integration", INTEGRATIONS, **ids)
def test_no_package_is_pinned_twice(integration):
    """The constraints of an integration include those of the core, and pip takes one version of a package."""
    assert pinned(CORE.constraints) & pinned(integration.constraints) == set()


def pinned(constraints: Path) -> set[str]:
    names = (line.partition("==")[0] for line in constraints.read_text().splitlines() if "==" in line)
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}
