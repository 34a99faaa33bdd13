"""Names and values in SQL conditions, whatever characters they hold."""


def quoted(column: str) -> str:
    """A column name as an SQL identifier."""
    return "`" + column.replace("`", "``") + "`"


def literal(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"
