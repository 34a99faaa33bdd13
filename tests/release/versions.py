"""Copy the version of rqmoe_store/__init__.py into the integrations: what `make versions` does."""

import re

from release.distributions import INTEGRATIONS, ROOT, Distribution, core_version


def core_requirement(version: str) -> str:
    """What an integration accepts: this version of rqmoe-store and its bug fixes."""
    return f"~={version}"


def with_version(pyproject: str, version: str) -> str:
    """The text of an integration's pyproject.toml, with this version of its own and of the core."""
    pyproject, versions = re.subn(r"^version = .*$", f'version = "{version}"', pyproject, flags=re.MULTILINE)
    pyproject, requirements = re.subn(
        r'^    "rqmoe-store(\[[\w,-]+\])?[^"]*",',
        rf'    "rqmoe-store\1{core_requirement(version)}",',
        pyproject,
        flags=re.MULTILINE,
    )
    if (versions, requirements) != (1, 1):
        raise ValueError(
            f"pyproject.toml has {versions} lines 'version = ...' and {requirements} dependencies "
            "'\"rqmoe-store...\",' on a line of their own; expected one of each"
        )
    return pyproject


def write_version(integration: Distribution, version: str) -> None:
    path = ROOT / integration.folder / "pyproject.toml"
    path.write_text(with_version(path.read_text(), version))


if __name__ == "__main__":
    for each in INTEGRATIONS:
        write_version(each, core_version())
        print(f"{each.name} {core_version()}")
