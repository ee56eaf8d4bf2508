"""Draws a step trace as one picture: a row per request, a column per step.

>>> from labkit.timeline import draw, read, write
>>> write(draw(read(Path("run.jsonl")), "run.jsonl"), Path("run.svg"))  # doctest: +SKIP

A trace is *read* (read.py), turned into *rows* (rows.py), and *drawn* (draw.py, with layout.py, glyphs.py and charts.py) or told
in words (table.py).
"""

from labkit.timeline.draw import draw, write
from labkit.timeline.fields import TimelineError
from labkit.timeline.read import StepTrace, read
from labkit.timeline.table import show

__all__ = ["StepTrace", "TimelineError", "draw", "read", "show", "write"]
