"""Draws a traced load: a bar for each parameter on each rank, cut into the slices that were copied into it.

    model.layers.0.self_attn.qkv_proj.weight (3072, 4096)
    rank 1   [     q_proj[2048:4096]     | k_proj[512:1024] | v_proj[512:1024] ]

A slice's label is what was read of the checkpoint tensor; its place in the bar is where that landed, in true proportion.

>>> from labkit.load.trace.page import html, svg
>>> page = html(trace, verify(trace))  # doctest: +SKIP

A trace becomes *bars* (bars.py) with what is to say of them (words.py), and those a page (page.py, page.css, page.js) or a still
picture (still.py).
"""

from labkit.load.trace.page.page import html
from labkit.load.trace.page.still import svg

__all__ = ["html", "svg"]
