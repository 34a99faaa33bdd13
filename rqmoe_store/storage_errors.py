"""Storage errors: errors of LanceDB, disks and buckets, translated to ours with the name of the table.

LanceDB and Lance raise OSError, RuntimeError or ValueError for all of them, and give the reason only as text.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from rqmoe_store.arguments import check_arguments, has_early_checks
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
"""Text in an error -> what to do about it."""

_MISSING = ("Not found: ", "was not found", "no longer exists", "No such file or directory")
_DAMAGED = ("LanceError(IO)", "corrupt", "External error", "panic", "not appear to be a Lance file")
_PANIC = "PanicException"  # of Rust: not an `Exception`, and its class cannot be imported
_LIBRARIES = ("lance", "lancedb")


def translates_errors(call: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorate a function to translate errors of LanceDB and to check its arguments.

    It then raises StorageError if storage refuses a write, TableError if the table or one of its files is
    gone or damaged, and InvalidInputError for arguments that do not fit its annotations or that LanceDB
    refuses. Errors from elsewhere pass, if the arguments fit.

    Args:
        call: a function that leaves what was stored intact whenever it fails, as the messages promise.
    """
    early = has_early_checks(call)

    @functools.wraps(call)
    def translating(*arguments: Parameters.args, **settings: Parameters.kwargs) -> Result:
        try:
            if early:
                check_arguments(call, arguments, settings, early=True)
            return call(*arguments, **settings)
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, RQMoEError):
                check_arguments(call, arguments, settings)
            translated = translated_error(error, arguments[0] if arguments else None)
            if translated is None:
                raise
            raise translated from error

    translating.__dict__["translates_errors"] = True
    return translating


def translate_errors_of(items: Iterable[Result], place: object) -> Iterator[Result]:
    """Yield the items, and translate errors that occur after the call that returned them, on reading."""
    try:
        yield from items
    except Exception as error:
        translated = translated_error(error, place)
        if translated is None:
            raise
        raise translated from error


class TranslatesErrors:
    """Base class whose subclasses have all their public methods decorated with `translates_errors`."""

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        for name, member in list(vars(cls).items()):
            if not name.startswith("_") or name in ("__len__", "__repr__", "__init__"):
                setattr(cls, name, _translating(member))


def _translating(member: Any) -> Any:
    """A member of a class, decorated if it is a method or property, else as it is."""
    if isinstance(member, property) and member.fget is not None:
        return property(translates_errors(member.fget), member.fset, member.fdel, member.__doc__)
    if isinstance(member, classmethod):
        return classmethod(translates_errors(member.__func__))
    if inspect.isfunction(member) and not inspect.iscoroutinefunction(member):
        return translates_errors(member)
    return member


def translated_error(error: BaseException, place: object = None) -> RQMoEError | None:
    """The error to raise instead of one of LanceDB; None for our own errors and those from elsewhere.

    Args:
        error: the error that was caught.
        place: a table, or an object that belongs to one, to name in messages.
    """
    is_panic = type(error).__name__ == _PANIC
    if isinstance(error, RQMoEError) or not (is_panic or isinstance(error, Exception)):
        return None
    text = str(error)
    refusal = _among(_REMEDIES, text)
    # Only storage raises an OSError with such a text. Others, such as CUDA's, raise RuntimeErrors with it.
    by_storage = isinstance(error, OSError) or (isinstance(error, RuntimeError) and _is_from_lance(error))
    if refusal is not None and by_storage:
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
    """Whether LanceDB says that a table, or one of its files, is missing."""
    return _among(_MISSING, str(error)) is not None


def _among(parts: Iterable[str], text: str) -> str | None:
    return next((part for part in parts if part.lower() in text.lower()), None)


def _name_of(place: object) -> str:
    """The table as messages name it. This reads nothing, since reading may be what fails."""
    table = getattr(place, "_handle", place)
    name = getattr(getattr(table, "table", None) or getattr(table, "_table", None), "name", None)
    return f"Table {name!r}" if isinstance(name, str) else "The table"


def _is_from_lance(error: BaseException) -> bool:
    """Whether LanceDB, Lance or Arrow raised the error itself, rather than called the code that did."""
    if str(error).startswith(("lance error", "LanceError", "External error")):
        return True
    *_, last = ("", *_frames(error.__traceback__))
    modules = (sys.modules.get(library) for library in _LIBRARIES)  # not imported: codecs work without them
    folders = tuple(f"{Path(module.__file__).parent}/" for module in modules if module and module.__file__)
    return last.startswith("pyarrow") or (bool(folders) and last.startswith(folders))


def _frames(trace: TracebackType | None) -> Iterator[str]:
    while trace is not None:
        yield trace.tb_frame.f_code.co_filename
        trace = trace.tb_next
