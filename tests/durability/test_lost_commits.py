"""Processes that are lost, or interrupted, between any two commits of what they do."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from killed.commits import Commits, watched_commits
from killed.operation import finish
from killed.processes import run


@pytest.fixture
def folders(template, tmp_path) -> Iterator:
    """Copies of the template, numbered from 1."""
    return ((number, shutil.copytree(template, tmp_path / str(number))) for number in itertools.count(1))


def interruption(at: int, *, after: bool) -> Callable[[Commits], None]:
    """Ctrl-C before or after the commit of that number."""

    def interrupt(commits: Commits) -> None:
        if commits.begun == at and (commits.done == at) == after:
            raise KeyboardInterrupt

    return interrupt


def interrupted_everywhere(operation, folders, *, after: bool) -> int:
    """Interrupt an operation at one commit after the other; returns how many there are."""
    for number, folder in folders:
        target, calls, interrupted = operation.begin(folder), 0, False
        with watched_commits(interruption(number, after=after)):
            try:
                while calls < operation.kinds:
                    operation.call(target, calls)
                    calls += 1
            except KeyboardInterrupt:
                interrupted = True
        finish(operation, folder, operation.check(folder, calls), operation.kinds)
        if not interrupted:
            return number - 1
    raise AssertionError("there are endless folders")


def test_every_commit_is_known(operation, template, tmp_path):
    """No version comes about but in what `watched_commits` watches."""
    folder = shutil.copytree(template, tmp_path / "folder")
    target, versions = operation.begin(folder), [versions_in(folder)]

    def watch(commits: Commits) -> None:
        if commits.begun > commits.done:
            assert versions_in(folder) == versions[-1]
        versions.append(versions_in(folder))

    with watched_commits(watch):
        for number in range(operation.calls):
            operation.call(target, number)
    assert versions_in(folder) == versions[-1] and len(versions) > 1


def versions_in(folder: Path) -> set[Path]:
    return set((folder / "db").glob("*.lance/_versions/*"))


def test_interrupted_before_every_commit(operation, folders):
    assert interrupted_everywhere(operation, folders, after=False) >= 1


@pytest.mark.slow
def test_interrupted_after_every_commit(operation, folders):
    assert interrupted_everywhere(operation, folders, after=True) >= 1


@pytest.mark.slow
def test_killed_before_every_commit(operation, folders):
    for number, folder in folders:
        done = run(operation, folder, kill_at_commit=number)
        finish(operation, folder, operation.check(folder, done.acknowledged), operation.kinds)
        if done.finished or done.acknowledged >= operation.kinds:
            break
    assert number > 1
