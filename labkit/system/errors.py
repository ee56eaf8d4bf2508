"""The base class of errors that the user can fix. Standard library only."""

from __future__ import annotations


class UserError(Exception):
    """An error that the user can fix: the command line prints its message and exits with its status.

    The message says what is wrong, with the numbers, and what to do next. ``status``: exit status; default: the class's.
    """

    status = 1

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status or type(self).status
