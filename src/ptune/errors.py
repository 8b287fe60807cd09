"""What is meant for the person at the keyboard."""


class PtuneError(ValueError):
    """A user's mistake, or a file that is not what it should be.

    The message says what was met, what was wanted and what to do next. The command line prints
    it and exits with code 2; in Python it is an ordinary `ValueError`.
    """


def first_line(error: BaseException) -> str:
    """The first line of what another library said; its name where it said nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
