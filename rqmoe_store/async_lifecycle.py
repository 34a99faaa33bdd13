"""Training and upkeep without keeping an event loop waiting."""

import functools
import os
from typing import Any

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import TrainConfig
from rqmoe_store.exports.report import ExportReport
from rqmoe_store.lifecycle import OptimizeReport
from rqmoe_store.search.threads import in_thread
from rqmoe_store.search.tuning_report import TuningReport
from rqmoe_store.store.health import HealthReport
from rqmoe_store.table import CompressedTable
from rqmoe_store.verification.report import VerifyReport


class AsyncLifecycle:
    """What a table goes through, awaited; methods take and raise what those of `CompressedTable` do."""

    blocking: CompressedTable

    async def train(self, training: TrainConfig | None = None, **options: Any) -> Codec:
        """Train the first codec of the table, and encode its rows."""
        return await in_thread(functools.partial(self.blocking.train, training, **options))

    async def retrain(self, training: TrainConfig | None = None, **options: Any) -> Codec:
        """Train another codec and bring all rows to it."""
        return await in_thread(functools.partial(self.blocking.retrain, training, **options))

    async def optimize(self, **options: Any) -> OptimizeReport:
        """Encode what is raw or of an older codec, merge small files, bring indexes up to date, clean up."""
        return await in_thread(functools.partial(self.blocking.optimize, **options))

    async def health(self) -> HealthReport:
        """Whether the newest codec still fits what is added."""
        return await in_thread(self.blocking.health)

    async def verify(self, *, progress: bool = True) -> VerifyReport:
        """Read the whole table, as it is now, and tell what is wrong with it."""
        return await in_thread(functools.partial(self.blocking.verify, progress=progress))

    async def export(self, path: str | os.PathLike[str], **options: Any) -> ExportReport:
        """Write all rows, as they are now, to files that others can read."""
        return await in_thread(functools.partial(self.blocking.export, path, **options))

    async def tune(self, queries: Any = None, **options: Any) -> TuningReport:
        """Choose the partitions to search and the rows to rerank, and keep the choice with the table."""
        return await in_thread(functools.partial(self.blocking.tune, queries, **options))
