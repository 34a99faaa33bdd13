"""Operations on the rows of a table."""

from pathlib import Path

from lancedb.index import BTree

from killed.intact import Contents, has_vector, rows_of
from killed.operation import FIRST, TABLE, TRAINING, Operation, block, database, small_config
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import create_table


class Add(Operation):
    """Rows added, encoded and raw in turn."""

    name, calls = "add", 12

    def prepare(self, folder: Path) -> None:
        store = create_table(database(folder), TABLE, rows_of(block(0, 100)), config=small_config())
        store.train(TRAINING, progress=False)

    def call(self, target: CompressedTable, number: int) -> None:
        target.add(rows_of(block(5 + number)), encode=number % 2 == 0)

    def contents(self, calls: int) -> Contents:
        return block(0, 20 * (5 + calls))

    def encoded_rows(self, calls: int) -> int:
        return sum(has_vector(row) for number in range(0, calls, 2) for row in block(5 + number))


class Delete(Operation):
    """Rows deleted, raw ones and coded ones."""

    name, calls = "delete", 12

    def prepare(self, folder: Path) -> None:
        store = create_table(database(folder), TABLE, rows_of(FIRST), config=small_config())
        store.train(TRAINING, progress=False)
        store.add(rows_of(block(15)), encode=False)
        store.table.create_index("id", config=BTree())

    def call(self, target: CompressedTable, number: int) -> None:
        target.delete(f"id % 13 = {number}")

    def contents(self, calls: int) -> Contents:
        return {row: 0 for row in block(0, 320) if row % 13 >= calls}
