"""What the processes of test_concurrent_writers.py do to one table: one tidies, the others write."""

import dataclasses
import random
import time
from typing import Any

import lancedb
import numpy as np

from rqmoe_store.config import TrainConfig
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import open_table

DIM = 8
POOL = np.random.default_rng(5).normal(size=(40, DIM)).astype(np.float32)
"""Vectors that rows may have."""
COUNTER = 0
"""A row that all processes count up in."""
SHARED = range(1, 6)
"""Rows that all processes replace."""
NEW = range(100, 108)
"""Rows that all processes insert at the same moments."""
OWN_ROWS = 1000
"""Process p has the ids p * OWN_ROWS to itself, p from 1, and those that follow."""


@dataclasses.dataclass
class Outcome:
    """What a process that writes has done."""

    own: dict[int, tuple[str, int]] = dataclasses.field(default_factory=dict)
    """Text and vector of the rows that it has to itself, by id."""
    counted: int = 0
    operations: int = 0
    merges: int = 0
    attempts: int = 0
    """Of all merges; more than there were where others came first."""


@dataclasses.dataclass
class Tidied:
    """What the process that tidies has done."""

    optimized: int = 0
    encoded: int = 0
    """Rows that it brought to the newest codec meanwhile."""
    in_background: int = 0
    """Rows that a thread brought to the second codec."""


def row(number: int, text: str, place: int) -> dict[str, Any]:
    return {"id": number, "lang": "en", "text": text, "count": 0, "vector": POOL[place]}


class Writer:
    """One process."""

    def __init__(self, store: CompressedTable, process: int) -> None:
        self.store, self.process = store, process
        self.random = random.Random(process)
        self.outcome = Outcome()

    def upsert(self, rows: list[dict[str, Any]]) -> None:
        merge = self.store.merge_insert().when_matched_update_all().when_not_matched_insert_all()
        self.outcome.attempts += merge.execute(rows).num_attempts
        self.outcome.merges += 1

    def some_own(self) -> list[int]:
        return self.random.sample(sorted(self.outcome.own), min(3, len(self.outcome.own)))

    def step(self) -> None:
        own, place = self.outcome.own, self.random.randrange(len(POOL))
        text, kind = f"{self.process}: {self.outcome.operations}", self.random.randrange(6)
        if kind == 0:
            new = [self.process * OWN_ROWS + self.random.randrange(OWN_ROWS) for _ in range(3)]
            new = [number for number in dict.fromkeys(new) if number not in own]
            self.store.add([row(number, text, place) for number in new], encode=self.random.random() < 0.7)
            own |= dict.fromkeys(new, (text, place))
        elif kind == 1:
            some = [*self.some_own(), self.process * OWN_ROWS + self.random.randrange(OWN_ROWS)]
            some = list(dict.fromkeys(some))
            self.upsert([row(number, text, place) for number in some])
            own |= dict.fromkeys(some, (text, place))
        elif kind == 2 and own:
            some = self.some_own()
            assert self.store.delete(f"id IN ({', '.join(map(str, some))})") == len(some)
            for number in some:
                del own[number]
        elif kind == 3 and own:
            (number,) = self.some_own()[:1]
            self.store.update(f"id = {number}", {"vector": POOL[place]})
            own[number] = own[number][0], place
        elif kind == 4:
            self.upsert([row(number, text, place) for number in SHARED])
        elif kind == 5:
            self.store.update(f"id = {COUNTER}", values_sql={"count": "count + 1"})
            self.outcome.counted += 1
        self.outcome.operations += 1


def write(folder: str, process: int, seconds: float, together: Any, outcomes: Any) -> None:
    """Work on the table "table" of a database for some seconds, and tell what was done."""
    writer = Writer(open_table(lancedb.connect(folder), "table"), process)
    for number in NEW:
        together.wait()
        writer.upsert([row(number, f"{process}", process)])
    together.wait()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        writer.step()
    outcomes.put(writer.outcome)


def tidy(folder: str, together: Any, finished: Any, outcomes: Any) -> None:
    """Optimize the table again and again, and give it another codec once, until the others have finished."""
    store, done = open_table(lancedb.connect(folder), "table"), Tidied()
    for _ in range(len(NEW) + 1):
        together.wait()
    while not finished.is_set():
        done.encoded += store.optimize(progress=False).encoded.rows
        done.optimized += 1
        if done.optimized == 2:
            training = TrainConfig(epochs=0, seed=1, progress=False)
            store.retrain(training, vectors=POOL, encode="background", progress=False)
            assert store.encoding is not None
            done.in_background = store.encoding.wait().rows
    outcomes.put(done)
