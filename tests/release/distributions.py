"""The five distributions of this repository: names, folders, packages and the version they share."""

import ast
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Distribution:
    """A project that is published on its own."""

    name: str
    folder: str
    """Where its pyproject.toml is, from the root of the repository."""
    source: str
    """The folder of its packages, from `folder`."""
    package: str
    """The top folder of its packages, from `source`."""

    @property
    def file_stem(self) -> str:
        """How the names of its archives begin."""
        return self.name.replace("-", "_")

    @property
    def settings(self) -> dict[str, Any]:
        """Its pyproject.toml."""
        return tomllib.loads((ROOT / self.folder / "pyproject.toml").read_text())

    @property
    def constraints(self) -> Path:
        """Exact versions of what it needs."""
        return ROOT / self.folder / "constraints.txt"

    @property
    def smoke_test(self) -> Path:
        """A script that uses it, for an environment that has nothing else."""
        return ROOT / self.folder / "tests" / "smoke.py"


CORE = Distribution("rqmoe-store", ".", ".", "rqmoe_store")
INTEGRATIONS = (
    Distribution("rqmoe-haystack", "integrations/haystack", "src", "haystack_integrations"),
    Distribution("langchain-rqmoe", "integrations/langchain", ".", "langchain_rqmoe"),
    Distribution("llama-index-vector-stores-rqmoe", "integrations/llama-index", ".", "llama_index"),
    Distribution("rqmoe-ray", "integrations/ray", ".", "rqmoe_ray"),
)
DISTRIBUTIONS = (CORE, *INTEGRATIONS)


def core_version() -> str:
    """The version in rqmoe_store/__init__.py, which all distributions share."""
    for statement in ast.parse((ROOT / "rqmoe_store" / "__init__.py").read_text()).body:
        match statement:
            case ast.Assign([ast.Name("__version__")], ast.Constant(str(version))):
                return version
    raise ValueError('rqmoe_store/__init__.py must say __version__ = "..."')


def tracked_files(folder: str = ".") -> list[PurePosixPath]:
    """Files that git tracks in `folder`, as paths from it."""
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT / folder, check=True, capture_output=True, text=True
    ).stdout
    paths = map(PurePosixPath, filter(None, listing.split("\0")))
    return [path for path in paths if (ROOT / folder / path).is_file()]


def package_files(distribution: Distribution) -> set[str]:
    """Files of its packages, as paths from its source folder."""
    source = f"{distribution.folder}/{distribution.source}"
    return {str(path) for path in tracked_files(source) if path.parts[0] == distribution.package}


def copy_tracked_files(target: Path) -> None:
    """Copy the repository without caches, environments and what earlier builds left behind."""
    for path in tracked_files():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, target / path)
