"""Problems and advice, gathered while a table is read."""

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from rqmoe_store.store.lance_failures import panics_as_errors

_NAMED = 5
_PLACE_IN_LANCE = re.compile(r",? \S+\.rs:\d+:\d+")


class Findings:
    """What was found so far."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        """Damage."""
        self.advice: list[str] = []
        """What could be better."""
        self._rows: dict[str, _Rows] = {}

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Note an error as a problem, which begins with `what`, and go on.

        Errors of all classes: what damaged data leads to, Lance has no class of its own for.
        """
        try:
            with panics_as_errors():
                yield
        except Exception as error:
            self.problems.append(f"{what}: {in_words(error)}")

    def rows(self, problem: str, row_ids: npt.NDArray[np.uint64]) -> None:
        """Note rows that have a problem, such as "rows have a code without a partition"."""
        if len(row_ids):
            found = self._rows.setdefault(problem, _Rows())
            found.count += len(row_ids)
            found.first += row_ids[: _NAMED - len(found.first)].tolist()

    @property
    def all_problems(self) -> Iterable[str]:
        """All of them, those of rows with how many there are and the ids of the first."""
        yield from self.problems
        for problem, found in self._rows.items():
            more = " and others" if found.count > len(found.first) else ""
            yield f"{found.count:,} {problem}: _rowid {', '.join(map(str, found.first))}{more}"


@dataclasses.dataclass
class _Rows:
    count: int = 0
    first: list[int] = dataclasses.field(default_factory=list)


def in_words(error: Exception) -> str:
    """What an error says, without the places in Lance's source that it comes from."""
    return _PLACE_IN_LANCE.sub("", str(error)).strip() or type(error).__name__
