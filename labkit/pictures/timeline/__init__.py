"""Draws a step trace as one picture: a row per request, a column per step.

>>> from labkit.pictures.timeline import draw, read
>>> Path("run.svg").write_text(draw(read(Path("run.jsonl")), "run.jsonl"))  # doctest: +SKIP
"""

from labkit.pictures.timeline.draw import draw
from labkit.pictures.timeline.read import StepTrace, read
from labkit.pictures.timeline.summary import show

__all__ = ["StepTrace", "draw", "read", "show"]
