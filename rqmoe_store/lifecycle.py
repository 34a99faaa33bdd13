"""What a table goes through: raw rows, a first codec, further ones, and upkeep."""

import datetime
import warnings
from typing import Any, Literal

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.vectors import as_vectors
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.contents import TableContents
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store import databases
from rqmoe_store.store.background import BackgroundEncoding
from rqmoe_store.store.generation_changes import add_generation, sampled_vectors
from rqmoe_store.store.progress import progress_bar
from rqmoe_store.store.reencoding import Reencoded, reencode_table, stale_filter
from rqmoe_store.store.snapshot import Snapshot
from rqmoe_store.store.statistics import disk_bytes
from rqmoe_store.store.unused_codecs import GRACE, remove_unused
from rqmoe_store.store.upkeep import OptimizeReport, tidy
from rqmoe_store.training.trainer import train

ROWS_TO_TRAIN = 10_000
"""Raw rows from which `optimize` trains the first codec of a table."""


Encode = bool | Literal["background"]
"""Whether the rows that there are get codes before a call returns, after it has, or not by it."""


class LifecycleTable(TableContents):
    """A table that can be trained, and kept in good order."""

    encoding: BackgroundEncoding | None = None
    """What was begun last, through this handle, by `encode_in_background` or alike; None if nothing was."""

    def train(
        self,
        training: TrainConfig | None = None,
        *,
        vectors: Any = None,
        encode: Encode = True,
        progress: bool = True,
    ) -> Codec:
        """Train the first codec of the table on its raw rows, and encode them.

        Args:
            training: how to train; None for the defaults of TrainConfig.
            vectors: (n, D) to train on instead.
            encode: "background" to return once there is a codec and go on as `encode_in_background`, with
                progress in `encoding`; False to leave the rows that there are to `optimize`.
            progress: show progress bars.

        Returns:
            The codec. From now on it encodes what is added.

        Raises:
            TableError: the table has a codec already (`retrain` gives it another), be it that another process
                was quicker; or no raw rows.
            InvalidInputError: as `rqmoe_store.train`, or another word for `encode`.
            StorageError: the disk or bucket refuses to take codec or codes; rows that have none stay raw.
        """
        self.refresh()
        if self.codecs.newest is not None:
            raise TableError(f"Table {self.name!r} has a codec already; give it another one with retrain().")
        _require_encode(encode)
        config = self.codecs.marks.config
        codec = self._trained(training, vectors, config, progress)
        if not self._adopted(codec, config, first=True):
            raise TableError(
                f"Table {self.name!r} was given a codec by another process while this one was trained. That "
                "one stays, and nothing was written; go on with optimize(), or replace it with retrain()."
            )
        self._encode(encode, progress)
        return codec

    def retrain(
        self,
        training: TrainConfig | None = None,
        *,
        vectors: Any | Literal["decoded"] = None,
        config: CodecConfig | None = None,
        encode: Encode = True,
        progress: bool = True,
    ) -> Codec:
        """Train another codec and bring all rows to it, a part at a time; searches find every row meanwhile.

        Interrupted, it can be finished by `optimize`, which any process may call. A row whose raw vector is
        gone is decoded by the old codec and encoded by the new one: what the old one lost stays lost, and the
        new one loses a little more. With raw vectors kept (`keep_vectors`) nothing is lost.

        Args:
            training: how to train; None for the defaults of TrainConfig.
            vectors: (n, D) to train on; None for the raw vectors that the table has, "decoded" for what its
                codes decode to, of which a codec cannot learn what the old one lost.
            config: of the new codec, with the metric and code bytes of the table; None for the same.
            encode: as for `train`.
            progress: show progress bars.

        Returns:
            The new codec.

        Raises:
            TableError: no vectors to train on.
            InvalidInputError: as `rqmoe_store.train`, or a config of another metric or code size.
            StorageError: as `train`; rows that were not reached keep the codes that they have.
        """
        self.refresh()
        config = self.codecs.marks.config if config is None else config
        lost = self.table.count_rows(self.columns.decoded_filter)
        if lost:
            warnings.warn(
                f"{lost:,} rows of table {self.name!r} have codes only: they are decoded by the old codec "
                "and encoded by the new one, which adds its own error to what the old one lost.",
                stacklevel=3,
            )
        _require_encode(encode)
        codec = self._trained(training, vectors, config, progress)
        self._adopted(codec, config, first=False)
        self._encode(encode, progress)
        return codec

    def encode_in_background(self) -> BackgroundEncoding:
        """Begin to encode, in a thread, rows that are raw or of an older codec; return at once.

        Searches and writes go on meanwhile, through this handle and others, and find every row. While one is
        under way that was begun through this handle, it is that one which goes on, with these rows as well.
        What is not done when the process ends is left to another call, of any process, or to `optimize`.

        Returns:
            What tells how far it is, waits for it and stops it; `encoding` is the same from now on.

        Raises:
            TableError: an earlier version is checked out.
        """
        self.refresh()
        if self.encoding is None or not self.encoding.takes_more():
            self.encoding = BackgroundEncoding(self.table, self.codecs)
        return self.encoding

    def optimize(
        self,
        *,
        training: TrainConfig | None = None,
        train_from: int | None = ROWS_TO_TRAIN,
        cleanup_older_than: datetime.timedelta | None = None,
        codecs_older_than: datetime.timedelta = GRACE,
        progress: bool = True,
    ) -> OptimizeReport:
        """Encode what is raw or of an older codec, merge small files, bring indexes up to date, clean up.

        Every row that was encoded takes its code's bytes instead of its vector's once versions older than
        `cleanup_older_than` have gone. Before a vector goes, a sample is decoded from disk and compared.
        Then codecs are removed that nothing in the database needs: no row of any version, of any table, that
        can still be restored. What this handle is encoding in the background is stopped, and done here.

        Args:
            training: how to train the first codec of a table that has none; None for the defaults.
            train_from: raw rows from which that is done, but no fewer than a codec of the table's config can
                be trained on; None for never.
            cleanup_older_than: versions older than this cannot be restored any more; None for 7 days. Zero
                makes room at once; other processes must not be writing then. Versions that a tag or a branch
                keeps stay.
            codecs_older_than: codecs that nothing needs stay until they were saved, and replaced, longer ago
                than this; 7 days. Shorter only while no other process writes to any table of the database.
            progress: show progress bars.

        Raises:
            TableError: a codec does not fit the vectors; these stay.
            StorageError: the disk or bucket refuses a write; what was not done yet is left as it was.
        """
        self.refresh()
        before = disk_bytes(self.table)
        if self.encoding is not None:
            self.encoding.stop()
        trained = self.is_due_for_training(train_from)
        if trained:
            config = self.codecs.marks.config
            codec = self._trained(training, None, config, progress)
            trained = self._adopted(codec, config, first=True)  # if others were quicker, theirs is used
        encoded = self._reencode(progress)
        tidy(self.table, self.codecs, cleanup_older_than)
        self.refresh()
        removed = remove_unused(databases.database_of(self.table), codecs_older_than)
        return OptimizeReport(
            trained=trained,
            encoded=encoded,
            raw_rows=self.table.count_rows(self.columns.raw_filter),
            bytes_before=before,
            bytes_after=disk_bytes(self.table),
            removed=removed,
        )

    def is_due_for_training(self, train_from: int | None = ROWS_TO_TRAIN) -> bool:
        """Whether `optimize(train_from=train_from)` would train a first codec."""
        return self.snapshots.read(lambda snapshot: self._is_due(snapshot, train_from))

    def _is_due(self, snapshot: Snapshot, train_from: int | None) -> bool:
        if train_from is None or snapshot.codecs.newest is not None:
            return False
        rows = max(train_from, snapshot.codecs.marks.config.least_training_rows)
        # All rows are counted first: that takes no look at them.
        return snapshot.rows >= rows and snapshot.dataset.count_rows(self.columns.raw_filter) >= rows

    def _trained(
        self, training: TrainConfig | None, vectors: Any, config: CodecConfig, progress: bool
    ) -> Codec:
        """Another codec for the table, which does not have it yet."""
        training = TrainConfig(progress=progress) if training is None else training
        if vectors is None or (isinstance(vectors, str) and vectors == "decoded"):
            vectors = sampled_vectors(
                self.table,
                self.codecs,
                decoded=vectors is not None,
                max_rows=training.max_rows,
                seed=training.seed,
            )
        checked = as_vectors(vectors, dim=self.dim, metric=self.metric)
        return train(checked, config=config, training=training)

    def _adopted(self, codec: Codec, config: CodecConfig, *, first: bool) -> bool:
        """Make a codec the newest of the table; says whether it is. See `add_generation`."""
        added = add_generation(self.table, codec, config, self.codecs, first=first)
        self.refresh()
        return added

    def _encode(self, encode: Encode, progress: bool) -> None:
        if encode == "background":
            self.encode_in_background()
        elif encode:
            self._reencode(progress)

    def _reencode(self, progress: bool) -> Reencoded:
        self.refresh()
        if self.codecs.newest is None:
            return Reencoded()
        with progress_bar(progress) as bar:
            rows = self.table.count_rows(stale_filter(self.columns, self.codecs))
            task = bar.add_task("Encoding", total=rows)
            done = reencode_table(self.table, self.codecs, lambda count: bar.advance(task, count))
        self.refresh()
        return done


def _require_encode(encode: object) -> None:
    if not (isinstance(encode, bool) or encode == "background"):
        raise InvalidInputError(f"Got encode={encode!r}; expected True, False or 'background'.")
