"""Figure of blocks and block tables: the whole cache at one step of a run, and the slot of a position."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from figures.engine_run import BLOCK_SIZE, NUM_BLOCKS, PROMPTS, Call
from labkit.pictures.drawing import FAINT, INK, MARGIN, MUTED, PAPER, WIDTH, element, label, plate, svg_root, svg_text

CELL, LINE, GAP = 31, 26, 16
PER_LINE = 5
"""Blocks in a line."""
TABLE = 214
"""x of the first entry of a block table, in pixels."""


def draw_blocks(calls: Sequence[Call]) -> str:
    """Draws the first step in which two requests share a block."""
    number, call = next((number, call) for number, call in enumerate(calls, 1) if shared_blocks(call))
    shared = shared_blocks(call)
    names = ", ".join(call.tables)
    title = "Blocks, block tables and slots"
    about = (
        f"Step {number} of a run of mini_vllm: {NUM_BLOCKS} blocks of {BLOCK_SIZE} slots. "
        + " ".join(f"Request {name} holds blocks {', '.join(map(str, table))}." for name, table in call.tables.items())
        + f" Blocks {' and '.join(map(str, shared))} are in two tables."
    )
    root = svg_root(title, about, "blocks")
    label(root, title, MARGIN, 28, 16, INK, font_weight="bold")
    label(
        root,
        f"The cache of one layer after step {number} of a real run, requests {names}: {NUM_BLOCKS} blocks of {BLOCK_SIZE} slots.",
        MARGIN,
        47,
    )
    y = 62.0
    held = _held(calls[:number])
    for block in range(NUM_BLOCKS):
        line, column = divmod(block, PER_LINE)
        _block(root, block, held, call, MARGIN + column * (BLOCK_SIZE * CELL + GAP + 12), y + line * 62)
    y += 62 * -(-NUM_BLOCKS // PER_LINE) + 12
    label(
        root,
        "block tables: the blocks of each request, in the order of its positions",
        MARGIN,
        y + 4,
        12,
        INK,
        font_weight="bold",
    )
    y += 14
    for name, table in call.tables.items():
        _table(root, name, table, shared, y)
        y += 36
    last = call.rows[-1]
    index, offset = divmod(last.position, BLOCK_SIZE)
    block = call.tables[last.request][index]
    y += 12
    said = (
        f"Where does position {last.position} of {last.request} live?  {last.position} // {BLOCK_SIZE} = {index}: "
        f"entry {index} of its table, block {block}.  "
        f"{last.position} % {BLOCK_SIZE} = {offset}:  slot {block} * {BLOCK_SIZE} + {offset} = {last.slot}."
    )
    label(root, said, MARGIN, y, 12, INK)
    name, count = next(iter(call.cached.items()))
    y += 18
    said = (
        f"{name} begins with the same {count} tokens as b: it was given b's blocks, and none of these tokens was computed twice."
    )
    label(root, said, MARGIN, y, 12, INK)
    return svg_text(root, WIDTH, y + MARGIN)


def shared_blocks(call: Call) -> list[int]:
    """Returns the blocks that are in more than one block table."""
    holders: dict[int, int] = defaultdict(int)
    for table in call.tables.values():
        for block in table:
            holders[block] += 1
    return sorted(block for block, count in holders.items() if count > 1)


def _held(calls: Sequence[Call]) -> dict[int, tuple[str, int]]:
    """Returns slot -> (request, position) of the key and value that were written last."""
    return {row.slot: (row.request, row.position) for call in calls for row in call.rows}


def _block(root: ET.Element, block: int, held: dict[int, tuple[str, int]], call: Call, x: float, y: float) -> None:
    holders = [name for name, table in call.tables.items() if block in table]
    label(root, f"block {block}", x, y + 10, 11, INK, font_weight="bold")
    label(root, ", ".join(holders) if holders else "free", x + BLOCK_SIZE * CELL, y + 10, 11, text_anchor="end")
    for offset in range(BLOCK_SIZE):
        left, slot = x + offset * CELL, block * BLOCK_SIZE + offset
        who = held.get(slot)
        mine = who is not None and who[0] in holders
        fill = f"url(#tone{list(PROMPTS).index(who[0])})" if who and mine else PAPER
        element(
            root,
            "rect",
            x=left,
            y=y + 15,
            width=CELL,
            height=LINE,
            fill=fill,
            stroke=MUTED if holders else FAINT,
            stroke_width=0.8,
        )
        if who and mine:
            plate(root, f"{who[0]}{who[1]}", left + CELL / 2, y + 15 + LINE / 2)
        label(root, str(slot), left + CELL / 2, y + LINE + 26, 10, text_anchor="middle")


def _table(root: ET.Element, name: str, table: Sequence[int], shared: Sequence[int], y: float) -> None:
    tone = f"url(#tone{list(PROMPTS).index(name)})"
    element(root, "rect", x=MARGIN, y=y, width=26, height=LINE, fill=tone, stroke=MUTED, stroke_width=0.8)
    plate(root, name, MARGIN + 13, y + LINE / 2)
    label(root, "block table of request " + name, MARGIN + 36, y + 17, 12, INK)
    for index, block in enumerate(table):
        left = TABLE + index * 150
        stroke, width = (INK, 2.0) if block in shared else (MUTED, 0.8)
        element(root, "rect", x=left, y=y, width=34, height=LINE, fill=PAPER, stroke=stroke, stroke_width=width)
        label(root, str(block), left + 17, y + 17, 12, INK, text_anchor="middle", font_weight="bold")
        first = index * BLOCK_SIZE
        label(root, f"positions {first}-{first + BLOCK_SIZE - 1}", left + 40, y + 12, 10)
        if block in shared:
            label(root, "shared", left + 40, y + 24, 10, INK, font_weight="bold")
