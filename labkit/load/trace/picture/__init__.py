"""Draws a traced load: a bar for each parameter on each rank, cut into the slices that were copied into it.

    model.layers.0.self_attn.qkv_proj.weight (3072, 4096)
    rank 1   [     q_proj[2048:4096]     | k_proj[512:1024] | v_proj[512:1024] ]

A slice's label is the part of the checkpoint tensor that was read; its place in the bar is the part of the parameter that was
written, to scale.

layout.py computes bars and slices from a trace, captions.py their text; html_page.py (with page.css and page.js) and
svg_picture.py draw both.
"""

from labkit.load.trace.picture.html_page import draw_html
from labkit.load.trace.picture.svg_picture import draw_svg

__all__ = ["draw_html", "draw_svg"]
