"""A place to stop just before commits."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import lance
import pytest


@contextlib.contextmanager
def before_commits(act: Callable[[], Any]) -> Iterator[None]:
    """As long as it is open, `act` is called before this process commits rows to any table."""
    commit = lance.LanceDataset.commit

    def committing(*args: Any, **options: Any) -> Any:
        act()
        return commit(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lance.LanceDataset, "commit", staticmethod(committing))
        yield
