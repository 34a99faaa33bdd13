"""Training and upkeep without keeping an event loop waiting."""

import asyncio
import functools
import os
from typing import Any

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import TrainConfig
from rqmoe_store.exports.report import ExportReport
from rqmoe_store.search.threads import in_thread
from rqmoe_store.search.tuning_report import TuningReport
from rqmoe_store.store.background import BackgroundEncoding
from rqmoe_store.store.health import HealthReport
from rqmoe_store.store.reencoding import Reencoded
from rqmoe_store.store.upkeep import OptimizeReport
from rqmoe_store.table import CompressedTable
from rqmoe_store.verification.report import VerifyReport

_LOOK_EVERY = 0.05
"""Seconds between looks whether a thread has ended. A thread of the pool that waited for it would keep the
interpreter from exiting."""


class AsyncBackgroundEncoding:
    """Rows being encoded by the newest codec of a table, in a thread of this process; `BackgroundEncoding`
    says how."""

    def __init__(self, blocking: BackgroundEncoding) -> None:
        self.blocking = blocking
        """The same, with calls that wait; `running`, `rows_encoded` and `rows_left` say how far it is."""

    async def wait(self, timeout: float | None = None) -> Reencoded:
        """Wait until it has ended; takes and raises what `BackgroundEncoding.wait` does."""
        async with asyncio.timeout(timeout):
            while self.blocking.running:
                await asyncio.sleep(_LOOK_EVERY)
        return self.blocking.wait()

    async def stop(self) -> None:
        """Have it end before its next batch of rows, and wait for that. What was committed stays."""
        await in_thread(self.blocking.stop)


class AsyncLifecycle:
    """What a table goes through, awaited; methods take and raise what those of `CompressedTable` do."""

    blocking: CompressedTable

    async def train(self, training: TrainConfig | None = None, **options: Any) -> Codec:
        """Train the first codec of the table, and encode its rows."""
        return await in_thread(functools.partial(self.blocking.train, training, **options))

    async def retrain(self, training: TrainConfig | None = None, **options: Any) -> Codec:
        """Train another codec and bring all rows to it."""
        return await in_thread(functools.partial(self.blocking.retrain, training, **options))

    async def encode_in_background(self) -> AsyncBackgroundEncoding:
        """Begin to encode, in a thread, rows that are raw or of an older codec; return at once."""
        return AsyncBackgroundEncoding(await in_thread(self.blocking.encode_in_background))

    @property
    def encoding(self) -> AsyncBackgroundEncoding | None:
        """What was begun last by `encode_in_background` or alike; None if nothing was."""
        encoding = self.blocking.encoding
        return None if encoding is None else AsyncBackgroundEncoding(encoding)

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
