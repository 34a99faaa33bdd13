"""Check the user's SQL conditions and expressions, and rewrite them for the stored columns.

Names in double quotes are columns to LanceDB's tables and texts to Lance's scanners, which run searches. Here
they are columns in conditions, as LanceDB's users expect, and texts in expressions (`values_sql`,
`add_columns`, `select`), as LanceDB treats them there.

A compressed table stores three columns for the vector column, of which users see one. Conditions may ask
whether a row has a vector; that is rewritten to whether it has a raw vector or a code.
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

_ADDRESS_COLUMNS = ("_rowaddr", "_rowoffset")
"""Lance's columns for the place of a row in files; not all operations with conditions support them."""

_RELATIONS = ("TARGET", "SOURCE")
"""Names, in a condition of a merge, of the rows of the table and of the new rows."""

_BEFORE_A_CONDITION = ("AND", "OR", "NOT", "WHEN", "THEN", "ELSE")
"""Keywords that bind less tightly than IS, so that a separate condition begins after them."""

_NO_NAMES = ("CASE", "CAST", "TRY_CAST", "TRUE", "FALSE", "NULL", "NOT", "EXISTS", "INTERVAL", "ARRAY")
"""Keywords that are never column names where a value begins."""

_AFTER_A_VALUE = (
    *("AND", "OR", "XOR", "IS", "IN", "LIKE", "ILIKE", "RLIKE", "REGEXP", "SIMILAR", "BETWEEN", "ESCAPE"),
    *("AS", "WHEN", "THEN", "ELSE", "END", "DIV", "COLLATE", "AT", "FROM", "FOR", "ANY", "ALL", "SOME"),
)
"""Keywords that follow a value, where no column name can be."""

_QUOTED_OR_COMMENT = re.compile(r"'[^']*'|`[^`]*`|--[^\n]*")
_SUBQUERY = re.compile(r"\s*(select|with)\b", re.IGNORECASE)
_PARAMETER = re.compile(r"[;$?]|(?<!:):(?!:)")


@dataclasses.dataclass(frozen=True)
class Conditions:
    """Checks conditions and expressions over the columns of one table."""

    columns: CodeColumns
    kept: bool
    """Whether all raw vectors are stored; the vector column is then like any other."""

    def checked(self, table: Any, condition: str | Expr, *, called: str = "where") -> str:
        """The condition in parentheses, with the same meaning to LanceDB and Lance, and safe to combine.

        LanceDB plans the condition to check it; no rows are read.

        Args:
            table: the LanceDB table that the condition is for.
            condition: SQL, or an expression of `lancedb.expr`.
            called: name of the condition in messages.

        Raises:
            InvalidInputError: the argument is neither; LanceDB cannot parse it; it names an unknown column or
                is not a condition (LanceDB's reason is quoted); it would change the meaning of a condition
                combined with it; or it uses vectors for more than whether a row has one.
        """
        failures: list[Exception] = []
        for text in _spellings(condition, called):
            enclosed = f"({self._read(table, _escape_first_name(table, text), called)}\n)"
            try:
                table.search().where(enclosed).output_schema()
                return enclosed
            except Exception as error:  # LanceDB panics on some, with a plain Exception
                if is_gone(error):
                    raise
                failures.append(error)
        raise InvalidInputError(
            f"Got {called}={as_text(condition, called=called)!r}, which LanceDB refuses: {failures[0]}\n"
            "Expected an SQL condition over the table's columns, such as \"lang = 'en' AND year > 2000\"."
        ) from failures[0]

    def of_merge(self, table: Any, condition: str, *, called: str) -> str:
        """A condition of a merge, on rows of the table (`target`) and new rows (`source`), in parentheses.

        Raises as `checked`, but LanceDB does not plan the condition.
        """
        return f"({self._read(table, condition, called, merge=True)}\n)"

    def expression(self, table: Any, sql: str | Expr, *, called: str) -> str:
        """An SQL expression in parentheses; double quotes enclose texts in it, as they do to LanceDB.

        Raises as `checked`, but LanceDB does not plan the expression.
        """
        return f"({self._read(table, as_text(sql, called=called), called, names='`')}\n)"

    def _read(self, table: Any, text: str, called: str, *, names: str = '`"', merge: bool = False) -> str:
        """Rewrite SQL: without comments, quoted names in backticks, and conditions for the stored columns.

        Args:
            table: the LanceDB table that it is for.
            text: the user's SQL.
            called: name of the condition or expression in messages.
            names: the quotes that enclose column names.
            merge: whether columns may be those of `target` and `source`.
        """
        ours = [*self.columns.names, self.columns.vector_column, *_ADDRESS_COLUMNS]
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
        return _Rewriter(self, table.schema.names, tokens, f"{called}={text!r}", merge).sql()


class _Rewriter:
    """Rewrites the tokens of a condition or expression for the stored columns."""

    def __init__(
        self, conditions: Conditions, names: Sequence[str], tokens: Sequence[Token], given: str, merge: bool
    ) -> None:
        """Prepare to rewrite.

        Args:
            conditions: knows the stored columns of the vectors.
            names: all columns of the table.
            tokens: all tokens; those in quotes are names or texts.
            given: the argument as given, for messages.
            merge: whether columns may be those of `target` and `source`.
        """
        self._columns, self._kept = conditions.columns, conditions.kept
        self._names, self._given, self._merge = names, given, merge
        self._pieces = [_written(token) for token in tokens]
        self._places = [place for place, token in enumerate(tokens) if token.kind not in ("space", "comment")]
        self._tokens = [tokens[place] for place in self._places]
        self._of_between = _ands_of_between(self._tokens)

    def sql(self) -> str:
        """The rewritten SQL. Raises InvalidInputError for unsupported uses of the stored columns."""
        place = 0
        while place < len(self._tokens):
            column = self._ours(self._tokens[place])
            end = place
            if column is not None and self._is_column(place):
                if column != self._columns.vector_column:
                    raise InvalidInputError(self._unsupported(column))
                if not self._kept:
                    end = self._replace(place)
            place = end + 1
        return "".join(self._pieces)

    def _ours(self, token: Token) -> str | None:
        """The column of this package or of Lance that a token may name; unquoted names match in any case."""
        if token.kind not in ("word", "name"):
            return None
        ours, value = (*self._columns.names, self._columns.vector_column, *_ADDRESS_COLUMNS), token.value
        if value in self._names or token.kind == "name":
            return value if value in ours and (value in self._names or value in _ADDRESS_COLUMNS) else None
        alike = [name for name in (*self._names, *_ADDRESS_COLUMNS) if name.lower() == value.lower()]
        return alike[0] if alike and alike[0] in ours else None

    def _is_column(self, place: int) -> bool:
        """Whether the name at this place is a column, and not a field, function, type or keyword."""
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
        """Whether `target` or `source` is here, followed by one of its columns."""
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
        """Rewrite the test for a vector around the vector column at `place`; return where the test ends."""
        start, end, has_vector = self._vector_test(place)
        relation = f"{self._at(place - 2).written}." if self._at(place - 1).written == "." else ""
        raw, code = (
            f"{relation}{quoted(name)}" for name in (self._columns.vector_column, self._columns.code)
        )
        test = (
            f"{raw} IS NOT NULL OR {code} IS NOT NULL" if has_vector else f"{raw} IS NULL AND {code} IS NULL"
        )
        first, last = self._places[start], self._places[end]
        self._pieces[first : last + 1] = [f"({test})", *[""] * (last - first)]
        return end

    def _vector_test(self, place: int) -> tuple[int, int, bool]:
        """Where the test for a vector begins and ends, and whether it tests for a vector or for none.

        Raises:
            InvalidInputError: the column is used in any other way.
        """
        start, end = place - 2 if self._at(place - 1).written == "." else place, place
        while self._in_parentheses(start, end) and self._begins(start - 1):
            start, end = start - 1, end + 1
        if self._in_parentheses(start, end) and self._at(start - 2).written == "is_valid":
            return start - 2, end + 1, True
        if self._begins(start):
            for words, has_vector in (
                (("IS", "NULL"), False),
                (("IS", "NOT", "NULL"), True),
                (("NOT", "NULL"), True),
            ):
                if all(self._at(end + 1 + at).is_word(word) for at, word in enumerate(words)):
                    return start, end + len(words), has_vector
        raise InvalidInputError(self._unsupported(self._columns.vector_column))

    def _in_parentheses(self, start: int, end: int) -> bool:
        return self._at(start - 1).written == "(" and self._at(end + 1).written == ")"

    def _begins(self, place: int) -> bool:
        """Whether a separate condition begins here."""
        before = self._at(place - 1)
        if before.is_word(*_BEFORE_A_CONDITION):
            return place - 1 not in self._of_between
        return before.written in ("", "(", ",")

    def _at(self, place: int) -> Token:
        """The token at a place; an empty one outside of the SQL."""
        return self._tokens[place] if 0 <= place < len(self._tokens) else Token("other", "")

    def _unsupported(self, column: str) -> str:
        """The message for an unsupported use of a column."""
        vector = quoted(self._columns.vector_column)
        if column in _ADDRESS_COLUMNS:
            return (
                f"Got {self._given} with {column!r}, which says where a row lies in files; expected '_rowid'."
            )
        if column == self._columns.vector_column:
            return (
                f"Got {self._given}, which asks for more of column {column!r} than whether a row has a "
                f"vector; expected {vector} IS NULL or {vector} IS NOT NULL. Vectors are stored as codes: "
                f"compare them by search(<a vector>), and read them by select([{column!r}])."
            )
        return (
            f"Got {self._given} with column {column!r}, which is ours and says how vectors are stored; "
            f"expected the table's other columns. Rows with a vector are those where {vector} IS NOT NULL; "
            "what is stored can be asked of the LanceDB table, which is .table."
        )


def _escape_first_name(table: Any, text: str) -> str:
    """Quote a column called "select" or "with" at the start, which in parentheses would begin a subquery."""
    first = _SUBQUERY.match(text)
    if first is None:
        return text
    alike = [name for name in table.schema.names if name.lower() == first.group().strip().lower()]
    return quoted(alike[0]) + text[first.end() :] if alike else text


def as_text(condition: Any, *, called: str) -> str:
    """A condition or expression as SQL. Raises InvalidInputError for anything but SQL or `lancedb.expr`."""
    text = condition.to_sql() if isinstance(condition, Expr) else condition
    if not isinstance(text, str):
        raise InvalidInputError(f'Got {called}={text!r}; expected an SQL condition, such as "id = 3".')
    return text


def _spellings(condition: str | Expr, called: str) -> Iterator[str]:
    """Ways to write the condition in SQL, to be tried in this order.

    LanceDB compares numbers and texts of an expression by their own types, but converts those of SQL to the
    type of the column, or raises. Literals of an expression therefore get explicit types. The first way has
    them only where they can change the result, because long lists parse more slowly with types.
    """
    text = as_text(condition, called=called)
    if not isinstance(condition, Expr):
        yield text
        return
    yield "".join(_typed(text, lambda token: "." in token.written))
    yield "".join(_typed(text, lambda token: True))


def _typed(sql: str, wanted: Callable[[Token], bool]) -> Iterator[str]:
    """The tokens of the SQL of an expression, with explicit types for the literals that are `wanted`."""
    before, depth, within = Token("other", ""), 0, None
    for token in tokens_of(sql):
        if token.written == "(":
            depth += 1
            if before.is_word("ARROW_CAST") and within is None:
                within = depth  # its literals have types, and its type argument must stay a literal
        elif token.written == ")":
            within = None if within == depth else within
            depth -= 1
        text = token.kind == "text" and before.kind != "word"  # X'00' is bytes
        if within is None and (text or token.kind == "number") and wanted(token):
            kind = "Utf8" if text else "Float64" if "." in token.written else "Int64"
            yield f"arrow_cast({token.written}, '{kind}')"
        else:
            yield token.written
        before = token


def _written(token: Token) -> str:
    """A token as Lance and LanceDB read it alike."""
    if token.kind == "comment":
        return " "
    return quoted(token.value) if token.kind == "name" else token.written


def _ands_of_between(tokens: Sequence[Token]) -> set[int]:
    """The places of each AND that belongs to a BETWEEN and does not join conditions."""
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
    """Raise InvalidInputError if LanceDB's parser, which stops where an expression ends, would ignore text.

    Args:
        text: the user's SQL.
        bare: the same without quoted parts and comments.
        called: name of the condition or expression in messages.
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
