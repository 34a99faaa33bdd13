"""Conditions and expressions of the user's, checked before they are used, and read in one way by everything.

LanceDB's tables take a name in double quotes for a column, and Lance's scanners, which searches are made
with, for a text. In conditions it is always a column here, as LanceDB's users know it; in expressions
(`values_sql`, `add_columns`, `select`) it is a text, as it is there to LanceDB.

A table whose vectors are codes stores three columns for one. Users are shown one, and conditions see that: a
row has a vector if it has a raw one or a code.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lancedb.expr import Expr

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.storage_errors import is_gone
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.sql import Token, quoted, tokens_of

_PLACES = ("_rowaddr", "_rowoffset")
"""Columns of Lance's that say where a row lies; not everything that takes a condition knows them."""

_RELATIONS = ("TARGET", "SOURCE")
"""What a condition of a merge calls the rows of the table, and the new ones."""

_BEFORE_A_CONDITION = ("AND", "OR", "NOT", "WHEN", "THEN", "ELSE")
"""Keywords that bind less than IS does: what follows them begins a condition of its own."""

_NO_NAMES = ("CASE", "CAST", "TRY_CAST", "TRUE", "FALSE", "NULL", "NOT", "EXISTS", "INTERVAL", "ARRAY")
"""Keywords that are never names of columns where a value begins."""

_AFTER_A_VALUE = (
    *("AND", "OR", "XOR", "IS", "IN", "LIKE", "ILIKE", "RLIKE", "REGEXP", "SIMILAR", "BETWEEN", "ESCAPE"),
    *("AS", "WHEN", "THEN", "ELSE", "END", "DIV", "COLLATE", "AT", "FROM", "FOR", "ANY", "ALL", "SOME"),
)
"""Keywords that stand after a value, where no name of a column can."""

_QUOTED_OR_COMMENT = re.compile(r"'[^']*'|`[^`]*`|--[^\n]*")
_SUBQUERY = re.compile(r"\s*(select|with)\b", re.IGNORECASE)
_PARAMETER = re.compile(r"[;$?]|(?<!:):(?!:)")


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The conditions and expressions that users write over the columns of one table."""

    columns: CodeColumns
    kept: bool
    """Whether all vectors are stored as they are; their column is then like any other."""

    def checked(self, table: Any, condition: str | Expr, *, called: str = "where") -> str:
        """The condition in parentheses, safe to combine by AND, and the same to LanceDB and Lance.

        Nothing is read: LanceDB only plans the condition.

        Args:
            table: the LanceDB table that it is for.
            condition: SQL, or an expression of `lancedb.expr`.
            called: its name in messages.

        Raises:
            InvalidInputError: neither of these, LanceDB cannot parse the condition, it names an unknown
                column or is no condition (LanceDB's reason is quoted), it would change the meaning of
                another one combined with it, or it asks for more of vectors than whether they are there.
        """
        failures: list[Exception] = []
        for text in _spellings(condition, called):
            enclosed = f"({self._read(table, _named(table, text), called)}\n)"
            try:
                table.search().where(enclosed).output_schema()
                return enclosed
            except Exception as error:  # LanceDB panics on some, with an exception of no other class
                if is_gone(error):
                    raise
                failures.append(error)
        raise InvalidInputError(
            f"Got {called}={as_text(condition, called=called)!r}, which LanceDB refuses: {failures[0]}\n"
            "Expected an SQL condition over the table's columns, such as \"lang = 'en' AND year > 2000\"."
        ) from failures[0]

    def of_merge(self, table: Any, condition: str, *, called: str) -> str:
        """A condition on rows of a table and new ones, as `target` and `source`, in parentheses.

        Raises InvalidInputError as `checked`, but for what LanceDB would have to say.
        """
        return f"({self._read(table, condition, called, merge=True)}\n)"

    def expression(self, table: Any, sql: str | Expr, *, called: str) -> str:
        """An SQL expression in parentheses; a name in double quotes is a text in it, as it is to LanceDB.

        Raises InvalidInputError as `checked`, but for what LanceDB would have to say.
        """
        return f"({self._read(table, as_text(sql, called=called), called, names='`')}\n)"

    def _read(self, table: Any, text: str, called: str, *, names: str = '`"', merge: bool = False) -> str:
        """SQL without comments, its names in backticks if they are quoted, and vectors as they are stored.

        Args:
            table: the LanceDB table that it is for.
            text: what was written.
            called: its name in messages.
            names: the quotes that names of columns are written in.
            merge: whether columns may be those of `target` and `source`.
        """
        ours = [*self.columns.names, self.columns.vector_column, *_PLACES]
        small = text.lower()
        if '"' not in text and "/*" not in text and not any(name.lower() in small for name in ours):
            _require_one_piece(text, _QUOTED_OR_COMMENT.sub(" ", text), called)
            return text
        tokens = [
            dataclasses.replace(token, kind="text" if names == "`" else "name")
            if token.kind == "double"
            else token
            for token in tokens_of(text)
        ]
        bare = (" " if token.kind in ("text", "name", "comment") else token.written for token in tokens)
        _require_one_piece(text, "".join(bare), called)
        return _Reading(self, table.schema.names, tokens, f"{called}={text!r}", merge).written()


class _Reading:
    """A condition or expression in tokens, of which those are replaced that stand for stored columns."""

    def __init__(
        self, conditions: Conditions, names: Sequence[str], tokens: Sequence[Token], asked: str, merge: bool
    ) -> None:
        """Read.

        Args:
            conditions: what columns are ours.
            names: all columns of the table.
            tokens: all tokens; those in quotes are names or texts.
            asked: what was asked, for messages.
            merge: whether columns may be those of `target` and `source`.
        """
        self._columns, self._kept = conditions.columns, conditions.kept
        self._names, self._asked, self._merge = names, asked, merge
        self._pieces = [_piece(token) for token in tokens]
        self._places = [place for place, token in enumerate(tokens) if token.kind not in ("space", "comment")]
        self._tokens = [tokens[place] for place in self._places]
        self._of_between = _ands_of_between(self._tokens)

    def written(self) -> str:
        """The SQL as Lance and LanceDB are to read it; InvalidInputError for other uses of our columns."""
        place = 0
        while place < len(self._tokens):
            column = self._ours(self._tokens[place])
            end = place
            if column is not None and self._is_column(place):
                if column != self._columns.vector_column:
                    raise InvalidInputError(self._refusal(column))
                if not self._kept:
                    end = self._replace(place)
            place = end + 1
        return "".join(self._pieces)

    def _ours(self, token: Token) -> str | None:
        """Which column of ours a token names, should it be one; names out of quotes may be in any case."""
        if token.kind not in ("word", "name"):
            return None
        ours, value = (*self._columns.names, self._columns.vector_column, *_PLACES), token.value
        if value in self._names or token.kind == "name":
            return value if value in ours and (value in self._names or value in _PLACES) else None
        alike = [name for name in (*self._names, *_PLACES) if name.lower() == value.lower()]
        return alike[0] if alike and alike[0] in ours else None

    def _is_column(self, place: int) -> bool:
        """Whether a name at this place is that of a column, and not of a field, function, type or keyword."""
        token, before, after = (self._at(at) for at in (place, place - 1, place + 1))
        if before.written == ".":
            return self._merge and self._is_relation(place - 2)
        if after.written == "(" or before.written == ":" or self._is_relation(place):
            return False
        if token.kind == "name":
            return True
        if before.is_word("AS") or after.kind == "text" or token.is_word(*_NO_NAMES):
            return False
        return not (token.is_word(*_AFTER_A_VALUE) and self._is_value(place - 1))

    def _is_relation(self, place: int) -> bool:
        """Whether `target` or `source` stands here, and a name of its follows."""
        named = self._at(place).kind in ("word", "name") and self._at(place).value.upper() in _RELATIONS
        return self._merge and named and self._at(place + 1).written == "." != self._at(place - 1).written

    def _is_value(self, place: int) -> bool:
        """Whether a value ends here."""
        token = self._at(place)
        if token.kind == "word":
            return token.is_word("END", "NULL", "TRUE", "FALSE") or not token.is_word(
                *_NO_NAMES, *_AFTER_A_VALUE
            )
        return token.kind in ("text", "name", "number") or token.written in (")", "]")

    def _replace(self, place: int) -> int:
        """Replace the question whether there is a vector that has its name here; returns where it ends."""
        start, end, there = self._question(place)
        relation = f"{self._at(place - 2).written}." if self._at(place - 1).written == "." else ""
        raw, code = (
            f"{relation}{quoted(name)}" for name in (self._columns.vector_column, self._columns.code)
        )
        asked = f"{raw} IS NOT NULL OR {code} IS NOT NULL" if there else f"{raw} IS NULL AND {code} IS NULL"
        first, last = self._places[start], self._places[end]
        self._pieces[first : last + 1] = [f"({asked})", *[""] * (last - first)]
        return end

    def _question(self, place: int) -> tuple[int, int, bool]:
        """Where the question begins and ends, and whether it is for a vector that is there.

        Raises InvalidInputError for anything else.
        """
        start, end = place - 2 if self._at(place - 1).written == "." else place, place
        while self._in_parentheses(start, end) and self._begins(start - 1):
            start, end = start - 1, end + 1
        if self._in_parentheses(start, end) and self._at(start - 2).written == "is_valid":
            return start - 2, end + 1, True
        if self._begins(start):
            for words, there in (
                (("IS", "NULL"), False),
                (("IS", "NOT", "NULL"), True),
                (("NOT", "NULL"), True),
            ):
                if all(self._at(end + 1 + at).is_word(word) for at, word in enumerate(words)):
                    return start, end + len(words), there
        raise InvalidInputError(self._refusal(self._columns.vector_column))

    def _in_parentheses(self, start: int, end: int) -> bool:
        return self._at(start - 1).written == "(" and self._at(end + 1).written == ")"

    def _begins(self, place: int) -> bool:
        """Whether a condition of its own begins here."""
        before = self._at(place - 1)
        if before.is_word(*_BEFORE_A_CONDITION):
            return place - 1 not in self._of_between
        return before.written in ("", "(", ",")

    def _at(self, place: int) -> Token:
        """The token at a place, or an empty one outside."""
        return self._tokens[place] if 0 <= place < len(self._tokens) else Token("other", "")

    def _refusal(self, column: str) -> str:
        vector = quoted(self._columns.vector_column)
        if column in _PLACES:
            return (
                f"Got {self._asked} with {column!r}, which says where a row lies in files; expected '_rowid'."
            )
        if column == self._columns.vector_column:
            return (
                f"Got {self._asked}, which asks for more of column {column!r} than whether a row has a "
                f"vector; expected {vector} IS NULL or {vector} IS NOT NULL. Vectors are stored as codes: "
                f"compare them by search(<a vector>), and read them by select([{column!r}])."
            )
        return (
            f"Got {self._asked} with column {column!r}, which is ours and says how vectors are stored; "
            f"expected the table's other columns. Rows with a vector are those where {vector} IS NOT NULL; "
            "what is stored can be asked of the LanceDB table, which is .table."
        )


def _named(table: Any, text: str) -> str:
    """SQL to put in parentheses, where a column called "select" that comes first would begin a query."""
    first = _SUBQUERY.match(text)
    if first is None:
        return text
    alike = [name for name in table.schema.names if name.lower() == first.group().strip().lower()]
    return quoted(alike[0]) + text[first.end() :] if alike else text


def as_text(condition: Any, *, called: str) -> str:
    """A condition or expression as SQL. Raises InvalidInputError unless it is SQL or of `lancedb.expr`."""
    text = condition.to_sql() if isinstance(condition, Expr) else condition
    if not isinstance(text, str):
        raise InvalidInputError(f'Got {called}={text!r}; expected an SQL condition, such as "id = 3".')
    return text


def _spellings(condition: str | Expr, called: str) -> Iterator[str]:
    """The SQL to try, one after the other.

    LanceDB compares the numbers and texts of an expression by their own types, and takes those in SQL for
    values of the column's, or refuses them: so their types are written down. First only where it makes a
    difference to what is found, as long lists are slower to read with types.
    """
    text = as_text(condition, called=called)
    if not isinstance(condition, Expr):
        yield text
        return
    yield "".join(_typed(text, lambda token: "." in token.written))
    yield "".join(_typed(text, lambda token: True))


def _typed(sql: str, wanted: Callable[[Token], bool]) -> Iterator[str]:
    """The pieces of the SQL of an expression, with the types of literals."""
    before, depth, within = Token("other", ""), 0, None
    for token in tokens_of(sql):
        if token.written == "(":
            depth += 1
            if before.is_word("ARROW_CAST") and within is None:
                within = depth  # it has types, and takes no other literal for one
        elif token.written == ")":
            within = None if within == depth else within
            depth -= 1
        text = token.kind == "text" and before.kind != "word"  # but for X'00', which are bytes
        if within is None and (text or token.kind == "number") and wanted(token):
            kind = "Utf8" if text else "Float64" if "." in token.written else "Int64"
            yield f"arrow_cast({token.written}, '{kind}')"
        else:
            yield token.written
        before = token


def _piece(token: Token) -> str:
    """How Lance and LanceDB are to read a token."""
    if token.kind == "comment":
        return " "
    return quoted(token.value) if token.kind == "name" else token.written


def _ands_of_between(tokens: Sequence[Token]) -> set[int]:
    """The places of ANDs that belong to a BETWEEN, and join no conditions."""
    found: set[int] = set()
    open_in: list[int] = [0]
    for place, token in enumerate(tokens):
        if token.written in ("(", "[") or token.is_word("CASE"):
            open_in.append(0)
        elif token.written in (")", "]") or token.is_word("END"):
            del open_in[max(len(open_in) - 1, 1) :]
        elif token.is_word("BETWEEN"):
            open_in[-1] += 1
        elif token.is_word("AND") and open_in[-1]:
            open_in[-1] -= 1
            found.add(place)
    return found


def _require_one_piece(text: str, bare: str, called: str) -> None:
    """Refuse what LanceDB's parser skips over in silence: it stops reading where an expression ends.

    Args:
        text: what was written.
        bare: the same without what is in quotes and comments.
        called: its name in messages.
    """
    if not text.strip():
        raise InvalidInputError(f"Got an empty {called}; expected an SQL condition, or no {called} at all.")
    parameter = _PARAMETER.search(bare)
    if parameter is not None:
        raise InvalidInputError(
            f"Got {called}={text!r} with {parameter.group()!r}; expected one SQL condition without statement "
            "ends or parameters. Put such characters in quotes if they are text."
        )
    depth = 0
    for parenthesis in re.findall("[()]", bare):
        depth += 1 if parenthesis == "(" else -1
        if depth < 0:
            break
    if depth != 0:
        raise InvalidInputError(
            f"Got {called}={text!r} with unbalanced parentheses; expected every '(' to have its ')'."
        )
