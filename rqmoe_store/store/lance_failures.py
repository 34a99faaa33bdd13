"""What Lance raises when it meets data that it did not write."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise RuntimeError for a panic inside Lance, which is no `Exception` and of no class to import."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(f"Lance met data it cannot make sense of: {error}") from error
