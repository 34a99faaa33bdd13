"""Ingestion of sources of any size, each row exactly once, by the workers of a cluster."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray

import rqmoe_store as rqs
from rqmoe_ray.batches import dataset_schema, plain_table
from rqmoe_ray.places import table_at
from rqmoe_ray.resources import Resources, choose_resources
from rqmoe_store.distributed import (
    COMMIT_ROWS,
    PART_BYTES,
    IngestSettings,
    OnBadRows,
    Part,
    PartWork,
    PartWriter,
    WrittenPart,
    prepare,
    rows_source,
    share_pieces,
    share_rows,
)

BATCH_ROWS = 2**16
"""Rows of a dataset that become a file."""

_ANSWER = "answer"


def ingest(
    source: Any,
    table_uri: str | os.PathLike[str],
    *,
    codec: rqs.Codec | str | os.PathLike[str] | None = None,
    vector_column: str | None = None,
    columns: Sequence[str] | None = None,
    metadata: str | os.PathLike[str] | None = None,
    encode: bool | None = None,
    keep_vectors: rqs.config.KeepVectors = "none",
    on_bad_rows: OnBadRows = "quarantine",
    commit_rows: int | None = COMMIT_ROWS,
    part_bytes: int = PART_BYTES,
    job: str | None = None,
    resume: bool = True,
    storage_options: Mapping[str, str] | None = None,
    table_options: Mapping[str, str] | None = None,
    num_workers: int | None = None,
    num_cpus: float = 1,
    num_gpus: float | None = None,
    device: str = "auto",
) -> rqs.IngestReport:
    """Add the rows of a source to a table, each of them once, with the workers of a Ray cluster.

    Actors, each with a codec of its own, read, encode and write files; this process commits them, with a note
    of the rows of the source that they have. A worker that is lost is replaced, and its part is written
    again. If this process is lost, the same call goes on after the last commit. Ray Data shows the progress.

    Args:
        source: what `rqmoe_store.ingest` takes but streams: a path or URI that all nodes can read, a pyarrow
            or Lance dataset or a LanceDB table; or a `ray.data.Dataset`. As its rows have no places to
            resume from, all are committed together in the end.
        table_uri: `<database>/<table>` or `<database>/<table>.lance`, on a path or in a bucket that all nodes
            share; the table is created if need be.
        codec: for a new table, or the folder of a codec.
        vector_column, columns, metadata, encode, keep_vectors, on_bad_rows, resume: as `rqmoe_store.ingest`.
            In the quarantine, rows of a `Dataset` have the place that they had in the batch of some worker.
        commit_rows: rows of the source after which there is a commit; None for one commit in the end.
        part_bytes: of the source, for one task; larger files are cut at their row groups.
        job: names a source that has no place of its own. A `Dataset` is ingested once under a name, and again
            and again without one.
        storage_options: credentials and so on for the source, as LanceDB takes them.
        table_options: the same for the table.
        num_workers: actors at most; None for as many as the cluster has room for.
        num_cpus: of each.
        num_gpus: of each; None for one where the cluster has GPUs, and none elsewhere.
        device: where they encode; "cpu" asks for no GPU.

    Returns:
        Rows added and quarantined, time and speed; prints as words.

    Raises:
        InvalidInputError, TableError, ArtifactError, StorageError: as `rqmoe_store.ingest`. What is committed
            stays.
    """
    settings = IngestSettings(
        on_bad_rows=on_bad_rows,
        commit_rows=sys.maxsize if commit_rows is None else commit_rows,
        job=job,
        resume=resume,
        progress=False,
    )
    into, actors = table_at(table_uri, table_options), choose_resources(num_cpus, num_gpus, device)
    most = actors.most_actors(num_workers)
    is_dataset = isinstance(source, ray.data.Dataset)
    prepared = prepare(
        rows_source(dataset_schema(source), job) if is_dataset else source,
        into,
        codec=codec,
        vector_column=vector_column,
        columns=columns,
        metadata=metadata,
        encode=encode,
        keep_vectors=keep_vectors,
        storage_options=storage_options,
        job=job,
    )
    if is_dataset:
        rows = share_rows(prepared, settings)
        for written in () if rows.is_done else _write_batches(source, rows.work, rows.name, actors, most):
            rows.take(written)
        return rows.finish()
    pieces = share_pieces(prepared, settings, part_bytes=part_bytes)
    for written in _write_parts(pieces.parts, pieces.work, actors, most):
        pieces.take(written)
    return pieces.finish()


class _PartActor:
    """Writes parts of a source."""

    def __init__(self, work: PartWork, parts: Sequence[Part], device: str) -> None:
        self._parts, self._writer = parts, PartWriter(work, device=device)

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        part = self._parts[row["id"]]
        return {_ANSWER: _answer(lambda: self._writer.write(part))}


class _BatchActor:
    """Writes batches of a dataset."""

    def __init__(self, work: PartWork, name: str, device: str) -> None:
        self._name, self._writer = name, PartWriter(work, device=device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        answer = _answer(lambda: self._writer.write_rows(plain_table(batch), self._name))
        return pa.table({_ANSWER: [answer]})


def _write_parts(
    parts: Sequence[Part], work: PartWork, actors: Resources, most: int
) -> Iterator[WrittenPart]:
    """Have workers write the parts, and yield what they have written, in any order."""
    if not parts:
        return
    strategy = ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(parts)))
    written = ray.data.range(len(parts), override_num_blocks=len(parts)).map(
        _PartActor, fn_constructor_args=(work, list(parts), actors.device), compute=strategy, **actors.options
    )
    yield from _answers(written)


def _write_batches(
    dataset: Any, work: PartWork, name: str, actors: Resources, most: int
) -> Iterator[WrittenPart]:
    """Have workers write the rows of a dataset, and yield what they have written."""
    written = dataset.map_batches(
        _BatchActor,
        fn_constructor_args=(work, name, actors.device),
        batch_size=BATCH_ROWS,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
        **actors.options,
    )
    yield from _answers(written)


def _answer(write: Callable[[], WrittenPart]) -> str:
    """What was written, or the error, as JSON: raised in the worker, Ray would wrap it in one of its own."""
    try:
        return json.dumps({"written": write().to_json()})
    except rqs.RQMoEError as error:
        public = next(each.__name__ for each in type(error).__mro__ if each.__name__ in rqs.__all__)
        return json.dumps({"error": public, "message": str(error)})


def _answers(dataset: Any) -> Iterator[WrittenPart]:
    for row in dataset.iter_rows():
        answer = json.loads(row[_ANSWER])
        if "error" in answer:
            raise getattr(rqs, answer["error"])(answer["message"])
        yield WrittenPart.from_json(answer["written"])
