"""Other processes, which start in milliseconds.

Importing the package takes seconds. So one process imports it, uses nothing of it, and forks the others:
Lance cannot be used in a process that was forked from one which has used it.
"""

import concurrent.futures
import contextlib
import io
import multiprocessing
import sys
from pathlib import Path

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["rqmoe_store.tables", "rqmoe_store.training.trainer", "pytest"])


def run_script(script: str, *arguments: object) -> str:
    """What Python source prints when it runs in another process; raises what it raises."""
    texts = [str(argument) for argument in arguments]
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=processes) as pool:
        return pool.submit(_run, script, texts).result()


def _run(script: str, arguments: list[str]) -> str:
    sys.argv = ["script", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(script, "script", "exec"), {"__name__": "__main__"})
    return printed.getvalue()


def run_file(path: Path, folder: Path) -> str:
    """What a file of Python source prints when it runs in another process, in a folder."""
    return run_script(f"import os; os.chdir({str(folder)!r})\n{path.read_text()}")
