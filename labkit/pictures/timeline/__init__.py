"""Draws a step trace as one picture: a row per request, a column per step.

>>> from labkit.pictures.timeline import draw, read, write
>>> write(draw(read(Path("run.jsonl")), "run.jsonl"), Path("run.svg"))  # doctest: +SKIP

A trace is *read* (read.py), turned into *rows* (rows.py), and *drawn* (draw.py, with layout.py, glyphs.py and charts.py) or told
in words (table.py).
"""

from labkit.pictures.timeline.draw import draw, write
from labkit.pictures.timeline.read import StepTrace, read
from labkit.pictures.timeline.table import show
from labkit.system.errors import UserError

__all__ = ["StepTrace", "UserError", "draw", "read", "show", "write"]
