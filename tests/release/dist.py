"""Build, check and try out wheels and sdists of all distributions: what `make dist` does."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from release.archives import Archives, build_archives, check_archives, check_description
from release.distributions import CORE, DISTRIBUTIONS, ROOT, Distribution, copy_tracked_files
from release.readmes import publish_readmes


def main(target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        built = build_all(Path(temporary), target)
    for distribution, archives in built.items():
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as temporary:
            # The integrations need the core of the same version, which no index has before its release.
            wheels = {archives.wheel, built[CORE].wheel}
            try_out(distribution, sorted(wheels), Path(temporary))
        print(f"tried out {archives.wheel.name} in {time.monotonic() - started:.0f} s", flush=True)


def build_all(sources: Path, target: Path) -> dict[Distribution, Archives]:
    """Build and check the archives of all distributions, from the files that git tracks.

    The environment variable REPOSITORY is the address that links of READMEs lead to.
    """
    copy_tracked_files(sources)
    publish_readmes(sources, os.environ.get("REPOSITORY") or None)
    built = {}
    for distribution in DISTRIBUTIONS:
        archives = build_archives(distribution, sources=sources, target=target)
        check_description(archives)
        check_archives(distribution, archives)
        print(f"built {archives.wheel} and {archives.sdist}", flush=True)
        built[distribution] = archives
    return built


def try_out(distribution: Distribution, wheels: list[Path], folder: Path) -> None:
    """Install wheels in an empty environment, and run the smoke test there."""
    environment = folder / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*install, "--constraint", distribution.constraints, *wheels], check=True)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    # Isolated and elsewhere, so that what is imported is what was installed.
    (folder / "work").mkdir()
    subprocess.run(
        [python, "-I", distribution.smoke_test],
        cwd=folder / "work",
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HAYSTACK_TELEMETRY_ENABLED": "False"},
        check=True,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist")
