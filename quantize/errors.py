"""What can go wrong, and the exit code each kind ends the program with.

Anything that is not a ``QuantwrightError`` is a bug of ours and keeps its traceback.
"""

from quantize.terminal import printable


class QuantwrightError(Exception):
    """A message for the person: which thing, what was expected, what to do. One line, without control
    characters or secrets."""

    exit_code = 1

    def __init__(self, message: object = ""):
        super().__init__(printable(message))


class BadInput(QuantwrightError):
    """What was given cannot be used: a file, an option, a value."""

    exit_code = 2


class Unsupported(QuantwrightError):
    """The combination asked for cannot be made, and that is known before work starts."""

    exit_code = 2


class StepFailed(QuantwrightError):
    """Work started and did not succeed."""

    exit_code = 1


def one_line(error: Exception) -> str:
    """Our own message; of anybody else's error its kind and first line."""
    if isinstance(error, QuantwrightError):
        return str(error)
    kind, line = type(error).__name__, first_line(error)
    return line if line == kind else f"{kind}: {line}"


def first_line(error: BaseException, limit: int = 400) -> str:
    """The first line of a library's error, for our message; its class name where it is empty."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[0], limit)
