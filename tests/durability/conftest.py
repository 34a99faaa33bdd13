"""What processes are killed in: each operation, ready to begin, once for all tests of a module."""

from pathlib import Path

import pytest
from killed.operation import Operation
from killed.operations import OPERATIONS, VARIANTS


@pytest.fixture(
    scope="module",
    params=[*OPERATIONS, *(pytest.param(each, marks=pytest.mark.slow) for each in VARIANTS)],
    ids=str,
)
def operation(request: pytest.FixtureRequest) -> Operation:
    chosen: Operation = request.param
    return chosen


@pytest.fixture(scope="module")
def template(operation: Operation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which no call has been made yet; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("template")
    operation.prepare(folder)
    assert operation.check(folder, 0) == 0
    return folder
