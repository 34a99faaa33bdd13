"""Wheels and sdists hold the packages and what describes them: no tests, no data, no caches."""

import shutil
import zipfile

import pytest
from release.archives import Archives, build_archives, check_archives, check_description
from release.distributions import CORE, DISTRIBUTIONS, INTEGRATIONS, copy_tracked_files


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of the repository, with what a used one has lying about in and beside the packages."""
    folder = tmp_path_factory.mktemp("sources")
    copy_tracked_files(folder)
    for distribution in DISTRIBUTIONS:
        root = folder / distribution.folder
        package = root / distribution.source / distribution.package
        for place in ["__pycache__/left.cpython-311.pyc", "left.npy", "left.lance/data.txt"]:
            (package / place).parent.mkdir(exist_ok=True)
            (package / place).write_text("left behind")
        for place in ["data/left.lance", "build/lib/left.py", ".venv/left.py", ".pytest_cache/left"]:
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).write_text("left = 1")
    return folder


def check_built(distribution, sources, target):
    archives = build_archives(distribution, sources=sources, target=target, isolated=False)
    check_description(archives)
    check_archives(distribution, archives)
    return archives


@pytest.fixture(scope="module")
def core(sources, tmp_path_factory):
    return check_built(CORE, sources, tmp_path_factory.mktemp("dist"))


def test_core_holds_what_it_should(core):
    assert core.wheel.stat().st_size > 100_000
    assert core.sdist.stat().st_size > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("integration", INTEGRATIONS, ids=lambda integration: integration.name)
def test_integration_holds_what_it_should(integration, sources, tmp_path):
    check_built(integration, sources, tmp_path)


@pytest.mark.parametrize(
    "name", ["rqmoe_store/tests/test_table.py", "rqmoe_store/left.npy", "data/left.lance"]
)
def test_additional_file_is_found(core, name, tmp_path):
    wheel = tmp_path / core.wheel.name
    shutil.copy(core.wheel, wheel)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(name, "left behind")
    with pytest.raises(AssertionError, match=f"should not have .*{name}"):
        check_archives(CORE, Archives(wheel, core.sdist))


def test_missing_file_is_found(core, tmp_path):
    wheel = tmp_path / core.wheel.name
    with zipfile.ZipFile(core.wheel) as whole, zipfile.ZipFile(wheel, "w") as part:
        for name in whole.namelist():
            if not name.endswith("py.typed"):
                part.writestr(name, whole.read(name))
    with pytest.raises(AssertionError, match=r"lacks .*rqmoe_store/py\.typed"):
        check_archives(CORE, Archives(wheel, core.sdist))
