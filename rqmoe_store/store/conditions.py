"""SQL conditions of the user's, checked before they are used."""

import re
from typing import Any

from lancedb.expr import Expr

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.refusals import is_gone

_QUOTED_OR_COMMENT = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|--[^\n]*")


def checked_condition(table: Any, condition: str | Expr, *, called: str = "where") -> str:
    """The condition in parentheses, safe to combine with others by AND.

    Nothing is read: LanceDB only plans the condition.

    Args:
        table: the LanceDB table that it is for.
        condition: SQL, or an expression of `lancedb.expr`.
        called: its name in messages.

    Raises:
        InvalidInputError: neither of these, LanceDB cannot parse the condition, it names an unknown
            column or is no condition (LanceDB's reason is quoted), or it would change the meaning of
            another one combined with it.
    """
    text = as_sql(condition, called=called)
    # The line break ends a trailing `--` comment, which would swallow the parenthesis.
    enclosed = f"({text}\n)"
    try:
        table.search().where(enclosed).output_schema()
    except Exception as error:  # LanceDB panics on some, with an exception of no other class
        if is_gone(error):
            raise
        raise InvalidInputError(
            f"Got {called}={text!r}, which LanceDB refuses: {error}\n"
            "Expected an SQL condition over the table's columns, such as \"lang = 'en' AND year > 2000\"."
        ) from error
    return enclosed


def as_sql(condition: Any, *, called: str) -> str:
    """A condition or other expression as one piece of SQL. Raises InvalidInputError as `checked_condition`,
    but for what LanceDB would have to say."""
    text = condition.to_sql() if isinstance(condition, Expr) else condition
    if not isinstance(text, str):
        raise InvalidInputError(f'Got {called}={text!r}; expected an SQL condition, such as "id = 3".')
    _require_one_piece(text, called)
    return text


def _require_one_piece(text: str, called: str) -> None:
    """Refuse what LanceDB's parser skips over in silence: it stops reading where an expression ends."""
    bare = _QUOTED_OR_COMMENT.sub(" ", text)
    if not bare.strip() and bare == text:
        raise InvalidInputError(f"Got an empty {called}; expected an SQL condition, or no {called} at all.")
    for fragment in (";", "$", "/*"):
        if fragment in bare:
            raise InvalidInputError(
                f"Got {called}={text!r} with {fragment!r}; expected one SQL condition without statement "
                "ends, $ parameters or block comments. Put such characters in quotes if they are text."
            )
    depth = 0
    for character in bare:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            break
    if depth != 0:
        raise InvalidInputError(
            f"Got {called}={text!r} with unbalanced parentheses; expected every '(' to have its ')'."
        )
