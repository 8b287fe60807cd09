"""The one exception that is meant for the person at the keyboard."""


class PtuneError(ValueError):
    """A user's mistake, or a file that is not what it should be.

    The message says what was met, what was wanted and what to do next. The command line prints
    it and exits with code 2; in Python it is an ordinary `ValueError`.
    """
