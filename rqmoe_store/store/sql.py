"""SQL in LanceDB's dialect: escaped identifiers and literals, and a tokenizer."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Literal

Kind = Literal["text", "double", "name", "comment", "number", "space", "word", "other"]

_TOKEN = re.compile(
    r"""
      (?P<text>    '[^']*(?:''[^']*)*' )
    | (?P<double>  "[^"]*(?:""[^"]*)*" )
    | (?P<name>    `[^`]*(?:``[^`]*)*` )
    | (?P<comment> --[^\n]* | /\* )
    | (?P<number>  [0-9][0-9_]* (?:\.[0-9]*)? (?:[eE][+-]?[0-9]+)? )
    | (?P<space>   \s+ )
    | (?P<word>    (?:[A-Za-z_@\#]|[^\x00-\x7f]) (?:[A-Za-z0-9_@\#$]|[^\x00-\x7f\s])* )
    | (?P<other>   . )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_ENDS = re.compile(r"/\*|\*/")


def quoted(column: str) -> str:
    """A column name as an SQL identifier."""
    return "`" + column.replace("`", "``") + "`"


def literal(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """A token of SQL."""

    kind: Kind
    """"text" is in single quotes, "double" in double quotes and "name" in backticks. A "word" is a keyword or
    an unquoted name. An "other" is a single character; a quote among these is never closed."""
    written: str
    """The token as written, including quotes."""

    @property
    def value(self) -> str:
        """The token without quotes, and with doubled quotes in it resolved."""
        if self.kind not in ("text", "double", "name"):
            return self.written
        quote = self.written[0]
        return self.written[1:-1].replace(quote * 2, quote)

    def is_word(self, *words: str) -> bool:
        """Whether the token is one of these keywords, given in capitals."""
        return self.kind == "word" and self.written.upper() in words


def tokens_of(sql: str) -> Iterator[Token]:
    """The tokens of `sql`, which together are all of it. A block comment without an end is an "other"."""
    place = 0
    while place < len(sql):
        match = _TOKEN.match(sql, place)
        assert match is not None and match.lastgroup is not None, "any single character is a token"
        kind: Kind = match.lastgroup  # type: ignore[assignment]  # the groups are named after the kinds
        end = match.end()
        if match.group() == "/*":
            end = _comment_end(sql, end)
            kind = "other" if end < 0 else kind
        end = match.end() if end < 0 else end
        yield Token(kind, sql[place:end])
        place = end


def _comment_end(sql: str, start: int) -> int:
    """Where a block comment, in which others may be nested, ends; -1 if it does not."""
    depth, place = 1, start
    while depth:
        match = _COMMENT_ENDS.search(sql, place)
        if match is None:
            return -1
        depth += 1 if match.group() == "/*" else -1
        place = match.end()
    return place
