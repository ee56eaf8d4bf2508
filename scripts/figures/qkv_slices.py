"""Figure of the qkv slices: the heads of q, k and v on each rank, from traces of the real vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree import ElementTree as ET

from labkit.load.trace.records import Record, Trace
from labkit.pictures.drawing import INK, MARGIN, MUTED, WIDTH, element, label, plate, svg_root, svg_text

LINE, LEFT, ROOM = 26, 84, 690
"""Height of a bar, x of its start, and length of the longest bar, in pixels."""
PER_LINE, CELL = 8, 95
"""Ranks in a line if there are many, and the pixels from one to the next."""
SHARDS = ("q", "k", "v")


def draw_qkv_slices(traces: Sequence[Trace], layer: int = 0) -> str:
    """Draws the figure.

    Args:
        traces: of the same model, the first at TP 1; all ranks of each.
    """
    loads = [_by_rank(trace, layer) for trace in traces]
    whole, head = loads[0][0], traces[0].head_size or 1
    rows = whole["q"].parameter_shape[0]
    pixels = ROOM / rows
    shape = {
        size: f"({load[0]['q'].parameter_shape[0]}, {load[0]['q'].parameter_shape[1]})"
        for size, load in zip(map(len, loads), loads, strict=True)
    }
    title = f"qkv_proj of {traces[0].model} at TP {', '.join(map(str, shape))}"
    about = f"Traced from vLLM {traces[0].vllm}'s own load. " + " ".join(
        f"At TP {len(load)} the parameter is {shape[len(load)]}; rank {rank} holds {_heads(load[rank], head)}."
        for load in loads
        for rank in (0, len(load) - 1)
    )
    root = svg_root(title, about, "qkv")
    label(root, title, MARGIN, 28, 16, INK, font_weight="bold")
    told = f"Traced from vLLM {traces[0].vllm}'s own load, true to scale; a head is {head} rows. Numbers in a slice are heads."
    label(root, told, MARGIN, 47)
    y = 64.0
    label(root, "on disk", MARGIN, y + 17, 12, INK, font_weight="bold")
    left = float(LEFT)
    for shard in SHARDS:
        record = whole[shard]
        count = record.shape[0] // head
        _slice(
            root,
            shard,
            f"{shard}_proj ({record.shape[0]}, {record.shape[1]}), {count} heads" if shard == "q" else f"{shard}_proj, {count}",
            left,
            y,
            record.shape[0] * pixels,
            head * pixels,
        )
        left += record.shape[0] * pixels + 8
    y += LINE + 24
    for load in loads:
        size = len(load)
        label(root, f"TP {size}", MARGIN, y, 12, INK, font_weight="bold")
        label(root, f"qkv_proj {shape[size]} on each rank" if size > 1 else f"qkv_proj {shape[size]}", LEFT, y, 12, INK)
        y = _many(root, load, head, pixels, y + 8) if size > 2 else _few(root, load, head, pixels, y + 8)
    kept = {rank: _span(records["k"].source[0], head) for rank, records in enumerate(loads[-1])}
    same = [str(rank) for rank, heads in kept.items() if heads == kept[0]]
    wrong = rows / len(loads[-1])
    said = (
        f"At TP {len(loads[-1])} there are more ranks than kv heads: ranks {' and '.join(same)} both hold kv head {kept[0]}, "
        "and so on. So a rank has"
    )
    label(root, said, MARGIN, y + 4, 12, INK)
    height = loads[-1][0]["q"].parameter_shape[0]
    parts = " + ".join(str(_rows(loads[-1][0][shard].destination[0])) for shard in SHARDS)
    label(root, f"{parts} = {height} rows, and not {rows} / {len(loads[-1])} = {wrong:g}.", MARGIN, y + 20, 12, INK)
    return svg_text(root, WIDTH, y + 36)


def _by_rank(trace: Trace, layer: int) -> list[Mapping[str, Record]]:
    """Returns the three records of each rank, by shard."""
    found: dict[int, dict[str, Record]] = {}
    for record in trace.records:
        if f"layers.{layer}.self_attn" in record.tensor and record.mapping and record.mapping.shard in SHARDS:
            found.setdefault(record.tp_rank, {})[str(record.mapping.shard)] = record
    return [found[rank] for rank in sorted(found)]


def _few(root: ET.Element, load: Sequence[Mapping[str, Record]], head: int, pixels: float, y: float) -> float:
    """Draws a line for each rank; each slice is labelled with its source rows."""
    for rank, records in enumerate(load):
        label(root, f"rank {rank}", MARGIN, y + 17, 12)
        for shard, record in records.items():
            (start, stop), (first, last) = record.destination[0], record.source[0]
            width = (stop - start) * pixels
            text = f"{shard} {_span((first, last), head)}"
            if width > 200:
                text += f", rows {first}:{last} of {shard}_proj"
            _slice(root, shard, text, LEFT + start * pixels, y, width, head * pixels)
            label(root, str(start), LEFT + start * pixels, y + LINE + 12, 10)
        label(root, str(stop), LEFT + stop * pixels, y + LINE + 12, 10, text_anchor="end")
        y += LINE + 20
    return y + 12


def _many(root: ET.Element, load: Sequence[Mapping[str, Record]], head: int, pixels: float, y: float) -> float:
    """Draws several ranks in a line at the same scale, with the heads as text below each."""
    for rank, records in enumerate(load):
        line, column = divmod(rank, PER_LINE)
        left, top = MARGIN + column * CELL, y + line * 84
        label(root, f"rank {rank}", left, top + 12, 11, INK, font_weight="bold")
        for shard, record in records.items():
            start, stop = record.destination[0]
            _slice(root, shard, shard, left + start * pixels, top + 18, (stop - start) * pixels, head * pixels)
        label(root, f"q {_span(records['q'].source[0], head)}", left, top + LINE + 32, 11, INK)
        label(
            root,
            f"k {_span(records['k'].source[0], head)}  v {_span(records['v'].source[0], head)}",
            left,
            top + LINE + 46,
            11,
            INK,
        )
    return y + 84 * -(-len(load) // PER_LINE) + 12


def _slice(root: ET.Element, shard: str, text: str, x: float, y: float, width: float, head: float) -> None:
    element(
        root, "rect", x=x, y=y, width=width, height=LINE, fill=f"url(#tone{SHARDS.index(shard)})", stroke=INK, stroke_width=0.8
    )
    for number in range(1, round(width / head)):
        element(root, "path", d=f"M{x + number * head:.2f} {y}v5m0 {LINE - 10}v5", stroke=MUTED, stroke_width=0.8)
    if len(text) == 1:
        label(root, text, x + width / 2, y + LINE / 2 + 4, 11, INK, text_anchor="middle")
    else:
        plate(root, text, x + width / 2, y + LINE / 2)


def _span(rows: tuple[int, int], head: int) -> str:
    """Returns ``16-31`` for rows 2048:4096 of heads of 128 rows."""
    first, last = rows[0] // head, rows[1] // head - 1
    return str(first) if first == last else f"{first}-{last}"


def _rows(span: tuple[int, int]) -> int:
    return span[1] - span[0]


def _heads(records: Mapping[str, Record], head: int) -> str:
    return ", ".join(f"{shard} heads {_span(records[shard].source[0], head)}" for shard in SHARDS)
