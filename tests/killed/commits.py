"""Everything that commits a change to a table, with a place to stop just before or just after it."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import lance
import pytest
from lance.dataset import LanceDataset, MergeInsertBuilder
from lancedb.db import LanceDBConnection
from lancedb.table import LanceTable

COMMITTING = {
    lance: ["write_dataset"],
    LanceDataset: [
        "commit",
        "add_columns",
        "cleanup_old_versions",
        "update_metadata",
        "update_schema_metadata",
    ],
    MergeInsertBuilder: ["execute"],
    LanceTable: [
        "add",
        "alter_columns",
        "create_index",
        "delete",
        "drop_index",
        "optimize",
        "restore",
        "update",
    ],
    LanceDBConnection: ["create_table", "drop_table"],
    os: ["replace"],
}
"""What the package calls to commit something, by its place."""


class Commits:
    """How many commits there have been."""

    begun = 0
    done = 0


@contextlib.contextmanager
def watched_commits(watch: Callable[[Commits], Any]) -> Iterator[Commits]:
    """As long as it is open, `watch` is called before and after every commit of this process."""
    commits = Commits()
    with pytest.MonkeyPatch.context() as patch:
        for owner, names in COMMITTING.items():
            for name in names:
                patch.setattr(owner, name, _watched(owner.__dict__[name], commits, watch))
        yield commits


def _watched(commit: Any, commits: Commits, watch: Callable[[Commits], Any]) -> Any:
    static = isinstance(commit, staticmethod)
    function = commit.__func__ if static else commit

    @functools.wraps(function)
    def committing(*args: Any, **options: Any) -> Any:
        commits.begun += 1
        watch(commits)
        result = function(*args, **options)
        commits.done += 1
        watch(commits)
        return result

    return staticmethod(committing) if static else committing
