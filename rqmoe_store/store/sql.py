"""SQL as LanceDB reads it: names and values, whatever characters they hold, and the tokens of any."""

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
    """A piece of SQL."""

    kind: Kind
    """"text" is in single quotes, "double" in double ones, "name" in backticks; a "word" is in none, and is a
    keyword or a name. An "other" is one character; a quote among these is never closed."""
    written: str
    """As it stands there."""

    @property
    def value(self) -> str:
        """What is within the quotes, if there are any."""
        if self.kind not in ("text", "double", "name"):
            return self.written
        quote = self.written[0]
        return self.written[1:-1].replace(quote * 2, quote)

    def is_word(self, *words: str) -> bool:
        """Whether it is one of these keywords, given in capitals."""
        return self.kind == "word" and self.written.upper() in words


def tokens_of(sql: str) -> Iterator[Token]:
    """The tokens of a piece of SQL, which are all of it. A block comment that does not end is an "other"."""
    place = 0
    while place < len(sql):
        match = _TOKEN.match(sql, place)
        assert match is not None and match.lastgroup is not None, "any character is a token at least"
        kind: Kind = match.lastgroup  # type: ignore[assignment]  # the groups are named after the kinds
        end = match.end()
        if match.group() == "/*":
            end = _comment_end(sql, end)
            kind = "other" if end < 0 else kind
        end = match.end() if end < 0 else end
        yield Token(kind, sql[place:end])
        place = end


def _comment_end(sql: str, start: int) -> int:
    """Where a block comment ends, others within it included; -1 if it does not."""
    depth, place = 1, start
    while depth:
        match = _COMMENT_ENDS.search(sql, place)
        if match is None:
            return -1
        depth += 1 if match.group() == "/*" else -1
        place = match.end()
    return place
