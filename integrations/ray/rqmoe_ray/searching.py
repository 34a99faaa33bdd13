"""Search of tables whose codes are in the memory of a cluster."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray

import rqmoe_store as rqs
from rqmoe_ray.places import table_at
from rqmoe_ray.resources import choose_resources
from rqmoe_store.distributed import CompressedQuery, Shard, ShardPart, TablePlace


def open_table(
    table_uri: str | os.PathLike[str],
    *,
    num_workers: int | None = None,
    num_cpus: float = 1,
    num_gpus: float | None = None,
    device: str = "auto",
    table_options: Mapping[str, str] | None = None,
) -> rqs.CompressedTable:
    """Open a table whose codes are held by actors, each of which searches some fragments, raw rows included.

    It is an `rqmoe_store` table: searches take the same options and find the same rows at the same distances.
    The actors follow changes of the table, are replaced when they are lost, and end with the table and its
    queries. If the table has fewer fragments than there are actors, some of these have no work.

    Args:
        table_uri: `<database>/<table>` or `<database>/<table>.lance`, which all nodes can read.
        num_workers: actors; None for as many as the cluster has room for.
        num_cpus: of each.
        num_gpus: of each; None for one where the cluster has GPUs, and none elsewhere.
        device: where they scan; "cpu" asks for no GPU.
        table_options: credentials and so on for the table, as LanceDB takes them.

    Raises:
        TableError, ArtifactError: as `rqmoe_store.open_table`.
        InvalidInputError: no number of workers from 1.
    """
    each = choose_resources(num_cpus, num_gpus, device)
    count = each.most_actors(num_workers)
    store = rqs.open_table(*table_at(table_uri, table_options))
    remote = ray.remote(_ShardActor).options(max_restarts=-1, max_task_retries=-1, **each.options)
    place = TablePlace.of(store.table)
    return store.use_shards(count, _Actors([remote.remote(place, each.device) for _ in range(count)]))


def search(
    table_uri: str | os.PathLike[str], query: Any, *, num_workers: int | None = None, **options: Any
) -> CompressedQuery:
    """Start a single query that a cluster answers, such as a batch of many vectors.

        rqmoe_ray.search("data/docs.lance", vectors).where("lang = 'en'").limit(5).to_arrow()

    The codes are read for this query alone; `open_table` keeps them for further ones.

    Args:
        table_uri, num_workers, options: as `open_table`.
        query: as in `CompressedTable.search`: one vector (D,) or a batch (Q, D).

    Raises as `open_table` and `CompressedTable.search`.
    """
    return open_table(table_uri, num_workers=num_workers, **options).search(query, query_type="vector")


class _ShardActor:
    """A shard in a process of its own."""

    def __init__(self, place: TablePlace, device: str) -> None:
        self._shard = Shard(place, device=device)

    def process_id(self) -> int:
        """Id of the process that the actor runs in."""
        return os.getpid()

    def ask(self, method: str, part: ShardPart, arguments: tuple[Any, ...]) -> Any:
        return getattr(self._shard, method)(part, *arguments)


class _Actors:
    """Calls methods of the shards, which live as long as this object."""

    def __init__(self, actors: Sequence[Any]) -> None:
        self._actors = actors

    def __call__(self, method: str, parts: Mapping[int, ShardPart], arguments: tuple[Any, ...]) -> list[Any]:
        shared = ray.put(arguments)  # once, however many actors read it
        answers = [self._actors[shard].ask.remote(method, part, shared) for shard, part in parts.items()]
        found: list[Any] = ray.get(answers)
        return found
