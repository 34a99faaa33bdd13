"""Processes killed in the middle of what they do: the table opens, every row is there once, work goes on."""

import random
import shutil
from pathlib import Path

import pytest
from killed.ingestion import Ingest
from killed.operation import Operation, finish
from killed.processes import Run, run

_LIVES = 3
"""Processes that are killed one after the other at most, each going on where the one before was killed."""


@pytest.fixture(scope="module")
def seconds(operation, template, tmp_path_factory) -> float:
    """How long a process takes that nobody kills."""
    folder = shutil.copytree(template, tmp_path_factory.mktemp("whole") / "folder")
    whole = run(operation, folder)
    assert whole.finished and whole.acknowledged == operation.calls
    finish(operation, folder, operation.check(folder, whole.acknowledged))
    return whole.seconds


def killed_at(operation: Operation, template: Path, scratch: Path, moments: list[float]) -> list[Run]:
    """Kill processes at these moments, in seconds; some finish before. Returns those that did not."""
    killed = []
    for start in range(0, len(moments), _LIVES):
        folder, calls = shutil.copytree(template, scratch / str(start)), 0
        for moment in moments[start : start + _LIVES]:
            done = run(operation, folder, calls, kill_after=moment)
            calls = operation.check(folder, done.acknowledged)
            if done.finished:
                break
            killed.append(done)
        finish(operation, folder, calls)
    return killed


def killed_times(
    operation: Operation, template: Path, scratch: Path, seconds: float, times: int
) -> list[Run]:
    """Kill so many processes at random moments of what they do."""
    generator, killed = random.Random(0), []
    while len(killed) < times:
        moments = [generator.uniform(0, seconds) for _ in range(times - len(killed))]
        killed += killed_at(operation, template, scratch / str(len(killed)), moments)
    return killed


def test_killed_at_random_moments(operation, template, tmp_path, seconds):
    assert len(killed_times(operation, template, tmp_path, seconds, 3)) == 3


@pytest.mark.parametrize(
    "moment",
    [{"kill_at_block": 2}, {"kill_at_commit": 4}, {"kill_at_commit": 5}, {"kill_at_commit": 6}],
    ids=[
        "while rows are written",
        "before bad rows are kept",
        "between bad rows and good ones",
        "after a commit",
    ],
)
def test_an_ingestion_is_killed(tmp_path, moment):
    ingestion, folder = Ingest("ingest"), tmp_path / "folder"
    ingestion.prepare(folder)
    killed = run(ingestion, folder, **moment)
    assert not killed.finished and killed.committed > 0
    assert killed.committing == ("kill_at_commit" in moment)
    finish(ingestion, folder, ingestion.check(folder, killed.acknowledged))


@pytest.mark.slow
def test_killed_at_many_random_moments(operation, template, tmp_path, seconds):
    killed = killed_times(operation, template, tmp_path, seconds, 20)
    before = sum(not (each.committed or each.committing) for each in killed)
    committing = sum(each.committing for each in killed)
    between = len(killed) - before - committing
    print(f"| {operation} | {len(killed)} | {before} | {committing} | {between} |")
