"""Disks that are full and folders that cannot be written to; tests are skipped where neither can be made."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot {' '.join(map(str, command))}: {done.stderr.strip()}")


class SmallDisk:
    """A disk of a few megabytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """Where it is mounted."""

    @property
    def free(self) -> int:
        """Bytes that fit on it."""
        state = os.statvfs(self.path)
        return state.f_bavail * state.f_frsize

    @contextlib.contextmanager
    def filled(self, leave: int) -> Iterator[None]:
        """The disk with no more than `leave` bytes of room."""
        filler = self.path / "filler"
        try:
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, self.free - leave))
            yield
        finally:
            filler.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[SmallDisk]:
    """A disk in memory, mounted at a new folder."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    path.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", path)
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[None]:
    """The folder without a right to write to it: root is only kept from it by the mount."""
    if os.name != "posix":
        pytest.skip("takes a system with permissions or mounts as POSIX has them")
    if os.geteuid() == 0:
        _run("mount", "--bind", path, path)
        try:
            _run("mount", "-o", "remount,bind,ro", path)
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(path)], check=True)
        return
    everything = [path, *path.rglob("*")]
    modes = [each.stat().st_mode for each in everything]
    try:
        for each, mode in zip(everything, modes, strict=True):
            each.chmod(mode & ~0o222)
        yield
    finally:
        for each, mode in zip(everything, modes, strict=True):
            each.chmod(mode)
