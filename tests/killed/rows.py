"""Operations on the rows of a table."""

from pathlib import Path

from lancedb.index import BTree

from killed.intact import Contents, has_vector, rows_of
from killed.operation import FIRST, TABLE, TRAINING, Operation, block, database, small_config
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import create_table


class Add(Operation):
    """Rows added, encoded and raw in turn."""

    name, calls, kinds = "add", 12, 2

    def prepare(self, folder: Path) -> None:
        store = create_table(database(folder), TABLE, rows_of(block(0, 100)), config=small_config())
        store.train(TRAINING, progress=False)

    def call(self, target: CompressedTable, number: int) -> None:
        target.add(rows_of(block(5 + number)), encode=number % 2 == 0)

    def contents(self, calls: int) -> Contents:
        return block(0, 20 * (5 + calls))

    def encoded_rows(self, calls: int) -> int:
        return sum(has_vector(row) for number in range(0, calls, 2) for row in block(5 + number))


class Merge(Operation):
    """Rows that are there replaced, raw ones and coded ones, and others inserted."""

    name, calls, notes_apart = "merge_insert", 6, True

    def prepare(self, folder: Path) -> None:
        store = create_table(database(folder), TABLE, rows_of(block(0, 200)), config=small_config())
        store.train(TRAINING, progress=False)
        store.add(rows_of(block(1, 200)), encode=False)
        store.table.create_index("id", config=BTree())

    def call(self, target: CompressedTable, number: int) -> None:
        merge = target.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(rows_of(self._changed(number)))

    def contents(self, calls: int) -> Contents:
        rows = block(0, 400)
        for number in range(calls):
            rows |= self._changed(number)
        return rows

    def encoded_rows(self, calls: int) -> int:
        return sum(has_vector(row) for number in range(calls) for row in self._changed(number))

    def _changed(self, number: int) -> Contents:
        """New versions of rows among all, some of them for the second time, and new rows."""
        old = dict.fromkeys(range(number, 400, 31), number + 1)
        return old | block(40 + number, 10)


class Update(Operation):
    """A row changed, its vector too."""

    name, calls = "update", 6
    prepare = Merge.prepare

    def call(self, target: CompressedTable, number: int) -> None:
        ((row, revision),) = self._changed(number).items()
        values = rows_of({row: revision}).drop_columns("id").to_pylist()[0]
        target.update(f"id = {row}", values)

    def contents(self, calls: int) -> Contents:
        rows = block(0, 400)
        for number in range(calls):
            rows |= self._changed(number)
        return rows

    def _changed(self, number: int) -> Contents:
        return {number * 37: number + 1}


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
