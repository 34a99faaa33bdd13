"""Storage errors: what a disk or bucket refuses, said with the name of the table.

LanceDB and Lance raise OSError, RuntimeError or ValueError for it, and say why in text only.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from rqmoe_store.arguments import needs_early_look, refuse_wrong
from rqmoe_store.errors import InvalidInputError, RQMoEError, StorageError, TableError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_MORE_ROOM = "make room there"
_MORE_RIGHTS = "write as someone who may, or have the right to write there given"

_REMEDIES = {
    "No space left on device": _MORE_ROOM,
    "Disk quota exceeded": _MORE_ROOM,
    "Read-only file system": "have it mounted for writing, or work on a copy",
    "Permission denied": _MORE_RIGHTS,
    "Operation not permitted": _MORE_RIGHTS,
    "403 Forbidden": _MORE_RIGHTS,
    "AccessDenied": _MORE_RIGHTS,
}
"""What errors say, and what to do about it."""

_MISSING = ("Not found: ", "was not found", "no longer exists", "No such file or directory")
_DAMAGED = ("LanceError(IO)", "corrupt", "External error", "panic")
_PANIC = "PanicException"  # of Rust, which is no `Exception` and of no class to import
_LIBRARIES = ("lance", "lancedb")


def translates_errors(call: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A function that raises StorageError when storage refuses a write, TableError when a table or a file of
    it is gone or damaged, and InvalidInputError for arguments of other types than it takes and for what
    LanceDB says of arguments.

    Args:
        call: leaves intact what was there, whenever it fails. Errors that do not come from LanceDB pass, if
            its arguments are what it takes.
    """
    early = needs_early_look(call)

    @functools.wraps(call)
    def named(*arguments: Parameters.args, **settings: Parameters.kwargs) -> Result:
        try:
            if early:
                refuse_wrong(call, arguments, settings, early=True)
            return call(*arguments, **settings)
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, RQMoEError):
                refuse_wrong(call, arguments, settings)
            words = translated_error(error, arguments[0] if arguments else None)
            if words is None:
                raise
            raise words from error

    named.__dict__["names_refusals"] = True
    return named


def translate_errors_of(items: Iterable[Result], place: object) -> Iterator[Result]:
    """The items, raising what `names_refusals` would when they are read after the call that gave them."""
    try:
        yield from items
    except Exception as error:
        words = translated_error(error, place)
        if words is None:
            raise
        raise words from error


class TranslatesErrors:
    """A class all of whose public methods, and those of classes that derive from it, name refusals."""

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        for name, member in list(vars(cls).items()):
            if not name.startswith("_") or name in ("__len__", "__repr__", "__init__"):
                setattr(cls, name, _translating(member))


def _translating(member: Any) -> Any:
    """A method or property as it is put into a class, naming refusals; anything else as it is."""
    if isinstance(member, property) and member.fget is not None:
        return property(translates_errors(member.fget), member.fset, member.fdel, member.__doc__)
    if isinstance(member, classmethod):
        return classmethod(translates_errors(member.__func__))
    if inspect.isfunction(member) and not inspect.iscoroutinefunction(member):
        return translates_errors(member)
    return member


def translated_error(error: BaseException, place: object = None) -> RQMoEError | None:
    """What to raise instead of an error of LanceDB's; None for one that is ours, or nothing to do with it.

    Args:
        error: as it was caught.
        place: a table, or what belongs to one, for messages.
    """
    is_panic = type(error).__name__ == _PANIC
    if isinstance(error, RQMoEError) or not (is_panic or isinstance(error, Exception)):
        return None
    text = str(error)
    refusal = _among(_REMEDIES, text)
    if refusal is not None and isinstance(error, OSError | RuntimeError):
        return StorageError(
            f"Storage refused a write: {refusal}. What was there before is intact; {_REMEDIES[refusal]}, and "
            f"try again. In the words of the storage: {error}"
        )
    if not is_panic and not _is_from_lance(error):
        return None
    name = _name_of(place)
    if is_gone(error):
        return TableError(
            f"{name} cannot be found any more, or not all of its files: it was dropped or renamed after it "
            "was opened, or files of it were removed. Open another table, or restore this one from a copy. "
            f"In LanceDB's words: {error}"
        )
    if not is_panic and not isinstance(error, OSError | RuntimeError) and _among(_DAMAGED, text) is None:
        return InvalidInputError(f"LanceDB refuses what was asked of {name[0].lower()}{name[1:]}: {error}")
    return TableError(
        f"{name} cannot be worked with as asked. verify() says whether it is intact, and list_versions() "
        f"which versions can be restored. In LanceDB's words: {error}"
    )


def is_gone(error: BaseException) -> bool:
    """Whether LanceDB says that a table, or a file of it, is not there."""
    return _among(_MISSING, str(error)) is not None


def _among(parts: Iterable[str], text: str) -> str | None:
    return next((part for part in parts if part.lower() in text.lower()), None)


def _name_of(place: object) -> str:
    """What a message calls the table: nothing is read for it, as that may be what fails."""
    table = getattr(place, "_handle", place)
    name = getattr(getattr(table, "table", None) or getattr(table, "_table", None), "name", None)
    return f"Table {name!r}" if isinstance(name, str) else "The table"


def _is_from_lance(error: BaseException) -> bool:
    """Whether LanceDB, Lance or Arrow raised it, rather than called what did."""
    if str(error).startswith(("lance error", "LanceError", "External error")):
        return True
    *_, last = ("", *_frames(error.__traceback__))
    modules = (sys.modules.get(library) for library in _LIBRARIES)  # not imported here: codecs do without
    folders = tuple(f"{Path(module.__file__).parent}/" for module in modules if module and module.__file__)
    return last.startswith("pyarrow") or (bool(folders) and last.startswith(folders))


def _frames(trace: TracebackType | None) -> Iterator[str]:
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename
        trace = trace.tb_next
