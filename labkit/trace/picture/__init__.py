"""Draws a traced load: a bar for each parameter on each rank, cut into the slices that were copied into it.

    model.layers.0.self_attn.qkv_proj.weight (3072, 4096)
    rank 0   [ q_proj 0:2048            | k_proj | v_proj ]      lengths are rows, or columns where those are cut

>>> from labkit.trace.picture import html, svg
>>> page = html(trace, verify(trace))  # doctest: +SKIP

A trace becomes *bars* (bars.py) with what is to say of them (words.py), and those a page (page.py, page.css, page.js) or a still
picture (still.py).
"""

from labkit.trace.picture.page import html
from labkit.trace.picture.still import svg

__all__ = ["html", "svg"]
