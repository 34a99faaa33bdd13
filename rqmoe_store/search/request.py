"""What a query asks for, checked and complete.

Shape suffixes: Q queries, D dimension.
"""

import dataclasses

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.search.reach import Origin


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
    nprobes: int
    nprobes_from: Origin = "asked for"
    shortlist: int
    shortlist_from: Origin = "asked for"
    refined: int | None = None
    """Rows to order by their raw vectors; None for none."""
    diversity: float | None = None
    """The lambda of maximal marginal relevance; None for the nearest rows."""
    lower: float | None = None
    upper: float | None = None
