"""What processes are killed in: each operation, ready to begin, once for all tests of a module.

`make test` has one of them, and a few kills of an ingestion; `make test-slow` has the others.
"""

from pathlib import Path

import pytest
from killed.operation import Operation
from killed.operations import OPERATIONS, VARIANTS

SMOKE = "train"
"""The operation of `make test`: several commits to the table and one to the table of codecs."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(each, marks=() if each.name == SMOKE else pytest.mark.slow)
        for each in (*OPERATIONS, *VARIANTS)
    ],
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
