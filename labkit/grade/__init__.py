"""Grading a class: ``./lab grade``. README.md is for whoever teaches."""


class GradingError(Exception):
    """A class, or a report, that cannot be used; the message says why and what to do next."""
