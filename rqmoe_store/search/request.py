"""What a query asks for, checked and complete.

Shape suffixes: Q queries, D dimension.
"""

import dataclasses

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.search.reach import Reach, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """What a query asks for; checked."""

    queries_QD: Float32Array
    where: str | None = None
    """A checked condition."""
    where_text: str = ""
    """The same as the user wrote it, for plans."""
    prefilter: bool = True
    limit: int
    offset: int = 0
    reach: Reach
    stages: tuple[Stage, ...]
    """Of its ranking, as far as it is needed."""
    diversity: float | None = None
    """The lambda of maximal marginal relevance; None for the nearest rows."""
    lower: float | None = None
    upper: float | None = None

    @property
    def shortlist(self) -> int:
        """Rows decoded at most, per side of a lower bound."""
        return self.stages[-1].shortlist

    @property
    def refined(self) -> int | None:
        """Rows to order by their raw vectors; None for none."""
        return self.stages[-1].refined
