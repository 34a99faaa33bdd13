"""Build wheels and sdists, and compare what is in them with the files that git tracks."""

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from release.distributions import CORE, ROOT, Distribution, core_version, package_files
from release.versions import core_requirement


@dataclass(frozen=True)
class Archives:
    """The wheel and the sdist of a distribution."""

    wheel: Path
    sdist: Path


def build_archives(
    distribution: Distribution, *, sources: Path, target: Path, isolated: bool = True
) -> Archives:
    """Build the sdist from a copy of the repository, and the wheel from the sdist alone.

    Isolated, the build takes setuptools from the package index; otherwise, that of this environment.
    """
    command = [sys.executable, "-m", "build", "--outdir", str(target)]
    command += [] if isolated else ["--no-isolation"]
    done = subprocess.run(
        [*command, str(sources / distribution.folder)],
        env={**os.environ, "PIP_CONSTRAINT": str(CORE.constraints)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"building {distribution.name} failed:\n{done.stdout}")
    stem = f"{distribution.file_stem}-{core_version()}"
    return Archives(target / f"{stem}-py3-none-any.whl", target / f"{stem}.tar.gz")


def check_description(archives: Archives) -> None:
    """Have twine check that package indexes can show the README."""
    command = [sys.executable, "-m", "twine", "check", "--strict", archives.wheel, archives.sdist]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"twine check failed:\n{done.stdout}")


def check_archives(distribution: Distribution, archives: Archives) -> None:
    """Raise `AssertionError` unless wheel and sdist hold what they should, and nothing else.

    That is the tracked files of the packages, and what describes them: no tests, data or caches.
    """
    stem = f"{distribution.file_stem}-{core_version()}"
    with zipfile.ZipFile(archives.wheel) as wheel:
        _require_files(archives.wheel, set(wheel.namelist()), wheel_files(distribution))
        _check_metadata(distribution, email.message_from_bytes(wheel.read(f"{stem}.dist-info/METADATA")))
        _require_license(archives.wheel, wheel.read(f"{stem}.dist-info/licenses/LICENSE"))
    with tarfile.open(archives.sdist) as sdist:
        files = {member.name.removeprefix(f"{stem}/"): member for member in sdist if not member.isdir()}
        _require_files(archives.sdist, set(files), sdist_files(distribution))
        license_file = sdist.extractfile(files["LICENSE"])
        _require_license(archives.sdist, license_file.read() if license_file else b"")


def wheel_files(distribution: Distribution) -> set[str]:
    """What its wheel consists of."""
    described = {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE", "top_level.txt"}
    if "scripts" in distribution.settings["project"]:
        described.add("entry_points.txt")
    stem = f"{distribution.file_stem}-{core_version()}"
    return package_files(distribution) | {f"{stem}.dist-info/{name}" for name in described}


def sdist_files(distribution: Distribution) -> set[str]:
    """What its sdist consists of."""
    source = "" if distribution.source == "." else f"{distribution.source}/"
    described = {"PKG-INFO", "SOURCES.txt", "dependency_links.txt", "requires.txt", "top_level.txt"}
    if "scripts" in distribution.settings["project"]:
        described.add("entry_points.txt")
    beside = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    if distribution is CORE:
        beside.add("CHANGELOG.md")
    return (
        beside
        | {f"{source}{name}" for name in package_files(distribution)}
        | {f"{source}{distribution.file_stem}.egg-info/{name}" for name in described}
    )


def _require_files(archive: Path, files: set[str], expected: set[str]) -> None:
    missing, unexpected = sorted(expected - files), sorted(files - expected)
    assert not (missing or unexpected), f"{archive.name} lacks {missing} and should not have {unexpected}"
    assert any(name.endswith("/py.typed") for name in files), f"{archive.name} has no py.typed"


def _require_license(archive: Path, text: bytes) -> None:
    assert text == (ROOT / "LICENSE").read_bytes(), f"{archive.name} has another LICENSE than the repository"


def _check_metadata(distribution: Distribution, metadata: Message) -> None:
    assert metadata["Name"] == distribution.name
    assert metadata["Version"] == core_version()
    assert metadata["License-Expression"] == "Apache-2.0"
    if distribution is not CORE:
        required = [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need]
        core = [need for need in required if need.startswith(CORE.name)]
        assert len(core) == 1 and core[0].endswith(core_requirement(core_version())), core
