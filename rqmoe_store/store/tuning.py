"""The search setting that a table was tuned to, kept in its metadata.

In that of the table, not of its schema: a table made from the rows of this one is not a tuned one.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Self

from lancedb.table import LanceTable

from rqmoe_store.errors import TableError
from rqmoe_store.refusals import names_refusals
from rqmoe_store.store import databases
from rqmoe_store.store.metadata import PREFIX
from rqmoe_store.store.stored_values import json_object, readable_text, require_types

KEY = PREFIX + "tuned_search"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TunedSearch:
    """What searches of a table use unless they ask for something else."""

    nprobes: int
    """Partitions searched."""
    shortlist: int
    """Rows decoded and reranked."""
    limit: int
    """Rows per query that the shortlist was chosen for."""
    target_recall: float
    """Share of them that was to be found."""

    @classmethod
    def read(cls, metadata: Mapping[str, str], table_name: str) -> Self | None:
        """The setting kept in a table's metadata; None for one that was never tuned.

        Raises:
            TableError: it is not what `write` wrote.
        """
        text = metadata.get(KEY)
        if text is None:
            return None
        try:
            return cls._parsed(text)
        except (TypeError, ValueError) as error:
            raise TableError(
                f"Metadata {KEY!r} of table {table_name!r} is {text!r}; expected what tune() wrote. Tune the "
                "table again, or restore an earlier version of it."
            ) from error

    @classmethod
    def _parsed(cls, text: str) -> Self:
        setting = require_types(cls(**json_object(text)))
        if min(setting.nprobes, setting.shortlist, setting.limit) < 1 or not 0 < setting.target_recall <= 1:
            raise ValueError("a number is out of its range")
        return setting

    @names_refusals
    def write(self, table: LanceTable) -> None:
        """Keep the setting in the newest version of `table`; only metadata is written.

        Of several writers the last one wins. The handle itself stays at the version it is at.

        Raises:
            TableError: it could not be read again; nothing is written then.
        """
        text = readable_text(self, json.dumps(dataclasses.asdict(self)), self._parsed)
        while True:
            dataset = databases.reopened(table).to_lance()
            try:
                dataset.update_metadata({KEY: text})
            except OSError:
                # Two writers of one key are a conflict: the one that comes second starts again.
                if dataset.latest_version == dataset.version:
                    raise
            else:
                return
