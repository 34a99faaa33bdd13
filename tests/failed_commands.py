"""What a command says when it fails."""

from click.testing import Result


def message_of(run: Result, *, before: str) -> str:
    """The message of a mistake, which is found before the command says that it is `before`."""
    assert run.exit_code == 1, run.output
    assert run.stdout == ""
    assert before not in run.stderr and "Traceback" not in run.stderr
    return " ".join(run.stderr.split())
